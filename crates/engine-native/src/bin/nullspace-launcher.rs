//! The launcher alone, for tests and benchmarks of the engine; the product runs it as `nullspace launcher`.

fn main() -> std::process::ExitCode {
    let config = std::env::args().nth(1).unwrap_or_default();
    match nullspace_engine_native::launcher_main(&config) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            std::process::ExitCode::FAILURE
        }
    }
}
