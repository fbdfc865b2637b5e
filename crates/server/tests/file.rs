//! Files over real HTTP, on the fake engine.

#![allow(clippy::unwrap_used)]

mod common;

use common::{World, answer};
use futures_util::StreamExt;
use reqwest::{Method, StatusCode, multipart};
use serde_json::{Value, json};

async fn files() -> (World, String) {
    let world = World::new().await;
    let id = world.machine().await;
    (world, format!("/v1/sandboxes/{id}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_operation() {
    let (world, base) = files().await;
    let call =
        async |name: &str, body: Value| world.post(&format!("{base}/files/{name}"), body).await;
    let (status, info) = call(
        "write",
        json!({"path": "notes/a.txt", "content": "héllo", "encoding": "utf8", "user": null}),
    )
    .await;
    assert_eq!(status, StatusCode::OK, "{info}");
    assert_eq!(info["path"], "/workspace/notes/a.txt");
    assert_eq!(info["type"], "file");
    assert_eq!(info["mode"], "0644");
    assert_eq!(info["size"], 6);
    assert!(info.get("symlink_target").is_none());
    let (_, read) = call(
        "read",
        json!({"path": "/workspace/notes/a.txt", "encoding": "utf8", "user": null}),
    )
    .await;
    assert_eq!(
        read,
        json!({"content": "héllo", "encoding": "utf8", "size": 6})
    );
    let (_, read) = call("read", json!({"path": "notes/a.txt", "encoding": "base64"})).await;
    assert_eq!(read["content"], "aMOpbGxv");
    let (status, _) = call(
        "write",
        json!({"path": "/b/bin", "content": "AP8=", "encoding": "base64"}),
    )
    .await;
    assert_eq!(status, StatusCode::OK);
    let (_, read) = call("read", json!({"path": "/b/bin"})).await;
    assert_eq!(read["content"], "\0\u{fffd}");

    for (path, exists) in [
        ("/b/bin", true),
        ("/b/none", false),
        ("/b/bin/x", false),
        ("/b", true),
    ] {
        let (status, body) = call("exists", json!({"path": path})).await;
        assert_eq!(
            (status, &body),
            (StatusCode::OK, &json!({"exists": exists})),
            "{path}"
        );
    }
    let (status, _) = call("mkdir", json!({"path": "/d/e/f"})).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    let (status, _) = call("mkdir", json!({"path": "/d/e/f"})).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    let (_, info) = call("info", json!({"path": "/d/e"})).await;
    assert_eq!(
        (&info["type"], &info["is_dir"]),
        (&json!("dir"), &json!(true))
    );
    let (status, info) = call(
        "rename",
        json!({"old_path": "/b/bin", "new_path": "/d/bin"}),
    )
    .await;
    assert_eq!((status, &info["path"]), (StatusCode::OK, &json!("/d/bin")));
    let (status, _) = call(
        "permissions",
        json!({"path": "/d/bin", "permissions": "0755"}),
    )
    .await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    let (_, info) = call("info", json!({"path": "/d/bin"})).await;
    assert_eq!(
        (&info["mode"], &info["permissions"]),
        (&json!("0755"), &json!("0755"))
    );

    let (_, list) = world.get(&format!("{base}/files?path=/d")).await;
    let paths = |list: &Value| -> Vec<String> {
        list.as_array()
            .unwrap()
            .iter()
            .map(|f| f["path"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(paths(&list), ["/d/bin", "/d/e"]);
    let (_, list) = world.get(&format!("{base}/files?path=/d&depth=2")).await;
    assert_eq!(paths(&list), ["/d/bin", "/d/e", "/d/e/f"]);
    let (status, _) = call("remove", json!({"path": "/d"})).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    let (status, body) = call("remove", json!({"path": "/d"})).await;
    assert_eq!(
        (status, &body["code"]),
        (StatusCode::NOT_FOUND, &json!("not_found"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals() {
    let (world, base) = files().await;
    world
        .post(
            &format!("{base}/files/write"),
            json!({"path": "/f", "content": "x"}),
        )
        .await;
    let post = [
        ("read", json!({"path": "/none"}), 404, "not_found"),
        ("read", json!({"path": "/etc"}), 400, "invalid_request"),
        ("read", json!({"path": ""}), 400, "invalid_request"),
        (
            "read",
            json!({"path": "/f", "encoding": "rot13"}),
            400,
            "invalid_request",
        ),
        (
            "read",
            json!({"path": "/f", "user": "nobody-here"}),
            400,
            "invalid_request",
        ),
        (
            "write",
            json!({"path": "/etc", "content": "x"}),
            400,
            "invalid_request",
        ),
        (
            "write",
            json!({"path": "/f", "content": "?", "encoding": "base64"}),
            400,
            "invalid_request",
        ),
        (
            "write",
            json!({"path": "/workspace/.nullspace/x", "content": "x"}),
            400,
            "invalid_request",
        ),
        (
            "write",
            json!({"path": ".nullspace/x", "content": "x"}),
            400,
            "invalid_request",
        ),
        (
            "read",
            json!({"path": "/tmp/../workspace/.nullspace/x"}),
            400,
            "invalid_request",
        ),
        ("mkdir", json!({"path": "/f"}), 409, "conflict"),
        (
            "write",
            json!({"path": "/f/below", "content": "x"}),
            400,
            "invalid_request",
        ),
        (
            "rename",
            json!({"old_path": "/none", "new_path": "/x"}),
            404,
            "not_found",
        ),
        (
            "permissions",
            json!({"path": "/f", "permissions": "rwx"}),
            400,
            "invalid_request",
        ),
        (
            "permissions",
            json!({"path": "/f", "permissions": "99999"}),
            400,
            "invalid_request",
        ),
        ("info", json!({"path": 7}), 400, "invalid_request"),
    ];
    for (name, body, status, code) in post {
        let (got, answer) = world
            .post(&format!("{base}/files/{name}"), body.clone())
            .await;
        assert_eq!(got.as_u16(), status, "{name} {body}: {answer}");
        assert_eq!(answer["code"], code, "{name} {body}: {answer}");
    }
    for (path, status) in [("/none", 404), ("/f", 400)] {
        let (got, answer) = world.get(&format!("{base}/files?path={path}")).await;
        assert_eq!(got.as_u16(), status, "{answer}");
    }
    let (got, _) = world.get(&format!("{base}/file")).await;
    assert_eq!(got.as_u16(), 400);
    let (got, _) = world.get(&format!("{base}/file?path=/none")).await;
    assert_eq!(got.as_u16(), 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn raw_bytes_both_ways_with_ranges() {
    let (world, base) = files().await;
    let url = format!("{base}/file?path=/big/file.bin&user=");
    // Several windows of the guest's connection, sent without a length.
    let data: Vec<u8> = (0..12_000_000u32).map(|n| (n ^ (n >> 8)) as u8).collect();
    let chunks: Vec<Result<Vec<u8>, std::io::Error>> =
        data.chunks(100_000).map(|c| Ok(c.to_vec())).collect();
    let body = reqwest::Body::wrap_stream(futures_util::stream::iter(chunks));
    let put = world
        .request(Method::PUT, &url)
        .body(body)
        .send()
        .await
        .unwrap();
    assert_eq!(put.status(), StatusCode::NO_CONTENT);
    let got = world.request(Method::GET, &url).send().await.unwrap();
    assert_eq!(got.content_length(), Some(data.len() as u64));
    assert!(got.bytes().await.unwrap() == data);
    for (range, from, to) in [
        ("bytes=0-9", 0, 10),
        ("bytes=5000000-", 5_000_000, data.len()),
        ("bytes=-7", data.len() - 7, data.len()),
    ] {
        let part = world
            .request(Method::GET, &url)
            .header("range", range)
            .send()
            .await
            .unwrap();
        assert_eq!(part.status(), StatusCode::PARTIAL_CONTENT, "{range}");
        assert_eq!(
            part.headers()["content-range"],
            format!("bytes {from}-{}/{}", to - 1, data.len())
        );
        assert!(part.bytes().await.unwrap() == data[from..to], "{range}");
    }
    let past = world
        .request(Method::GET, &url)
        .header("range", "bytes=12000000-")
        .send()
        .await
        .unwrap();
    assert_eq!(past.status(), StatusCode::RANGE_NOT_SATISFIABLE);

    // An upload that breaks off leaves the old file.
    let broken = futures_util::stream::iter([Ok(vec![1u8; 1000])]).chain(
        futures_util::stream::once(async { Err(std::io::Error::other("gone")) }),
    );
    let sent = world
        .request(Method::PUT, &url)
        .body(reqwest::Body::wrap_stream(broken))
        .send()
        .await;
    assert!(sent.is_err());
    let again = world.request(Method::GET, &url).send().await.unwrap();
    assert_eq!(again.content_length(), Some(data.len() as u64));

    // A form works as well as a raw body.
    let form = multipart::Form::new().part(
        "file",
        multipart::Part::bytes(b"form".to_vec()).file_name("x"),
    );
    let post = world
        .request(Method::POST, &format!("{base}/file?path=/form"))
        .multipart(form)
        .send()
        .await
        .unwrap();
    assert_eq!(post.status(), StatusCode::NO_CONTENT);
    let post = world
        .request(Method::POST, &format!("{base}/file?path=/raw"))
        .body("raw")
        .send()
        .await
        .unwrap();
    assert_eq!(post.status(), StatusCode::NO_CONTENT);
    for name in ["form", "raw"] {
        let got = world
            .request(Method::GET, &format!("{base}/file?path=/{name}"))
            .send()
            .await
            .unwrap();
        assert_eq!(got.text().await.unwrap(), name);
    }
    let empty = multipart::Form::new().text("other", "x");
    let (status, body) = answer(
        world
            .request(Method::POST, &format!("{base}/file?path=/x"))
            .multipart(empty),
    )
    .await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{body}");
}

#[tokio::test(flavor = "multi_thread")]
async fn batches() {
    let (world, base) = files().await;
    let url = format!("{base}/files/batch-write");
    let manifest = |text: String| {
        multipart::Part::text(text)
            .file_name("manifest.json")
            .mime_str("application/json")
            .unwrap()
    };
    let bytes = |data: &[u8]| {
        multipart::Part::bytes(data.to_vec())
            .file_name("file.bin")
            .mime_str("application/octet-stream")
            .unwrap()
    };
    let text = json!({"files": [
        {"path": "one", "field": "file0"},
        {"path": "/etc", "field": "file1"},
        {"path": "/three", "field": "file2"},
        {"path": "/four", "field": "file3"},
    ], "user": null});
    let big = vec![b'z'; 3 << 20];
    let form = multipart::Form::new()
        .part("manifest", manifest(text.to_string()))
        .part("file0", bytes(b"1"))
        .part("file1", bytes(&big))
        .part("file2", bytes(&big));
    let (status, body) = answer(world.request(Method::POST, &url).multipart(form)).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    let results = body["results"].as_array().unwrap();
    let words: Vec<_> = results
        .iter()
        .map(|r| r["status"].as_str().unwrap())
        .collect();
    assert_eq!(words, ["success", "error", "success", "error"], "{body}");
    assert_eq!(results[0]["path"], "one");
    assert_eq!(results[0]["info"]["path"], "/workspace/one");
    assert_eq!(results[2]["info"]["size"], 3 << 20);
    assert!(results[3]["error"].as_str().unwrap().contains("file3"));

    let wrong = multipart::Form::new().part("file0", bytes(b"1"));
    let (status, body) = answer(world.request(Method::POST, &url).multipart(wrong)).await;
    assert_eq!(
        (status, &body["code"]),
        (StatusCode::BAD_REQUEST, &json!("invalid_request"))
    );
    let (status, _) = world
        .post(&format!("{base}/files/batch-write"), json!({}))
        .await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
}

/// The names in a tar, with what is in the files.
fn unpack(archive: &[u8]) -> Vec<(String, String)> {
    let mut archive = tar::Archive::new(archive);
    let entry = |entry: std::io::Result<tar::Entry<'_, &[u8]>>| {
        let mut entry = entry.unwrap();
        let (name, mut text) = (
            entry.path().unwrap().display().to_string(),
            String::default(),
        );
        std::io::Read::read_to_string(&mut entry, &mut text).unwrap();
        (name, text)
    };
    archive.entries().unwrap().map(entry).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_is_downloaded_as_an_archive() {
    let (world, base) = files().await;
    let id = base.rsplit('/').next().unwrap();
    let body = json!({"command": "mkdir -p d/empty d/sub /workspace/.nullspace && printf a >d/a && printf b >d/sub/b && \
        ln -s a d/link && printf secret >/workspace/.nullspace/x", "shell": true, "cwd": "/workspace"});
    assert_eq!(world.exec(id, body).await["exit_code"], 0);
    let download = async |path: &str| {
        let path = format!("{base}/file?path={path}&archive_format=tar");
        let response = world.request(Method::GET, &path).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "application/x-tar");
        unpack(&response.bytes().await.unwrap())
    };
    let entries = |list: &[(&str, &str)]| -> Vec<(String, String)> {
        let entry = |(name, text): &(&str, &str)| ((*name).to_owned(), (*text).to_owned());
        list.iter().map(entry).collect()
    };
    assert_eq!(
        download("d").await,
        entries(&[
            ("a", "a"),
            ("empty", ""),
            ("link", ""),
            ("sub", ""),
            ("sub/b", "b")
        ])
    );
    // The platform's own folder is nobody's download.
    let all = download("/workspace").await;
    assert!(all.iter().any(|(name, _)| name == "d/sub/b"), "{all:?}");
    assert!(
        !all.iter().any(|(name, _)| name.contains(".nullspace")),
        "{all:?}"
    );
    for (path, query) in [
        ("d", ""),
        ("d/a", "&archive_format=tar"),
        ("d", "&archive_format=zip"),
    ] {
        let path = format!("{base}/file?path={path}{query}");
        let (status, body) = world.get(&path).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{path}: {body}");
        assert_eq!(body["code"], "invalid_request");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn signed_urls_stand_in_for_a_key() {
    let (world, base) = files().await;
    let anyone = reqwest::Client::new();
    let sign = async |base: &str, what: &str, body: Value| {
        let (status, body) = world.post(&format!("{base}/files/{what}-url"), body).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        assert_eq!(body.as_object().unwrap().len(), 2, "{body}");
        let (url, token) = (
            body["url"].as_str().unwrap(),
            body["token"].as_str().unwrap(),
        );
        assert!(url.contains(&format!("{base}/file?")) && url.contains(token));
        url.to_owned()
    };
    let to = sign(
        &base,
        "upload",
        json!({"path": "in/a b.bin", "user": Value::Null}),
    )
    .await;
    let put = anyone.put(&to).body("by url").send().await.unwrap();
    assert_eq!(put.status(), StatusCode::NO_CONTENT);
    let from = sign(&base, "download", json!({"path": "in/a b.bin"})).await;
    let get = async |url: &str| anyone.get(url).send().await.unwrap();
    assert_eq!(get(&from).await.text().await.unwrap(), "by url");
    let form = multipart::Form::new().part("file", multipart::Part::text("by form"));
    let post = anyone.post(&to).multipart(form).send().await.unwrap();
    assert_eq!(post.status(), StatusCode::NO_CONTENT);
    let range = anyone.get(&from).header("range", "bytes=3-");
    let range = range.send().await.unwrap();
    assert_eq!(range.status(), StatusCode::PARTIAL_CONTENT);
    assert_eq!(range.text().await.unwrap(), "form");
    let machines = base.replace("sandboxes", "machines");
    let tree = sign(
        &machines,
        "download",
        json!({"path": "in", "archive_format": "tar"}),
    )
    .await;
    let tree = get(&tree).await.bytes().await.unwrap();
    assert_eq!(unpack(&tree), [("a b.bin".into(), "by form".into())]);

    // What it is not for.
    let code = async |request: reqwest::RequestBuilder| {
        let (status, body) = answer(request).await;
        (
            status.as_u16(),
            body["code"].as_str().unwrap_or_default().to_owned(),
        )
    };
    let refused = |status: u16, code: &str| (status, code.to_owned());
    assert_eq!(
        code(anyone.get(&to)).await,
        refused(403, "permission_denied")
    );
    let write = anyone.put(&from).body("no");
    assert_eq!(code(write).await, refused(403, "permission_denied"));
    let id = base.rsplit('/').next().unwrap();
    let other = world.machine().await;
    assert_eq!(
        code(anyone.get(from.replace(id, &other))).await,
        refused(403, "permission_denied")
    );
    let (said, signature) = from.rsplit_once('.').unwrap();
    let forged = format!("{said}.{}", signature.replace(|_: char| true, "0"));
    assert_eq!(code(anyone.get(forged)).await, refused(401, "unauthorized"));
    let changed = format!("{said}A.{signature}");
    assert_eq!(
        code(anyone.get(changed)).await,
        refused(401, "unauthorized")
    );
    for token in ["", "x", &"x".repeat(20 << 10)] {
        let url = world.url(&format!("{base}/file?grant={token}"));
        assert_eq!(
            code(anyone.get(&url)).await,
            refused(400, "invalid_request")
        );
        // A token says nothing to any other route.
        let url = world.url(&format!("{base}/files?grant={token}"));
        assert_eq!(code(anyone.get(&url)).await, refused(401, "unauthorized"));
    }
    for (what, body, status) in [
        ("download", json!({"path": "in"}), 400),
        ("download", json!({"path": "none"}), 404),
        (
            "download",
            json!({"path": "in/a b.bin", "archive_format": "tar"}),
            400,
        ),
        ("upload", json!({"path": ""}), 400),
        ("upload", json!({"path": "/workspace/.nullspace/x"}), 400),
        ("upload", json!({"path": "x", "user": "nobody-here"}), 400),
    ] {
        let (answered, body) = world.post(&format!("{base}/files/{what}-url"), body).await;
        assert_eq!(answered.as_u16(), status, "{body}");
    }
}
