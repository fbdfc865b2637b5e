//! Services over real HTTP, on the fake engine: programs run for real, on the host's own ports. What needs two machines
//! on one port is in the whole-system tests.

#![allow(clippy::unwrap_used)]

mod common;

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use common::{World, answer, project::Project};
use nullspace_server::Config;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

const BASE: &str = "/v1/agent-deployments";

/// Answers with the first line of its file `version`, its process id and what it was given; ends when told to.
const PROGRAM: &str = r#"
import http.server, json, os, pathlib, signal, sys
count = pathlib.Path("starts")
count.write_text(str(int(count.read_text()) + 1 if count.exists() else 1))
print("starting for the", count.read_text(), "time", flush=True)
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        if self.path == "/exit":
            print("told to exit", flush=True)
            os._exit(7)
        if self.path == "/sick":
            pathlib.Path("sick").write_text("")
        if self.path == "/well":
            pathlib.Path("sick").unlink()
        sick = self.path == "/health" and pathlib.Path("sick").exists()
        body = json.dumps({"version": pathlib.Path("version").read_text(), "starts": int(count.read_text()),
            "token": os.environ.get("TOKEN"), "service": os.environ.get("NULLSPACE_SERVICE_ID"),
            "beside": [line for file in pathlib.Path(".").glob("beside") for line in file.read_text().split()]}).encode()
        self.send_response(500 if sick else 200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args):
        pass
def ended(*_):
    print("ended in order", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, ended)
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"#;

/// A port that nothing uses now.
fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// A project that serves at this port.
fn project(version: &str, port: u16, more: &str) -> Project {
    let python = ["/usr/bin/python3", "/usr/local/bin/python3"]
        .into_iter()
        .find(|path| std::path::Path::new(path).exists())
        .unwrap_or("python3");
    let toml = format!(
        "mode = 'service'\n[service]\nport = {port}\nreadiness = {{ type = 'http', path = '/health', timeout_seconds = 20 }}\n{more}"
    );
    let mut project = Project::new(&toml, PROGRAM);
    project.config.entrypoint = Some(format!("cd . && {python} main.sh"));
    std::fs::write(project.dir.path().join("version"), version).unwrap();
    project
}

const PUBLIC: &str = "[permissions]\npublic_url = true\n";

struct Services(World);

impl Services {
    async fn new() -> Self {
        Self(
            World::with(Config {
                service_restart_pause_ms: 10,
                ..Config::default()
            })
            .await,
        )
    }

    /// Makes the deployment if it is not there, and uploads a version.
    async fn deploy(&self, project: &Project) -> String {
        let (status, body) = self
            .0
            .post(BASE, json!({"name": "web", "mode": "service"}))
            .await;
        assert!(
            status == StatusCode::CREATED || status == StatusCode::CONFLICT,
            "{body}"
        );
        let request = project.version_request();
        let (status, version) = self.0.post(&format!("{BASE}/web/versions"), request).await;
        assert_eq!(status, StatusCode::CREATED, "{version}");
        let id = version["id"].as_str().unwrap().to_owned();
        let request = self
            .0
            .request(Method::PUT, &format!("{BASE}/web/versions/{id}/bundle"))
            .header(
                "x-nullspace-bundle-digest",
                version["bundle_digest"].as_str().unwrap(),
            )
            .body(project.archive());
        let (status, version) = answer(request).await;
        assert_eq!(status, StatusCode::OK, "{version}");
        id
    }

    async fn start(&self, body: Value) -> String {
        let (status, service) = self.0.post(&format!("{BASE}/web/services"), body).await;
        assert_eq!(status, StatusCode::CREATED, "{service}");
        assert_eq!(service["status"], "starting");
        service["id"].as_str().unwrap().to_owned()
    }

    async fn ask(&self, id: &str, what: &str, body: Value) -> Value {
        let path = format!("{BASE}/web/services/{id}/{what}");
        let (status, body) = self.0.post(&path, body).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        body
    }

    async fn get(&self, id: &str) -> Value {
        let (status, body) = self.0.get(&format!("{BASE}/web/services/{id}")).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        body
    }

    /// The service once it is in this status.
    async fn until(&self, id: &str, wanted: &str) -> Value {
        self.until_it(id, |service| service["status"] == wanted)
            .await
    }

    async fn until_it(&self, id: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        for _ in 0..1200 {
            last = self.get(id).await;
            if is_so(&last) {
                return last;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("it did not come: {last}\n{:#?}", self.log(id).await);
    }

    async fn url(&self, id: &str) -> String {
        let (_, body) = self.0.get(&format!("{BASE}/web/services/{id}/url")).await;
        body["public_url"].as_str().unwrap_or_default().to_owned()
    }

    async fn open(&self, url: &str) -> (StatusCode, Value) {
        answer(self.0.client.get(url)).await
    }

    /// `event_type: message` of each event.
    async fn log(&self, id: &str) -> Vec<String> {
        let (status, page) = self
            .0
            .get(&format!("{BASE}/web/services/{id}/logs?limit=1000"))
            .await;
        assert_eq!(status, StatusCode::OK, "{page}");
        let events = page["events"].as_array().unwrap();
        let text = |event: &Value, field: &str| event[field].as_str().unwrap().to_owned();
        events
            .iter()
            .map(|e| format!("{}: {}", text(e, "event_type"), text(e, "message")))
            .collect()
    }

    fn machine_root(&self, service: &Value) -> PathBuf {
        self.0
            .engine
            .machine_root(service["sandbox_id"].as_str().unwrap())
    }
}

fn count(log: &[String], start: &str) -> usize {
    log.iter().filter(|line| line.starts_with(start)).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_starts_answers_at_its_address_and_stops() {
    let world = Services::new().await;
    let version = world.deploy(&project("one", free_port(), PUBLIC)).await;
    let id = world
        .start(json!({"envs": {"TOKEN": "s3cret-value"}}))
        .await;
    let service = world.until(&id, "ready").await;
    assert_eq!(service["version_id"], version.as_str());
    assert_eq!(service["readiness_status"]["ready"], true, "{service}");
    assert!(
        service["process_id"].is_u64() && service["started_at"].is_string(),
        "{service}"
    );
    let url = world.url(&id).await;
    assert_eq!(service["public_url"], url.as_str());
    let (status, body) = world.open(&url).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(
        (&body["version"], &body["token"]),
        (&json!("one"), &json!("s3cret-value"))
    );
    assert_eq!(body["service"], id.as_str());

    let machine = service["sandbox_id"].as_str().unwrap().to_owned();
    let stopped = world
        .ask(
            &id,
            "stop",
            json!({"reason": "done", "retain_sandbox": false}),
        )
        .await;
    assert_eq!(stopped["status"], "stopped", "{stopped}");
    assert!(
        stopped["stopped_at"].is_string() && stopped["public_url"].is_null(),
        "{stopped}"
    );
    world.0.until(&machine, "destroyed").await;
    assert!(
        world.0.client.get(&url).send().await.is_err(),
        "its port is closed"
    );
    let log = world.log(&id).await;
    for event in [
        "service_starting",
        "sandbox_created",
        "entrypoint_started",
        "stdout: starting for the 1 time",
        "service_ready",
        "service_stopping: stopping: done",
        "stdout: ended in order",
        "service_stopped",
    ] {
        assert_eq!(count(&log, event), 1, "{event}: {log:#?}");
    }
    // Again is fine, and changes nothing.
    let again = world.ask(&id, "stop", json!({})).await;
    assert_eq!(again["stopped_at"], stopped["stopped_at"]);
    let database = std::fs::read(world.0.data.path().join("nullspace.db")).unwrap();
    assert!(!database.windows(12).any(|part| part == b"s3cret-value"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_point_that_ends_is_started_again_where_its_files_are() {
    let world = Services::new().await;
    let mut project = project("one", free_port(), PUBLIC);
    let line = project.config.entrypoint.take().unwrap();
    project.config.entrypoint = Some(format!("sleep 1000 & echo $! >> beside; {line}"));
    world.deploy(&project).await;
    let id = world.start(json!({})).await;
    let machine = world.until(&id, "ready").await["sandbox_id"].clone();
    let url = world.url(&id).await;
    let beside = world.open(&url).await.1["beside"][0].clone();
    let beside = format!("/proc/{}", beside.as_str().unwrap());
    assert!(std::path::Path::new(&beside).exists());
    assert!(
        world
            .0
            .client
            .get(format!("{url}/exit"))
            .send()
            .await
            .unwrap()
            .status()
            .is_server_error()
    );
    let service = world
        .until_it(&id, |s| s["status"] == "ready" && s["restart_count"] == 1)
        .await;
    assert_eq!(service["sandbox_id"], machine);
    assert_eq!(world.url(&id).await, url);
    let answer = world.open(&url).await.1;
    assert_eq!(answer["starts"], 2);
    assert_eq!(answer["beside"].as_array().unwrap().len(), 2);
    // What ran beside the entry point ended with it.
    world
        .until_it(&id, |_| !std::path::Path::new(&beside).exists())
        .await;
    let log = world.log(&id).await;
    assert_eq!(
        count(&log, "entrypoint_ended: entrypoint ended with exit code 7"),
        1,
        "{log:#?}"
    );
    assert_eq!(count(&log, "entrypoint_restarted"), 1, "{log:#?}");
    world.ask(&id, "stop", json!({})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_dies_at_once_fails_with_its_last_words() {
    let world = Services::new().await;
    let mut broken = project(
        "one",
        free_port(),
        "[debug]\nretain_on_failure = true\nretain_seconds = 600\n",
    );
    broken.config.entrypoint = Some("echo no module named anything >&2; exit 3".into());
    world.deploy(&broken).await;
    let id = world.start(json!({})).await;
    let service = world.until(&id, "failed").await;
    let reason = service["failure_reason"].as_str().unwrap();
    assert!(
        reason.contains("entrypoint ended with exit code 3, 6 times in a row"),
        "{reason}"
    );
    assert!(reason.contains("no module named anything"), "{reason}");
    assert_eq!(service["restart_count"], 5);
    assert!(service["retained_until"].is_string(), "{service}");
    let machine = service["sandbox_id"].as_str().unwrap();
    assert_eq!(world.0.status(machine).await, "running");
    assert_eq!(count(&world.log(&id).await, "service_start_failed"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_never_listens_fails_when_its_time_is_over() {
    let world = Services::new().await;
    let mut deaf = project("one", free_port(), "");
    deaf.config.entrypoint = Some("echo listening elsewhere; exec sleep 1000".into());
    deaf.config
        .service
        .readiness
        .as_mut()
        .unwrap()
        .timeout_seconds = Some(1);
    world.deploy(&deaf).await;
    let id = world.start(json!({})).await;
    let service = world.until(&id, "failed").await;
    let reason = service["failure_reason"].as_str().unwrap();
    assert!(
        reason.starts_with("readiness: not ready within 1 s: nothing answers on port"),
        "{reason}"
    );
    assert!(reason.contains("listening elsewhere"), "{reason}");
    let (_, page) = world
        .0
        .get(&format!("{BASE}/web/services/{id}/logs?tail=1"))
        .await;
    assert_eq!(
        page["events"][0]["metadata"]["failure_phase"], "readiness",
        "{page}"
    );
    world
        .0
        .until(service["sandbox_id"].as_str().unwrap(), "destroyed")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn health_is_watched_and_an_unhealthy_service_keeps_its_traffic() {
    let world = Services::new().await;
    world.deploy(&project("one", free_port(), PUBLIC)).await;
    let id = world.start(json!({})).await;
    world.until(&id, "ready").await;
    let url = world.url(&id).await;
    world.open(&format!("{url}/sick")).await;
    let service = world.until(&id, "unhealthy").await;
    assert_eq!(service["readiness_status"]["ready"], false, "{service}");
    assert!(
        service["readiness_status"]["error"]
            .as_str()
            .unwrap()
            .contains("500"),
        "{service}"
    );
    assert_eq!(world.open(&format!("{url}/well")).await.0, StatusCode::OK);
    world.until(&id, "ready").await;
    world.ask(&id, "stop", json!({})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_moves_to_the_active_version_and_back_from_a_broken_one() {
    let world = Services::new().await;
    world.deploy(&project("one", free_port(), PUBLIC)).await;
    let id = world.start(json!({})).await;
    let first = world.until(&id, "ready").await;
    let url = world.url(&id).await;
    let asked = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
    let asking = tokio::spawn({
        let (client, url, asked) = (world.0.client.clone(), url.clone(), asked.clone());
        async move {
            let mut seen = BTreeMap::new();
            while asked.load(std::sync::atomic::Ordering::Relaxed) {
                let (status, body) = answer(client.get(&url)).await;
                let key = format!("{status} {}", body["version"]);
                *seen.entry(key).or_insert(0) += 1;
            }
            seen
        }
    });
    let second = world.deploy(&project("two", free_port(), PUBLIC)).await;
    let restarting = world
        .ask(&id, "restart", json!({"reason": "new version"}))
        .await;
    assert_eq!(restarting["status"], "starting");
    assert_eq!(world.url(&id).await, url, "the old backing takes traffic");
    let service = world.until(&id, "ready").await;
    assert_eq!(service["version_id"], second.as_str());
    assert_ne!(service["sandbox_id"], first["sandbox_id"]);
    assert_eq!(world.open(&url).await.1["version"], "two");
    world
        .0
        .until(first["sandbox_id"].as_str().unwrap(), "destroyed")
        .await;
    asked.store(false, std::sync::atomic::Ordering::Relaxed);
    let seen = asking.await.unwrap();
    assert!(seen.keys().all(|key| key.starts_with("200 OK")), "{seen:?}");

    let mut broken = project("three", free_port(), PUBLIC);
    broken.config.entrypoint = Some("exit 4".into());
    let third = world.deploy(&broken).await;
    let restarting = world.ask(&id, "restart", json!({})).await;
    assert_eq!(restarting["version_id"], third.as_str());
    let service = world
        .until_it(&id, |s| {
            s["status"] == "ready" && s["failure_reason"].is_string()
        })
        .await;
    assert_eq!(service["version_id"], second.as_str(), "{service}");
    assert!(
        service["failure_reason"]
            .as_str()
            .unwrap()
            .contains("exit code 4"),
        "{service}"
    );
    assert_eq!(world.open(&url).await.1["version"], "two");

    // Two at the same moment: both are answered, and one backing is left.
    let path = format!("{BASE}/web/services/{id}/restart");
    let fourth = world.deploy(&project("four", free_port(), PUBLIC)).await;
    let (a, b) = tokio::join!(
        world.0.post(&path, json!({})),
        world.0.post(&path, json!({}))
    );
    assert_eq!((a.0, b.0), (StatusCode::OK, StatusCode::OK));
    world
        .until_it(&id, |s| {
            s["status"] == "ready" && s["version_id"] == fourth.as_str()
        })
        .await;
    // Both use the same port of the host here, so one of them may have to try again.
    let mut left = Vec::new();
    for _ in 0..1200 {
        let service = world.get(&id).await;
        let live = world.0.server.as_ref().unwrap().app().machines.all();
        left = live.iter().map(|machine| machine.id.clone()).collect();
        if left.len() == 1
            && service["sandbox_id"] == left[0].as_str()
            && service["status"] == "ready"
        {
            break;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    assert_eq!(left.len(), 1, "{left:?}");

    // One that has stopped begins again under the same id.
    assert_eq!(world.ask(&id, "stop", json!({})).await["status"], "stopped");
    let (status, refused) = world.0.get(&format!("{BASE}/web/services/{id}/url")).await;
    assert_eq!(
        (status, &refused["public_url"]),
        (StatusCode::OK, &Value::Null)
    );
    world.ask(&id, "restart", json!({})).await;
    world.until(&id, "ready").await;
    assert_eq!(world.open(&world.url(&id).await).await.1["version"], "four");
    world.ask(&id, "stop", json!({})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_outlives_its_server_and_its_machine() {
    let mut world = Services::new().await;
    world.deploy(&project("one", free_port(), PUBLIC)).await;
    let id = world.start(json!({"envs": {"TOKEN": "kept"}})).await;
    let before = world.until(&id, "ready").await;
    let url = world.url(&id).await;
    let port = url.rsplit(':').next().unwrap().to_owned();
    world.0.restart().await;
    let url = world.url(&id).await;
    assert!(url.ends_with(&port), "{url} {port}");
    let (status, body) = world.open(&url).await;
    assert_eq!((status, &body["starts"]), (StatusCode::OK, &json!(1)));
    assert_eq!(world.get(&id).await["sandbox_id"], before["sandbox_id"]);

    // Nobody who is alive knows the values: they come out of the seal.
    world.0.engine.crash(before["sandbox_id"].as_str().unwrap());
    let after = world
        .until_it(&id, |s| {
            s["status"] == "ready" && s["sandbox_id"] != before["sandbox_id"]
        })
        .await;
    assert_eq!(after["restart_count"], 1);
    let (_, body) = world.open(&url).await;
    assert_eq!(
        (&body["token"], &body["starts"]),
        (&json!("kept"), &json!(1))
    );
    let log = world.log(&id).await;
    assert_eq!(count(&log, "stdout: starting"), 2, "{log:#?}");

    // A server that stops while a service is being stopped: the next one ends it.
    let app = world.0.server.as_ref().unwrap().app().clone();
    let wanted = id.clone();
    app.store
        .write(move |tx| {
            nullspace_store::agent_service::request_stop(tx, &wanted, Some("later"), None, 1)
        })
        .await
        .unwrap();
    drop(app);
    world.0.restart().await;
    world.until(&id, "stopped").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_service_can_leave_its_machine_and_private_traffic_needs_the_token() {
    let world = Services::new().await;
    let private = "[permissions]\npublic_url = true\nallow_public_traffic = false\n[debug]\nretain_seconds = 600\n";
    world.deploy(&project("one", free_port(), private)).await;
    let id = world.start(json!({})).await;
    world.until(&id, "ready").await;
    let (_, answered) = world.0.get(&format!("{BASE}/web/services/{id}/url")).await;
    let url = answered["public_url"].as_str().unwrap();
    assert_eq!(world.open(url).await.0, StatusCode::UNAUTHORIZED);
    let header = answered["traffic_access_header"].as_str().unwrap();
    let token = answered["traffic_access_token"].as_str().unwrap();
    let (status, _) = answer(world.0.client.get(url).header(header, token)).await;
    assert_eq!(status, StatusCode::OK);

    let stopped = world
        .ask(&id, "stop", json!({"retain_sandbox": true}))
        .await;
    assert_eq!(stopped["status"], "stopped");
    assert!(stopped["retained_until"].is_string(), "{stopped}");
    let machine = stopped["sandbox_id"].as_str().unwrap();
    assert_eq!(world.0.status(machine).await, "running");
    let out = world
        .0
        .exec(
            machine,
            json!({"command": "cat starts", "shell": true, "cwd": "/workspace/project"}),
        )
        .await;
    assert_eq!(out["stdout"].as_str().unwrap().trim(), "1", "{out}");
    let root = world.machine_root(&stopped);
    assert!(root.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals() {
    let world = Services::new().await;
    world
        .deploy(&project(
            "one",
            free_port(),
            "[env]\nrequired = ['NEEDED']\n",
        ))
        .await;
    let services = format!("{BASE}/web/services");
    let (status, body) = world.0.post(&services, json!({})).await;
    assert_eq!(
        (status, &body["code"]),
        (StatusCode::BAD_REQUEST, &json!("invalid_request"))
    );
    assert!(body["error"].as_str().unwrap().contains("NEEDED"), "{body}");
    assert!(
        world
            .0
            .server
            .as_ref()
            .unwrap()
            .app()
            .machines
            .all()
            .is_empty()
    );
    let (status, body) = world
        .0
        .post(&format!("{BASE}/web/runs"), json!({"input": {}}))
        .await;
    assert_eq!(
        (status, &body["code"]),
        (StatusCode::CONFLICT, &json!("agent_mode_conflict"))
    );
    for path in ["", "/url", "/logs"] {
        let (status, body) = world.0.get(&format!("{services}/adsvc_none{path}")).await;
        assert_eq!(
            (status, &body["code"]),
            (StatusCode::NOT_FOUND, &json!("agent_service_not_found"))
        );
    }
    for path in ["stop", "restart"] {
        let given = json!({"envs": {"NEEDED": "1"}});
        let given = if path == "stop" { json!({}) } else { given };
        let (status, body) = world
            .0
            .post(&format!("{services}/adsvc_none/{path}"), given)
            .await;
        assert_eq!(
            (status, &body["code"]),
            (StatusCode::NOT_FOUND, &json!("agent_service_not_found"))
        );
    }
    let mut odd = project("one", free_port(), "");
    odd.config.service.readiness.as_mut().unwrap().kind = Some("carrier-pigeon".into());
    let (status, body) = world
        .0
        .post(&format!("{BASE}/web/versions"), odd.version_request())
        .await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{body}");
    assert!(
        body["error"].as_str().unwrap().contains("carrier-pigeon"),
        "{body}"
    );

    // A paused deployment starts nothing; one that is deleted stops what it has.
    let id = world.start(json!({"envs": {"NEEDED": "1"}})).await;
    world.until(&id, "ready").await;
    let request = world
        .0
        .request(Method::PATCH, &format!("{BASE}/web"))
        .json(&json!({"status": "paused"}));
    assert_eq!(answer(request).await.0, StatusCode::OK);
    let (status, _) = world
        .0
        .post(&services, json!({"envs": {"NEEDED": "1"}}))
        .await;
    assert_eq!(status, StatusCode::CONFLICT);
    let (_, deployment) = world.0.get(&format!("{BASE}/web")).await;
    let by_id = format!("{BASE}/{}", deployment["id"].as_str().unwrap());
    assert_eq!(world.0.delete(&by_id).await.0, StatusCode::NO_CONTENT);
    for _ in 0..1200 {
        let (_, service) = world.0.get(&format!("{by_id}/services/{id}")).await;
        if service["status"] == "stopped" {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("a deleted deployment's service goes on");
}
