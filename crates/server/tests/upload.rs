//! Uploads in parts over real HTTP, on the fake engine.

#![allow(clippy::unwrap_used)]

mod common;

use common::{World, answer};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const PART: usize = 8 << 20;

fn sha(data: &[u8]) -> String {
    hex::encode(Sha256::digest(data))
}

/// Bytes that differ from place to place.
fn bytes(length: usize) -> Vec<u8> {
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    let mut out = Vec::with_capacity(length + 8);
    while out.len() < length {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        out.extend_from_slice(&seed.to_le_bytes());
    }
    out.truncate(length);
    out
}

struct Uploads {
    world: World,
    id: String,
    base: String,
}

impl Uploads {
    async fn new() -> Self {
        let world = World::new().await;
        let id = world.machine().await;
        let base = format!("/v1/sandboxes/{id}");
        Self { world, id, base }
    }

    fn file(path: &str, length: usize) -> Value {
        json!({"kind": "file", "source_kind": "restartable_file", "target_path": path, "content_length": length,
            "conflict": "merge", "archive_format": null, "checksum_algorithm": "sha256",
            "whole_checksum_sha256": null, "metadata": {}})
    }

    fn directory(path: &str, archive: &[u8], conflict: &str) -> Value {
        json!({"kind": "directory_tar", "source_kind": "directory_archive", "target_path": path,
            "content_length": archive.len(), "conflict": conflict, "archive_format": "tar",
            "checksum_algorithm": "sha256", "whole_checksum_sha256": sha(archive), "metadata": {}})
    }

    async fn create(&self, body: Value) -> Value {
        let (status, body) = self
            .world
            .post(&format!("{}/uploads", self.base), body)
            .await;
        assert_eq!(status, StatusCode::CREATED, "{body}");
        body["session"].clone()
    }

    async fn part(&self, upload: &str, part: usize, data: &[u8], sum: &str) -> (StatusCode, Value) {
        let path = format!("{}/uploads/{upload}/parts/{part}", self.base);
        let request = self
            .world
            .request(Method::PUT, &path)
            .header("x-nullspace-part-sha256", sum)
            .body(data.to_vec());
        answer(request).await
    }

    async fn complete(&self, upload: &str, body: Value) -> (StatusCode, Value) {
        let path = format!("{}/uploads/{upload}/complete", self.base);
        self.world.post(&path, body).await
    }

    async fn get(&self, upload: &str) -> Value {
        self.world
            .get(&format!("{}/uploads/{upload}", self.base))
            .await
            .1
    }

    /// A whole upload.
    async fn upload(&self, body: Value, data: &[u8]) -> (StatusCode, Value) {
        let session = self.create(body).await;
        let upload = session["upload_id"].as_str().unwrap();
        for (number, part) in data.chunks(PART).enumerate() {
            let (status, body) = self.part(upload, number, part, &sha(part)).await;
            assert_eq!(status, StatusCode::OK, "{body}");
        }
        self.complete(upload, json!({"whole_checksum_sha256": sha(data)}))
            .await
    }

    async fn shell(&self, script: &str) -> String {
        let body = json!({"command": script, "shell": true, "cwd": "/workspace"});
        let done = self.world.exec(&self.id, body).await;
        assert_eq!(done["exit_code"], 0, "{done}");
        done["stdout"].as_str().unwrap().to_owned()
    }

    /// What is left of uploads in the machine.
    async fn leftovers(&self) -> String {
        self.shell("find . -name '.nullspace-incoming*'").await
    }
}

fn reason((status, body): (StatusCode, Value)) -> (StatusCode, String) {
    assert_eq!(body["code"], "file_upload_error", "{body}");
    let detail = &body["error_detail"];
    assert!(
        detail["message"].is_string() && detail["retryable"].is_boolean(),
        "{body}"
    );
    assert!(body.get("details").is_none(), "{body}");
    (status, detail["reason"].as_str().unwrap().to_owned())
}

fn refused(status: StatusCode, reason: &str) -> (StatusCode, String) {
    (status, reason.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_in_any_order_survive_restarts_and_appear_at_once() {
    let mut uploads = Uploads::new().await;
    let data = bytes(2 * PART + 12_345);
    let parts: Vec<&[u8]> = data.chunks(PART).collect();
    uploads
        .shell("mkdir -p new && echo old > new/data.bin && chmod 640 new/data.bin")
        .await;
    let session = uploads
        .create(Uploads::file("new/data.bin", data.len()))
        .await;
    let upload = session["upload_id"].as_str().unwrap().to_owned();
    assert_eq!(session["target_path"], "/workspace/new/data.bin");
    assert_eq!(
        (
            &session["part_count"],
            &session["next_part"],
            &session["status"]
        ),
        (&json!(3), &json!(0), &json!("created"))
    );
    assert_eq!(
        session["limits"]["sandbox_staging_quota_bytes"],
        64_u64 << 30
    );
    assert!(
        session["limits"]
            .get("machine_staging_quota_bytes")
            .is_none()
    );

    let (status, session) = uploads.part(&upload, 2, parts[2], &sha(parts[2])).await;
    assert_eq!(
        (status, &session["next_part"]),
        (StatusCode::OK, &json!(0)),
        "{session}"
    );
    assert_eq!(session["accepted_bytes"], 12_345);
    uploads.world.restart().await;
    let (_, session) = uploads.part(&upload, 0, parts[0], &sha(parts[0])).await;
    assert_eq!(
        (&session["next_part"], &session["status"]),
        (&json!(1), &json!("uploading"))
    );
    // What is there already is taken again and changes nothing.
    let (status, again) = uploads.part(&upload, 0, parts[0], &sha(parts[0])).await;
    assert_eq!(
        (status, &again["accepted_bytes"]),
        (StatusCode::OK, &session["accepted_bytes"])
    );
    assert_eq!(
        reason(
            uploads
                .complete(&upload, json!({"whole_checksum_sha256": null}))
                .await
        ),
        refused(StatusCode::CONFLICT, "missing_parts")
    );
    let (_, session) = uploads.part(&upload, 1, parts[1], &sha(parts[1])).await;
    assert_eq!(session["status"], "staged");
    assert!(session.get("next_part").is_none(), "{session}");
    assert_eq!(uploads.shell("cat new/data.bin").await, "old\n");

    let whole = json!({"whole_checksum_sha256": sha(&data)});
    let (status, done) = uploads.complete(&upload, whole.clone()).await;
    assert_eq!(status, StatusCode::OK, "{done}");
    assert_eq!(
        (&done["published_bytes"], &done["published_file_count"]),
        (&json!(data.len()), &json!(1))
    );
    assert_eq!(
        (
            &done["session"]["status"],
            &done["session"]["reserved_staging_bytes"]
        ),
        (&json!("completed"), &json!(0))
    );
    uploads.world.restart().await;
    assert_eq!(uploads.complete(&upload, whole).await, (status, done));
    let found = uploads
        .shell("sha256sum < new/data.bin; stat -c %a new/data.bin")
        .await;
    assert_eq!(found, format!("{}  -\n640\n", sha(&data)));
    assert_eq!(uploads.leftovers().await, "");
    assert_eq!(
        reason(uploads.part(&upload, 0, parts[0], &sha(parts[0])).await),
        refused(StatusCode::CONFLICT, "upload_already_completed")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_at_all_can_be_uploaded() {
    let uploads = Uploads::new().await;
    let session = uploads.create(Uploads::file("/deep/er/empty", 0)).await;
    assert_eq!(
        (&session["part_count"], &session["status"]),
        (&json!(0), &json!("staged"))
    );
    let upload = session["upload_id"].as_str().unwrap();
    let (status, done) = uploads
        .complete(upload, json!({"whole_checksum_sha256": sha(b"")}))
        .await;
    assert_eq!(
        (status, &done["published_bytes"]),
        (StatusCode::OK, &json!(0)),
        "{done}"
    );
    let (_, info) = uploads
        .world
        .post(
            &format!("{}/files/info", uploads.base),
            json!({"path": "/deep/er/empty"}),
        )
        .await;
    assert_eq!((&info["size"], &info["mode"]), (&json!(0), &json!("0644")));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_request_begins_one_upload() {
    let uploads = Uploads::new().await;
    let begin = async |body: Value| {
        let request = uploads
            .world
            .request(Method::POST, &format!("{}/uploads", uploads.base))
            .header("idempotency-key", "k")
            .json(&body);
        answer(request).await
    };
    let (_, first) = begin(Uploads::file("a", 10)).await;
    let (_, second) = begin(Uploads::file("a", 10)).await;
    assert_eq!(first, second);
    let (status, body) = begin(Uploads::file("b", 10)).await;
    assert_eq!(
        (status, &body["code"]),
        (StatusCode::CONFLICT, &json!("idempotency_conflict"))
    );
    // What was refused can be asked for again.
    let uploads = Uploads::new().await;
    uploads.shell("mkdir dir").await;
    let begin = async || {
        let request = uploads
            .world
            .request(Method::POST, &format!("{}/uploads", uploads.base))
            .header("idempotency-key", "k")
            .json(&Uploads::file("dir", 10));
        answer(request).await
    };
    assert_eq!(
        reason(begin().await),
        refused(StatusCode::CONFLICT, "target_conflict")
    );
    uploads.shell("rmdir dir").await;
    assert_eq!(begin().await.0, StatusCode::CREATED);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_parts_are_refused_and_can_be_sent_again() {
    let uploads = Uploads::new().await;
    let data = bytes(PART + 10);
    let session = uploads.create(Uploads::file("f", data.len())).await;
    let upload = session["upload_id"].as_str().unwrap().to_owned();
    let bad = StatusCode::BAD_REQUEST;
    let (first, second) = data.split_at(PART);
    assert_eq!(
        reason(uploads.part(&upload, 2, b"x", &sha(b"x")).await),
        refused(bad, "part_out_of_range")
    );
    for data in [&second[..9], &[second, b"more"].concat()[..], &[]] {
        assert_eq!(
            reason(uploads.part(&upload, 1, data, &sha(data)).await),
            refused(bad, "part_size_mismatch")
        );
    }
    // The same without saying how long it is.
    let chunked = |data: &'static [u8]| {
        let path = format!("{}/uploads/{upload}/parts/1", uploads.base);
        let pieces = futures_util::stream::iter([Ok::<_, std::io::Error>(data)]);
        uploads
            .world
            .request(Method::PUT, &path)
            .header("x-nullspace-part-sha256", sha(data))
            .body(reqwest::Body::wrap_stream(pieces))
    };
    for data in [&b"short"[..], &b"far too long for it"[..]] {
        assert_eq!(
            reason(answer(chunked(data)).await),
            refused(bad, "part_size_mismatch")
        );
    }
    assert_eq!(
        reason(uploads.part(&upload, 1, second, &sha(b"other")).await),
        refused(bad, "invalid_part_checksum")
    );
    let (status, body) = uploads.part(&upload, 1, second, "no digest").await;
    assert_eq!((status, &body["code"]), (bad, &json!("invalid_request")));
    assert_eq!(uploads.get(&upload).await["accepted_bytes"], 0);
    assert_eq!(
        uploads.part(&upload, 1, second, &sha(second)).await.0,
        StatusCode::OK
    );
    assert_eq!(
        uploads.part(&upload, 0, first, &sha(first)).await.0,
        StatusCode::OK
    );
    // Wrong as a whole: it cannot go on, and nothing of it stays.
    assert_eq!(
        reason(
            uploads
                .complete(&upload, json!({"whole_checksum_sha256": sha(b"other")}))
                .await
        ),
        refused(bad, "whole_checksum_mismatch")
    );
    assert_eq!(uploads.get(&upload).await["status"], "failed");
    assert_eq!(uploads.leftovers().await, "");
    assert_eq!(uploads.shell("ls").await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_given_up_leaves_nothing() {
    let uploads = Uploads::new().await;
    let data = bytes(100);
    let session = uploads.create(Uploads::file("f", data.len())).await;
    let upload = session["upload_id"].as_str().unwrap().to_owned();
    assert_eq!(
        uploads.part(&upload, 0, &data, &sha(&data)).await.0,
        StatusCode::OK
    );
    assert_ne!(uploads.leftovers().await, "");
    let path = format!("{}/uploads/{upload}", uploads.base);
    for _ in 0..2 {
        assert_eq!(uploads.world.delete(&path).await.0, StatusCode::NO_CONTENT);
    }
    assert_eq!(uploads.leftovers().await, "");
    assert_eq!(uploads.get(&upload).await["status"], "aborted");
    let gone = StatusCode::GONE;
    assert_eq!(
        reason(uploads.part(&upload, 0, &data, &sha(&data)).await),
        refused(gone, "upload_aborted")
    );
    assert_eq!(
        reason(uploads.complete(&upload, json!({})).await),
        refused(gone, "upload_aborted")
    );
    let (status, body) = uploads
        .world
        .get(&format!("{}/uploads/upl_none", uploads.base))
        .await;
    assert_eq!(
        (status, &body["code"]),
        (StatusCode::NOT_FOUND, &json!("not_found"))
    );
}

/// An archive of `(name, kind, content)`: `d`irectories, `f`iles, `l`inks, or any other kind of entry.
fn archive(entries: &[(&str, u8, &str)]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, kind, content) in entries {
        let mut header = tar::Header::new_gnu();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_mode(0o755);
        let kind = match kind {
            b'd' => tar::EntryType::Directory,
            b'f' => tar::EntryType::Regular,
            b'l' => tar::EntryType::Symlink,
            other => tar::EntryType::new(*other),
        };
        header.set_entry_type(kind);
        let data = if kind.is_file() {
            content.as_bytes()
        } else {
            b""
        };
        if !kind.is_file() && !content.is_empty() {
            header.set_link_name(content).unwrap();
        }
        header.set_size(data.len() as u64);
        header.set_cksum();
        archive.append(&header, data).unwrap();
    }
    archive.into_inner().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn directories_merge_replace_or_refuse() {
    let uploads = Uploads::new().await;
    let data = archive(&[
        ("bin", b'd', ""),
        ("bin/run", b'f', "new"),
        ("./notes", b'f', "hello"),
        ("bin/link", b'l', "../notes"),
        ("empty", b'd', ""),
    ]);
    let (status, done) = uploads
        .upload(Uploads::directory("tree/app", &data, "error"), &data)
        .await;
    assert_eq!(status, StatusCode::OK, "{done}");
    assert_eq!(
        (&done["published_bytes"], &done["published_file_count"]),
        (&json!(8), &json!(3))
    );
    let shown = "cd tree/app && find . -printf '%P %y %m %l\\n' | sort";
    assert_eq!(
        uploads.shell(shown).await,
        " d 755 \nbin d 755 \nbin/link l 777 ../notes\nbin/run f 755 \nempty d 755 \nnotes f 755 \n"
    );
    uploads
        .shell("cd tree/app && echo old > bin/run && echo mine > bin/mine && rm notes")
        .await;
    let (status, done) = uploads
        .upload(Uploads::directory("tree/app", &data, "merge"), &data)
        .await;
    assert_eq!(status, StatusCode::OK, "{done}");
    assert_eq!(
        uploads
            .shell("cd tree/app && cat bin/run bin/mine notes")
            .await,
        "newmine\nhello"
    );

    let (status, body) = uploads
        .world
        .post(
            &format!("{}/uploads", uploads.base),
            Uploads::directory("tree/app", &data, "error"),
        )
        .await;
    assert_eq!(
        reason((status, body)),
        refused(StatusCode::CONFLICT, "target_conflict")
    );
    let (status, done) = uploads
        .upload(Uploads::directory("tree/app", &data, "replace"), &data)
        .await;
    assert_eq!(status, StatusCode::OK, "{done}");
    assert_eq!(uploads.shell("ls tree/app/bin").await, "link\nrun\n");

    // In the way of a merge: nothing is changed, and it may be completed once the way is free.
    uploads
        .shell("cd tree/app && rm -r bin notes && echo file > bin && mkdir notes")
        .await;
    let session = uploads
        .create(Uploads::directory("tree/app", &data, "merge"))
        .await;
    let upload = session["upload_id"].as_str().unwrap();
    uploads.part(upload, 0, &data, &sha(&data)).await;
    assert_eq!(
        reason(uploads.complete(upload, json!({})).await),
        refused(StatusCode::CONFLICT, "target_conflict")
    );
    assert_eq!(
        uploads.shell("cd tree/app && cat bin && ls").await,
        "file\nbin\nempty\nnotes\n"
    );
    uploads.shell("cd tree/app && rm -r bin notes").await;
    assert_eq!(uploads.complete(upload, json!({})).await.0, StatusCode::OK);
    assert_eq!(uploads.shell("cat tree/app/bin/link").await, "hello");
    assert_eq!(uploads.leftovers().await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_archives_write_nothing() {
    let uploads = Uploads::new().await;
    let path = "directory_extract_invalid_path";
    let link = "directory_extract_invalid_symlink";
    let entry = "directory_extract_unsupported_entry";
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("absolute", archive(&[("/etc/x", b'f', "x")]), path),
        ("upwards", archive(&[("a/../../x", b'f', "x")]), path),
        (
            "twice",
            archive(&[("x", b'f', "x"), ("x", b'f', "y")]),
            path,
        ),
        (
            "file and directory",
            archive(&[("x", b'f', "x"), ("x/y", b'f', "y")]),
            path,
        ),
        (
            "through a link",
            archive(&[("x", b'l', "y"), ("y", b'd', ""), ("x/z", b'f', "y")]),
            path,
        ),
        ("reserved", archive(&[(".nullspace/x", b'f', "x")]), path),
        (
            "link upwards",
            archive(&[("a", b'd', ""), ("a/x", b'l', "../../x")]),
            link,
        ),
        (
            "absolute link",
            archive(&[("x", b'l', "/etc/passwd")]),
            link,
        ),
        ("hard link", archive(&[("x", b'1', "/etc/passwd")]), entry),
        ("device", archive(&[("x", b'3', "")]), entry),
        ("fifo", archive(&[("x", b'6', "")]), entry),
        ("no archive", bytes(4096), entry),
        (
            "cut",
            archive(&[("x", b'f', &"y".repeat(3000))])[..1024].to_vec(),
            entry,
        ),
    ];
    for (name, data, expected) in cases {
        let answered = uploads
            .upload(Uploads::directory("into", &data, "merge"), &data)
            .await;
        assert_eq!(
            reason(answered),
            refused(StatusCode::BAD_REQUEST, expected),
            "{name}"
        );
        assert_eq!(uploads.shell("ls -A").await, "", "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_say_what_is_wrong() {
    let uploads = Uploads::new().await;
    let with = |field: &str, value: Value| {
        let mut body = Uploads::file("f", 10);
        body[field] = value;
        body
    };
    let base = format!("{}/uploads", uploads.base);
    for (body, code, word) in [
        (with("kind", json!("symlink")), "invalid_request", "kind"),
        (
            with("kind", json!("directory_tar")),
            "invalid_request",
            "archive_format",
        ),
        (
            with("archive_format", json!("tar")),
            "invalid_request",
            "archive_format",
        ),
        (
            with("archive_format", json!("zip")),
            "invalid_request",
            "archive_format",
        ),
        (
            with("content_length", json!(-1)),
            "invalid_request",
            "content_length",
        ),
        (
            with("content_length", json!(65_u64 << 30)),
            "file_upload_error",
            "bytes",
        ),
        (with("target_path", json!("")), "invalid_request", "path"),
        (
            with("target_path", json!("/workspace/.nullspace/x")),
            "invalid_request",
            "reserved",
        ),
        (
            with("target_path", json!("/workspace")),
            "file_upload_error",
            "directory",
        ),
        (
            with("conflict", json!("maybe")),
            "invalid_request",
            "conflict",
        ),
        (
            with("checksum_algorithm", json!("md5")),
            "invalid_request",
            "checksum_algorithm",
        ),
        (
            with("whole_checksum_sha256", json!("abc")),
            "invalid_request",
            "whole_checksum_sha256",
        ),
        (
            with("user", json!("nobody-here")),
            "invalid_request",
            "nobody-here",
        ),
        (with("more", json!(1)), "invalid_request", "more"),
    ] {
        let (status, answer) = uploads.world.post(&base, body.clone()).await;
        assert!(status.is_client_error(), "{body}: {status} {answer}");
        assert_eq!(answer["code"], code, "{body}: {answer}");
        assert!(
            answer["error"].as_str().unwrap().contains(word),
            "{body}: {answer}"
        );
    }
    // Unfinished uploads have a limit.
    for _ in 0..64 {
        uploads.create(Uploads::file("f", 10)).await;
    }
    let (status, body) = uploads.world.post(&base, Uploads::file("f", 10)).await;
    assert_eq!(
        (status, &body["code"]),
        (StatusCode::TOO_MANY_REQUESTS, &json!("capacity_exceeded"))
    );
}
