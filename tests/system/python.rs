//! The published clients, in Python environments that `./test` makes.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use crate::world::{World, repository};

/// The Python with `nullspace-sdk` 0.1.9.
pub fn python() -> PathBuf {
    environment("NULLSPACE_TEST_PYTHON")
}

/// The Python with `nullspace-sdk` 1.0.3.
pub fn next_python() -> PathBuf {
    environment("NULLSPACE_TEST_PYTHON_NEXT")
}

fn environment(name: &str) -> PathBuf {
    let path = std::env::var_os(name).unwrap_or_else(|| {
        panic!("{name} is not set: run ./test, which installs the published clients")
    });
    PathBuf::from(path)
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
