//! Projects that are deployed to be measured: jobs that run, services that answer.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use hyper::Method;
use serde_json::{Value, json};

use super::api::{Client, KEY, Server};

/// Nothing here takes that long.
const PATIENCE: Duration = Duration::from_secs(120);
/// The port of services in their machines.
const PORT: u16 = 8080;

/// The command line, told where the server is.
#[derive(Clone)]
pub(crate) struct Cli {
    program: PathBuf,
    address: String,
}

impl Cli {
    pub(crate) fn of(server: &Server) -> Self {
        Self {
            program: server.program.clone(),
            address: server.address.clone(),
        }
    }

    pub(crate) fn run(&self, args: &[&str], directory: &Path) -> Result<Output> {
        let output = Command::new(&self.program)
            .args(args)
            .current_dir(directory)
            .env("NULLSPACE_API_URL", format!("http://{}", self.address))
            .env("NULLSPACE_API_KEY", KEY)
            .stdin(Stdio::null())
            .output()?;
        ensure!(
            output.status.success(),
            "{args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(output)
    }

    /// Deploys a project; the path of its deployment in the API.
    pub(crate) fn deploy(&self, project: &Path) -> Result<String> {
        let output = self.run(&["agent", "deploy", "--json"], project)?;
        let answer: Value = serde_json::from_slice(&output.stdout)?;
        let id = answer["deployment"]["id"]
            .as_str()
            .context("no deployment id")?;
        Ok(format!("/v1/agent-deployments/{id}"))
    }
}

/// A project and its deployment.
pub(crate) struct Deployment {
    pub(crate) project: tempfile::TempDir,
    /// In the API.
    pub(crate) path: String,
}

impl Deployment {
    /// Deploys these files, with this as `nullspace.agent.toml`.
    pub(crate) fn new(server: &Server, config: &str, files: &[(&str, &str)]) -> Result<Self> {
        let project = tempfile::tempdir()?;
        fs::write(project.path().join("nullspace.agent.toml"), config)?;
        for (name, text) in files {
            fs::write(project.path().join(name), text)?;
        }
        let path = Cli::of(server).deploy(project.path())?;
        Ok(Self { project, path })
    }

    /// The program that services run, with a version to answer with.
    pub(crate) fn web(server: &Server, name: &str) -> Result<Self> {
        let config = format!(
            "name = '{name}'\nmode = 'service'\nentrypoint = 'exec node web.js'\n\
             [resources]\nvcpus = 2\nmemory_mb = 512\n[permissions]\npublic_url = true\n\
             [service]\nport = {PORT}\nreadiness = {{ type = 'http', path = '/' }}\n"
        );
        let files = [
            ("web.js", include_str!("programs/web.js")),
            ("version", "1"),
        ];
        Self::new(server, &config, &files)
    }

    /// Asks for a run; its path in the API.
    pub(crate) async fn start(&self, client: &mut Client) -> Result<String> {
        let runs = format!("{}/runs", self.path);
        let run = client
            .call(Method::POST, &runs, Some(json!({ "input": {} })))
            .await?;
        let id = run["id"].as_str().context("no run id")?;
        Ok(format!("{runs}/{id}"))
    }

    /// From the request for a run to the first line of its output at a follower. Returns when the run has gone.
    pub(crate) async fn first_line(&self, client: &mut Client) -> Result<Duration> {
        let start = Instant::now();
        let run = self.start(client).await?;
        follow(client, &run, |event| event["event_type"] == "stdout").await?;
        let took = start.elapsed();
        while client.call(Method::GET, &run, None).await?["status"] != "succeeded" {
            ensure!(start.elapsed() < PATIENCE, "{run} did not succeed");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(took)
    }

    /// From the request for a run to its end, which must be a good one.
    pub(crate) async fn whole_run(&self, client: &mut Client) -> Result<Duration> {
        let start = Instant::now();
        let run = self.start(client).await?;
        let mut last = String::new();
        follow(client, &run, |event| {
            last = event["event_type"].as_str().unwrap_or_default().to_owned();
            ["succeeded", "failed", "cancelled", "timed_out"]
                .iter()
                .any(|end| last.strip_prefix("run_") == Some(end))
        })
        .await?;
        let took = start.elapsed();
        let ended = client.call(Method::GET, &run, None).await?;
        ensure!(
            ended["status"] == "succeeded",
            "{run}: {last}, {}",
            ended["failure_reason"]
        );
        Ok(took)
    }

    /// Starts a service and waits until it answers.
    pub(crate) async fn serve(&self, client: &mut Client) -> Result<Service> {
        let start = Instant::now();
        let services = format!("{}/services", self.path);
        let service = client
            .call(Method::POST, &services, Some(json!({})))
            .await?;
        let id = service["id"].as_str().context("no service id")?;
        let path = format!("{services}/{id}");
        loop {
            let service = client.call(Method::GET, &path, None).await?;
            let url = service["public_url"].as_str();
            match (service["status"].as_str(), url) {
                (Some("ready"), Some(url)) => {
                    let address = url.strip_prefix("http://").unwrap_or(url).parse()?;
                    let machine = service["machine_id"].as_str().context("no machine")?;
                    return Ok(Service {
                        path,
                        address,
                        machine: machine.to_owned(),
                    });
                }
                (Some("failed"), _) => bail!("{path}: {}", service["failure_reason"]),
                _ => ensure!(start.elapsed() < PATIENCE, "{path} did not get ready"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) async fn delete(self, client: &mut Client) -> Result<()> {
        client.call(Method::DELETE, &self.path, None).await?;
        Ok(())
    }
}

/// A service that answers.
pub(crate) struct Service {
    /// In the API.
    pub(crate) path: String,
    /// Its port of the gateway.
    pub(crate) address: SocketAddr,
    machine: String,
}

impl Service {
    /// The same port as a preview: its door, and the path that has a token.
    pub(crate) async fn preview(&self, client: &mut Client) -> Result<(SocketAddr, String)> {
        let path = format!(
            "/v1/machines/{}/ports/{PORT}/signed-preview-url",
            self.machine
        );
        let made = client.call(Method::POST, &path, Some(json!({}))).await?;
        let url = made["url"].as_str().context("no preview")?;
        let (address, query) = url
            .strip_prefix("http://")
            .and_then(|url| url.split_once('/'))
            .context("not a url")?;
        Ok((address.parse()?, format!("/{query}")))
    }

    /// The program's own address, on the link of its machine.
    pub(crate) async fn upstream(&self, client: &mut Client) -> Result<SocketAddr> {
        let path = format!("/v1/sandboxes/{}/exec", self.machine);
        let body = json!({ "command": "hostname", "args": ["-I"] });
        let answer = client.call(Method::POST, &path, Some(body)).await?;
        let text = answer["stdout"].as_str().unwrap_or_default();
        let address = text.split_whitespace().next();
        let address = address.context("the machine has no address")?.parse()?;
        Ok(SocketAddr::new(address, PORT))
    }
}

/// Hands over each event of a log when it comes, until one is what was waited for.
pub(crate) async fn follow(
    client: &mut Client,
    run: &str,
    mut is_it: impl FnMut(&Value) -> bool,
) -> Result<()> {
    let start = Instant::now();
    let mut cursor = String::new();
    loop {
        let path = format!("{run}/logs?limit=1000&wait_ms=20000&cursor={cursor}");
        let page = client.call(Method::GET, &path, None).await?;
        if page["events"]
            .as_array()
            .into_iter()
            .flatten()
            .any(&mut is_it)
        {
            return Ok(());
        }
        cursor = page["next_cursor"].as_str().unwrap_or_default().to_owned();
        ensure!(start.elapsed() < PATIENCE, "{run}: it did not come");
    }
}
