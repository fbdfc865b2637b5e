//! The keeper of a volume alone, for tests of the server; the product runs it as `nullspace keeper`.

use std::{path::Path, process::ExitCode};

fn main() -> ExitCode {
    let directory = std::env::args_os().nth(1).unwrap_or_default();
    match nullspace_keeper::main(Path::new(&directory)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
