//! What is bundled verifies, unpacks to the same tree, and bundles to the same digest again.

mod common;

use common::{Tar, dir, file, manifest, small};
use nullspace_project::{
    AgentConfig, Bundle, Entry, Manifest, Stats, extract_archive, verify_archive,
};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

#[test]
fn members_may_come_in_any_order() {
    let (manifest, _) = small();
    let archive = Tar::default()
        .link("l", "a")
        .file("a/x", "1")
        .dir("a")
        .end();
    let stats = Stats {
        dirs: 1,
        files: 1,
        symlinks: 1,
        content_bytes: 1,
        archive_bytes: archive.len() as u64,
    };
    assert_eq!(
        verify_archive(archive.as_slice(), &manifest).expect("good"),
        stats
    );
    let root = tempfile::tempdir().expect("a directory");
    let opened = File::open(root.path()).expect("the directory");
    assert_eq!(
        extract_archive(archive.as_slice(), &manifest, &opened).expect("good"),
        stats
    );
    assert_eq!(
        fs::read_to_string(root.path().join("l/x")).expect("through the link"),
        "1"
    );
}

#[test]
fn modes_are_set_and_set_id_bits_dropped() {
    let manifest = manifest(vec![
        Entry {
            mode: Some(0o1555),
            ..dir("d")
        },
        Entry {
            mode: Some(0o4751),
            ..file("d/f", "1")
        },
        Entry {
            mode: Some(0),
            ..file("z", "")
        },
        file("implied/by/x", ""),
    ]);
    let archive = Tar::default()
        .member("d/f", b'0', 0o751, "1", "")
        .member("d/", b'5', 0o555, "", "")
        .file("z", "")
        .file("implied/by/x", "")
        .end();
    let root = tempfile::tempdir().expect("a directory");
    let opened = File::open(root.path()).expect("the directory");
    extract_archive(archive.as_slice(), &manifest, &opened).expect("good");
    for (path, mode) in [
        ("d", 0o555),
        ("d/f", 0o751),
        ("z", 0o644),
        ("implied", 0o755),
        ("implied/by", 0o755),
    ] {
        let found = fs::metadata(root.path().join(path))
            .expect(path)
            .permissions()
            .mode()
            & 0o7777;
        assert_eq!(found, mode, "{path}");
    }
    fs::set_permissions(root.path().join("d"), fs::Permissions::from_mode(0o755))
        .expect("so it can be removed");
}

/// One thing in a random project.
#[derive(Debug, Clone)]
enum Node {
    Dir(BTreeMap<String, Node>, u32),
    File(Vec<u8>, u32),
    Link(String),
}

fn node() -> impl Strategy<Value = Node> {
    let content = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..40),
        (500usize..1100, any::<u8>()).prop_map(|(size, byte)| vec![byte; size]),
        (130_000usize..270_000, any::<u8>()).prop_map(|(size, byte)| vec![byte; size]),
    ];
    let leaf = prop_oneof![
        4 => (content, 0o400u32..0o1000).prop_map(|(content, mode)| Node::File(content, mode | 0o400)),
        1 => "[a-zß/.]{1,6}".prop_filter("leads out", |target| !target.contains("..") && !target.starts_with('/'))
            .prop_map(Node::Link),
    ];
    leaf.prop_recursive(4, 40, 8, |inner| {
        (
            prop::collection::btree_map(name(), inner, 0..8),
            0o700u32..0o1000,
        )
            .prop_map(|(children, mode)| Node::Dir(children, mode | 0o700))
    })
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof!["[a-c]{1,2}", "[A-Z .\\-ß😀]{1,8}n", "[x-z]{90,110}"]
}

fn build(path: &Path, node: &Node) {
    match node {
        Node::Dir(children, mode) => {
            fs::create_dir(path).expect("a directory");
            for (name, child) in children {
                build(&path.join(name), child);
            }
            fs::set_permissions(path, fs::Permissions::from_mode(*mode)).expect("its mode");
        }
        Node::File(content, mode) => {
            fs::write(path, content).expect("a file");
            fs::set_permissions(path, fs::Permissions::from_mode(*mode)).expect("its mode");
        }
        Node::Link(target) => symlink(target, path).expect("a symlink"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// What is bundled verifies, unpacks to the same tree, and bundles to the same digest again.
    #[test]
    fn round_trip(children in prop::collection::btree_map(name(), node(), 0..8)) {
        let world = tempfile::tempdir().expect("a directory");
        let (project, unpacked) = (world.path().join("p"), world.path().join("u"));
        build(&project, &Node::Dir(children, 0o755));
        fs::create_dir(&unpacked).expect("a directory");

        let config = AgentConfig::default();
        let bundle = Bundle::build(&project, &config).expect("a bundle");
        let mut archive = Vec::new();
        bundle.write_archive(&mut archive).expect("an archive");
        prop_assert_eq!(archive.len() as u64, bundle.archive_len());

        let sent = serde_json::to_string(bundle.manifest()).expect("json");
        let manifest: Manifest = serde_json::from_str(&sent).expect("a manifest");
        prop_assert_eq!(&manifest, bundle.manifest());
        let checked = verify_archive(archive.as_slice(), &manifest).expect("good");
        let opened = File::open(&unpacked).expect("the directory");
        prop_assert_eq!(extract_archive(archive.as_slice(), &manifest, &opened).expect("good"), checked);
        prop_assert_eq!(checked.files + checked.symlinks, manifest.file_count);
        prop_assert_eq!(checked.content_bytes, manifest.total_size);
        let again = Bundle::build(&unpacked, &config).expect("a bundle");
        prop_assert_eq!(&again.manifest().bundle_digest, &manifest.bundle_digest);

        // No byte can change unnoticed, apart from those nothing is read from.
        if let Some(at) = archive.iter().position(|byte| *byte != 0) {
            let mut broken = archive;
            broken[at] ^= 1;
            prop_assert!(verify_archive(broken.as_slice(), &manifest).is_err());
        }
    }

    /// Whatever comes in, the answer is an answer.
    #[test]
    fn noise_is_refused(flips in prop::collection::vec((0usize..3584, any::<u8>()), 1..6), cut in 0usize..3584) {
        let (manifest, good) = small();
        let mut archive = good.end();
        for (at, byte) in flips {
            let length = archive.len();
            archive[at % length] = byte;
        }
        let _ = verify_archive(archive.as_slice(), &manifest);
        archive.truncate(cut.min(archive.len() - 1024));
        prop_assert!(verify_archive(archive.as_slice(), &manifest).is_err());
    }
}
