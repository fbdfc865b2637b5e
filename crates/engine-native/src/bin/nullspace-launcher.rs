//! The launcher alone, for tests and benchmarks of the engine; the product runs it as `nullspace launcher`.

fn main() -> std::process::ExitCode {
    match nullspace_engine_native::launcher_main() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            std::process::ExitCode::FAILURE
        }
    }
}
