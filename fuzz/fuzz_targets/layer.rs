//! Layers of images: whatever is in one, nothing changes outside the directory it is unpacked in, and no device is in
//! that but the overlay's whiteouts. Needs root.
#![no_main]

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::Path,
    sync::LazyLock,
};

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Input {
    members: Vec<Member>,
    /// Bytes that are put in place of others, from the start of the archive.
    changes: Vec<(u16, u8)>,
    /// Where it ends, if before its end.
    cut: Option<u16>,
    gzip: bool,
}

#[derive(Arbitrary, Debug)]
struct Member {
    path: Vec<Segment>,
    what: What,
    mode: u16,
    owner: u16,
    /// Whether the names are in extended headers.
    extended: Option<bool>,
    attribute: Option<(Attribute, Vec<u8>)>,
}

#[derive(Arbitrary, Debug)]
enum What {
    Dir,
    File(Vec<u8>),
    Symlink(Vec<Segment>),
    HardLink(Vec<Segment>),
    Device,
    Fifo,
    Other(u8),
}

#[derive(Arbitrary, Debug)]
enum Attribute {
    Opaque,
    Redirect,
    Capability,
    User,
}

#[derive(Arbitrary, Debug)]
enum Segment {
    A,
    B,
    Up,
    Here,
    Empty,
    Outside,
    Gone,
    Opaque,
    White(String),
    Text(Vec<u8>),
}

fn path(segments: &[Segment]) -> Vec<u8> {
    let text = |segment: &Segment| match segment {
        Segment::A => b"a".to_vec(),
        Segment::B => b"b".to_vec(),
        Segment::Up => b"..".to_vec(),
        Segment::Here => b".".to_vec(),
        Segment::Empty => Vec::new(),
        Segment::Outside => b"outside".to_vec(),
        Segment::Gone => b".wh.a".to_vec(),
        Segment::Opaque => b".wh..wh..opq".to_vec(),
        Segment::White(name) => format!(".wh.{name}").into_bytes(),
        Segment::Text(text) => text.clone(),
    };
    segments.iter().map(text).collect::<Vec<_>>().join(&b'/')
}

fn archive(input: &Input) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for member in &input.members {
        let (kind, data, target) = match &member.what {
            What::Dir => (tar::EntryType::Directory, &[][..], None),
            What::File(bytes) => (tar::EntryType::Regular, &bytes[..], None),
            What::Symlink(to) => (tar::EntryType::Symlink, &[][..], Some(path(to))),
            What::HardLink(to) => (tar::EntryType::Link, &[][..], Some(path(to))),
            What::Device => (tar::EntryType::Char, &[][..], None),
            What::Fifo => (tar::EntryType::Fifo, &[][..], None),
            What::Other(flag) => (tar::EntryType::new(*flag), &[][..], None),
        };
        let (name, target) = (path(&member.path), target.unwrap_or_default());
        let mut records: Vec<(&str, &[u8])> = Vec::new();
        if member.extended == Some(true) {
            records.push(("path", &name));
            records.push(("linkpath", &target));
        }
        if let Some((attribute, value)) = &member.attribute {
            let name = match attribute {
                Attribute::Opaque => "SCHILY.xattr.trusted.overlay.opaque",
                Attribute::Redirect => "SCHILY.xattr.trusted.overlay.redirect",
                Attribute::Capability => "SCHILY.xattr.security.capability",
                Attribute::User => "SCHILY.xattr.user.x",
            };
            records.push((name, value));
        }
        if !records.is_empty() {
            builder.append_pax_extensions(records).expect("memory");
        }
        if member.extended == Some(false) {
            for (flag, text) in [(b'L', &name), (b'K', &target)] {
                let mut header = tar::Header::new_gnu();
                header.set_entry_type(tar::EntryType::new(flag));
                header.set_size(text.len() as u64);
                header.set_cksum();
                builder.append(&header, &text[..]).expect("memory");
            }
        }
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(u32::from(member.mode));
        header.set_uid(u64::from(member.owner));
        header.set_gid(u64::from(member.owner));
        header.set_size(data.len() as u64);
        let raw = header.as_old_mut();
        let fill = |to: &mut [u8; 100], text: &[u8]| {
            for (to, from) in to.iter_mut().zip(text) {
                *to = *from;
            }
        };
        fill(&mut raw.name, &name);
        fill(&mut raw.linkname, &target);
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
    if input.gzip {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut gzip, &bytes).expect("memory");
        bytes = gzip.finish().expect("memory");
    }
    bytes
}

/// `outside` beside `inside`, of which the second is unpacked into.
static WORLD: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
    let world = tempfile::tempdir().expect("a directory");
    fs::write(world.path().join("outside"), "as it was").expect("it is written");
    world
});

fuzz_target!(|input: Input| {
    let bytes = archive(&input);
    let inside = WORLD.path().join("inside");
    fs::create_dir(&inside).expect("a directory");
    nullspace_image::fuzz(&bytes, &inside);

    let outside = WORLD.path().join("outside");
    let beside = fs::read_dir(WORLD.path()).expect("it opens").count();
    assert_eq!(beside, 2);
    assert_eq!(fs::read(&outside).expect("it is there"), b"as it was");
    let meta = fs::metadata(&outside).expect("it is there");
    assert_eq!((meta.nlink(), meta.uid()), (1, 0));
    check(&inside);
    fs::remove_dir_all(&inside).expect("it goes");
});

fn check(directory: &Path) {
    for entry in fs::read_dir(directory).expect("it opens").flatten() {
        let meta = fs::symlink_metadata(entry.path()).expect("it is there");
        let kind = meta.file_type();
        assert!(!kind.is_block_device() && !kind.is_socket());
        assert!(!kind.is_char_device() || meta.rdev() == 0);
        if meta.is_dir() {
            check(&entry.path());
        }
    }
}
