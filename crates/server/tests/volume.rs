//! Volumes over real HTTP: the fake engine, real keepers. They need root, as the server does.

#![allow(clippy::unwrap_used)]

mod common;

use std::{os::unix::fs::symlink, path::PathBuf, time::Duration};

use common::{World, answer, socket::Client};
use nullspace_engine::Engine;
use nullspace_server::Config;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

async fn volume(world: &World, name: &str) -> String {
    let (status, body) = world.post("/v1/volumes", json!({"name": name})).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    body["id"].as_str().unwrap().to_owned()
}

/// Where a volume is on the host.
fn directory(world: &World, id: &str) -> PathBuf {
    world.data.path().join("volumes").join(id)
}

async fn write(world: &World, id: &str, path: &str, content: &str) -> (StatusCode, Value) {
    let body = json!({"path": path, "content": content, "encoding": "utf8"});
    world
        .post(&format!("/v1/volumes/{id}/files/write"), body)
        .await
}

async fn read(world: &World, id: &str, path: &str) -> (StatusCode, Value) {
    let body = json!({"path": path, "encoding": "utf8"});
    world
        .post(&format!("/v1/volumes/{id}/files/read"), body)
        .await
}

fn refused(answer: &(StatusCode, Value), status: u16, code: &str) {
    assert_eq!(
        (answer.0.as_u16(), answer.1["code"].as_str()),
        (status, Some(code)),
        "{}",
        answer.1
    );
    assert!(!answer.1["error"].as_str().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_are_made_found_and_deleted() {
    let mut world = World::new().await;
    let id = volume(&world, "data").await;
    assert!(id.starts_with("vol_"));
    let (status, one) = world.get(&format!("/v1/volumes/{id}")).await;
    assert_eq!(status, StatusCode::OK);
    for (field, value) in [
        ("name", json!("data")),
        ("status", json!("available")),
        ("used_bytes", json!(0)),
        ("inode_count", json!(0)),
        ("mount_count", json!(0)),
        ("max_size_bytes", json!(null)),
    ] {
        assert_eq!(one[field], value, "{field}");
    }
    assert_eq!(world.get("/v1/volumes/by-name/data").await.1["id"], id);
    let second = volume(&world, "more").await;
    let (_, all) = world.get("/v1/volumes").await;
    let ids: Vec<_> = all.as_array().unwrap().iter().map(|v| &v["id"]).collect();
    assert_eq!(ids, [&json!(second), &json!(id)], "newest first");
    let (_, some) = world.get("/v1/volumes?fields=name,id").await;
    assert_eq!(some[0], json!({"name": "more", "id": second}));
    refused(
        &world.get(&format!("/v1/volumes/{id}?fields=nope")).await,
        400,
        "invalid_fields",
    );

    let again = world.post("/v1/volumes", json!({"name": "data"})).await;
    refused(&again, 409, "conflict");
    for bad in ["", "a/b", "vol_x", ".", "a b"] {
        let answer = world.post("/v1/volumes", json!({"name": bad})).await;
        refused(&answer, 400, "invalid_request");
    }
    refused(
        &world
            .post("/v1/volumes", json!({"name": "x", "max_size_bytes": 0}))
            .await,
        400,
        "invalid_request",
    );
    // The published clients fall back from an id to a name on exactly this code.
    for path in [
        "/v1/volumes/vol_nope",
        "/v1/volumes/by-name/nope",
        "/v1/volumes/nope",
        "/v1/volumes/vol_nope/attachments",
    ] {
        refused(&world.get(path).await, 404, "not_found");
    }
    refused(
        &world.delete("/v1/volumes/vol_nope").await,
        404,
        "not_found",
    );

    let (status, _) = write(&world, &id, "/a/b.txt", "hello").await;
    assert_eq!(status, StatusCode::OK);
    let (_, one) = world.get(&format!("/v1/volumes/{id}")).await;
    assert_eq!(one["inode_count"], 2, "counted anew: {one}");
    assert!(one["used_bytes"].as_u64().unwrap() > 0, "{one}");
    refused(
        &world.delete(&format!("/v1/volumes/{id}")).await,
        400,
        "invalid_request",
    );
    assert_eq!(read(&world, &id, "/a/b.txt").await.1["content"], "hello");
    world.restart().await;
    assert_eq!(read(&world, &id, "/a/b.txt").await.1["content"], "hello");
    let gone = world
        .post(
            &format!("/v1/volumes/{id}/files/remove"),
            json!({"path": "/a"}),
        )
        .await;
    assert_eq!(gone.0, StatusCode::NO_CONTENT);
    let (status, _) = world.delete(&format!("/v1/volumes/{id}")).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    refused(
        &world.get(&format!("/v1/volumes/{id}")).await,
        404,
        "not_found",
    );
    assert!(!directory(&world, &id).exists());
    // The name is free again.
    assert_ne!(volume(&world, "data").await, id);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_server_left_half_done_is_finished() {
    let mut world = World::new().await;
    let (empty, full) = (volume(&world, "empty").await, volume(&world, "full").await);
    write(&world, &full, "/a", "x").await;
    world.stop().await;
    // It died while it deleted both, and while it made another one.
    let db = nullspace_store::Store::open(&world.data.path().join("nullspace.db")).unwrap();
    for id in [empty.clone(), full.clone()] {
        db.write(move |tx| nullspace_store::volume::set_state(tx, &id, "deleting"))
            .await
            .unwrap();
    }
    drop(db);
    let stray = directory(&world, "vol_stray");
    std::fs::create_dir(&stray).unwrap();
    world.start().await;
    assert!(!stray.exists() && !directory(&world, &empty).exists());
    refused(
        &world.get(&format!("/v1/volumes/{empty}")).await,
        404,
        "not_found",
    );
    assert_eq!(read(&world, &full, "/a").await.1["content"], "x");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_need_no_machine() {
    let world = World::new().await;
    let id = volume(&world, "data").await;
    let at = |what: &str| format!("/v1/volumes/{id}/files/{what}");
    let (status, info) = write(&world, &id, "/src/one.txt", "alpha\nbeta\n").await;
    assert_eq!(status, StatusCode::OK, "{info}");
    assert_eq!(
        (&info["path"], &info["size"], &info["type"], &info["owner"]),
        (
            &json!("/src/one.txt"),
            &json!(11),
            &json!("file"),
            &json!("root")
        )
    );
    write(&world, &id, "/src/deep/two.md", "beta beta").await;
    let (_, found) = world
        .get(&format!("/v1/volumes/{id}/files?path=/&depth=3"))
        .await;
    let paths: Vec<_> = found
        .as_array()
        .unwrap()
        .iter()
        .map(|f| f["path"].as_str().unwrap())
        .collect();
    assert_eq!(
        paths,
        ["/src", "/src/deep", "/src/deep/two.md", "/src/one.txt"]
    );
    let (_, found) = world
        .post(&at("find"), json!({"path": "/", "pattern": "^beta$"}))
        .await;
    assert_eq!(
        found,
        json!([{"file": "/src/one.txt", "line": 2, "content": "beta"}])
    );
    let (_, found) = world
        .post(&at("search"), json!({"path": "/", "pattern": "*.md"}))
        .await;
    assert_eq!(found, json!(["/src/deep/two.md"]));
    let replace = |dry_run: bool| json!({"files": ["/src/one.txt", "/src/deep/two.md"], "pattern": "beta", "replacement": "gamma", "dry_run": dry_run});
    for dry_run in [true, false] {
        let (_, done) = world.post(&at("replace"), replace(dry_run)).await;
        assert_eq!(
            done,
            json!({"dry_run": dry_run, "replacements": 3, "files_modified": 2, "files_skipped": 0, "binary_files_skipped": 0})
        );
    }
    assert_eq!(
        read(&world, &id, "/src/deep/two.md").await.1["content"],
        "gamma gamma"
    );
    let (status, moved) = world
        .post(
            &at("rename"),
            json!({"old_path": "/src/one.txt", "new_path": "/one"}),
        )
        .await;
    assert_eq!((status, &moved["path"]), (StatusCode::OK, &json!("/one")));
    let (status, _) = world
        .post(
            &at("permissions"),
            json!({"path": "/one", "permissions": "0600"}),
        )
        .await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    assert_eq!(
        world.post(&at("info"), json!({"path": "/one"})).await.1["mode"],
        "0600"
    );
    for (path, exists) in [("/one", true), ("/src/one.txt", false)] {
        assert_eq!(
            world.post(&at("exists"), json!({"path": path})).await.1["exists"],
            exists
        );
    }
    let (status, _) = world.post(&at("mkdir"), json!({"path": "/x/y/z"})).await;
    assert_eq!(status, StatusCode::NO_CONTENT);

    // A path is absolute and stays inside; there are no users.
    for path in ["relative", "", "/../etc", "/a/../../b"] {
        refused(&read(&world, &id, path).await, 400, "invalid_request");
        refused(&write(&world, &id, path, "x").await, 400, "invalid_request");
    }
    let as_user = json!({"path": "/one", "encoding": "utf8", "user": "root"});
    refused(
        &world.post(&at("read"), as_user).await,
        400,
        "invalid_request",
    );
    refused(&read(&world, &id, "/nope").await, 404, "not_found");
    // The platform's folder of machines is nothing here.
    let (status, _) = write(&world, &id, "/workspace/.nullspace/a", "x").await;
    assert_eq!(status, StatusCode::OK);

    // One noun is not the other.
    let machine = world.machine().await;
    refused(
        &world.get(&format!("/v1/machines/{id}/files?path=/")).await,
        404,
        "machine_not_found",
    );
    refused(
        &world.get(&format!("/v1/sandboxes/{id}/files?path=/")).await,
        404,
        "sandbox_not_found",
    );
    refused(
        &world
            .get(&format!("/v1/volumes/{machine}/files?path=/"))
            .await,
        404,
        "not_found",
    );
}

/// What a machine may leave in a volume for whoever works on it from outside.
#[tokio::test(flavor = "multi_thread")]
async fn links_lead_nowhere() {
    let world = World::new().await;
    let (id, other) = (
        volume(&world, "hostile").await,
        volume(&world, "other").await,
    );
    write(&world, &other, "/secret", "of another").await;
    let at = directory(&world, &id);
    let secret = world.data.path().join("secret");
    std::fs::write(&secret, "of the host").unwrap();
    for (name, target) in [
        ("absolute", secret.clone()),
        ("upwards", "../../secret".into()),
        ("neighbour", format!("../{other}/secret").into()),
        ("passwd", "/etc/passwd".into()),
        ("out", world.data.path().to_owned()),
        ("root", "/".into()),
        ("self", "/proc/self/root".into()),
    ] {
        symlink(target, at.join(name)).unwrap();
    }
    // Names of users are looked for here, by a file that could be a pipe that nobody writes to.
    std::fs::create_dir(at.join("etc")).unwrap();
    for pipe in ["etc/passwd", "pipe"] {
        let made = std::process::Command::new("mkfifo")
            .arg(at.join(pipe))
            .status();
        assert!(made.unwrap().success());
    }
    for path in [
        "/absolute",
        "/upwards",
        "/neighbour",
        "/out/secret",
        "/out/nullspace.db",
        "/self/etc/hostname",
        "/root/../../../secret",
    ] {
        let answer = read(&world, &id, path).await;
        assert!(answer.0.is_client_error(), "{path}: {answer:?}");
        assert!(!answer.1.to_string().contains("of the host"), "{path}");
    }
    for pipe in ["/pipe", "/passwd"] {
        refused(&read(&world, &id, pipe).await, 400, "invalid_request");
    }
    // Writing through them makes files in the volume at most.
    for path in ["/absolute", "/upwards", "/out/new", "/neighbour"] {
        let _ = write(&world, &id, path, "overwritten").await;
    }
    assert_eq!(std::fs::read_to_string(&secret).unwrap(), "of the host");
    assert!(!world.data.path().join("new").exists());
    assert_eq!(
        read(&world, &other, "/secret").await.1["content"],
        "of another"
    );
    // Nor do a removal, a search or an archive go through them.
    let files = |what: &str| format!("/v1/volumes/{id}/files/{what}");
    let removed = world.post(&files("remove"), json!({"path": "/root"})).await;
    assert_eq!(removed.0, StatusCode::NO_CONTENT, "{removed:?}");
    let (_, found) = world
        .post(
            &files("find"),
            json!({"path": "/", "pattern": "of the host|of another"}),
        )
        .await;
    assert_eq!(found, json!([]));
    let (_, url) = world
        .post(
            &files("download-url"),
            json!({"path": "/", "archive_format": "tar"}),
        )
        .await;
    let archive = world
        .client
        .get(url["url"].as_str().unwrap())
        .send()
        .await
        .unwrap();
    let bytes = archive.bytes().await.unwrap();
    let text = String::from_utf8_lossy(&bytes);
    assert!(text.contains("upwards"));
    assert!(!text.contains("of the host") && !text.contains("of another"));
    assert!(secret.exists() && at.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn signed_urls_need_no_key() {
    let world = World::new().await;
    let (id, other) = (volume(&world, "data").await, volume(&world, "other").await);
    let at = |what: &str| format!("/v1/volumes/{id}/files/{what}");
    let (status, up) = world
        .post(&at("upload-url"), json!({"path": "/big.bin"}))
        .await;
    assert_eq!(status, StatusCode::OK, "{up}");
    let up = up["url"].as_str().unwrap().to_owned();
    assert!(
        up.contains(&format!("/v1/volumes/{id}/file?grant=")),
        "{up}"
    );
    let sent = world
        .client
        .put(&up)
        .body("some bytes")
        .send()
        .await
        .unwrap();
    assert!(sent.status().is_success(), "{sent:?}");
    let (_, down) = world
        .post(&at("download-url"), json!({"path": "/big.bin"}))
        .await;
    let down = down["url"].as_str().unwrap().to_owned();
    let got = world.client.get(&down).send().await.unwrap();
    assert_eq!(got.text().await.unwrap(), "some bytes");
    // Each for what it says alone.
    for (method, url) in [
        (Method::GET, &up),
        (Method::PUT, &down),
        (Method::GET, &down.replace(&id, &other)),
    ] {
        let response = world.client.request(method, url).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::FORBIDDEN);
    }
    for (token, status) in [("x", 400), ("e30.00", 401)] {
        let url = world.url(&format!("/v1/volumes/{id}/file?grant={token}"));
        let response = world.client.get(url).send().await.unwrap();
        assert_eq!(response.status().as_u16(), status);
    }
    let bare = world.url(&format!("/v1/volumes/{id}/file?path=/big.bin"));
    let response = world.client.get(bare).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    // A directory is an archive, or nothing.
    write(&world, &id, "/dir/a", "x").await;
    refused(
        &world
            .post(&at("download-url"), json!({"path": "/dir"}))
            .await,
        400,
        "invalid_request",
    );
}

fn sha(data: &[u8]) -> String {
    hex::encode(Sha256::digest(data))
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_in_parts() {
    let mut world = World::new().await;
    let id = volume(&world, "data").await;
    let base = format!("/v1/volumes/{id}/uploads");
    let data = vec![7_u8; (8 << 20) + 5];
    let request = json!({"kind": "file", "source_kind": "restartable_file", "target_path": "/in/big",
        "content_length": data.len(), "conflict": "merge", "archive_format": null, "checksum_algorithm": "sha256",
        "whole_checksum_sha256": null, "metadata": {}});
    let (status, begun) = world.post(&base, request.clone()).await;
    assert_eq!(status, StatusCode::CREATED, "{begun}");
    let session = &begun["session"];
    assert_eq!(session["part_count"], 2);
    // Published clients refuse any other key.
    let limits: Vec<_> = session["limits"].as_object().unwrap().keys().collect();
    assert_eq!(
        limits,
        [
            "max_concurrency",
            "max_part_bytes",
            "max_upload_bytes",
            "staging_quota_bytes"
        ]
    );
    assert!(session.get("user").is_none());
    let upload = session["upload_id"].as_str().unwrap().to_owned();
    let part = async |world: &World, n: usize| {
        let piece = data[n * (8 << 20)..]
            .iter()
            .take(8 << 20)
            .copied()
            .collect::<Vec<u8>>();
        let request = world
            .request(Method::PUT, &format!("{base}/{upload}/parts/{n}"))
            .header("x-nullspace-part-sha256", sha(&piece))
            .body(piece);
        answer(request).await
    };
    assert_eq!(part(&world, 1).await.0, StatusCode::OK);
    let early = world
        .post(&format!("{base}/{upload}/complete"), json!({}))
        .await;
    refused(&early, 409, "file_upload_error");
    assert_eq!(early.1["error_detail"]["reason"], "missing_parts");
    // What was taken stays, whatever becomes of the server.
    world.restart().await;
    let (_, session) = world.get(&format!("{base}/{upload}")).await;
    assert_eq!(
        (&session["next_part"], &session["accepted_bytes"]),
        (&json!(0), &json!(5))
    );
    assert_eq!(part(&world, 0).await.0, StatusCode::OK);
    let (status, done) = world
        .post(
            &format!("{base}/{upload}/complete"),
            json!({"whole_checksum_sha256": sha(&data)}),
        )
        .await;
    assert_eq!(status, StatusCode::OK, "{done}");
    assert_eq!(done["published_bytes"], data.len());
    assert_eq!(
        std::fs::read(directory(&world, &id).join("in/big")).unwrap(),
        data
    );
    // One that is given up leaves nothing.
    let mut other = request;
    other["target_path"] = json!("/other");
    let (_, begun) = world.post(&base, other).await;
    let upload = begun["session"]["upload_id"].as_str().unwrap();
    assert_eq!(
        world.delete(&format!("{base}/{upload}")).await.0,
        StatusCode::NO_CONTENT
    );
    let left: Vec<_> = std::fs::read_dir(directory(&world, &id))
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(left, ["in"]);
    refused(
        &world.get(&format!("{base}/upl_nope")).await,
        404,
        "not_found",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_watched() {
    let world = World::new().await;
    let id = volume(&world, "data").await;
    write(&world, &id, "/dir/a", "x").await;
    let mut client = Client::at(&world, &format!("/v1/volumes/{id}/ws")).await;
    let watch = |path: &str, user: Value| json!({"type": "file_watch", "id": "w", "path": path, "user": user, "recursive": true, "timeout_secs": null});
    client.say(watch("/dir", json!(null))).await;
    assert_eq!(
        client.hear().await,
        json!({"type": "file_watch_started", "id": "w"})
    );
    // As a machine does it that has the volume mounted.
    std::fs::create_dir(directory(&world, &id).join("dir/made")).unwrap();
    let event = client.hear().await;
    assert_eq!(
        event,
        json!({"type": "file_event", "id": "w", "event": "create", "name": "made", "path": "/dir/made"})
    );
    let mut client = Client::at(&world, &format!("/v1/volumes/{id}/ws")).await;
    for wrong in [
        watch("/nope", json!(null)),
        watch("/dir", json!("root")),
        json!({"type": "exec_start", "id": "w", "command": "id", "args": []}),
    ] {
        client.say(wrong).await;
        let told = client.hear().await;
        assert_eq!(
            (&told["type"], &told["id"]),
            (&json!("error"), &json!("w")),
            "{told}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_are_counted_and_kept_by_the_api() {
    let world = World::new().await;
    let body = json!({"name": "small", "max_size_bytes": 1 << 20, "max_file_count": 3});
    let (_, made) = world.post("/v1/volumes", body).await;
    assert_eq!(made["quota_enforcement"], "counted");
    let id = made["id"].as_str().unwrap();
    let half = "x".repeat(600 << 10);
    assert_eq!(write(&world, id, "/a", &half).await.0, StatusCode::OK);
    let over = write(&world, id, "/b", &half).await;
    refused(&over, 507, "volume_quota_exceeded");
    assert!(
        !directory(&world, id).join("b").exists(),
        "nothing is left of it"
    );
    let upload = json!({"kind": "file", "source_kind": "restartable_file", "target_path": "/c", "content_length": 900 << 10,
        "conflict": "merge", "checksum_algorithm": "sha256"});
    let refusal = world
        .post(&format!("/v1/volumes/{id}/uploads"), upload)
        .await;
    refused(&refusal, 507, "file_upload_error");
    assert_eq!(
        refusal.1["error_detail"]["reason"],
        "insufficient_staging_space"
    );
    for path in ["/d", "/e"] {
        assert_eq!(write(&world, id, path, "x").await.0, StatusCode::OK);
    }
    refused(
        &write(&world, id, "/f", "x").await,
        507,
        "volume_quota_exceeded",
    );
    // A machine may still read it, and one that has room is written to again.
    let machine = world.machine().await;
    let mount =
        |read_only: bool| json!({"ref": "small", "mount_path": "/data", "read_only": read_only});
    let at = format!("/v1/machines/{machine}/volumes");
    refused(
        &world.post(&at, mount(false)).await,
        507,
        "volume_quota_exceeded",
    );
    assert_eq!(world.post(&at, mount(true)).await.0, StatusCode::CREATED);
    let remove = world
        .post(
            &format!("/v1/volumes/{id}/files/remove"),
            json!({"path": "/a"}),
        )
        .await;
    assert_eq!(remove.0, StatusCode::NO_CONTENT);
    assert_eq!(write(&world, id, "/f", &half).await.0, StatusCode::OK);
    let limited = World::with(Config {
        max_volumes: 1,
        ..Config::default()
    })
    .await;
    volume(&limited, "one").await;
    refused(
        &limited.post("/v1/volumes", json!({"name": "two"})).await,
        429,
        "volume_limit_exceeded",
    );
    assert_eq!(
        std::fs::read_dir(limited.data.path().join("volumes"))
            .unwrap()
            .count(),
        1
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn machines_get_volumes_and_give_them_back() {
    let mut world = World::new().await;
    let (id, other) = (volume(&world, "data").await, volume(&world, "other").await);
    write(&world, &id, "/sub/a", "hello").await;
    let request = json!({"volumes": [
        {"ref": "data", "mount_path": "/data/", "read_only": false},
        {"ref": other, "mount_path": "/srv/other", "read_only": true, "subpath": null}], "metadata": {"mine": 1}});
    write(&world, &other, "/x", "x").await;
    let (status, made) = world.post("/v1/sandboxes", request).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    let machine = made["id"].as_str().unwrap().to_owned();
    let shown = &made["metadata"]["volume_attachments"];
    assert_eq!(made["metadata"]["mine"], 1);
    assert_eq!(
        (
            &shown[0]["volume_id"],
            &shown[0]["mount_path"],
            &shown[0]["read_only"],
            &shown[0]["state"]
        ),
        (
            &json!(id),
            &json!("/data"),
            &json!(false),
            &json!("mounted")
        )
    );
    assert_eq!(
        (&shown[1]["mount_path"], &shown[1]["read_only"]),
        (&json!("/srv/other"), &json!(true))
    );
    let at = format!("/v1/sandboxes/{machine}/volumes");
    assert_eq!(&world.get(&at).await.1, shown);
    let read = json!({"path": "/data/sub/a", "encoding": "utf8"});
    let (_, content) = world
        .post(&format!("/v1/machines/{machine}/files/read"), read)
        .await;
    assert_eq!(content["content"], "hello");
    let (_, one) = world.get(&format!("/v1/volumes/{id}")).await;
    assert_eq!(
        (&one["status"], &one["mount_count"]),
        (&json!("attached"), &json!(1))
    );
    let (_, attachments) = world.get(&format!("/v1/volumes/{id}/attachments")).await;
    assert_eq!(
        (&attachments[0]["machine_id"], &attachments[0]["sandbox_id"]),
        (&json!(machine), &json!(machine))
    );
    refused(
        &world.delete(&format!("/v1/volumes/{id}")).await,
        409,
        "volume_busy",
    );

    // At run time: a part of it, made if it is missing.
    let mount = |reference: &str, path: &str| json!({"ref": reference, "mount_path": path, "read_only": false});
    let mut part = mount("data", "/part");
    part["subpath"] = json!("new/deep");
    let (status, attached) = world.post(&at, part).await;
    assert_eq!(
        (status, &attached["state"]),
        (StatusCode::CREATED, &json!("mounted")),
        "{attached}"
    );
    assert_eq!(attached["subpath"], "new/deep");
    assert!(directory(&world, &id).join("new/deep").is_dir());
    for (wrong, status, code) in [
        (mount("nope", "/n"), 404, "not_found"),
        (mount("vol_nope", "/n"), 404, "not_found"),
        (mount("data", "/"), 400, "volume_invalid_mount_path"),
        (mount("data", "relative"), 400, "volume_invalid_mount_path"),
        (mount("data", "/a/../b"), 400, "volume_invalid_mount_path"),
        (
            mount("data", "/workspace/.nullspace/x"),
            400,
            "volume_invalid_mount_path",
        ),
        (mount("data", "/proc/x"), 400, "volume_invalid_mount_path"),
        (mount("data", "/data"), 400, "volume_overlapping_mounts"),
        (
            mount("data", "/data/inside"),
            400,
            "volume_overlapping_mounts",
        ),
        (mount("data", "/srv"), 400, "volume_overlapping_mounts"),
        (
            json!({"ref": "data", "mount_path": "/n", "subpath": "../x"}),
            400,
            "volume_invalid_mount_path",
        ),
        (
            json!({"ref": "data", "mount_path": "/n", "subpath": "sub/a"}),
            400,
            "volume_invalid_mount_path",
        ),
        (
            json!({"ref": "data", "mount_path": "/n", "subpath": "missing", "read_only": true}),
            400,
            "volume_invalid_mount_path",
        ),
        (json!({"ref": "data"}), 400, "invalid_request"),
    ] {
        refused(&world.post(&at, wrong.clone()).await, status, code);
        let create =
            json!({"volumes": [mount("data", "/data"), mount(&other, "/srv/other"), wrong]});
        refused(&world.post("/v1/machines", create).await, status, code);
    }
    assert_eq!(world.get(&at).await.1.as_array().unwrap().len(), 3);
    let attachment = attached["id"].as_str().unwrap();
    for (method, path) in [(Method::GET, "health"), (Method::POST, "remount")] {
        let (status, body) =
            answer(world.request(method, &format!("{at}/{attachment}/{path}"))).await;
        assert_eq!(
            (status, &body["state"]),
            (StatusCode::OK, &json!("mounted")),
            "{body}"
        );
    }
    refused(
        &world.get(&format!("{at}/vat_nope/health")).await,
        404,
        "not_found",
    );
    // It is taken away behind our back: health says so, and remount helps.
    world
        .engine
        .detach(&machine, "/part".as_ref())
        .await
        .unwrap();
    let (_, body) = world.get(&format!("{at}/{attachment}/health")).await;
    assert_eq!(
        (&body["state"], &body["last_error_code"]),
        (&json!("failed"), &json!("volume_backend_unavailable"))
    );
    assert_eq!(
        world.get(&format!("/v1/volumes/{id}")).await.1["status"],
        "degraded"
    );
    let (_, body) = world
        .post(&format!("{at}/{attachment}/remount"), json!({}))
        .await;
    assert_eq!(
        (&body["state"], &body["last_error_code"]),
        (&json!("mounted"), &json!(null))
    );

    // A server that starts again finishes what was begun.
    world.stop().await;
    world
        .engine
        .detach(&machine, "/part".as_ref())
        .await
        .unwrap();
    let db = nullspace_store::Store::open(&world.data.path().join("nullspace.db")).unwrap();
    let wanted = attachment.to_owned();
    db.write(move |tx| {
        tx.execute(
            "UPDATE volume_attachment SET state = 'mounting' WHERE id = ?1",
            [&wanted],
        )?;
        tx.execute(
            "UPDATE volume_attachment SET state = 'releasing' WHERE mount_path = '/srv/other'",
            [],
        )?;
        Ok::<_, nullspace_store::StoreError>(())
    })
    .await
    .unwrap();
    drop(db);
    world.start().await;
    let binds = async |world: &World| world.engine.attached(&machine).await.unwrap().len();
    for _ in 0..200 {
        if binds(&world).await == 2 && world.get(&at).await.1.as_array().unwrap().len() == 2 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let (_, all) = world.get(&at).await;
    let states: Vec<_> = all
        .as_array()
        .unwrap()
        .iter()
        .map(|a| (&a["mount_path"], &a["state"]))
        .collect();
    assert_eq!(
        states,
        [
            (&json!("/data"), &json!("mounted")),
            (&json!("/part"), &json!("mounted"))
        ]
    );
    let (status, released) = world.delete(&format!("{at}/{attachment}")).await;
    assert_eq!(
        (status, &released["state"]),
        (StatusCode::OK, &json!("released")),
        "{released}"
    );
    refused(
        &world.delete(&format!("{at}/{attachment}")).await,
        404,
        "not_found",
    );
    assert_eq!(binds(&world).await, 1);

    // With the machine the rest is given back; what is in the volume stays.
    world.delete(&format!("/v1/machines/{machine}")).await;
    assert_eq!(
        world.get(&format!("/v1/volumes/{id}/attachments")).await.1,
        json!([])
    );
    refused(
        &world.post(&at, mount("data", "/n")).await,
        409,
        "sandbox_not_ready",
    );
    assert_eq!(read_text(&world, &id, "/sub/a").await, "hello");
    assert_eq!(
        world.get(&format!("/v1/volumes/{id}")).await.1["status"],
        "available"
    );
    for volume in [&id, &other] {
        for entry in std::fs::read_dir(directory(&world, volume))
            .unwrap()
            .flatten()
        {
            let path = format!("/{}", entry.file_name().to_string_lossy());
            world
                .post(
                    &format!("/v1/volumes/{volume}/files/remove"),
                    json!({"path": path}),
                )
                .await;
        }
        assert_eq!(
            world.delete(&format!("/v1/volumes/{volume}")).await.0,
            StatusCode::NO_CONTENT
        );
    }
}

async fn read_text(world: &World, id: &str, path: &str) -> String {
    read(world, id, path).await.1["content"]
        .as_str()
        .unwrap()
        .to_owned()
}

/// Keepers end with their server, however it ends.
#[tokio::test(flavor = "multi_thread")]
async fn no_keeper_outlives_its_server() {
    let mut world = World::new().await;
    let id = volume(&world, "data").await;
    write(&world, &id, "/a", "x").await;
    let at = directory(&world, &id).into_os_string().into_encoded_bytes();
    let keepers = || {
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        processes
            .filter(|process| {
                std::fs::read(process.path().join("cmdline"))
                    .is_ok_and(|line| line.windows(at.len()).any(|part| part == at))
            })
            .count()
    };
    assert_eq!(keepers(), 1);
    // It is started again when it is gone.
    world.stop().await;
    world.server = None;
    for _ in 0..500 {
        if keepers() == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(keepers(), 0);
}
