//! Hostile uploads are refused, each for its own reason, and nothing is written outside the root.

mod common;

use common::{Tar, dir, file, link, manifest, sha, small};
use nullspace_project::{Entry, Manifest, extract_archive, verify_archive};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::symlink;
use std::path::Path;

/// Verifies and unpacks, which must agree; gives the reason.
fn refused(archive: &[u8], manifest: &Manifest) -> &'static str {
    let root = tempfile::tempdir().expect("a directory");
    let opened = File::open(root.path()).expect("the directory");
    let unpacked = extract_archive(archive, manifest, &opened).expect_err("refused when unpacking");
    let checked = verify_archive(archive, manifest).expect_err("refused when checking");
    assert_eq!(unpacked.reason(), checked.reason());
    checked.reason()
}

#[test]
fn hostile_archives() {
    let (manifest, good) = small();
    let more = |tar: Tar| -> Vec<u8> { tar.end() };
    let start = || Tar::default().dir("a/");
    #[rustfmt::skip]
    let rows: Vec<(&str, Vec<u8>, &str)> = vec![
        ("empty", Vec::new(), "truncated"),
        ("only an end", Tar::default().end(), "missing_member"),
        ("a member less", Tar::default().dir("a/").file("a/x", "1").end(), "missing_member"),
        ("a member more", more(good.clone().file("b", "")), "unexpected_member"),
        ("twice", more(start().dir("a/")), "duplicate_member"),
        ("step up", more(good.clone().file("../b", "")), "path_escapes"),
        ("step up inside", more(good.clone().file("a/../b", "")), "path_escapes"),
        ("absolute", more(good.clone().file("/etc/passwd", "")), "path_escapes"),
        ("backslashes", more(good.clone().file("..\\b", "")), "path_escapes"),
        ("dot", more(Tar::default().dir("./a/")), "unexpected_member"),
        ("no name", more(Tar::default().file("", "")), "unexpected_member"),
        ("through a symlink", more(good.clone().file("l/evil", "")), "unexpected_member"),
        ("hard link", more(start().member("a/x", b'1', 0o644, "", "/etc/shadow")), "unsupported_entry_type"),
        ("character device", more(start().member("a/x", b'3', 0o644, "", "")), "unsupported_entry_type"),
        ("block device", more(start().member("a/x", b'4', 0o644, "", "")), "unsupported_entry_type"),
        ("fifo", more(start().member("a/x", b'6', 0o644, "", "")), "unsupported_entry_type"),
        ("gnu long name", more(start().member("././@LongLink", b'L', 0, "x", "")), "unsupported_entry_type"),
        ("gnu sparse", more(start().member("a/x", b'S', 0o644, "", "")), "unsupported_entry_type"),
        ("global pax", more(start().member("g", b'g', 0, "11 path=ab\n", "")), "unsupported_entry_type"),
        ("pax sparse", more(start().pax("21 GNU.sparse.map=0,1\n")), "malformed_header"),
        ("pax sparse map", more(start().pax("22 GNU.sparse.map=0,1\n")), "unsupported_entry_type"),
        ("file for directory", more(Tar::default().file("a", "")), "kind_mismatch"),
        ("link for file", more(start().link("a/x", "y")), "kind_mismatch"),
        ("other link", more(Tar::default().link("l", "../../etc")), "link_mismatch"),
        ("size", more(start().file("a/x", "12")), "size_mismatch"),
        ("content", more(start().file("a/x", "2")), "digest_mismatch"),
        ("mode", more(start().member("a/x", b'0', 0o755, "1", "")), "mode_mismatch"),
        ("huge size", more(start().header("a/x", b'0', 0o644, b"777777777777", "")), "too_large"),
        ("huge pax size", more(start().pax("29 size=18446744073709551615\n").file("a/x", "1")), "too_large"),
        ("pax size beyond numbers", more(start().pax("30 size=118446744073709551615\n")), "malformed_header"),
        (
            "binary size",
            more(start().header("a/x", b'0', 0o644, b"\x80\0\0\0\0\0\0\0\0\0\0\x01", "")),
            "malformed_header",
        ),
        ("huge pax", more(start().header("p", b'x', 0, b"00000200001", "")), "too_large"),
        ("pax path", more(start().pax("16 path=../evil\n").file("a/x", "1")), "path_escapes"),
        ("pax path elsewhere", more(start().pax("13 path=evil\n").file("a/x", "1")), "unexpected_member"),
        ("pax path with nul", more(start().pax("12 path=a\0b\n").file("a/x", "1")), "malformed_header"),
        ("pax path twice", more(start().pax("10 path=a\n10 path=b\n").file("a/x", "1")), "malformed_header"),
        ("pax link", more(Tar::default().pax("17 linkpath=/etc\n").link("l", "a")), "link_mismatch"),
        ("pax twice", more(start().pax("10 path=a\n").pax("10 path=a\n")), "malformed_header"),
        ("pax for nothing", more(start().pax("10 path=a\n")), "malformed_header"),
        ("pax length short", more(start().pax("5 path=a\n")), "malformed_header"),
        ("pax length long", more(start().pax("99 path=a\n")), "malformed_header"),
        ("pax length zero", more(start().pax("0 path=a\n")), "malformed_header"),
        ("pax length signed", more(start().pax("+10 path=a\n")), "malformed_header"),
        ("pax without end", more(start().pax("9 path=ab")), "malformed_header"),
        ("pax empty key", more(start().pax("x")), "malformed_header"),
        ("content in a directory", more(Tar::default().member("a/", b'5', 0o755, "x", "")), "malformed_header"),
        ("content in a link", more(Tar::default().member("l", b'2', 0o777, "x", "a")), "malformed_header"),
        ("link name on a file", more(start().member("a/x", b'0', 0o644, "1", "b")), "malformed_header"),
        ("slash after a file", more(start().file("a/x/", "1")), "malformed_header"),
        ("garbage", vec![7; 2048], "malformed_header"),
        ("one zero block", [good.clone().0, vec![0; 512], good.clone().0].concat(), "malformed_header"),
        ("no end", good.clone().0, "truncated"),
        ("half an end", [good.clone().0, vec![0; 512]].concat(), "truncated"),
        ("cut in content", good.clone().0[..1030].to_vec(), "truncated"),
        ("cut in padding", good.clone().0[..1400].to_vec(), "truncated"),
        ("cut in a header", good.clone().0[..100].to_vec(), "truncated"),
        ("data after the end", [good.clone().end(), b"x".to_vec()].concat(), "trailing_data"),
        ("archive after the end", [good.clone().end(), good.clone().end()].concat(), "trailing_data"),
        ("zeros after the end", [good.clone().end(), vec![0; 2 << 20]].concat(), "trailing_data"),
    ];
    for (what, archive, reason) in rows {
        assert_eq!(refused(&archive, &manifest), reason, "{what}");
    }

    let mut bad_sum = good.clone().end();
    bad_sum[0] = b'b';
    assert_eq!(refused(&bad_sum, &manifest), "malformed_header");
    let mut gnu = good.clone().end();
    gnu[257..265].copy_from_slice(b"ustar  \0");
    assert_eq!(refused(&gnu, &manifest), "malformed_header");
    let mut padding = good.end();
    padding[3 * 512 - 1] = 1;
    assert_eq!(refused(&padding, &manifest), "malformed_header");
}

/// An archive that goes on for ever is left at the first member that is too many.
#[test]
fn endless_archives_end() {
    struct Endless<'a> {
        start: &'a [u8],
        again: &'a [u8],
        at: usize,
    }
    impl Read for Endless<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            for byte in buffer.iter_mut() {
                *byte = match self.start.get(self.at) {
                    Some(byte) => *byte,
                    None => self.again[(self.at - self.start.len()) % self.again.len()],
                };
                self.at += 1;
            }
            Ok(buffer.len())
        }
    }
    let (manifest, good) = small();
    for (again, reason) in [
        (Tar::default().dir("a/").0, "duplicate_member"),
        (Tar::default().pax("10 path=a\n").0, "malformed_header"),
        (vec![0; 512], "trailing_data"),
    ] {
        let mut endless = Endless {
            start: &good.0,
            again: &again,
            at: 0,
        };
        assert_eq!(
            verify_archive(&mut endless, &manifest)
                .expect_err("endless")
                .reason(),
            reason
        );
        assert!(endless.at < 4 << 20);
    }
}

#[test]
fn too_many_entries_or_files() {
    let entries: Vec<_> = (0..400_001)
        .map(|index| Entry {
            included: false,
            ..dir(&index.to_string())
        })
        .collect();
    assert_eq!(
        manifest(entries).validate().expect_err("too many").reason(),
        "manifest_too_many_entries"
    );
    let entries: Vec<_> = (0..100_001)
        .map(|index| file(&index.to_string(), ""))
        .collect();
    assert_eq!(
        manifest(entries).validate().expect_err("too many").reason(),
        "manifest_too_many_files"
    );
}

#[test]
fn hostile_manifests() {
    let deep = vec!["d"; 129].join("/");
    let long = "x".repeat(4096);
    let sized = |size| Entry {
        size,
        ..file("a", "")
    };
    #[rustfmt::skip]
    let rows = [
        ("absolute", vec![file("/a", "")], "manifest_path_escapes"),
        ("step up", vec![file("a/../b", "")], "manifest_path_escapes"),
        ("only up", vec![dir("..")], "manifest_path_escapes"),
        ("backslash up", vec![file("a\\..\\..\\b", "")], "manifest_path_escapes"),
        ("backslash absolute", vec![file("\\a", "")], "manifest_path_escapes"),
        ("empty", vec![file("", "")], "manifest_bad_path"),
        ("empty segment", vec![file("a//b", "")], "manifest_bad_path"),
        ("slash at the end", vec![dir("a/")], "manifest_bad_path"),
        ("dot", vec![dir(".")], "manifest_bad_path"),
        ("dot segment", vec![file("a/./b", "")], "manifest_bad_path"),
        ("nul", vec![file("a\0b", "")], "manifest_bad_path"),
        ("long", vec![file(&long, "")], "manifest_bad_path"),
        ("deep", vec![file(&deep, "")], "manifest_bad_path"),
        ("twice", vec![file("a", ""), file("a", "")], "manifest_duplicate_path"),
        ("twice, left out", vec![file("a", ""), Entry { included: false, ..file("a", "") }], "manifest_duplicate_path"),
        ("below a file", vec![file("a", ""), file("a/b", "")], "manifest_below_non_directory"),
        ("below a file, far", vec![file("a", ""), file("a-b", ""), file("a.b", ""), file("a/b", "")], "manifest_below_non_directory"),
        ("below a link", vec![file("l/a/b", ""), link("l", "x")], "manifest_below_non_directory"),
        ("link out", vec![link("l", "../x")], "manifest_link_escapes"),
        ("link out from below", vec![link("a/l", "../../x")], "manifest_link_escapes"),
        ("link to the root", vec![link("l", "/etc")], "manifest_link_escapes"),
        ("link by backslash", vec![link("l", "..\\x")], "manifest_link_escapes"),
        ("link to nothing", vec![link("l", "")], "manifest_bad_entry"),
        ("link with nul", vec![link("l", "a\0")], "manifest_bad_entry"),
        ("link digest", vec![Entry { digest: Some(sha("b")), ..link("l", "a") }], "manifest_bad_entry"),
        ("no digest", vec![Entry { digest: None, ..file("a", "") }], "manifest_bad_entry"),
        ("digest case", vec![Entry { digest: Some(sha("").to_uppercase()), ..file("a", "") }], "manifest_bad_digest"),
        ("directory digest", vec![Entry { digest: Some(sha("")), ..dir("a") }], "manifest_bad_entry"),
        ("directory size", vec![Entry { size: 1, ..dir("a") }], "manifest_bad_entry"),
        (
            "target on a file",
            vec![Entry {
                symlink_target: Some("b".to_owned()),
                ..file("a", "")
            }],
            "manifest_bad_entry",
        ),
        ("mode", vec![Entry { mode: Some(0o10644), ..file("a", "") }], "manifest_bad_entry"),
        ("size", vec![sized((8 << 30) + 1)], "manifest_too_large"),
        ("size overflow", vec![sized(u64::MAX), Entry { size: u64::MAX, ..file("b", "") }], "manifest_too_large"),
    ];
    for (what, entries, reason) in rows {
        let manifest = manifest(entries);
        assert_eq!(
            manifest.validate().expect_err(what).reason(),
            reason,
            "{what}"
        );
        assert_eq!(refused(&[], &manifest), reason, "{what}");
    }
    assert!(manifest(vec![sized(8 << 30)]).validate().is_ok());
    // Below a directory that is left out, or no entry at all, things can be included.
    assert!(
        manifest(vec![
            Entry {
                included: false,
                ..dir("a")
            },
            file("a/b", ""),
            file("c/d", "")
        ])
        .validate()
        .is_ok()
    );

    let (good, _) = small();
    for (change, reason) in [
        (
            (|m: &mut Manifest| m.archive_format = "zip".to_owned()) as fn(&mut Manifest),
            "manifest_format",
        ),
        (
            |m| m.bundle_digest = sha("other"),
            "manifest_digest_mismatch",
        ),
        (
            |m| m.config_digest = sha("other"),
            "manifest_digest_mismatch",
        ),
        (
            |m| m.config_digest = "x\n".repeat(32),
            "manifest_bad_digest",
        ),
        (|m| m.total_size += 1, "manifest_wrong_sum"),
        (|m| m.file_count -= 1, "manifest_wrong_sum"),
        (
            |m| m.entries[1].mode = Some(0o600),
            "manifest_digest_mismatch",
        ),
    ] {
        let mut manifest = good.clone();
        change(&mut manifest);
        assert_eq!(manifest.validate().expect_err(reason).reason(), reason);
    }
    for (text, problem) in [("fifo", "unknown variant"), ("FILE", "unknown variant")] {
        let json = format!(r#"{{"path":"a","kind":"{text}","included":true,"reason":""}}"#);
        let error = serde_json::from_str::<Entry>(&json).expect_err(text);
        assert!(error.to_string().contains(problem), "{error}");
    }
}

/// What stands in the way in the directory is not followed, replaced or written through.
#[test]
fn unpacking_stays_below_its_root() {
    let outside = tempfile::tempdir().expect("a directory");
    let (manifest, good) = small();
    let archive = good.end();
    let unpack = |prepare: &dyn Fn(&Path)| {
        let root = tempfile::tempdir().expect("a directory");
        prepare(root.path());
        let opened = File::open(root.path()).expect("the directory");
        let error = extract_archive(archive.as_slice(), &manifest, &opened)
            .expect_err("something is in the way");
        assert_eq!(error.reason(), "write_failed");
        assert!(error.is_internal());
    };
    unpack(&|root| symlink(outside.path(), root.join("a")).expect("a symlink"));
    unpack(&|root| fs::write(root.join("a"), "").expect("a file"));
    unpack(&|root| {
        fs::create_dir(root.join("a")).expect("a directory");
        symlink(outside.path().join("x"), root.join("a/x")).expect("a symlink");
    });
    unpack(&|root| symlink(outside.path(), root.join("l")).expect("a symlink"));
    assert_eq!(
        fs::read_dir(outside.path()).expect("the directory").count(),
        0
    );
}
