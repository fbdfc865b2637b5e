//! Code in kernels, at the edge: the machine's end of the conversation is played by the tests, so it can also lie.

#![allow(clippy::unwrap_used)]

mod common;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use common::{World, answer};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
};

/// Plays the process that runs the kernels of one machine. What code is run says what it does.
struct Bridge {
    /// Requests, as they come.
    asked: mpsc::UnboundedReceiver<Value>,
    /// What `wait` waits for.
    go: watch::Sender<bool>,
    /// Told when a caller of `hang` went away.
    gone: mpsc::UnboundedReceiver<()>,
    _task: tokio::task::JoinHandle<()>,
}

#[derive(Clone)]
struct Play {
    asked: mpsc::UnboundedSender<Value>,
    go: watch::Receiver<bool>,
    gone: mpsc::UnboundedSender<()>,
    /// The code of runs.
    runs: Arc<Mutex<HashMap<String, String>>>,
}

const TOKEN: &str = "let-me-in";

impl Bridge {
    async fn start(world: &World, machine: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        // A process that is called as ours are, and says where it listens.
        let bin = world.data.path().join(format!("bin-{machine}"));
        std::fs::create_dir(&bin).unwrap();
        let script = format!(
            "#!/bin/sh\necho '{{\"port\": {port}, \"token\": \"{TOKEN}\", \"instance\": \"i\"}}'\nexec sleep 600\n"
        );
        let program = bin.join("nullspace");
        std::fs::write(&program, script).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&program, mode).unwrap();
        let path = format!("{}:/usr/bin:/bin", bin.display());
        let request = json!({"command": "nullspace code", "shell": true, "background": true, "envs": {"PATH": path}});
        world.exec(machine, request).await;

        let (asked_sender, asked) = mpsc::unbounded_channel();
        let (gone_sender, gone) = mpsc::unbounded_channel();
        let (go, going) = watch::channel(false);
        let play = Play {
            asked: asked_sender,
            go: going,
            gone: gone_sender,
            runs: Arc::default(),
        };
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(play.clone().answer(stream));
            }
        });
        Self {
            asked,
            go,
            gone,
            _task: task,
        }
    }

    async fn request(&mut self) -> Value {
        self.asked.recv().await.unwrap()
    }
}

async fn say(stream: &mut BufReader<TcpStream>, value: Value) {
    let line = format!("{value}\n");
    // Who asked may be gone.
    let _ = stream.write_all(line.as_bytes()).await;
}

impl Play {
    async fn answer(mut self, stream: TcpStream) {
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        let Ok(mut request) = serde_json::from_str::<Value>(&line) else {
            return;
        };
        assert_eq!(request["token"], TOKEN);
        request.as_object_mut().unwrap().remove("token");
        self.asked.send(request.clone()).unwrap();
        let run = request["run"].as_str().unwrap_or_default().to_owned();
        let ok = json!({"ok": true, "instance": "i"});
        match request["op"].as_str().unwrap() {
            "execute" => {
                let code = request["code"].as_str().unwrap().to_owned();
                match code.as_str() {
                    "full" => say(&mut stream, json!({"ok": false, "code": "queue_full", "message": "32 wait"})).await,
                    "dead" => say(&mut stream, json!({"ok": false, "code": "kernel_failed", "message": "the kernel did not start: boom"})).await,
                    "silent" => {}
                    _ => {
                        say(&mut stream, ok).await;
                        self.perform(&mut stream, &code).await;
                    }
                }
            }
            "run" => {
                self.runs
                    .lock()
                    .unwrap()
                    .insert(run, request["code"].as_str().unwrap().to_owned());
                say(&mut stream, ok).await;
            }
            "attach" => {
                let code = self.runs.lock().unwrap().get(&run).cloned();
                match code {
                    Some(code) => {
                        say(&mut stream, ok).await;
                        self.perform(&mut stream, &code).await;
                    }
                    None => {
                        say(
                            &mut stream,
                            json!({"ok": false, "code": "no_run", "message": "no such run"}),
                        )
                        .await
                    }
                }
            }
            "cancel" => {
                let queued = self
                    .runs
                    .lock()
                    .unwrap()
                    .get(&run)
                    .is_some_and(|code| code == "queued");
                let was = if queued { "queued" } else { "running" };
                say(&mut stream, json!({"ok": true, "was": was})).await;
            }
            _ => say(&mut stream, ok).await,
        }
    }

    async fn perform(&mut self, stream: &mut BufReader<TcpStream>, code: &str) {
        let end = |outcome: &str| json!({"type": "end", "outcome": outcome});
        match code {
            "queued" => {
                std::future::pending::<()>().await;
            }
            "garbage" => {
                stream
                    .write_all(b"{\"type\": \"stdout\", \"text\": 7}\n")
                    .await
                    .unwrap();
            }
            "binary" => {
                stream.write_all(&[0xff, 0, b'\n', 0xfe]).await.unwrap();
            }
            "endless" => {
                let piece = vec![b'x'; 1 << 20];
                // Whoever bounds it hangs up.
                while stream.write_all(&piece).await.is_ok() {}
                self.gone.send(()).unwrap();
            }
            "breaks" => {
                say(
                    stream,
                    json!({"type": "stdout", "text": "half", "timestamp": 1}),
                )
                .await;
            }
            "hang" => {
                say(stream, json!({"type": "started"})).await;
                say(
                    stream,
                    json!({"type": "stdout", "text": "on", "timestamp": 1}),
                )
                .await;
                let mut rest = String::new();
                assert_eq!(stream.read_line(&mut rest).await.unwrap(), 0);
                self.gone.send(()).unwrap();
            }
            "wait" => {
                say(stream, json!({"type": "started"})).await;
                say(stream, json!({"type": "count", "execution_count": 4})).await;
                say(stream, json!({"type": "result", "data": {"image/png": "aGk="}, "chart": null, "main": true})).await;
                self.go.wait_for(|go| *go).await.unwrap();
                say(
                    stream,
                    json!({"type": "stdout", "text": "went", "timestamp": 1}),
                )
                .await;
                say(stream, end("ok")).await;
            }
            "file" => {
                for path in [
                    "/workspace/artifacts/a.txt",
                    "/workspace/artifacts/gone",
                    "/workspace",
                ] {
                    say(
                        stream,
                        json!({"type": "file", "path": path, "size": 5, "mime_type": "text/plain"}),
                    )
                    .await;
                }
                let odd = json!({"type": "file", "path": "/etc/passwd", "size": 5, "mime_type": "text/plain\r\nx: y"});
                say(stream, odd).await;
                let large = json!({"type": "file", "path": "/workspace/b", "size": 1_u64 << 40, "mime_type": "text/plain"});
                say(stream, large).await;
                say(stream, end("ok")).await;
            }
            "rich" => {
                say(stream, json!({"type": "started"})).await;
                say(stream, json!({"type": "count", "execution_count": 3})).await;
                say(
                    stream,
                    json!({"type": "stdout", "text": "a\nb", "timestamp": 5}),
                )
                .await;
                let data = json!({"text/plain": "p", "text/html": "<b>", "image/png": "aGk=", "application/json": {"k": 1}, "x/y": "z"});
                say(stream, json!({"type": "result", "data": data, "chart": {"type": "bar", "elements": []}, "main": true})).await;
                say(
                    stream,
                    json!({"type": "error", "name": "E", "value": "v", "traceback": "t"}),
                )
                .await;
                say(stream, end("error")).await;
            }
            _ => say(stream, end("ok")).await,
        }
    }
}

/// The events of an execution.
async fn execute(world: &World, id: &str, request: Value) -> Vec<Value> {
    let path = format!("/v1/machines/{id}/code/execute");
    let response = world
        .request(Method::POST, &path)
        .json(&request)
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::OK, "{request}");
    events(&response.text().await.unwrap())
}

fn events(text: &str) -> Vec<Value> {
    assert!(text.is_empty() || text.ends_with("\n\n"), "{text:?}");
    text.split("\n\n")
        .filter(|event| !event.is_empty())
        .map(|event| serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap())
        .collect()
}

fn kinds(events: &[Value]) -> Vec<&str> {
    events
        .iter()
        .map(|event| event["type"].as_str().unwrap())
        .collect()
}

#[tokio::test]
async fn events_reach_the_caller_and_pictures_are_kept() {
    let world = World::new().await;
    let id = world.machine().await;
    let mut bridge = Bridge::start(&world, &id).await;
    let events = execute(
        &world,
        &id,
        json!({"code": "rich", "envs": {"A": "b"}, "timeout": 7}),
    )
    .await;
    let asked = bridge.request().await;
    assert_eq!(
        (&asked["code"], &asked["envs"]["A"], &asked["timeout"]),
        (&json!("rich"), &json!("b"), &json!(7))
    );
    assert_eq!(asked["context"]["language"], "python3");
    assert_eq!(asked["context"]["cwd"], "/workspace");
    assert_eq!(
        kinds(&events),
        [
            "number_of_executions",
            "stdout",
            "result",
            "artifact",
            "artifact",
            "error"
        ]
    );
    assert_eq!(events[0]["execution_count"], 3);
    assert_eq!(
        events[1],
        json!({"type": "stdout", "text": "a\nb", "timestamp": 5})
    );
    let result = &events[2];
    assert_eq!(
        (&result["text"], &result["html"], &result["png"]),
        (&json!("p"), &json!("<b>"), &json!("aGk="))
    );
    assert_eq!(
        (&result["json"], &result["data"]["x/y"]),
        (&json!({"k": 1}), &json!("z"))
    );
    assert_eq!(
        (&result["is_main_result"], &result["chart"]["type"]),
        (&json!(true), &json!("bar"))
    );
    assert_eq!(
        events[5],
        json!({"type": "error", "name": "E", "value": "v", "traceback": "t"})
    );

    let all = format!("/v1/machines/{id}/code/artifacts");
    let (_, page) = world.get(&all).await;
    assert_eq!(page["items"].as_array().unwrap().len(), 2);
    let (_, page) = world
        .get(&format!("{all}?kind=image&execution_count=3"))
        .await;
    let image = &page["items"][0];
    assert_eq!(*image, events[3]["artifact"]);
    assert_eq!(
        (&image["size_bytes"], &image["name"]),
        (&json!(2), &json!("result-3.png"))
    );
    let one = format!("{all}/{}", image["id"].as_str().unwrap());
    for (what, how) in [("download", "attachment"), ("preview", "inline")] {
        let response = world
            .request(Method::GET, &format!("{one}/{what}"))
            .send()
            .await
            .unwrap();
        let header = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
        assert_eq!(header("content-type"), "image/png");
        assert!(header("content-disposition").starts_with(how));
        assert!(header("content-security-policy").starts_with("sandbox"));
        assert_eq!(response.bytes().await.unwrap(), "hi");
    }
    // They outlive the server and the machine; what is not on record does not.
    let stray = world.data.path().join("code/cart_stray");
    std::fs::write(&stray, "x").unwrap();
    let mut world = world;
    world.restart().await;
    assert!(!stray.exists());
    world.delete(&format!("/v1/machines/{id}")).await;
    let response = world
        .request(Method::GET, &format!("{one}/download"))
        .send()
        .await
        .unwrap();
    assert_eq!(response.bytes().await.unwrap(), "hi");
    assert_eq!(world.delete(&one).await.0, StatusCode::NO_CONTENT);
    assert_eq!(world.delete(&one).await.1["code"], "not_found");
    assert_eq!(
        std::fs::read_dir(world.data.path().join("code"))
            .unwrap()
            .count(),
        1
    );
}

#[tokio::test]
async fn files_are_taken_as_far_as_they_are_files() {
    let world = World::new().await;
    let id = world.machine().await;
    let _bridge = Bridge::start(&world, &id).await;
    world
        .exec(
            &id,
            json!({"command": "mkdir artifacts && printf hello > artifacts/a.txt", "shell": true}),
        )
        .await;
    let events = execute(&world, &id, json!({"code": "file"})).await;
    assert_eq!(
        kinds(&events),
        ["artifact", "stderr", "stderr"],
        "{events:?}"
    );
    assert_eq!(events[0]["artifact"]["name"], "a.txt");
    assert_eq!(events[0]["artifact"]["kind"], "file");
    assert!(events[2]["text"].as_str().unwrap().contains("32 MiB"));
}

#[tokio::test]
async fn a_machine_that_lies_ends_the_execution_and_nothing_else() {
    let world = World::new().await;
    let id = world.machine().await;
    let mut bridge = Bridge::start(&world, &id).await;
    for code in ["garbage", "binary", "endless", "breaks"] {
        let events = execute(&world, &id, json!({"code": code})).await;
        let last = events.last().unwrap();
        assert_eq!(
            (&last["type"], &last["name"]),
            (&json!("error"), &json!("KernelLost")),
            "{code}"
        );
        if code == "breaks" {
            assert_eq!(events[0]["text"], "half");
        }
    }
    bridge.gone.recv().await.unwrap();
    for (code, status, word) in [
        ("full", StatusCode::TOO_MANY_REQUESTS, "capacity_exceeded"),
        ("dead", StatusCode::BAD_GATEWAY, "exec_failed"),
        ("silent", StatusCode::BAD_GATEWAY, "exec_failed"),
    ] {
        let (found, body) = world
            .post(
                &format!("/v1/machines/{id}/code/execute"),
                json!({"code": code}),
            )
            .await;
        assert_eq!(
            (found, &body["code"]),
            (status, &json!(word)),
            "{code}: {body}"
        );
    }
    assert_eq!(
        execute(&world, &id, json!({"code": "fine"})).await,
        Vec::<Value>::new()
    );
}

#[tokio::test]
async fn a_caller_that_goes_away_is_noticed() {
    let world = World::new().await;
    let id = world.machine().await;
    let mut bridge = Bridge::start(&world, &id).await;
    let path = format!("/v1/machines/{id}/code/execute");
    let mut response = world
        .request(Method::POST, &path)
        .json(&json!({"code": "hang"}))
        .send()
        .await
        .unwrap();
    assert!(response.chunk().await.unwrap().is_some());
    drop(response);
    bridge.gone.recv().await.unwrap();
}

#[tokio::test]
async fn contexts() {
    let mut world = World::new().await;
    let id = world.machine().await;
    let mut bridge = Bridge::start(&world, &id).await;
    let all = format!("/v1/machines/{id}/code/contexts");
    let mut context_of = async |world: &World, request: Value| {
        execute(world, &id, request).await;
        bridge.request().await["context"].clone()
    };
    let default = context_of(&world, json!({"code": "1"})).await;
    assert_eq!(default["instance"], Value::Null);
    let again = context_of(&world, json!({"code": "1", "language": "py"})).await;
    assert_eq!(
        (&again["id"], &again["instance"]),
        (&default["id"], &json!("i"))
    );
    let other = context_of(&world, json!({"code": "1", "language": "ts"})).await;
    assert_ne!(other["id"], default["id"]);
    assert_eq!(other["language"], "typescript");
    let wins = json!({"code": "1", "language": "js", "context_id": default["id"]});
    assert_eq!(context_of(&world, wins).await["id"], default["id"]);

    let (status, made) = world.post(&all, json!({"cwd": "/workspace/"})).await;
    assert_eq!(
        (status, &made["cwd"]),
        (StatusCode::CREATED, &json!("/workspace")),
        "{made}"
    );
    assert_eq!(bridge.request().await["op"], "open");
    let one = format!("{all}/{}", made["id"].as_str().unwrap());
    for (what, status) in [("restart", "restarted"), ("interrupt", "interrupted")] {
        let (_, body) = world.post(&format!("{one}/{what}"), json!({})).await;
        assert_eq!(body, json!({"status": status}));
        assert_eq!(bridge.request().await["op"], what);
    }
    let (_, listed) = world.get(&all).await;
    let ids: Vec<&Value> = listed
        .as_array()
        .unwrap()
        .iter()
        .map(|context| &context["id"])
        .collect();
    assert_eq!(ids, [&default["id"], &other["id"], &made["id"]]);
    world.restart().await;
    assert_eq!(world.get(&all).await.1, listed, "they are on record");
    assert_eq!(world.delete(&one).await.0, StatusCode::NO_CONTENT);
    assert_eq!(bridge.request().await["op"], "close");
    assert_eq!(world.delete(&one).await.1["code"], "not_found");
    for _ in 2..32 {
        assert_eq!(world.post(&all, json!({})).await.0, StatusCode::CREATED);
    }
    let (status, body) = world.post(&all, json!({})).await;
    assert_eq!(
        (status, &body["code"]),
        (StatusCode::TOO_MANY_REQUESTS, &json!("capacity_exceeded"))
    );
    // Not those of another machine.
    let stranger = world.machine().await;
    let path = format!("/v1/machines/{stranger}/code/execute");
    let (status, _) = world
        .post(&path, json!({"code": "1", "context_id": default["id"]}))
        .await;
    assert_eq!(status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn runs_are_followed_across_a_restart() {
    let mut world = World::new().await;
    let id = world.machine().await;
    let bridge = Bridge::start(&world, &id).await;
    let (_, context) = world
        .post(&format!("/v1/machines/{id}/code/contexts"), json!({}))
        .await;
    let runs = format!("/v1/machines/{id}/code/runs");
    let begin = async |world: &World, code: &str| {
        let request = json!({"code": code, "context_id": context["id"]});
        let (status, run) = world.post(&runs, request).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{run}");
        assert_eq!(
            (&run["machine_id"], &run["sandbox_id"]),
            (&json!(id), &json!(id))
        );
        format!("{runs}/{}", run["id"].as_str().unwrap())
    };
    let until = async |world: &World, run: &str, status: &str| loop {
        let (_, body) = world.get(run).await;
        if body["status"] == status {
            return body;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    };
    let waits = begin(&world, "wait").await;
    until(&world, &waits, "running").await;
    world.restart().await;
    bridge.go.send_replace(true);
    let done = until(&world, &waits, "succeeded").await;
    assert_eq!(done["execution"]["logs"]["stdout"], json!(["went"]));
    assert_eq!(done["execution"]["execution_count"], 4);
    let (_, kept) = world
        .get(&format!("/v1/machines/{id}/code/artifacts"))
        .await;
    assert_eq!(
        kept["items"].as_array().unwrap().len(),
        1,
        "followed twice, kept once"
    );
    assert_eq!(done["execution"]["artifacts"], kept["items"]);

    let queued = begin(&world, "queued").await;
    let (status, body) = answer(world.request(Method::POST, &format!("{queued}/cancel"))).await;
    assert_eq!(
        (status, &body["status"]),
        (StatusCode::OK, &json!("cancelled")),
        "{body}"
    );
    let hangs = begin(&world, "hang").await;
    until(&world, &hangs, "running").await;
    let (status, body) = answer(world.request(Method::POST, &format!("{hangs}/cancel"))).await;
    assert_eq!(
        (status, &body["status"]),
        (StatusCode::ACCEPTED, &json!("running")),
        "{body}"
    );
    assert!(body["cancel_requested_at"].is_string());

    let (_, page) = world.get(&format!("{runs}?limit=2")).await;
    assert_eq!(page["items"].as_array().unwrap().len(), 2);
    let cursor = page["next_cursor"].as_str().unwrap();
    let (_, rest) = world.get(&format!("{runs}?limit=2&cursor={cursor}")).await;
    assert_eq!(
        (
            rest["items"].as_array().unwrap().len(),
            &rest["next_cursor"]
        ),
        (1, &Value::Null)
    );

    world.delete(&format!("/v1/machines/{id}")).await;
    let lost = until(&world, &hangs, "failed").await;
    assert_eq!(lost["failure_reason"], "the machine ended");
}

#[tokio::test]
async fn a_machine_without_kernels_says_so() {
    let world = World::new().await;
    let id = world.machine().await;
    let (status, body) = world
        .post(
            &format!("/v1/machines/{id}/code/execute"),
            json!({"code": "1"}),
        )
        .await;
    assert_eq!(status, StatusCode::NOT_IMPLEMENTED);
    assert!(
        body["error"].as_str().unwrap().contains("template base"),
        "{body}"
    );
    assert!(
        body["suggested_action"]
            .as_str()
            .unwrap()
            .contains("code-interpreter"),
        "{body}"
    );
}

#[tokio::test]
async fn bad_input() {
    let world = World::new().await;
    let id = world.machine().await;
    let code = format!("/v1/machines/{id}/code");
    let long = "x".repeat((1 << 20) + 1);
    for (path, body) in [
        ("execute", json!({})),
        ("execute", json!({"code": ""})),
        ("execute", json!({"code": " \n"})),
        ("execute", json!({"code": 1})),
        ("execute", json!({"code": "1", "lang": "py"})),
        ("execute", json!({"code": "1", "language": "cobol"})),
        ("execute", json!({"code": "1", "timeout": 0})),
        ("execute", json!({"code": "1", "timeout": 1.5})),
        ("execute", json!({"code": "1", "timeout": 1_000_000})),
        ("execute", json!({"code": "1", "envs": {"A=": "b"}})),
        ("execute", json!({"code": "1", "envs": {"A": "\0"}})),
        ("execute", json!({"code": long})),
        ("contexts", json!({"cwd": "relative"})),
        ("contexts", json!({"cwd": "/workspace/../etc"})),
        ("contexts", json!({"cwd": "/workspace/.nullspace/x"})),
        ("contexts", json!({"cwd": "/nowhere"})),
        ("contexts", json!({"cwd": "/etc/passwd"})),
        ("contexts", json!({"language": "r"})),
        ("contexts", json!([])),
        ("runs", json!({"code": "1"})),
        ("runs", json!({"code": "", "context_id": "ctx_x"})),
    ] {
        let (status, answer) = world.post(&format!("{code}/{path}"), body.clone()).await;
        let text: String = body.to_string().chars().take(80).collect();
        assert_eq!(
            (status, &answer["code"]),
            (StatusCode::BAD_REQUEST, &json!("invalid_request")),
            "{path} {text}: {answer}"
        );
    }
    for query in [
        "runs?status=done",
        "runs?limit=0",
        "runs?cursor=x",
        "artifacts?kind=movie",
        "artifacts?limit=9999",
        "artifacts?execution_count=x",
    ] {
        let (status, answer) = world.get(&format!("{code}/{query}")).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{query}: {answer}");
    }
    for path in [
        "runs/crun_x",
        "artifacts/cart_x",
        "artifacts/cart_x/download",
        "artifacts/..%2f..%2fnullspace.db/download",
    ] {
        let (status, answer) = world.get(&format!("{code}/{path}")).await;
        assert_eq!(
            (status, &answer["code"]),
            (StatusCode::NOT_FOUND, &json!("not_found")),
            "{path}"
        );
    }
    let (_, answer) = world
        .post(
            &format!("{code}/runs"),
            json!({"code": "1", "context_id": "ctx_x"}),
        )
        .await;
    assert_eq!(answer["code"], "not_found");
    let (_, answer) = world
        .post("/v1/sandboxes/mch_none/code/execute", json!({"code": "1"}))
        .await;
    assert_eq!(answer["code"], "sandbox_not_found");
    world.delete(&format!("/v1/machines/{id}")).await;
    let (status, answer) = world
        .post(&format!("{code}/execute"), json!({"code": "1"}))
        .await;
    assert_eq!(
        (status, &answer["code"]),
        (StatusCode::CONFLICT, &json!("machine_not_ready"))
    );
    assert_eq!(
        world.get(&format!("{code}/contexts")).await.0,
        StatusCode::CONFLICT
    );
}
