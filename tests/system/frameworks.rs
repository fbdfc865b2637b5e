//! The projects in `examples/`, used as their READMEs say, with the frameworks as PyPI and npm have them. Their model is
//! a stub in the same machine that speaks the model's HTTP API.

use std::{fs, path::Path};

use serde_json::{Value, json};

use crate::{
    host::run,
    python::{python, script},
    world::{World, find, repository},
};

const STUB_PORT: u16 = 9099;

/// A project of `examples/`, in a copy, deployed.
struct Example {
    world: World,
    name: &'static str,
    place: tempfile::TempDir,
}

impl Example {
    /// The stub calls these tools, in this order, before it answers; there is none if there are no calls.
    async fn deployed(name: &'static str, calls: &Value) -> Self {
        let example = Self {
            world: World::start().await,
            name,
            place: tempfile::tempdir().unwrap(),
        };
        let project = example.project();
        let original = repository().join("examples").join(name);
        run(
            "cp",
            &["-r", original.to_str().unwrap(), project.to_str().unwrap()],
        );
        if calls.is_array() {
            let stub = repository().join("tests/python/model_stub.py");
            fs::copy(stub, project.join("model_stub.py")).unwrap();
            fs::write(project.join("calls.json"), calls.to_string()).unwrap();
            let config = project.join("nullspace.agent.toml");
            let text = fs::read_to_string(&config).unwrap();
            let start = format!("entrypoint = \"python3 model_stub.py {STUB_PORT} calls.json && ");
            let with_stub = text.replacen("entrypoint = \"", &start, 1).replacen(
                "include = [",
                "include = [\"model_stub.py\", \"calls.json\", ",
                1,
            );
            fs::write(config, with_stub).unwrap();
        }
        example
            .world
            .ok(&["agent", "deploy", project.to_str().unwrap()]);
        example
    }

    fn project(&self) -> std::path::PathBuf {
        self.place.path().join(self.name)
    }

    fn model(&self) -> [String; 4] {
        let stub = format!("http://127.0.0.1:{STUB_PORT}");
        [
            "OPENAI_API_KEY=no-key".into(),
            format!("OPENAI_BASE_URL={stub}/v1"),
            "ANTHROPIC_API_KEY=no-key".into(),
            format!("ANTHROPIC_BASE_URL={stub}"),
        ]
    }

    /// Runs the job to its end: its `result.json` and a file of its reports.
    fn run(&self, input: &Value, report: &str) -> (Value, String) {
        let (input, model) = (input.to_string(), self.model());
        let mut arguments = vec![
            "agent",
            "run",
            self.name,
            "--input-json",
            &input,
            "--follow",
        ];
        let config = fs::read_to_string(self.project().join("nullspace.agent.toml")).unwrap();
        for pair in &model {
            let (name, _) = pair.split_once('=').unwrap();
            if config.contains(&format!("\"{name}\"")) {
                arguments.extend(["--env", pair]);
            }
        }
        let log = self.world.ok(&arguments);
        let results = self.place.path().join("results");
        let download = ["agent", "outputs", self.name, "--download"];
        self.world
            .ok(&[&download[..], &[results.to_str().unwrap()]].concat());
        let read = |name: &str| {
            let found = find(&results, name);
            fs::read_to_string(found.unwrap_or_else(|| panic!("no {name}: {log}"))).unwrap()
        };
        (
            serde_json::from_str(&read("result.json")).unwrap(),
            read(report),
        )
    }

    /// Starts the service: its address.
    fn url(&self, env: &[String]) -> String {
        let mut arguments = vec!["agent", "url", self.name];
        for pair in env {
            arguments.extend(["--env", pair]);
        }
        self.world.ok(&arguments).trim().to_owned()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn openai_agents_job() {
    let calls = json!([["summarize_orders", {"value": "amount", "by": "region"}]]);
    let example = Example::deployed("openai-agents-job", &calls).await;
    let (result, report) = example.run(&json!({"question": "Who buys most?"}), "report.md");
    assert_eq!(result["question"], "Who buys most?");
    let found = result["lookups"][0]["result"][0].as_str().unwrap();
    assert!(found.starts_with("region="), "{result}");
    // The model was told what the tool found, and its answer is in the report.
    let answer = result["answer"].as_str().unwrap();
    assert!(answer.contains(found), "{result}");
    assert!(report.contains(answer), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn claude_agent_job() {
    let calls = json!([["Glob", {"pattern": "*.py"}], ["mcp__review__run_tests", {}]]);
    let example = Example::deployed("claude-agent-job", &calls).await;
    let (result, report) = example.run(&json!({}), "review.md");
    assert_eq!(
        result["tools"],
        json!(["Glob", "mcp__review__run_tests"]),
        "{result}"
    );
    assert_eq!(result["test_runs"][0]["exit_code"], 1, "{result}");
    for text in ["test_cart.py", "FAIL: test_every_piece_is_paid"] {
        assert!(report.contains(text), "{report}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn crewai_job() {
    let calls = json!([["search_notes", {"word": "tides"}]]);
    let example = Example::deployed("crewai-job", &calls).await;
    let (result, report) = example.run(&json!({"topic": "tides"}), "report.md");
    assert_eq!(
        result["looked_up"][0]["found"].as_array().unwrap().len(),
        3,
        "{result}"
    );
    assert_eq!(result["tasks"].as_array().unwrap().len(), 2, "{result}");
    // The researcher's find went through the writer into the report.
    assert!(report.contains("The Bay of Fundy"), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn langgraph_service() {
    let calls = json!([["word_count", {"text": "a rose is a rose"}]]);
    let example = Example::deployed("langgraph-service", &calls).await;
    let url = example.url(&example.model()[..2]);
    let thread = format!("{url}/threads/one");
    let say = async |text: &str| {
        let body = json!({ "text": text });
        let request = reqwest::Client::new()
            .post(format!("{thread}/messages"))
            .json(&body);
        crate::world::answer(request).await.1
    };
    let first = say("Count!").await;
    assert_eq!(first["messages"], 4, "{first}");
    let reply = first["reply"].as_str().unwrap();
    assert!(reply.contains("5 words"), "{reply}");

    let listed = format!("/v1/agent-deployments/{}/services", example.name);
    let (_, services) = example.world.get(&listed).await;
    let service = services["items"][0]["id"].as_str().unwrap();
    example
        .world
        .nullspace(&["agent", "shell", example.name, "--cmd", "pkill -f app.py"]);
    example
        .world
        .until_at(&format!("{listed}/{service}"), |service| {
            service["restart_count"] == 1 && service["status"] == "ready"
        })
        .await;
    // The thread goes on where it was.
    let second = say("And now?").await;
    assert_eq!(second["messages"], 8, "{second}");
    assert!(
        second["reply"].as_str().unwrap().contains("Message 2 was"),
        "{second}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn typescript_service() {
    let example = Example::deployed("typescript-service", &Value::Null).await;
    let url = example.url(&[]);
    script(&example.world, &python(), "room.py", &[Path::new(&url)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn minimal_service() {
    let example = Example::deployed("minimal-service", &Value::Null).await;
    let url = example.url(&[]);
    let (status, body) = crate::world::answer(reqwest::Client::new().get(&url)).await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(body["hello"], "from a machine");
    let stream = reqwest::get(format!("{url}/stream")).await.unwrap();
    assert_eq!(stream.headers()["content-type"], "text/event-stream");
    let text = stream.text().await.unwrap();
    assert_eq!(text.matches("data: ").count(), 5, "{text}");
}
