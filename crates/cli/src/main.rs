//! The program `nullspace`; all of it is in the library.

fn main() -> std::process::ExitCode {
    nullspace_cli::run(std::env::args_os())
}
