//! The launcher alone, for tests and benchmarks of the engines; the product runs it as `nullspace launcher`. As there,
//! the same program is the guest of machines with a kernel of their own.

fn main() -> std::process::ExitCode {
    let done = match std::env::args().nth(1).as_deref() {
        Some("guest") => nullspace_guest::main(),
        _ => nullspace_engine_native::launcher_main(),
    };
    match done {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            std::process::ExitCode::FAILURE
        }
    }
}
