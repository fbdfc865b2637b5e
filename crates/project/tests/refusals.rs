//! Projects that cannot be bundled, and files that change under the bundler's hands.

use nullspace_project::{AgentConfig, BuildError, Bundle};
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

#[test]
fn changes_after_hashing_are_noticed() {
    type Change = (&'static str, fn(&Path));
    let change: [Change; 5] = [
        ("same length", |path| {
            fs::write(path, "two").expect("a write")
        }),
        ("longer", |path| fs::write(path, "three").expect("a write")),
        ("gone", |path| fs::remove_file(path).expect("a removal")),
        ("a link", |path| {
            fs::remove_file(path).expect("a removal");
            symlink("other", path).expect("a symlink");
        }),
        ("replaced", |path| {
            fs::write(path.with_extension("new"), "two").expect("a write");
            fs::rename(path.with_extension("new"), path).expect("a rename");
        }),
    ];
    for (what, change) in change {
        let project = tempfile::tempdir().expect("a directory");
        let path = project.path().join("file");
        fs::write(&path, "one").expect("a file");
        fs::write(project.path().join("other"), "one").expect("a file");
        let bundle = Bundle::build(project.path(), &AgentConfig::default()).expect("a bundle");
        // Past the tick the file system stamps changes with.
        std::thread::sleep(std::time::Duration::from_millis(20));
        change(&path);
        let error = bundle.write_archive(io::sink()).expect_err(what);
        assert!(
            matches!(&error, BuildError::Changed(path) if path == "file"),
            "{what}: {error}"
        );
    }
}

#[test]
fn special_files_and_links_out_are_refused_even_when_left_out() {
    let config =
        AgentConfig::from_toml("name='n'\nentrypoint='e'\nbundle.exclude=['x']").expect("a config");
    let project = tempfile::tempdir().expect("a directory");
    let path = project.path().join("x");
    symlink("../y", &path).expect("a symlink");
    let error = Bundle::build(project.path(), &config).expect_err("leads out");
    assert_eq!(
        error.to_string(),
        "agent bundle symlink x escapes the project"
    );
    fs::remove_file(&path).expect("a removal");
    std::os::unix::net::UnixListener::bind(&path).expect("a socket");
    let error = Bundle::build(project.path(), &config).expect_err("a socket");
    assert_eq!(
        error.to_string(),
        "agent bundles do not support special file x"
    );
}
