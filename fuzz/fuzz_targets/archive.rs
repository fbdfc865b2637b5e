//! Bundles: an archive that was tampered with, with a manifest that may be made for it, changes nothing outside the
//! directory it is unpacked in.
#![no_main]

use std::{fs, path::Path, sync::LazyLock};

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use nullspace_project::{Entry, Kind, Manifest, extract_archive, manifest, verify_archive};
use sha2::{Digest, Sha256};

#[derive(Arbitrary, Debug)]
struct Input {
    members: Vec<Member>,
    /// Bytes that are put in place of others, from the start of the archive.
    changes: Vec<(u16, u8)>,
    /// Where it ends, if before its end.
    cut: Option<u16>,
}

#[derive(Arbitrary, Debug)]
struct Member {
    path: Vec<Segment>,
    what: What,
    mode: u16,
    /// Whether the manifest tells of it as it is.
    listed: bool,
}

#[derive(Arbitrary, Debug)]
enum What {
    Dir,
    File(Vec<u8>),
    Symlink(Vec<Segment>),
    HardLink(Vec<Segment>),
    Device,
}

#[derive(Arbitrary, Debug)]
enum Segment {
    A,
    B,
    Up,
    Here,
    Empty,
    Text(String),
}

fn path(segments: &[Segment]) -> String {
    let text = |segment: &Segment| match segment {
        Segment::A => "a".to_owned(),
        Segment::B => "b".to_owned(),
        Segment::Up => "..".to_owned(),
        Segment::Here => ".".to_owned(),
        Segment::Empty => String::new(),
        Segment::Text(text) => text.clone(),
    };
    segments.iter().map(text).collect::<Vec<_>>().join("/")
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect()
}

fn entry(member: &Member) -> Entry {
    let (kind, size, content, target) = match &member.what {
        What::File(bytes) => (Kind::File, bytes.len() as u64, Some(digest(bytes)), None),
        What::Symlink(to) => {
            let to = path(to);
            (Kind::Symlink, 0, Some(digest(to.as_bytes())), Some(to))
        }
        _ => (Kind::Dir, 0, None, None),
    };
    Entry {
        path: path(&member.path),
        kind,
        included: true,
        reason: "included".into(),
        size,
        mode: Some(u32::from(member.mode) & 0o7777),
        digest: content,
        symlink_target: target,
    }
}

fn archive(input: &Input) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for member in &input.members {
        let mut header = tar::Header::new_ustar();
        let (kind, data, target) = match &member.what {
            What::Dir => (tar::EntryType::Directory, &[][..], None),
            What::File(bytes) => (tar::EntryType::Regular, &bytes[..], None),
            What::Symlink(to) => (tar::EntryType::Symlink, &[][..], Some(path(to))),
            What::HardLink(to) => (tar::EntryType::Link, &[][..], Some(path(to))),
            What::Device => (tar::EntryType::Char, &[][..], None),
        };
        header.set_entry_type(kind);
        header.set_mode(u32::from(member.mode) & 0o777);
        header.set_size(data.len() as u64);
        let raw = header.as_old_mut();
        let fill = |to: &mut [u8; 100], text: &str| {
            for (to, from) in to.iter_mut().zip(text.bytes()) {
                *to = from;
            }
        };
        fill(&mut raw.name, &path(&member.path));
        fill(&mut raw.linkname, target.as_deref().unwrap_or_default());
        header.set_cksum();
        builder.append(&header, data).expect("memory");
    }
    let mut bytes = builder.into_inner().expect("memory");
    for (at, byte) in &input.changes {
        if let Some(place) = bytes.get_mut(usize::from(*at)) {
            *place = *byte;
        }
    }
    bytes.truncate(input.cut.map_or(usize::MAX, usize::from));
    bytes
}

/// `outside/inside`, of which the second is unpacked into.
static WORLD: LazyLock<tempfile::TempDir> =
    LazyLock::new(|| tempfile::tempdir().expect("a directory"));

fuzz_target!(|input: Input| {
    let entries: Vec<Entry> = input
        .members
        .iter()
        .filter(|m| m.listed)
        .map(entry)
        .collect();
    let mut manifest = Manifest {
        bundle_digest: String::new(),
        config_digest: "0".repeat(64),
        archive_format: manifest::ARCHIVE_FORMAT.into(),
        total_size: entries.iter().map(|e| e.size).sum(),
        file_count: entries.iter().filter(|e| e.kind != Kind::Dir).count() as u64,
        generated_at: String::new(),
        materialization_path: manifest::MATERIALIZATION_PATH.into(),
        include_patterns: Vec::new(),
        exclude_patterns: Vec::new(),
        default_exclude_patterns: Vec::new(),
        entries,
    };
    manifest.bundle_digest = manifest.derive_bundle_digest();
    let bytes = archive(&input);
    let checked = verify_archive(&bytes[..], &manifest);

    let inside = WORLD.path().join("inside");
    fs::create_dir(&inside).expect("a directory");
    let root = fs::File::open(&inside).expect("it opens");
    let unpacked = extract_archive(&bytes[..], &manifest, &root);
    assert_eq!(
        checked.is_ok(),
        unpacked.is_ok(),
        "{checked:?} {unpacked:?}"
    );
    let beside: Vec<_> = fs::read_dir(WORLD.path())
        .expect("it opens")
        .flatten()
        .collect();
    assert_eq!(beside.len(), 1, "{beside:?}");
    if unpacked.is_ok() {
        for entry in manifest.included() {
            let there = fs::symlink_metadata(Path::new(&inside).join(&entry.path));
            assert!(there.is_ok(), "{entry:?}");
        }
    }
    // Modes may keep their owner out, unless that is root.
    fs::remove_dir_all(&inside).expect("it goes");
});
