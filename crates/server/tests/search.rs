//! Searching and replacing in files over real HTTP, on the fake engine.

#![allow(clippy::unwrap_used)]

mod common;

use common::World;
use reqwest::StatusCode;
use serde_json::{Value, json};

async fn tree() -> (World, String) {
    let world = World::new().await;
    let id = world.machine().await;
    let script = "mkdir -p src/deep .nullspace 'odd dir' && \
        printf 'use std;\\nfn main() {}\\n' > src/main.rs && printf 'fn helper() {}\\r\\n' > src/deep/lib.rs && \
        printf 'fn hidden() {}\\n' > .hidden.rs && printf 'fn odd() {}' > 'odd dir/ä.rs' && \
        printf 'fn binary\\0' > src/blob.rs && printf 'fn bad \\377\\n' > src/latin.txt && \
        ln -s src link && ln -s / root && printf 'fn secret\\n' > .nullspace/internal.rs && \
        printf 'fn locked\\n' > locked.rs && chmod 640 locked.rs";
    let done = world
        .exec(
            &id,
            json!({"command": script, "shell": true, "cwd": "/workspace"}),
        )
        .await;
    assert_eq!(done["exit_code"], 0, "{done}");
    (world, format!("/v1/sandboxes/{id}/files"))
}

#[tokio::test(flavor = "multi_thread")]
async fn contents_are_found_by_line_and_names_by_glob() {
    let (world, base) = tree().await;
    let find = async |path: &str, pattern: &str| {
        let body = json!({"path": path, "pattern": pattern, "user": null});
        let (status, found) = world.post(&format!("{base}/find"), body).await;
        assert_eq!(status, StatusCode::OK, "{found}");
        found
    };
    let lines = |found: &Value| -> Vec<(String, u64, String)> {
        let found = found.as_array().unwrap().iter();
        found
            .map(|line| {
                assert_eq!(line.as_object().unwrap().len(), 3, "{line}");
                (
                    line["file"].as_str().unwrap().to_owned(),
                    line["line"].as_u64().unwrap(),
                    line["content"].as_str().unwrap().to_owned(),
                )
            })
            .collect()
    };
    let line = |file: &str, line: u64, content: &str| (file.to_owned(), line, content.to_owned());
    // Hidden files are looked at; links, binary files and the platform's folder are not.
    assert_eq!(
        lines(&find("/workspace", "^fn [a-z]+").await),
        [
            line("/workspace/.hidden.rs", 1, "fn hidden() {}"),
            line("/workspace/locked.rs", 1, "fn locked"),
            line("/workspace/odd dir/ä.rs", 1, "fn odd() {}"),
            line("/workspace/src/deep/lib.rs", 1, "fn helper() {}"),
            line("/workspace/src/latin.txt", 1, "fn bad \u{fffd}"),
            line("/workspace/src/main.rs", 2, "fn main() {}"),
        ]
    );
    assert_eq!(
        lines(&find("src/main.rs", "MAIN|(?i)USE").await),
        [line("/workspace/src/main.rs", 1, "use std;")]
    );
    assert_eq!(find("/workspace", "no such text").await, json!([]));

    let search = async |path: &str, pattern: &str| {
        let body = json!({"path": path, "pattern": pattern, "user": null});
        let (status, found) = world.post(&format!("{base}/search"), body).await;
        assert_eq!(status, StatusCode::OK, "{found}");
        found
    };
    assert_eq!(
        search("/workspace", "*.rs").await,
        json!([
            "/workspace/.hidden.rs",
            "/workspace/locked.rs",
            "/workspace/odd dir/ä.rs",
            "/workspace/src/blob.rs",
            "/workspace/src/deep/lib.rs",
            "/workspace/src/main.rs"
        ])
    );
    let deep = json!(["/workspace/src/deep/lib.rs"]);
    for (path, pattern) in [
        ("/workspace", "src/*/*.rs"),
        ("/workspace", "**/deep/*"),
        ("/workspace/src", "**/lib.{rs,py}"),
        ("/workspace/src", "l[hi]b.*"),
        ("/", "/workspace/**/lib.rs"),
    ] {
        assert_eq!(search(path, pattern).await, deep, "{path} {pattern}");
    }
    assert_eq!(search("/workspace", "src/*.py").await, json!([]));
    assert_eq!(
        search("/workspace", "dee?").await,
        json!(["/workspace/src/deep"])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn replacing_keeps_modes_and_changes_all_or_nothing() {
    let (world, base) = tree().await;
    let replace = async |body: Value| world.post(&format!("{base}/replace"), body).await;
    let read = async |path: &str| {
        let (_, body) = world
            .post(&format!("{base}/read"), json!({"path": path}))
            .await;
        body["content"].as_str().unwrap_or_default().to_owned()
    };
    let asked = json!({
        "files": ["src/main.rs", "/workspace/locked.rs", "src/main.rs", "src/blob.rs", "src/latin.txt"],
        "pattern": "^fn (m|l)(\\w+)", "replacement": "pub fn ${1}$2$$", "user": null
    });
    let counts = |dry_run: bool| json!({"dry_run": dry_run, "replacements": 2, "files_modified": 2, "files_skipped": 1, "binary_files_skipped": 1});
    let mut dry = asked.clone();
    dry["dry_run"] = json!(true);
    assert_eq!(replace(dry).await, (StatusCode::OK, counts(true)));
    assert_eq!(read("src/main.rs").await, "use std;\nfn main() {}\n");
    assert_eq!(replace(asked).await, (StatusCode::OK, counts(false)));
    assert_eq!(read("src/main.rs").await, "use std;\npub fn main$() {}\n");
    let (_, info) = world
        .post(&format!("{base}/info"), json!({"path": "locked.rs"}))
        .await;
    assert_eq!(info["mode"], "0640");

    // One that is not there: the others stay as they are.
    let (status, body) = replace(
        json!({"files": ["src/deep/lib.rs", "none.rs"], "pattern": "fn", "replacement": "x"}),
    )
    .await;
    assert_eq!(
        (status, &body["code"]),
        (StatusCode::NOT_FOUND, &json!("not_found"))
    );
    assert_eq!(read("src/deep/lib.rs").await, "fn helper() {}\r\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_say_what_is_wrong() {
    let (world, base) = tree().await;
    let long = "a".repeat(100_000);
    for (name, body, code, word) in [
        (
            "find",
            json!({"path": "/workspace", "pattern": "("}),
            "invalid_request",
            "pattern",
        ),
        (
            "find",
            json!({"path": "/workspace", "pattern": ""}),
            "invalid_request",
            "pattern",
        ),
        (
            "find",
            json!({"path": "/workspace", "pattern": long}),
            "invalid_request",
            "pattern",
        ),
        (
            "find",
            json!({"path": "/workspace", "pattern": "(a{1000}){1000}"}),
            "invalid_request",
            "pattern",
        ),
        (
            "find",
            json!({"path": "/none", "pattern": "a"}),
            "not_found",
            "/none",
        ),
        (
            "find",
            json!({"path": "", "pattern": "a"}),
            "invalid_request",
            "path",
        ),
        (
            "find",
            json!({"path": "/workspace/.nullspace", "pattern": "a"}),
            "invalid_request",
            "reserved",
        ),
        (
            "find",
            json!({"path": "/workspace", "pattern": "a", "user": "nobody-here"}),
            "invalid_request",
            "nobody-here",
        ),
        (
            "search",
            json!({"path": "/workspace", "pattern": "[a"}),
            "invalid_request",
            "pattern",
        ),
        (
            "search",
            json!({"path": "/none", "pattern": "*"}),
            "not_found",
            "/none",
        ),
        (
            "replace",
            json!({"files": ["src"], "pattern": "a", "replacement": "b"}),
            "invalid_request",
            "regular file",
        ),
        (
            "replace",
            json!({"files": ["src/main.rs"], "pattern": "[", "replacement": "b"}),
            "invalid_request",
            "pattern",
        ),
        (
            "replace",
            json!({"files": ["src/main.rs"], "pattern": "a", "replacement": "b", "more": 1}),
            "invalid_request",
            "more",
        ),
        (
            "replace",
            json!({"files": vec!["src/main.rs"; 10_001], "pattern": "a", "replacement": "b"}),
            "invalid_request",
            "files",
        ),
    ] {
        let shown: String = body.to_string().chars().take(100).collect();
        let (status, answer) = world.post(&format!("{base}/{name}"), body).await;
        assert!(
            status.is_client_error(),
            "{name} {shown}: {status} {answer}"
        );
        assert_eq!(answer["code"], code, "{name} {shown}: {answer}");
        let text = answer["error"].as_str().unwrap();
        assert!(text.contains(word), "{name} {shown}: {text}");
    }
}
