//! The shared vector: one small project whose digests and archive every implementation must produce.

use nullspace_project::{AgentConfig, Bundle, verify_archive};
use sha2::{Digest as _, Sha256};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

fn project(root: &Path) {
    let write = |name: &str, content: &str, mode: u32| {
        std::fs::write(root.join(name), content).expect("a file");
        std::fs::set_permissions(root.join(name), std::fs::Permissions::from_mode(mode))
            .expect("its mode");
    };
    std::fs::create_dir(root.join("a")).expect("a directory");
    std::fs::set_permissions(root.join("a"), std::fs::Permissions::from_mode(0o755))
        .expect("its mode");
    write("a/x", "1\n", 0o644);
    write("a-b", "2\n", 0o755);
    symlink("a/x", root.join("l")).expect("a symlink");
}

#[test]
fn golden_vector() {
    let dir = tempfile::tempdir().expect("a directory");
    project(dir.path());
    let config = AgentConfig::from_toml("name = 'n'\nentrypoint = 'e'\n").expect("a config");
    assert_eq!(
        config.config_digest(),
        "9f54d65060a7754bfb27f62ed6ef6916ce76366808264a6ab7c26dbfb86348f0"
    );

    let bundle = Bundle::build(dir.path(), &config).expect("a bundle");
    let manifest = bundle.manifest();
    let paths: Vec<_> = manifest
        .entries
        .iter()
        .map(|entry| entry.path.as_str())
        .collect();
    assert_eq!(paths, ["a", "a/x", "a-b", "l"]);
    assert_eq!(
        manifest.bundle_digest,
        "0868c1865bfcfd13d29bc7df1de7d57a9af71952fc443daef234a246922872a0"
    );
    assert_eq!((manifest.total_size, manifest.file_count), (4, 3));

    let mut archive = Vec::new();
    bundle.write_archive(&mut archive).expect("an archive");
    assert_eq!(archive.len() as u64, bundle.archive_len());
    assert_eq!(archive.len(), 10_240);
    assert_eq!(
        hex::encode(Sha256::digest(&archive)),
        "0630efa48157b3ec5725aed4f7feaff5131394384318de103f21ead8a28788b2"
    );

    let stats = verify_archive(archive.as_slice(), manifest).expect("a good archive");
    assert_eq!((stats.dirs, stats.files, stats.symlinks), (1, 2, 1));
    assert_eq!((stats.content_bytes, stats.archive_bytes), (4, 10_240));
}

#[test]
fn manifest_fields_are_those_on_the_wire() {
    let dir = tempfile::tempdir().expect("a directory");
    project(dir.path());
    let config =
        AgentConfig::from_toml("name = 'n'\nentrypoint = 'e'\n[bundle]\nexclude = ['a-b']")
            .expect("a config");
    let bundle = Bundle::build(dir.path(), &config).expect("a bundle");
    let mut value = serde_json::to_value(bundle.manifest()).expect("json");
    let generated_at = value["generated_at"].take();
    let generated_at = generated_at.as_str().expect("a time");
    assert!(
        generated_at.len() == 27 && generated_at.ends_with('Z'),
        "{generated_at}"
    );
    assert_eq!(value["archive_format"], "tar");
    assert_eq!(value["materialization_path"], "/workspace/project");
    assert_eq!(value["exclude_patterns"], serde_json::json!(["a-b"]));
    assert_eq!(
        value["default_exclude_patterns"].as_array().map(Vec::len),
        Some(20)
    );
    assert_eq!(
        value["entries"],
        serde_json::json!([
            {"path": "a", "kind": "dir", "included": true, "reason": "included", "size": 0, "mode": 0o755},
            {"path": "a/x", "kind": "file", "included": true, "reason": "included", "size": 2, "mode": 0o644,
             "digest": "4355a46b19d348dc2f57c046f8ef63d4538ebb936000f3c9ee954a27460dd865"},
            {"path": "a-b", "kind": "file", "included": false, "reason": "excluded by bundle.exclude", "size": 2,
             "mode": 0o755},
            {"path": "l", "kind": "symlink", "included": true, "reason": "included", "size": 0, "mode": 0o777,
             "digest": hex::encode(Sha256::digest("a/x")), "symlink_target": "a/x"},
        ])
    );
    assert!(bundle.manifest().validate().is_ok());
}
