//! Code in the kernels of real machines, with the published clients, with ours, and across the death of the server.
//!
//! The first of these tests on a host makes the template `code-interpreter`, which takes a minute and downloads some
//! 100 MB from PyPI; the others wait for it, and it stays in the cache that `base` is in.

use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::{
    python::{next_python, published, python, script},
    world::World,
};

/// How long the template may take.
const PATIENCE: Duration = Duration::from_secs(600);

/// A machine with kernels.
async fn machine(world: &World) -> String {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let request = json!({"template": "code-interpreter"});
        let (status, body) = world.post("/v1/machines", request).await;
        if status == StatusCode::CREATED {
            return body["id"].as_str().unwrap().to_owned();
        }
        assert_eq!(body["code"], "transition_in_progress", "{body}");
        assert!(Instant::now() < deadline, "the template takes too long");
    }
}

/// The events of an execution.
async fn execute(world: &World, id: &str, request: Value) -> Vec<Value> {
    let path = format!("/v1/machines/{id}/code/execute");
    let answer = world
        .request(Method::POST, &path)
        .json(&request)
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    let text = answer.text().await.unwrap();
    text.lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .map(|event| serde_json::from_str(event).unwrap())
        .collect()
}

/// The text of the last value.
fn value(events: &[Value]) -> &str {
    let mut results = events.iter().filter(|event| event["type"] == "result");
    results
        .next_back()
        .unwrap_or_else(|| panic!("no value in {events:#?}"))["text"]
        .as_str()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn code_with_the_sdk() {
    let world = World::start().await;
    machine(&world).await;
    script(&world, &python(), "code.py", &[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn code_with_the_newer_sdk() {
    let world = World::start().await;
    machine(&world).await;
    script(&world, &next_python(), "code_next.py", &[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn variables_and_runs_outlive_the_server() {
    let mut world = World::start().await;
    let id = machine(&world).await;
    let contexts = format!("/v1/machines/{id}/code/contexts");
    let (status, context) = world.post(&contexts, json!({})).await;
    assert_eq!(status, StatusCode::CREATED, "{context}");
    let run = |code: &str| json!({"code": code, "context_id": context["id"]});
    execute(&world, &id, run("kept = 41")).await;
    execute(&world, &id, json!({"code": "default = 1"})).await;
    // One goes on while there is no server, one waits behind it, one has ended and nobody looked.
    let runs = format!("/v1/machines/{id}/code/runs");
    let mut started = Vec::new();
    for code in [
        "import os, time\nwhile not os.path.exists('/tmp/go'): time.sleep(0.05)\nprint('went')\nkept += 1\nkept",
        "from IPython.display import HTML\nHTML('<p>')",
    ] {
        let (status, begun) = world.post(&runs, run(code)).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{begun}");
        started.push(format!("{runs}/{}", begun["id"].as_str().unwrap()));
    }
    world
        .until_at(&started[0], |run| run["status"] == "running")
        .await;

    world.kill();
    world.serve().await;
    let (_, listed) = world.get(&contexts).await;
    assert_eq!(listed.as_array().unwrap().len(), 2, "{listed}");
    assert_eq!(world.get(&started[1]).await.1["status"], "queued");
    world.out(&id, "touch /tmp/go").await;
    let ended = |run: &Value| run["completed_at"].is_string();
    let first = world.until_at(&started[0], ended).await;
    assert_eq!(first["status"], "succeeded", "{first}");
    assert_eq!(first["execution"]["logs"]["stdout"][0], "went\n");
    let second = world.until_at(&started[1], ended).await;
    assert_eq!(
        second["execution"]["artifacts"][0]["kind"], "html",
        "{second}"
    );
    assert_eq!(value(&execute(&world, &id, run("kept")).await), "42");
    assert_eq!(
        value(&execute(&world, &id, json!({"code": "default"})).await),
        "1"
    );

    // The machine ends while a run goes on: that is said.
    let (_, begun) = world.post(&runs, run("time.sleep(600)")).await;
    let lost = format!("{runs}/{}", begun["id"].as_str().unwrap());
    world
        .until_at(&lost, |run| run["status"] == "running")
        .await;
    world.delete(&format!("/v1/machines/{id}")).await;
    let lost = world.until_at(&lost, ended).await;
    assert_eq!(lost["status"], "failed", "{lost}");
    assert_eq!(lost["failure_reason"], "the machine ended");
    world.until_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_lines_agree() {
    let world = World::start().await;
    let id = machine(&world).await;
    let ours = |arguments: &[&str]| world.nullspace(&[&["machine", "code"], arguments].concat());
    let theirs = |arguments: &[&str]| {
        published(&world, &python())
            .args([&["sandbox", "code"], arguments].concat())
            .output()
            .unwrap()
    };
    for program in [&ours as &dyn Fn(&[&str]) -> std::process::Output, &theirs] {
        let run = |arguments: &[&str], code: i32| {
            let done = program(arguments);
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let (out, err) = (text(&done.stdout), text(&done.stderr));
            assert_eq!(done.status.code(), Some(code), "{arguments:?}: {out}{err}");
            (out, err)
        };
        let json =
            |arguments: &[&str]| -> Value { serde_json::from_str(&run(arguments, 0).0).unwrap() };
        let (out, err) = run(
            &[
                "run",
                &id,
                "import sys; print('o'); print('e', file=sys.stderr); 5",
            ],
            0,
        );
        assert_eq!((out.as_str(), err.as_str()), ("o\n5\n", "e\n"));
        let (_, err) = run(&["run", &id, "1/0"], 1);
        assert!(err.contains("ZeroDivisionError"), "{err}");
        let all = json(&["run", &id, "6*7", "--json"]);
        assert_eq!(all["results"][0]["text"], "42", "{all}");
        let (out, _) = run(
            &[
                "run",
                &id,
                "--language",
                "javascript",
                "--env",
                "A=b",
                "Deno.env.get('A')",
            ],
            0,
        );
        assert_eq!(out, "\"b\"\n");
        run(&["install", &id, "humanize"], 0);
        let context = json(&["context", "create", &id, "--cwd", "/tmp"]);
        let context = context["id"].as_str().unwrap();
        run(&["context", "restart", &id, context], 0);
        run(&["context", "interrupt", &id, context], 0);
        let listed = json(&["context", "list", &id]);
        assert!(
            listed
                .as_array()
                .unwrap()
                .iter()
                .any(|c| c["id"] == context)
        );
        let begun = json(&["run-job", "create", &id, context, "open('/dev/null'); 7"]);
        let begun = begun["id"].as_str().unwrap();
        let done = json(&["run-job", "wait", &id, begun, "--poll-interval", "0.05"]);
        assert_eq!(
            done["execution"]["results"][0]["text"]
                .as_str()
                .map(|t| &t[..1]),
            Some("7")
        );
        assert_eq!(json(&["run-job", "get", &id, begun])["status"], "succeeded");
        assert_eq!(
            json(&["run-job", "cancel", &id, begun])["status"],
            "succeeded"
        );
        let listed = json(&[
            "run-job",
            "list",
            &id,
            "--context-id",
            context,
            "--limit",
            "5",
        ]);
        assert_eq!(listed["items"].as_array().unwrap().len(), 1);
        run(
            &[
                "run",
                &id,
                "--context",
                context,
                "from IPython.display import HTML; HTML('<p>')",
            ],
            0,
        );
        let kept = json(&[
            "artifact",
            "list",
            &id,
            "--context-id",
            context,
            "--kind",
            "html",
        ]);
        let artifact = kept["items"][0]["id"].as_str().unwrap();
        assert_eq!(json(&["artifact", "get", &id, artifact])["size_bytes"], 3);
        assert_eq!(run(&["artifact", "preview", &id, artifact], 0).0, "<p>");
        let file = world.home().join("a.html");
        run(
            &[
                "artifact",
                "download",
                &id,
                artifact,
                "-o",
                file.to_str().unwrap(),
            ],
            0,
        );
        assert_eq!(std::fs::read(&file).unwrap(), b"<p>");
        run(&["artifact", "delete", &id, artifact], 0);
        run(&["artifact", "get", &id, artifact], 3);
        run(&["context", "remove", &id, context], 0);
        run(&["run", &id, "--context", context, "1"], 3);
    }
}

/// A server that dies while it makes the template leaves nothing that counts, and the next one makes it.
#[tokio::test(flavor = "multi_thread")]
async fn a_template_that_was_not_finished() {
    let cache = tempfile::tempdir().unwrap();
    let shared = std::path::Path::new("/var/cache/nullspace");
    // `base` as it is; what is made above it stays in this cache.
    for part in ["layers", "templates"] {
        std::fs::create_dir(cache.path().join(part)).unwrap();
    }
    // The first server makes `base` if there is none.
    drop(World::start().await);
    for entry in std::fs::read_dir(shared.join("templates"))
        .unwrap()
        .flatten()
    {
        if entry.file_name().to_string_lossy().starts_with("base-") {
            let target = cache.path().join("templates").join(entry.file_name());
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
    let settings = cache.path().join("settings.toml");
    let text = format!("template_cache_dir = {:?}\n", cache.path());
    std::fs::write(&settings, text).unwrap();
    let mut world = World::with(&["--config", settings.to_str().unwrap()]).await;
    let request = json!({"template": "code-interpreter"});
    let create = world
        .request(Method::POST, "/v1/machines")
        .json(&request)
        .send();
    let making = async {
        loop {
            let listed = world.listed().await;
            if let Some(id) = listed.first() {
                return id.clone();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let maker = tokio::select! {
        maker = making => maker,
        answer = create => panic!("{answer:?}"),
    };
    // Somewhere in the middle of it.
    world
        .until_at(&format!("/v1/machines/{maker}/processes"), |list| {
            list.as_array().is_some_and(|list| !list.is_empty())
        })
        .await;
    world.kill();
    let names = |part: &str| -> Vec<String> {
        std::fs::read_dir(cache.path().join(part))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.starts_with("code-"))
            .collect()
    };
    assert_eq!(names("templates"), Vec::<String>::new());
    world.serve().await;
    world.until_empty().await;
    let layers = std::fs::read_dir(world.data().join("layers")).unwrap();
    let unfinished: Vec<_> = layers
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(".building"))
        .collect();
    assert!(unfinished.is_empty(), "{unfinished:?}");
    assert_eq!(names("templates"), Vec::<String>::new());
}
