//! The published clients and other programs from PyPI, each in a Python environment of its own, made when a test first
//! needs it.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Command,
};

use rustix::fs::{FlockOperation, flock};

use crate::{
    host::run,
    world::{World, repository},
};

/// The Python with `nullspace-sdk` 0.1.9.
pub fn python() -> PathBuf {
    environment(
        "NULLSPACE_TEST_PYTHON",
        "0.1.9",
        "nullspace-sdk[cli]==0.1.9",
    )
}

/// The Python with `nullspace-sdk` 1.0.3.
pub fn next_python() -> PathBuf {
    environment(
        "NULLSPACE_TEST_PYTHON_NEXT",
        "1.0.3",
        "nullspace-sdk[cli]==1.0.3",
    )
}

/// The Python with what other programs read us with: Prometheus' own parser.
pub fn tools_python() -> PathBuf {
    environment(
        "NULLSPACE_TEST_PYTHON_TOOLS",
        "tools",
        "prometheus-client==0.22.1",
    )
}

/// The Python with what makes requests of an OpenAPI document.
pub fn schema_python() -> PathBuf {
    environment(
        "NULLSPACE_TEST_PYTHON_SCHEMA",
        "schema",
        "schemathesis==4.32.5",
    )
}

/// The Python that the variable names, or the one that `./test` makes; made here if it has not.
fn environment(variable: &str, name: &str, package: &str) -> PathBuf {
    if let Some(path) = std::env::var_os(variable) {
        return path.into();
    }
    install(&repository().join("target/clients"), name, package)
}

/// The Python with a package, in a directory of its own in this one.
fn install(all: &Path, name: &str, package: &str) -> PathBuf {
    let at = all.join(name);
    std::fs::create_dir_all(all).unwrap();
    // Programs in an environment name its path, so it cannot be made elsewhere and moved: a mark says it is whole.
    let lock = File::create(all.join(format!("{name}.lock"))).unwrap();
    flock(&lock, FlockOperation::LockExclusive).unwrap();
    if !at.join(".ready").exists() {
        if at.exists() {
            std::fs::remove_dir_all(&at).unwrap();
        }
        // The system's: one of another manager may not have `venv`.
        run("/usr/bin/python3", &["-m", "venv", at.to_str().unwrap()]);
        let pip = at.join("bin/pip");
        let arguments = ["install", "--quiet", "--disable-pip-version-check", package];
        run(pip.to_str().unwrap(), &arguments);
        File::create(at.join(".ready")).unwrap();
    }
    at.join("bin/python")
}

/// The published command line beside a Python.
pub fn published(world: &World, python: &Path) -> Command {
    world.isolated(python.with_file_name("nullspace"))
}

/// Runs one of `tests/python/*.py` to its end.
pub fn script(world: &World, python: &Path, name: &str, arguments: &[&Path]) {
    let done = world
        .isolated(python)
        .arg(repository().join("tests/python").join(name))
        .args(arguments)
        .env("TMPDIR", world.home())
        .output()
        .unwrap();
    assert!(
        done.status.success(),
        "{name}:\n{}{}",
        String::from_utf8_lossy(&done.stdout),
        String::from_utf8_lossy(&done.stderr)
    );
}
