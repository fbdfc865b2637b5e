//! Manifests and archives written by hand, so that they can say anything.
#![allow(dead_code, unreachable_pub, reason = "each test uses its part")]

use nullspace_project::{Entry, Kind, Manifest};
use sha2::{Digest as _, Sha256};

pub fn sha(bytes: impl AsRef<[u8]>) -> String {
    hex::encode(Sha256::digest(bytes))
}

pub fn dir(path: &str) -> Entry {
    Entry {
        path: path.to_owned(),
        kind: Kind::Dir,
        included: true,
        reason: "included".to_owned(),
        size: 0,
        mode: Some(0o755),
        digest: None,
        symlink_target: None,
    }
}

pub fn file(path: &str, content: &str) -> Entry {
    Entry {
        kind: Kind::File,
        size: content.len() as u64,
        mode: Some(0o644),
        digest: Some(sha(content)),
        ..dir(path)
    }
}

pub fn link(path: &str, target: &str) -> Entry {
    Entry {
        kind: Kind::Symlink,
        mode: Some(0o777),
        digest: Some(sha(target)),
        symlink_target: Some(target.to_owned()),
        ..dir(path)
    }
}

/// A manifest whose sums and digests agree with its entries, whatever those are.
pub fn manifest(entries: Vec<Entry>) -> Manifest {
    let included = || entries.iter().filter(|entry| entry.included);
    let mut manifest = Manifest {
        bundle_digest: String::new(),
        config_digest: sha("config"),
        archive_format: "tar".to_owned(),
        total_size: included()
            .map(|entry| entry.size)
            .fold(0, u64::saturating_add),
        file_count: included().filter(|entry| entry.kind != Kind::Dir).count() as u64,
        generated_at: "2026-01-01T00:00:00.000000Z".to_owned(),
        materialization_path: "/workspace/project".to_owned(),
        include_patterns: vec![".".to_owned()],
        exclude_patterns: Vec::new(),
        default_exclude_patterns: Vec::new(),
        entries,
    };
    manifest.bundle_digest = manifest.derive_bundle_digest();
    manifest
}

/// A tar written by hand, so that it can say anything.
#[derive(Default, Clone)]
pub struct Tar(pub Vec<u8>);

impl Tar {
    pub fn header(mut self, name: &str, kind: u8, mode: u32, size: &[u8], link: &str) -> Self {
        let mut block = [0u8; 512];
        block[..name.len()].copy_from_slice(name.as_bytes());
        block[100..107].copy_from_slice(format!("{mode:07o}").as_bytes());
        block[124..124 + size.len()].copy_from_slice(size);
        block[148..156].copy_from_slice(b"        ");
        block[156] = kind;
        block[157..157 + link.len()].copy_from_slice(link.as_bytes());
        block[257..265].copy_from_slice(b"ustar\x0000");
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend_from_slice(&block);
        self
    }

    pub fn content(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub fn member(self, name: &str, kind: u8, mode: u32, content: &str, link: &str) -> Self {
        let size = format!("{:011o}", content.len());
        self.header(name, kind, mode, size.as_bytes(), link)
            .content(content.as_bytes())
    }

    pub fn file(self, name: &str, content: &str) -> Self {
        self.member(name, b'0', 0o644, content, "")
    }

    pub fn dir(self, name: &str) -> Self {
        self.member(name, b'5', 0o755, "", "")
    }

    pub fn link(self, name: &str, target: &str) -> Self {
        self.member(name, b'2', 0o777, "", target)
    }

    pub fn pax(self, records: &str) -> Self {
        self.member("././@PaxHeader", b'x', 0, records, "")
    }

    pub fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

/// `a/`, `a/x` = "1", `l` -> `a`.
pub fn small() -> (Manifest, Tar) {
    let manifest = manifest(vec![dir("a"), file("a/x", "1"), link("l", "a")]);
    (
        manifest,
        Tar::default().dir("a/").file("a/x", "1").link("l", "a"),
    )
}
