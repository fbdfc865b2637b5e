//! Watching files over a machine's WebSocket, on the fake engine: real inotify.

#![allow(clippy::unwrap_used)]

mod common;

use common::{World, socket::Client};
use serde_json::{Value, json};

async fn shell(world: &World, id: &str, script: &str) {
    let done = world
        .exec(
            id,
            json!({"command": script, "shell": true, "cwd": "/workspace"}),
        )
        .await;
    assert_eq!(done["exit_code"], 0, "{done}");
}

async fn watch(client: &mut Client, id: &str, path: &str, recursive: bool) -> Value {
    client
        .say(json!({"type": "file_watch", "id": id, "path": path, "user": null, "recursive": recursive, "timeout_secs": null}))
        .await;
    client.hear().await
}

/// Events up to one of the path `last`, as `event path`, without what is said twice.
async fn until(client: &mut Client, id: &str, last: &str) -> Vec<String> {
    let mut told: Vec<String> = Vec::new();
    loop {
        let message = client.hear().await;
        assert_eq!(
            (&message["type"], &message["id"]),
            (&json!("file_event"), &json!(id)),
            "{message}"
        );
        let path = message["path"].as_str().unwrap();
        assert_eq!(message["name"], path.rsplit('/').next().unwrap());
        let line = format!("{} {path}", message["event"].as_str().unwrap());
        let is_last = path == last;
        if !told.contains(&line) {
            told.push(line);
        }
        if is_last {
            return told;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn direct_children_are_told_with_their_kind_of_change() {
    let world = World::new().await;
    let id = world.machine().await;
    shell(&world, &id, "mkdir -p w/sub out && echo old > w/old").await;
    let mut client = Client::open(&world, &id).await;
    let started = watch(&mut client, "watch_1", "w", false).await;
    assert_eq!(
        started,
        json!({"type": "file_watch_started", "id": "watch_1"})
    );
    shell(
        &world,
        &id,
        "echo a > w/a && chmod 600 w/a && mv w/a w/b && mv w/b out/ && echo x > w/sub/deep && rm w/old && mkdir w/end",
    )
    .await;
    let told = until(&mut client, "watch_1", "/workspace/w/end").await;
    assert_eq!(
        told,
        [
            "create /workspace/w/a",
            "write /workspace/w/a",
            "chmod /workspace/w/a",
            "rename /workspace/w/a",
            "create /workspace/w/b",
            "rename /workspace/w/b",
            "remove /workspace/w/old",
            "create /workspace/w/end",
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_beneath_is_told_also_what_appears_later() {
    let world = World::new().await;
    let id = world.machine().await;
    shell(&world, &id, "mkdir -p w/a/b out/tree/inner").await;
    let mut client = Client::open(&world, &id).await;
    watch(&mut client, "r", "/workspace/w", true).await;
    shell(
        &world,
        &id,
        "mkdir -p w/new/x/y/z && echo 1 > w/new/x/y/z/file && mkdir w/end1",
    )
    .await;
    let told = until(&mut client, "r", "/workspace/w/end1").await;
    for line in [
        "create /workspace/w/new",
        "create /workspace/w/new/x",
        "create /workspace/w/new/x/y",
        "create /workspace/w/new/x/y/z",
        "create /workspace/w/new/x/y/z/file",
        "write /workspace/w/new/x/y/z/file",
    ] {
        assert!(told.iter().any(|told| told == line), "{line}: {told:?}");
    }
    // A directory that moves within the tree keeps being watched, under its new name.
    shell(
        &world,
        &id,
        "mv w/a w/moved && echo 2 > w/moved/b/file && mkdir w/end2",
    )
    .await;
    let told = until(&mut client, "r", "/workspace/w/end2").await;
    assert_eq!(
        &told[..2],
        ["rename /workspace/w/a", "create /workspace/w/moved"]
    );
    assert!(
        told.contains(&"create /workspace/w/moved/b/file".to_owned()),
        "{told:?}"
    );
    // One that leaves is not, one that comes is.
    shell(&world, &id, "mv w/moved out/gone && mv out/tree w/came && touch out/gone/silent && echo 3 > w/came/inner/file && rm -r w/new && mkdir w/end3").await;
    let told = until(&mut client, "r", "/workspace/w/end3").await;
    assert!(
        told.contains(&"write /workspace/w/came/inner/file".to_owned()),
        "{told:?}"
    );
    assert!(
        told.contains(&"remove /workspace/w/new/x/y/z/file".to_owned()),
        "{told:?}"
    );
    assert!(!told.iter().any(|line| line.contains("silent")), "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_written_through_the_api_is_one_change() {
    let world = World::new().await;
    let id = world.machine().await;
    let mut client = Client::open(&world, &id).await;
    watch(&mut client, "w", "/workspace", true).await;
    let write = async |path: &str, content: &str| {
        let (status, body) = world
            .post(
                &format!("/v1/machines/{id}/files/write"),
                json!({"path": path, "content": content}),
            )
            .await;
        assert!(status.is_success(), "{body}");
    };
    write("notes.txt", "one").await;
    write("notes.txt", "two").await;
    write("end", "").await;
    let told = until(&mut client, "w", "/workspace/end").await;
    assert_eq!(
        told,
        [
            "create /workspace/notes.txt",
            "write /workspace/notes.txt",
            "create /workspace/end",
        ]
    );
    // One file alone: what replaces it is told too.
    let mut client = Client::open(&world, &id).await;
    watch(&mut client, "f", "notes.txt", false).await;
    write("other", "").await;
    shell(
        &world,
        &id,
        "echo three > new && mv new notes.txt && rm notes.txt",
    )
    .await;
    let mut told = Vec::new();
    while told
        .last()
        .is_none_or(|line: &String| !line.starts_with("remove"))
    {
        told.extend(until(&mut client, "f", "/workspace/notes.txt").await);
    }
    assert_eq!(
        told,
        ["create /workspace/notes.txt", "remove /workspace/notes.txt"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_ends_with_its_directory_and_refusals_have_the_id() {
    let world = World::new().await;
    let id = world.machine().await;
    shell(&world, &id, "mkdir -p w/sub").await;
    let mut client = Client::open(&world, &id).await;
    for (path, code) in [
        ("/none", "not_found"),
        ("/workspace/.nullspace", "invalid_request"),
        ("", "invalid_request"),
    ] {
        let refused = watch(&mut client, "bad", path, true).await;
        assert_eq!(
            (&refused["type"], &refused["id"]),
            (&json!("error"), &json!("bad")),
            "{refused}"
        );
        assert_eq!(refused["code"], code, "{refused}");
    }
    client
        .say(json!({"type": "file_watch", "id": "t", "path": "w", "timeout_secs": -1}))
        .await;
    assert_eq!(client.hear().await["code"], "invalid_request");

    watch(&mut client, "gone", "w", true).await;
    shell(&world, &id, "rm -r w").await;
    let told = until(&mut client, "gone", "/workspace/w").await;
    assert_eq!(told, ["remove /workspace/w/sub", "remove /workspace/w"]);
    let ended = client.hear().await;
    assert_eq!(
        (&ended["type"], &ended["code"]),
        (&json!("error"), &json!("not_found")),
        "{ended}"
    );

    // Places are given back: more watches than a machine may have, one after the other.
    shell(&world, &id, "mkdir again").await;
    for turn in 0..80 {
        let mut client = Client::open(&world, &id).await;
        let first = watch(&mut client, "n", "again", false).await;
        assert_eq!(first["type"], "file_watch_started", "{turn}: {first}");
    }
    let mut refused = None;
    for turn in 0..80 {
        let answer = watch(&mut client, &turn.to_string(), "again", false).await;
        if answer["type"] == "error" {
            refused = Some(answer);
            break;
        }
    }
    assert_eq!(refused.unwrap()["code"], "capacity_exceeded");
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_can_be_told_is_said() {
    let world = World::new().await;
    let id = world.machine().await;
    shell(&world, &id, "mkdir w").await;
    let mut client = Client::open(&world, &id).await;
    watch(&mut client, "flood", "w", true).await;
    // Nobody reads while the kernel's queue of 16,384 events overflows many times.
    shell(
        &world,
        &id,
        "seq 80000 | (cd w && xargs -n 1000 touch) && mkdir w/late && touch w/late/file",
    )
    .await;
    let mut resync = false;
    while !resync {
        let message = client.hear().await;
        assert_eq!(message["type"], "file_event", "{message}");
        resync = message["event"] == "resync_required";
    }
    // It goes on, also where it had lost track.
    loop {
        shell(&world, &id, "date +%N > w/late/file").await;
        let heard = tokio::time::timeout(std::time::Duration::from_secs(1), async {
            loop {
                let message = client.hear().await;
                if message["path"] == "/workspace/w/late/file" && message["event"] == "write" {
                    return;
                }
            }
        });
        if heard.await.is_ok() {
            return;
        }
    }
}
