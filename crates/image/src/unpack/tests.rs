use std::{fs, os::unix::ffi::OsStrExt, os::unix::fs::MetadataExt, path::Path};

use proptest::prelude::*;

use super::*;

/// An archive as a hostile hand writes it: every field as given.
#[derive(Default)]
pub(crate) struct Archive(pub(crate) Vec<u8>);

impl Archive {
    fn header(&mut self, flag: u8, name: &[u8], link: &[u8], size: usize) {
        self.owned(flag, name, link, size, (0o644, 0, 0));
    }

    fn owned(&mut self, flag: u8, name: &[u8], link: &[u8], size: usize, who: (u32, u32, u32)) {
        let mut block = [0; 512];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &name[..name.len().min(100)]);
        put(100, format!("{:07o}", who.0).as_bytes());
        put(108, format!("{:07o}", who.1).as_bytes());
        put(116, format!("{:07o}", who.2).as_bytes());
        put(124, format!("{size:011o}").as_bytes());
        put(136, format!("{:011o}", 1_000_000_000).as_bytes());
        put(148, b"        ");
        put(156, &[flag]);
        put(157, &link[..link.len().min(100)]);
        put(257, b"ustar\x0000");
        let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend_from_slice(&block);
    }

    fn content(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
    }

    fn file(mut self, name: &str, text: &str) -> Self {
        self.header(b'0', name.as_bytes(), b"", text.len());
        self.content(text.as_bytes());
        self
    }

    fn dir(mut self, name: &str) -> Self {
        self.owned(b'5', name.as_bytes(), b"", 0, (0o755, 0, 0));
        self
    }

    fn symlink(mut self, name: &str, to: &str) -> Self {
        self.header(b'2', name.as_bytes(), to.as_bytes(), 0);
        self
    }

    fn link(mut self, name: &str, to: &str) -> Self {
        self.header(b'1', name.as_bytes(), to.as_bytes(), 0);
        self
    }

    fn flag(mut self, flag: u8, name: &str) -> Self {
        self.header(flag, name.as_bytes(), b"", 0);
        self
    }

    fn pax(mut self, records: &[(&str, &[u8])]) -> Self {
        let mut text = Vec::new();
        for (key, value) in records {
            let bare = key.len() + value.len() + 3;
            let mut length = bare;
            while bare + length.to_string().len() != length {
                length = bare + length.to_string().len();
            }
            text.extend_from_slice(format!("{length} {key}=").as_bytes());
            text.extend_from_slice(value);
            text.push(b'\n');
        }
        self.header(b'x', b"pax", b"", text.len());
        self.content(&text);
        self
    }

    fn gnu(mut self, flag: u8, text: &[u8]) -> Self {
        self.header(flag, b"././@LongLink", b"", text.len());
        self.content(text);
        self
    }

    fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

/// A directory with the layer in `in`, and something that must not change beside it.
struct World(tempfile::TempDir);

impl World {
    fn new() -> Self {
        let world = Self(tempfile::tempdir().unwrap());
        fs::create_dir(world.root()).unwrap();
        fs::create_dir(world.outside()).unwrap();
        fs::write(world.outside().join("victim"), "as it was").unwrap();
        world
    }

    fn root(&self) -> std::path::PathBuf {
        self.0.path().join("in")
    }

    fn outside(&self) -> std::path::PathBuf {
        self.0.path().join("out")
    }

    fn unpack(&self, archive: &[u8]) -> Result<Unpacked, LayerError> {
        self.unpack_with(archive, &Limits::default())
    }

    fn unpack_with(&self, archive: &[u8], limits: &Limits) -> Result<Unpacked, LayerError> {
        let root = beneath::root(&self.root()).unwrap();
        let done = unpack(archive, root.as_fd(), &Allowance::new(limits));
        let there: Vec<_> = fs::read_dir(self.0.path()).unwrap().collect();
        assert_eq!(there.len(), 2, "{there:?}");
        let victim = self.outside().join("victim");
        assert_eq!(fs::read_to_string(&victim).unwrap(), "as it was");
        assert_eq!(fs::metadata(&victim).unwrap().nlink(), 1);
        assert_eq!(fs::read_dir(self.outside()).unwrap().count(), 1);
        done.map(|(done, _)| done)
    }

    fn refuses(archive: Archive, why: &str) {
        let error = Self::new().unpack(&archive.end()).unwrap_err();
        assert!(error.to_string().contains(why), "{error}, not {why}");
    }

    fn makes(archive: Archive) -> (Self, Unpacked) {
        let world = Self::new();
        let done = world.unpack(&archive.end()).unwrap();
        (world, done)
    }

    fn is_whiteout(&self, path: &str) -> bool {
        let root = beneath::root(&self.root()).unwrap();
        beneath::stat(root.as_fd(), path.as_bytes()).is_ok_and(|stat| is_whiteout(&stat))
    }

    fn is_opaque(&self, path: &str) -> bool {
        let mut value = [0; 8];
        let path = self.root().join(path);
        rustix::fs::lgetxattr(path, "trusted.overlay.opaque", &mut value) == Ok(1)
            && value[0] == b'y'
    }

    fn text(&self, path: &str) -> String {
        fs::read_to_string(self.root().join(path)).unwrap()
    }
}

fn a() -> Archive {
    Archive::default()
}

#[test]
fn nothing_leaves_the_layer() {
    for (target, name) in [
        ("../out", "a/victim"),
        ("/", "a/tmp/x"),
        ("..", "a/out/victim"),
        ("/proc/self/cwd", "a/x"),
    ] {
        let hostile = a().symlink("a", target).file(name, "changed");
        World::refuses(hostile, "below a symbolic link");
        let hostile = a().symlink("a", target).dir(name);
        World::refuses(hostile, "below a symbolic link");
        let hostile = a().symlink("a", target).link("x", name);
        World::refuses(hostile, "below a symbolic link");
        let hostile = a().symlink("a", target).file(&format!("{name}/.wh.y"), "");
        World::refuses(hostile, "below a symbolic link");
    }
    for name in ["../out/victim", "a/../../out/victim", "..", "a/.."] {
        World::refuses(a().file(name, "changed"), "leads out");
        World::refuses(a().file("f", "").link("x", name), "leads out");
        World::refuses(a().file(&format!("{name}/.wh.victim"), ""), "leads out");
    }
    World::refuses(
        a().dir("d")
            .symlink("d/a", "../../out")
            .file("d/a/victim", "x"),
        "below a symbolic link",
    );
    // The link itself may be linked to; what it leads to is not touched.
    let (world, _) = World::makes(
        a().symlink("a", "../out/victim")
            .link("b", "a")
            .file("b", "new"),
    );
    assert_eq!(world.text("b"), "new");
    let (world, _) = World::makes(a().symlink("a", "../out/victim").file("a", "new"));
    assert_eq!(world.text("a"), "new");
    // A directory where a link to one was; its owner and mode are not those of the link's target.
    let (world, _) = World::makes(a().symlink("a", "../out").dir("a").file("a/victim", "in"));
    assert_eq!(world.text("a/victim"), "in");
}

#[test]
fn names_are_taken_apart() {
    let (world, done) = World::makes(
        a().file("/etc/passwd", "1")
            .file("./b//c", "2")
            .dir("./")
            .file("old/", ""),
    );
    assert_eq!(
        (world.text("etc/passwd"), world.text("b/c")),
        ("1".into(), "2".into())
    );
    assert!(world.root().join("old").is_dir());
    let implied: Vec<_> = done
        .implied
        .iter()
        .map(|p| String::from_utf8_lossy(p).into_owned())
        .collect();
    assert_eq!(implied, ["b", "etc"]);

    World::refuses(a().file("f", "").file("f/x", ""), "no directory");
    World::refuses(a().file(".", "x"), "no directory");
    World::refuses(a().symlink("s", ""), "no possible name");
    World::refuses(a().pax(&[("path", b"a\0b")]).file("x", ""), "zero byte");
    World::refuses(
        a().file(&"n".repeat(100), "")
            .pax(&[("path", &[b'n'; 256])])
            .file("x", ""),
        "255",
    );
    World::refuses(
        a().pax(&[("path", &b"d/".repeat(257))]).file("x", ""),
        "directories in a path",
    );
    let long = [&b"d".repeat(200)[..], b"/"].concat().repeat(21);
    World::refuses(a().pax(&[("path", &long)]).file("x", ""), "bytes in a path");
    World::refuses(
        a().gnu(b'L', &[b'n'; 9000]).file("x", ""),
        "extended header",
    );

    let odd = b"caf\xe9/\xff\x01";
    let (world, _) = World::makes(a().pax(&[("path", odd)]).file("x", "odd"));
    let path = world.root().join(std::ffi::OsStr::from_bytes(odd));
    assert_eq!(fs::read_to_string(path).unwrap(), "odd");
    let name = "long/".repeat(30);
    let (world, _) = World::makes(
        a().gnu(b'L', format!("{name}f\0").as_bytes())
            .file("short", "1")
            .gnu(b'K', format!("{name}f\0").as_bytes())
            .link("same", "cut"),
    );
    assert_eq!(world.text("same"), "1");
}

#[test]
fn the_last_of_equal_names_counts() {
    let (world, _) = World::makes(a().file("a", "1").link("b", "a").file("a", "2"));
    assert_eq!((world.text("a"), world.text("b")), ("2".into(), "1".into()));
    let (world, _) = World::makes(a().file("d/e/f", "1").file("d", "now a file"));
    assert_eq!(world.text("d"), "now a file");
    let (world, done) = World::makes(
        a().dir("d")
            .file("d/e/f", "1")
            .symlink("d/e", "x")
            .dir("d/e"),
    );
    assert_eq!(fs::read_dir(world.root().join("d/e")).unwrap().count(), 0);
    assert!(done.implied.is_empty());
    let (world, _) = World::makes(a().file("d/f", "kept").dir("d"));
    assert_eq!(world.text("d/f"), "kept");
    World::refuses(a().dir("d").file("d/f", "").link("d", "d/f"), "make");
    let (world, _) = World::makes(
        a().file("a", "1")
            .link("a", "a")
            .link("b", "a")
            .link("a", "b"),
    );
    assert_eq!(world.text("a"), "1");
}

#[test]
fn hard_links_stay_in_the_layer() {
    World::refuses(a().link("x", "missing"), "has not");
    World::refuses(a().dir("d").link("x", "d"), "is a directory");
    World::refuses(a().link("x", ""), "is a directory");
    World::refuses(a().file(".wh.gone", "").link("x", "gone"), "has not");
    World::refuses(a().link("x", "/proc/self/environ"), "has not");
    let (world, _) = World::makes(a().file("f", "1").link("d/x", "/f"));
    assert_eq!(fs::metadata(world.root().join("f")).unwrap().nlink(), 2);
}

#[test]
fn whiteouts_become_the_overlays() {
    let (world, done) = World::makes(
        a().file("d/.wh.gone", "")
            .file("e/.wh..wh..opq", "")
            .file("e/new", "1")
            .file(".wh..wh.plnk", ""),
    );
    assert!(world.is_whiteout("d/gone"));
    assert!(world.is_opaque("e") && !world.is_opaque("d"));
    assert_eq!(world.text("e/new"), "1");
    assert!(!done.opaque);
    assert_eq!(fs::read_dir(world.root()).unwrap().count(), 2);

    // What is in the layer stays, before and after; what is below it goes.
    let (world, _) = World::makes(
        a().file("f", "1")
            .file(".wh.f", "")
            .file(".wh.g", "")
            .file("g", "2"),
    );
    assert_eq!((world.text("f"), world.text("g")), ("1".into(), "2".into()));
    for archive in [
        a().file(".wh.d", "").dir("d").file("d/f", "1"),
        a().file(".wh.d", "").file("d/f", "1"),
        a().dir("d").file("d/f", "1").file(".wh.d", ""),
    ] {
        let (world, _) = World::makes(archive);
        assert!(world.is_opaque("d"));
        assert_eq!(world.text("d/f"), "1");
    }
    let (world, done) = World::makes(a().file(".wh..wh..opq", "").file("x", ""));
    assert!(done.opaque && world.is_opaque(""));

    for name in [".wh.", ".wh..", ".wh...", "d/.wh..."] {
        World::refuses(a().file(name, ""), "no possible name");
    }
    World::refuses(a().file("f", "").file("f/.wh.x", ""), "no directory");
}

#[test]
fn devices_and_orders_to_the_overlay_are_left_out() {
    let capability = [
        1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    let attributes: &[(&str, &[u8])] = &[
        ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
        ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
        ("SCHILY.xattr.user.overlay.opaque", b"y"),
        ("SCHILY.xattr.security.selinux", b"x"),
        ("SCHILY.xattr.system.posix_acl_access", b"x"),
        ("SCHILY.xattr.security.capability", &capability),
        ("SCHILY.xattr.user.note", b"line\nline"),
    ];
    let (world, done) = World::makes(
        a().flag(b'3', "null")
            .flag(b'4', "disk")
            .pax(attributes)
            .dir("d")
            .pax(attributes)
            .file("f", "x")
            .flag(b'6', "pipe"),
    );
    assert_eq!(done.devices_left_out, 2);
    assert_eq!(fs::read_dir(world.root()).unwrap().count(), 3);
    for name in ["d", "f"] {
        let mut names = [0; 1024];
        let length = rustix::fs::llistxattr(world.root().join(name), &mut names).unwrap();
        let names = String::from_utf8_lossy(&names[..length]).into_owned();
        let mut names: Vec<_> = names.split_terminator('\0').collect();
        names.sort_unstable();
        let all = ["security.capability", "user.note"];
        assert!(names == all || names == all[..1], "{names:?}");
    }
    World::refuses(a().flag(b'S', "sparse"), "sparse");
    World::refuses(
        a().pax(&[("GNU.sparse.major", b"1")]).file("f", ""),
        "sparse",
    );
    World::refuses(a().flag(b'M', "volume"), "type 'M'");
}

#[test]
fn owners_modes_and_times_are_the_archives() {
    let mut archive = a();
    archive.owned(b'5', b"d", b"", 0, (0o2750, 7, 8));
    archive.owned(b'0', b"d/f", b"", 0, (0o6755, 1000, 1001));
    archive.owned(b'2', b"d/l", b"nowhere", 0, (0o777, 5, 6));
    let archive = archive
        .pax(&[("uid", b"3000000"), ("mtime", b"-1.25")])
        .file("d/g", "");
    let (world, _) = World::makes(archive);
    let meta = |path: &str| fs::symlink_metadata(world.root().join(path)).unwrap();
    let of = |path: &str| {
        let meta = meta(path);
        (meta.mode() & 0o7777, meta.uid(), meta.gid(), meta.mtime())
    };
    assert_eq!(of("d"), (0o2750, 7, 8, 1_000_000_000));
    assert_eq!(of("d/f"), (0o6755, 1000, 1001, 1_000_000_000));
    assert_eq!(of("d/l"), (0o777, 5, 6, 1_000_000_000));
    assert_eq!(of("d/g"), (0o644, 3_000_000, 0, -2));
    assert_eq!(meta("d/g").mtime_nsec(), 750_000_000);
    World::refuses(a().pax(&[("uid", b"4294967295")]).file("f", ""), "owner");
    World::refuses(a().pax(&[("gid", b"-1")]).file("f", ""), "pax");
}

#[test]
fn broken_archives_are_refused() {
    let whole = a()
        .file("a", "some text")
        .pax(&[("path", b"b")])
        .file("x", "more")
        .end();
    for cut in [
        1, 100, 512, 520, 521, 600, 1024, 1030, 1600, 2048, 2560, 2561, 2564,
    ] {
        let done = World::new().unpack(&whole[..cut]);
        // At the end of a member, or what fills up its block, an archive may end: its digest tells whether it should.
        let fine = matches!(cut, 521 | 600 | 1024 | 2564);
        assert_eq!(done.is_ok(), fine, "cut at {cut}: {done:?}");
    }
    let mut flipped = whole.clone();
    flipped[3] ^= 1;
    let error = World::new().unpack(&flipped).unwrap_err();
    assert!(error.to_string().contains("checksum"), "{error}");
    let mut unpadded = a();
    unpadded.header(b'x', b"pax", b"", 7);
    unpadded.content(b"999 a=b");
    World::refuses(unpadded.file("f", ""), "pax");
    let mut huge = a();
    huge.header(b'x', b"pax", b"", 2 << 20);
    World::refuses(huge, "extended header");
}

#[test]
fn bounds_hold() {
    let limits = Limits {
        entries: 3,
        ..Limits::default()
    };
    let four = a()
        .file("1", "")
        .file("2", "")
        .file("3", "")
        .file("4", "")
        .end();
    let error = World::new().unpack_with(&four, &limits).unwrap_err();
    assert!(
        matches!(
            error,
            LayerError::Limit {
                what: "entries",
                limit: 3
            }
        ),
        "{error}"
    );
}

#[derive(Clone, Debug)]
enum Step {
    File(String, String),
    Dir(String),
    Symlink(String, String),
    Link(String, String),
    White(String),
    Opaque(String),
    Odd(u8, String),
}

fn path() -> impl Strategy<Value = String> {
    let segment = prop_oneof![
        4 => Just("a"), 4 => Just("b"), 2 => Just("c"), 1 => Just(".."), 1 => Just("."), 1 => Just(""),
        1 => Just("out"), 1 => Just("victim"), 1 => Just(".wh.a"), 1 => Just(".wh..wh..opq")
    ];
    proptest::collection::vec(segment, 1..5).prop_map(|segments| segments.join("/"))
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (path(), "[a-z]{0,9}").prop_map(|(p, t)| Step::File(p, t)),
        3 => path().prop_map(Step::Dir),
        3 => (path(), path()).prop_map(|(p, t)| Step::Symlink(p, t)),
        1 => path().prop_map(|p| Step::Symlink(p, "../out".into())),
        3 => (path(), path()).prop_map(|(p, t)| Step::Link(p, t)),
        2 => path().prop_map(Step::White),
        1 => path().prop_map(Step::Opaque),
        1 => (prop_oneof![Just(b'3'), Just(b'6'), Just(b'g'), Just(b'L')], path())
            .prop_map(|(f, p)| Step::Odd(f, p)),
    ]
}

fn archive(steps: &[Step]) -> Vec<u8> {
    steps
        .iter()
        .fold(a(), |archive, step| match step {
            Step::File(path, text) => archive.file(path, text),
            Step::Dir(path) => archive.dir(path),
            Step::Symlink(path, to) => archive.symlink(path, to),
            Step::Link(path, to) => archive.link(path, to),
            Step::White(path) => match path.rsplit_once('/') {
                Some((dir, name)) => archive.file(&format!("{dir}/.wh.{name}"), ""),
                None => archive.file(&format!(".wh.{path}"), ""),
            },
            Step::Opaque(path) => archive.file(&format!("{path}/.wh..wh..opq"), ""),
            Step::Odd(flag, path) => archive.flag(*flag, path),
        })
        .end()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever is in an archive, what is beside the layer stays as it is, and what was unpacked can be removed.
    #[test]
    fn no_archive_leaves_its_layer(
        steps in proptest::collection::vec(step(), 1..12),
        changes in proptest::collection::vec((any::<u16>(), any::<u8>()), 0..3),
    ) {
        let world = World::new();
        let mut bytes = archive(&steps);
        for (at, byte) in changes {
            let length = bytes.len();
            bytes[usize::from(at) % length] = byte;
        }
        let done = world.unpack(&bytes);
        if let Ok(done) = done {
            for path in &done.implied {
                let path = world.root().join(std::ffi::OsStr::from_bytes(path));
                prop_assert!(fs::symlink_metadata(path).unwrap().is_dir());
            }
        }
        check_devices(&world.root());
        let outer = beneath::root(world.0.path()).unwrap();
        beneath::remove(outer.as_fd(), b"in").unwrap();
        prop_assert!(!world.root().exists());
    }
}

/// The only devices are whiteouts.
fn check_devices(root: &Path) {
    for entry in fs::read_dir(root).unwrap() {
        let path = entry.unwrap().path();
        let meta = fs::symlink_metadata(&path).unwrap();
        assert!(meta.rdev() == 0, "{path:?}");
        if meta.is_dir() {
            check_devices(&path);
        }
    }
}
