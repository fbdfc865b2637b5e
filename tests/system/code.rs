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

/// Where a test makes templates of its own: with `base` as it is, and nothing above it.
fn cache_with_base() -> tempfile::TempDir {
    let cache = tempfile::tempdir().unwrap();
    for part in ["layers", "templates"] {
        std::fs::create_dir(cache.path().join(part)).unwrap();
    }
    let shared = std::path::Path::new("/var/cache/nullspace/templates");
    for entry in std::fs::read_dir(shared).unwrap().flatten() {
        if entry.file_name().to_string_lossy().starts_with("base-") {
            let target = cache.path().join("templates").join(entry.file_name());
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
    cache
}

/// A request for a machine of the template, under way until it is dropped, and the machine that makes the template: in
/// the middle of it.
async fn making(world: &World) -> (tokio::task::JoinHandle<reqwest::StatusCode>, String) {
    let request = world.request(Method::POST, "/v1/machines");
    let request = request.json(&json!({"template": "code-interpreter"}));
    let create = tokio::spawn(async move {
        match request.send().await {
            Ok(answer) => answer.status(),
            Err(_) => reqwest::StatusCode::IM_A_TEAPOT,
        }
    });
    let maker = loop {
        assert!(!create.is_finished(), "{:?}", create.await);
        if let Some(id) = world.listed().await.first() {
            break id.clone();
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    world
        .until_at(&format!("/v1/machines/{maker}/processes"), |list| {
            list.as_array().is_some_and(|list| !list.is_empty())
        })
        .await;
    (create, maker)
}

/// A server or a launcher that is killed while it makes the template leaves nothing that counts, and the next one makes it.
#[tokio::test(flavor = "multi_thread")]
async fn a_template_that_was_not_finished() {
    // The first server makes `base` if there is none.
    drop(World::start().await);
    let cache = cache_with_base();
    let settings = cache.path().join("settings.toml");
    let text = format!("template_cache_dir = {:?}\n", cache.path());
    std::fs::write(&settings, text).unwrap();
    let mut world = World::with(&["--config", settings.to_str().unwrap()]).await;
    let left = |world: &World| {
        let names = |part: std::path::PathBuf, prefix: &str| -> Vec<String> {
            std::fs::read_dir(part)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .filter(|name| name.starts_with(prefix))
                .collect()
        };
        [
            names(cache.path().join("templates"), "code-"),
            names(cache.path().join("layers"), ".building"),
            names(world.data().join("layers"), ".building"),
        ]
        .concat()
    };
    let nothing = Vec::<String>::new();

    let (create, _) = making(&world).await;
    world.kill();
    create.await.unwrap();
    let rest = left(&world);
    assert!(
        rest.iter().all(|name| name.starts_with(".building")),
        "{rest:?}"
    );
    world.serve().await;
    world.until_empty().await;
    assert_eq!(left(&world), nothing);

    let (create, maker) = making(&world).await;
    let launcher = world.host.launcher().unwrap();
    crate::host::run("kill", &["-9", &launcher.to_string()]);
    let answered = create.await.unwrap();
    assert!(
        answered.is_server_error() || answered.is_client_error(),
        "{answered}"
    );
    let is_over = |row: &Value| row["status"] == "error" || row["status"] == "destroyed";
    world.until(&maker, is_over).await;
    world.until_empty().await;
    assert_eq!(left(&world), nothing);

    // While it is made the answer is to ask again.
    let deadline = std::time::Instant::now() + Duration::from_secs(600);
    let id = loop {
        let request = json!({"template": "code-interpreter"});
        let (status, made) = world.post("/v1/machines", request).await;
        if status == reqwest::StatusCode::CREATED {
            break made["id"].as_str().unwrap().to_owned();
        }
        assert_eq!(made["code"], "transition_in_progress", "{made}");
        assert!(std::time::Instant::now() < deadline, "{made}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    let request = json!({"code": "6 * 7"});
    let ran = world
        .request(Method::POST, &format!("/v1/machines/{id}/code/execute"))
        .json(&request)
        .send()
        .await
        .unwrap();
    let text = ran.text().await.unwrap();
    assert!(text.contains("42"), "{text}");
    assert_eq!(left(&world).len(), 1, "the template: {:?}", left(&world));
}
