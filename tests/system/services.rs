//! Services in real machines, through the gateway.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::{
    host::run,
    python::{python, script},
    world::{World, answer, find, repository},
};

/// The entry point of a service that works.
const WEB: &str = "exec /usr/bin/python3 web.py";

/// A project that serves with this entry point; more for its config may follow.
fn project(world: &World, name: &str, entrypoint: &str, more: &str) -> PathBuf {
    let place = world.home().join(name);
    std::fs::create_dir_all(&place).unwrap();
    std::fs::copy(
        repository().join("tests/python/web.py"),
        place.join("web.py"),
    )
    .unwrap();
    std::fs::write(place.join("version"), "one").unwrap();
    let readiness = if more.contains("readiness") {
        ""
    } else {
        "readiness = { type = 'http', path = '/', timeout_seconds = 60 }\n"
    };
    let config = format!(
        "name = '{name}'\nmode = 'service'\ntemplate = 'host'\nentrypoint = '''{entrypoint}'''\n\
         [permissions]\npublic_url = true\n[service]\nport = 8080\n{readiness}{more}"
    );
    std::fs::write(place.join("nullspace.agent.toml"), config).unwrap();
    place
}

impl World {
    fn deploy(&self, project: &Path) {
        self.ok(&["agent", "deploy", project.to_str().unwrap()]);
    }

    /// A service of a deployment is started: its path in the API.
    async fn service(&self, name: &str, body: Value) -> String {
        let path = format!("/v1/agent-deployments/{name}/services");
        let (status, service) = self.post(&path, body).await;
        assert_eq!(status, StatusCode::CREATED, "{service}");
        format!("{path}/{}", service["id"].as_str().unwrap())
    }

    async fn until_status(&self, service: &str, wanted: &str) -> Value {
        self.until_at(service, |now| {
            assert!(
                wanted == "failed" || now["status"] != "failed",
                "{service} failed: {now}"
            );
            now["status"] == wanted
        })
        .await
    }

    /// Deploys, starts and waits: the service's path and its address.
    async fn serving(&self, name: &str, entrypoint: &str, body: Value) -> (String, String) {
        self.deploy(&project(self, name, entrypoint, ""));
        let service = self.service(name, body).await;
        let ready = self.until_status(&service, "ready").await;
        (service, ready["public_url"].as_str().unwrap().to_owned())
    }

    /// The lines that a service has printed, of the numbered ones all that there are.
    async fn printed(&self, service: &str) -> Vec<String> {
        let (mut lines, mut cursor) = (Vec::new(), String::new());
        loop {
            let path = format!("{service}/logs?limit=1000&cursor={cursor}");
            let page = self.get(&path).await.1;
            let events = page["events"].as_array().unwrap();
            if events.is_empty() {
                return lines;
            }
            lines.extend(
                events
                    .iter()
                    .filter(|event| event["source"] == "stdout")
                    .map(|event| event["message"].as_str().unwrap().to_owned()),
            );
            cursor = page["next_cursor"].as_str().unwrap().to_owned();
        }
    }
}

async fn open(url: &str) -> Value {
    let (status, body) = answer(reqwest::Client::new().get(url)).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    body
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_published_sdk() {
    let world = World::start().await;
    let place = project(&world, "web", WEB, "");
    script(&world, &python(), "services.py", &[&place]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_under_load_loses_no_request() {
    let world = World::start().await;
    let (service, url) = world.serving("web", WEB, json!({})).await;
    let over = Arc::new(AtomicBool::new(false));
    // Some on connections of their own, some on one that is kept, some with a body.
    let asking: Vec<_> = (0..8)
        .map(|number| {
            let (over, url) = (over.clone(), url.clone());
            tokio::spawn(async move {
                let kept = reqwest::Client::new();
                let mut versions = Vec::new();
                while !over.load(Ordering::Relaxed) {
                    let client = if number % 2 == 0 {
                        kept.clone()
                    } else {
                        reqwest::Client::new()
                    };
                    let got = match number % 4 {
                        3 => client.post(&url).body("a body").send().await,
                        _ => client.get(&url).send().await,
                    };
                    let got = got.unwrap();
                    assert_eq!(got.status(), StatusCode::OK);
                    let body: Value = got.json().await.unwrap();
                    versions.extend(body["version"].as_str().map(str::to_owned));
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                versions
            })
        })
        .collect();
    for version in ["two", "three"] {
        let place = world.home().join("web");
        std::fs::write(place.join("version"), version).unwrap();
        world.deploy(&place);
        let (status, body) = world.post(&format!("{service}/restart"), json!({})).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        // Asked anew each time, as the ones that load it are.
        while open(&url).await["version"] != version {}
    }
    over.store(true, Ordering::Relaxed);
    for asked in asking {
        let mut seen = asked.await.unwrap();
        seen.dedup();
        // Never back to the older one.
        let all = ["one", "two", "three"];
        let mut from_any = all.windows(seen.len().max(1));
        assert!(
            seen.is_empty() || from_any.any(|some| some == seen),
            "{seen:?}"
        );
    }
    world.until_status(&service, "ready").await;
    assert_eq!(world.settled().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_outlives_the_server() {
    let mut world = World::start().await;
    let line = "i=0; while :; do echo line $i; i=$((i+1)); sleep 0.02; done & exec /usr/bin/python3 web.py";
    let (service, url) = world
        .serving("web", line, json!({"envs": {"TOKEN": "kept"}}))
        .await;
    let before = open(&url).await;
    for lines in [20, 60, 100] {
        world
            .until_at(&format!("{service}/logs?tail=1"), |page| {
                page["offset"].as_u64().unwrap_or(0) > lines
            })
            .await;
        world.kill();
        world.serve().await;
        world.until_status(&service, "ready").await;
        // The same process behind the same port.
        assert_eq!(open(&url).await, before);
    }
    let numbered: Vec<String> = world
        .printed(&service)
        .await
        .into_iter()
        .filter(|line| line.starts_with("line "))
        .collect();
    let wanted: Vec<String> = (0..numbered.len()).map(|i| format!("line {i}")).collect();
    assert_eq!(numbered, wanted);
    let now = world.until_status(&service, "ready").await;
    assert_eq!(now["restart_count"], 0, "{now}");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_gets_another_machine_when_its_own_dies() {
    let mut world = World::start().await;
    let (service, url) = world
        .serving("web", WEB, json!({"envs": {"TOKEN": "kept"}}))
        .await;
    let first = world.until_status(&service, "ready").await["sandbox_id"].clone();
    let launcher = world.host.launcher().unwrap();
    run("kill", &["-9", &launcher.to_string()]);
    let now = world
        .until_at(&service, |now| {
            now["status"] == "ready" && now["sandbox_id"] != first
        })
        .await;
    assert_eq!(now["public_url"], url.as_str());
    assert_eq!(open(&url).await["token"], "kept");
    world.host.look();
    // And by hand.
    let second = now["sandbox_id"].as_str().unwrap().to_owned();
    world.delete(&format!("/v1/machines/{second}")).await;
    world
        .until_at(&service, |now| {
            now["status"] == "ready" && now["sandbox_id"] != second.as_str()
        })
        .await;
    assert_eq!(open(&url).await["token"], "kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_that_do_not_serve_say_why() {
    let world = World::start().await;
    let soon = "readiness = { type = 'http', path = '/', timeout_seconds = 2 }\n";
    let hangs = "import http.server, time\nclass H(http.server.BaseHTTPRequestHandler):\n    def do_GET(self):\n        time.sleep(600)\nhttp.server.ThreadingHTTPServer(('0.0.0.0', 8080), H).serve_forever()\n";
    let hangs = format!("exec /usr/bin/python3 -c \"{hangs}\"");
    let cases = [
        ("silent", "sleep 600", soon, "8080"),
        (
            "elsewhere",
            "PORT=9090 exec /usr/bin/python3 web.py",
            soon,
            "8080",
        ),
        ("hangs", hangs.as_str(), soon, "/"),
        (
            "unheard",
            "sleep 600",
            "readiness = { type = 'tcp', timeout_seconds = 2 }\n",
            "8080",
        ),
        (
            "dies",
            "echo the reason is this >&2; exit 3",
            soon,
            "the reason is this",
        ),
    ];
    let mut services = Vec::new();
    for (name, entrypoint, readiness, reason) in &cases {
        world.deploy(&project(&world, name, entrypoint, readiness));
        services.push((world.service(name, json!({})).await, *reason));
    }
    for (service, reason) in services {
        let failed = world.until_status(&service, "failed").await;
        let told = failed["failure_reason"].as_str().unwrap();
        assert!(told.contains(reason), "{failed}");
        assert!(failed["public_url"].is_null(), "{failed}");
    }
    world.until_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_floods_its_log_serves_and_one_that_ignores_sigterm_ends() {
    let world = World::start().await;
    let flood = "yes this line is printed again and again & exec /usr/bin/python3 web.py";
    let (flooding, url) = world.serving("flooding", flood, json!({})).await;
    let deaf = "trap '' TERM; /usr/bin/python3 -c \"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); \
                signal.signal = lambda *_: None; exec(open('web.py').read())\"";
    let (deaf, deaf_url) = world.serving("deaf", deaf, json!({})).await;
    // Its log is bounded, and its newest lines are there.
    world
        .until_at(&format!("{flooding}/logs?tail=1"), |page| {
            page["offset"].as_u64().unwrap_or(0) > 500_000
        })
        .await;
    assert_eq!(open(&url).await["version"], "one");
    let (_, oldest) = world.get(&format!("{flooding}/logs?limit=1")).await;
    assert_eq!(oldest["events"].as_array().unwrap().len(), 1, "{oldest}");
    assert_eq!(open(&deaf_url).await["version"], "one");
    for service in [&flooding, &deaf] {
        let (status, body) = world.post(&format!("{service}/stop"), json!({})).await;
        assert_eq!(status, StatusCode::OK, "{body}");
    }
    for service in [&flooding, &deaf] {
        world.until_status(service, "stopped").await;
    }
    world.until_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn restarts_at_once_and_a_deployment_deleted_while_it_lives() {
    let world = World::start().await;
    let (service, url) = world.serving("web", WEB, json!({})).await;
    let restart = format!("{service}/restart");
    let restarts = (0..4).map(|_| world.post(&restart, json!({})));
    for (status, body) in futures_util::future::join_all(restarts).await {
        assert!(
            status == StatusCode::OK || status == StatusCode::CONFLICT,
            "{body}"
        );
    }
    let started = world
        .until_at(&service, |now| {
            now["status"] == "ready" && now["restarting"] != true
        })
        .await;
    assert_eq!(open(&url).await["version"], "one", "{started}");
    let job = world.home().join("job");
    std::fs::create_dir(&job).unwrap();
    std::fs::write(
        job.join("nullspace.agent.toml"),
        "name = 'job'\ntemplate = 'host'\nentrypoint = 'sleep 600'\n",
    )
    .unwrap();
    world.deploy(&job);
    let runs = "/v1/agent-deployments/job/runs";
    let mut started = Vec::new();
    for _ in 0..3 {
        let (_, run) = world.post(runs, json!({"input": {}})).await;
        started.push(run["id"].as_str().unwrap().to_owned());
    }
    world
        .until_at(&format!("{runs}/{}", started[0]), |run| {
            run["status"] == "running"
        })
        .await;
    for name in ["job", "web"] {
        let (status, body) = world.delete(&format!("/v1/agent-deployments/{name}")).await;
        assert!(status.is_success(), "{body}");
    }
    world.until_empty().await;
    for id in started {
        let (_, run) = world.get(&format!("/v1/agent-runs/{id}")).await;
        assert_eq!(run["status"], "cancelled", "{run}");
    }
    assert!(reqwest::get(&url).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn deploys_at_once_and_files_that_change_meanwhile() {
    let world = World::start().await;
    let mut children = Vec::new();
    for number in 0..20 {
        let place = world.home().join(format!("p{number}"));
        std::fs::create_dir(&place).unwrap();
        std::fs::write(
            place.join("nullspace.agent.toml"),
            "name = 'many'\ntemplate = 'host'\nentrypoint = 'cat number'\n",
        )
        .unwrap();
        std::fs::write(place.join("number"), number.to_string()).unwrap();
        let mut command = world.program();
        command.args(["agent", "deploy", place.to_str().unwrap(), "--json"]);
        command.stdout(std::process::Stdio::piped());
        command.stderr(std::process::Stdio::piped());
        children.push(command.spawn().unwrap());
    }
    for child in children {
        let done = child.wait_with_output().unwrap();
        assert!(done.status.success(), "{done:?}");
    }
    let versions = world.json(&["agent", "versions", "many", "--json"]);
    let items = versions["items"].as_array().unwrap();
    let mut numbers: Vec<u64> = items
        .iter()
        .map(|version| version["version_number"].as_u64().unwrap())
        .collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=20).collect::<Vec<_>>());
    let ready = items.iter().filter(|version| version["status"] == "ready");
    assert_eq!(ready.count(), 1, "{versions}");

    let place = world.home().join("p0");
    let over = Arc::new(AtomicBool::new(false));
    let writer = std::thread::spawn({
        let (over, file) = (over.clone(), place.join("number"));
        move || {
            let mut count = 0;
            while !over.load(Ordering::Relaxed) {
                count = (count + 7919) % 100_000;
                std::fs::write(&file, vec![b'x'; count]).unwrap();
            }
        }
    });
    let (mut whole, mut refused) = (0, 0);
    for _ in 0..10 {
        let done = world
            .program()
            .args(["agent", "deploy", place.to_str().unwrap(), "--json"])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&done.stdout);
        if done.status.success() {
            whole += 1;
        } else {
            refused += 1;
            assert!(text.contains("changed"), "{text}");
        }
    }
    over.store(true, Ordering::Relaxed);
    writer.join().unwrap();
    assert_eq!(whole + refused, 10);
    // What was taken is whole: it runs.
    let run = world.nullspace(&["agent", "run", "many", "--follow"]);
    assert!(run.status.success(), "{run:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn variables_of_any_kind_arrive_as_they_are() {
    let world = World::start().await;
    let place = world.home().join("odd");
    std::fs::create_dir(&place).unwrap();
    std::fs::write(
        place.join("nullspace.agent.toml"),
        "name = 'odd'\ntemplate = 'host'\nentrypoint = '/usr/bin/python3 main.py'\n[env]\nrequired = ['A', 'B', 'C', 'D']\n\
         [outputs]\npaths = ['result.json']\n",
    )
    .unwrap();
    std::fs::write(
        place.join("main.py"),
        "import json, os\njson.dump({k: os.environ[k] for k in 'ABCD'}, open('result.json', 'w'))\n",
    )
    .unwrap();
    world.deploy(&place);
    let envs = json!({"A": "two\nlines\n", "B": "a=b=c", "C": "snö ☃ \u{1f980}", "D": "x".repeat(100 << 10)});
    let runs = "/v1/agent-deployments/odd/runs";
    let (status, run) = world
        .post(runs, json!({"input": {}, "envs": envs.clone()}))
        .await;
    assert_eq!(status, StatusCode::CREATED, "{run}");
    let path = format!("{runs}/{}", run["id"].as_str().unwrap());
    let ended = world
        .until_at(&path, |run| !run["completed_at"].is_null())
        .await;
    assert_eq!(ended["status"], "succeeded", "{ended}");
    let results = world.home().join("results");
    world.ok(&[
        "agent",
        "outputs",
        "odd",
        "--download",
        results.to_str().unwrap(),
    ]);
    let found = find(&results, "result.json").unwrap();
    let given: Value = serde_json::from_str(&std::fs::read_to_string(found).unwrap()).unwrap();
    assert_eq!(given, envs);
    // What no process can be given is refused before there is a machine, and so is what is missing.
    let before = world.listed().await;
    let mut huge = envs.clone();
    huge["D"] = "x".repeat(200 << 10).into();
    let mut missing = envs;
    missing.as_object_mut().unwrap().remove("B");
    let nul = json!({"A": "a\u{0}b", "B": "", "C": "", "D": ""});
    for (envs, word) in [(huge, "D"), (missing, "B"), (nul, "A")] {
        let request = world.request(Method::POST, runs);
        let (status, refused) = answer(request.json(&json!({"input": {}, "envs": envs}))).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{refused}");
        assert!(
            refused["error"].as_str().unwrap().contains(word),
            "{refused}"
        );
    }
    assert_eq!(world.listed().await, before);
}
