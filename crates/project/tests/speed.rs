//! A project of 10,000 files and 100 MB against `tar c | sha256sum` on the same tree. Not a check, a number:
//! `cargo test --release -p nullspace-project --test speed -- --ignored --nocapture`.

use nullspace_project::{AgentConfig, Bundle, verify_archive};
use std::fs;
use std::process::Command;
use std::time::Instant;

#[test]
#[ignore = "a measurement"]
fn ten_thousand_files() {
    let project = tempfile::tempdir().expect("a directory");
    let content: Vec<u8> = (0..10_000u32)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    for dir in 0..100 {
        let dir = project.path().join(format!("package-{dir}/src"));
        fs::create_dir_all(&dir).expect("a directory");
        for file in 0..100 {
            fs::write(dir.join(format!("module_{file}.py")), &content).expect("a file");
        }
    }
    fs::write(project.path().join(".gitignore"), "*.log\n/target\ntmp/\n").expect("a file");
    let config = AgentConfig::default();

    for round in 0..3 {
        let start = Instant::now();
        let status = Command::new("sh")
            .args(["-c", "tar c . | sha256sum"])
            .current_dir(project.path())
            .output()
            .expect("tar");
        assert!(status.status.success());
        let tar = start.elapsed();

        let start = Instant::now();
        let bundle = Bundle::build(project.path(), &config).expect("a bundle");
        let built = start.elapsed();
        let mut archive = Vec::with_capacity(bundle.archive_len() as usize);
        let start = Instant::now();
        bundle.write_archive(&mut archive).expect("an archive");
        let archived = start.elapsed();
        let start = Instant::now();
        verify_archive(archive.as_slice(), bundle.manifest()).expect("good");
        let verified = start.elapsed();
        println!(
            "round {round}: tar c | sha256sum {tar:?}; build {built:?} + archive {archived:?} = {:.2}x; verify {verified:?}",
            (built + archived).as_secs_f64() / tar.as_secs_f64(),
        );
    }
}
