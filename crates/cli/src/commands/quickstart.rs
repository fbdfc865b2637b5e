//! `nullspace quickstart`

use std::fs::File;
use std::io::{BufRead as _, BufReader, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nullspace_api::agent::{CreateRunRequest, Outputs, Run};
use nullspace_client::agents::output_place;
use nullspace_client::{Client, Error as ClientError};
use serde::Serialize;
use serde_json::Value;

use crate::app::App;
use crate::commands::agent::deploy::{Deployed, Prepared};
use crate::commands::agent::run::watch;
use crate::error::{CliError, Outcome};
use crate::exit;
use crate::ui::Ui;

/// See the whole path once: start a server if none answers, deploy an example agent, run it, show its result.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nullspace quickstart
  nullspace quickstart --template host     without the download for the template `base`

The first start makes the template `base` from Debian packages: some 150 MB, a few minutes. A
server that was started goes on in the background.")]
pub(crate) struct Args {
    /// What the example's machine starts from.
    #[arg(long, default_value = "base")]
    template: String,
    /// Where a server that has to be started keeps its data.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

/// How long one look at the server may take.
const LOOK: Duration = Duration::from_secs(5);
/// How long a server that was started may take to answer at all.
const START: Duration = Duration::from_secs(30);
/// How long `base` may take: a slow mirror and a slow disk.
const BASE: Duration = Duration::from_secs(30 * 60);
/// The most bytes of a result that are shown.
const MAX_RESULT: usize = 1 << 20;

/// The example's files, for use without a checkout.
const EXAMPLE: [(&str, &str); 4] = [
    (
        "nullspace.agent.toml",
        include_str!("../../../../examples/minimal-job/nullspace.agent.toml"),
    ),
    (
        "requirements.txt",
        include_str!("../../../../examples/minimal-job/requirements.txt"),
    ),
    (
        "main.py",
        include_str!("../../../../examples/minimal-job/main.py"),
    ),
    (
        "README.md",
        include_str!("../../../../examples/minimal-job/README.md"),
    ),
];

#[derive(Serialize)]
struct Report<'a> {
    base_url: &'a str,
    started_server: bool,
    deployment_id: &'a str,
    run: &'a Run,
    result: Option<Value>,
}

pub(crate) async fn run(args: &Args, app: &App) -> Outcome {
    let ui = app.ui;
    let client = Client::new(&app.config)?;
    let server = match client.health(LOOK).await {
        Ok(_) => None,
        Err(error) => Some(start_server(args, app, &client, &error)?),
    };
    wait_until_ready(args, ui, &client, server.as_ref()).await?;
    let client = client_with_key(app)?;

    let (_copy, project) = example(ui)?;
    let prepared = Prepared::read(ui, &project, None, "auto", |config| {
        config.template.clone_from(&args.template)
    })?;
    let Deployed {
        deployment,
        version,
    } = prepared.upload(ui, &client, None, None).await?;
    ui.note(format!(
        "Deployed {} as version {}",
        ui.bold(&deployment.name),
        version.version_number
    ));
    let run = client
        .create_run(&deployment.id, &CreateRunRequest::default(), None)
        .await?;
    let Some(watched) = watch(ui, &client, &deployment.name, run, Duration::from_secs(1)).await?
    else {
        return Ok(exit::INTERRUPTED);
    };
    let run = &watched.run;
    let result = match watched.exit_code() {
        0 => Some(result(&client, &client.get_outputs(&deployment.id, &run.id).await?).await?),
        _ => None,
    };
    if ui.json {
        let result = result
            .as_deref()
            .map(|text| serde_json::from_str(text).unwrap_or_default());
        let base_url = client.base_url();
        ui.json(&Report {
            base_url,
            started_server: server.is_some(),
            deployment_id: &deployment.id,
            run,
            result,
        })?;
    } else if let Some(result) = result {
        ui.note(format!("\n{}", ui.bold("result.json")));
        ui.line(result.trim_end());
        next(ui, &client, &deployment.name, server.as_ref());
    }
    Ok(watched.exit_code())
}

/// A server in the background.
struct Background {
    pid: u32,
    child: std::cell::RefCell<Child>,
    log: PathBuf,
    /// Where this start begins in the log.
    log_start: u64,
}

fn start_server(
    args: &Args,
    app: &App,
    client: &Client,
    error: &ClientError,
) -> Result<Background, CliError> {
    let url = client.base_url();
    if !client.is_local() {
        return Err(
            CliError::new("transport_error", format!("{url} does not answer: {error}"))
                .hint("Start that server, or unset NULLSPACE_API_URL to use one on this host."),
        );
    }
    if !cfg!(target_os = "linux") {
        return Err(CliError::new("transport_error", format!("no server answers at {url}: {error}"))
            .hint("Servers run on Linux: start one there with `nullspace serve`, and set NULLSPACE_API_URL to it."));
    }
    if !rustix::process::geteuid().is_root() {
        return Err(CliError::new(
            "permission_denied",
            "no server answers, and starting one needs root",
        )
        .hint(
            "Run `sudo nullspace quickstart`, or start the server yourself: sudo nullspace serve.",
        ));
    }
    let listen = listen_address(url)?;
    let data_dir = args
        .data_dir
        .clone()
        .unwrap_or_else(|| default_data_dir(app));
    let log = data_dir.join("logs").join("serve.log");
    let failed =
        |what: &str, error: &std::io::Error| CliError::local(format!("cannot {what}"), error);
    std::fs::create_dir_all(data_dir.join("logs"))
        .map_err(|error| failed(&format!("make {}", data_dir.display()), &error))?;
    let out = File::options()
        .append(true)
        .create(true)
        .open(&log)
        .map_err(|error| failed(&format!("write {}", log.display()), &error))?;
    let log_start = out.metadata().map(|info| info.len()).unwrap_or_default();
    let err = out
        .try_clone()
        .map_err(|error| failed("start the server", &error))?;
    let program = std::env::current_exe().map_err(|error| failed("find this program", &error))?;
    let child = Command::new(program)
        .args(["serve", "--detached", "--listen", &listen, "--data-dir"])
        .arg(&data_dir)
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err)
        .spawn()
        .map_err(|error| failed("start the server", &error))?;
    let pid = child.id();
    app.ui.note(format!(
        "No server answers at {url}: started one in the background (process {pid}, log {})",
        log.display()
    ));
    Ok(Background {
        pid,
        child: child.into(),
        log,
        log_start,
    })
}

/// `host:port` of a local URL.
fn listen_address(url: &str) -> Result<String, CliError> {
    let plain = url
        .strip_prefix("http://")
        .filter(|rest| !rest.contains('/'));
    let rest = plain.ok_or_else(|| {
        CliError::usage(format!("a server for {url} cannot be started from here"))
            .hint("Unset NULLSPACE_API_URL, or start the server behind that address.")
    })?;
    let (host, port) = match rest
        .rsplit_once(':')
        .filter(|(host, _)| !host.ends_with(':') && !host.is_empty())
    {
        Some((host, port)) => (host, port),
        None => (rest, "80"),
    };
    let host = if host == "localhost" {
        "127.0.0.1"
    } else {
        host
    };
    Ok(format!("{host}:{port}"))
}

/// Where a server keeps its data unless told otherwise.
pub(crate) fn default_data_dir(app: &App) -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return PathBuf::from("/var/lib/nullspace");
    }
    let base = app
        .var("XDG_DATA_HOME")
        .filter(|dir| !dir.is_empty())
        .map(PathBuf::from);
    let base = base.or_else(|| Some(Path::new(&app.var("HOME")?).join(".local/share")));
    base.unwrap_or_else(|| PathBuf::from("/var/lib"))
        .join("nullspace")
}

impl Background {
    /// Whether it ended, with the end of its log.
    fn ended(&self) -> Option<String> {
        let status = self.child.borrow_mut().try_wait().ok().flatten()?;
        let lines = self.lines(0);
        let last: Vec<_> = lines
            .iter()
            .rev()
            .take(5)
            .rev()
            .map(String::as_str)
            .collect();
        Some(format!("it ended with {status}:\n{}", last.join("\n")))
    }

    /// Its log from the `skip`-th line on.
    fn lines(&self, skip: usize) -> Vec<String> {
        let Ok(mut file) = File::open(&self.log) else {
            return Vec::new();
        };
        if file.seek(SeekFrom::Start(self.log_start)).is_err() {
            return Vec::new();
        }
        BufReader::new(file)
            .lines()
            .map_while(Result::ok)
            .skip(skip)
            .collect()
    }
}

/// Waits until the server answers, and until it has the template.
async fn wait_until_ready(
    args: &Args,
    ui: Ui,
    client: &Client,
    server: Option<&Background>,
) -> Result<(), CliError> {
    let spinner = ui.spinner("Waiting for the server");
    let began = Instant::now();
    let (mut told, mut seen) = (String::new(), 0);
    let outcome = loop {
        if let Some(why) = server.and_then(Background::ended) {
            break Err(CliError::new(
                "transport_error",
                format!("the server did not start: {why}"),
            )
            .hint("See what this host lacks with `nullspace doctor`."));
        }
        let limit = match client.health(LOOK).await {
            Ok((200, _)) => break Ok(()),
            Ok((_, body)) => {
                if ready_templates(&body).contains(&args.template) {
                    break Ok(());
                }
                let reason = reason(&body);
                if reason != told {
                    spinner.suspend(|| ui.note(format!("The server is not ready yet: {reason}")));
                    told = reason;
                }
                BASE
            }
            Err(error) => {
                if server.is_none() {
                    break Err(error.into());
                }
                START
            }
        };
        if began.elapsed() > limit {
            break Err(CliError::new(
                "template_not_ready",
                format!("the server is still not ready: {told}"),
            )
            .hint("Its log says why. Without `base`: nullspace quickstart --template host"));
        }
        if let Some(server) = server {
            let lines = server.lines(seen);
            seen += lines.len();
            for line in lines.iter().filter(|line| line.starts_with("template ")) {
                spinner.set_message(line.clone());
                // Without a terminal nothing moves: the lines themselves are the progress.
                if spinner.is_hidden() && !ui.json {
                    ui.dim(line);
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    spinner.finish_and_clear();
    outcome
}

/// What stands in the way, from the body of `/healthz`.
pub(crate) fn reason(body: &str) -> String {
    let object: Value = serde_json::from_str(body).unwrap_or_default();
    match object.get("reason").and_then(Value::as_str) {
        Some(reason) => reason.to_owned(),
        None => body.chars().take(200).collect(),
    }
}

fn ready_templates(body: &str) -> Vec<String> {
    let object: Value = serde_json::from_str(body).unwrap_or_default();
    let names = object
        .get("templates")
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    names
        .iter()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect()
}

/// A client with the key that is configured by now, or with the one that the server left for its own address.
fn client_with_key(app: &App) -> Result<Client, CliError> {
    let mut config = app.config_now();
    config.base_url = app.config.base_url.clone();
    #[cfg(target_os = "linux")]
    if let Some(key) = super::serve::own_key(&app.surroundings, &config) {
        config.api_key = Some(key);
    }
    if config.api_key.is_none() {
        return Err(ClientError::MissingApiKey.into());
    }
    Ok(Client::new(&config)?)
}

/// The example's directory: the checkout's, or a copy that lives as long as the first value.
fn example(ui: Ui) -> Result<(Option<tempfile::TempDir>, PathBuf), CliError> {
    let checkout = Path::new("examples/minimal-job");
    if checkout.join("nullspace.agent.toml").exists() {
        return Ok((None, checkout.to_owned()));
    }
    let failed = |error: std::io::Error| CliError::local("cannot write the example", &error);
    let dir = tempfile::Builder::new()
        .prefix("nullspace-")
        .tempdir()
        .map_err(failed)?;
    let project = dir.path().join("minimal-job");
    std::fs::create_dir(&project).map_err(failed)?;
    for (name, content) in EXAMPLE {
        std::fs::write(project.join(name), content).map_err(failed)?;
    }
    ui.dim(format!("The example is in {} for now", project.display()));
    Ok((Some(dir), project))
}

/// The text of the run's `result.json`.
async fn result(client: &Client, outputs: &Outputs) -> Result<String, CliError> {
    let missing = || CliError::new("not_found", "the run left no result.json behind");
    let output = outputs
        .outputs
        .iter()
        .find(|output| output.configured_path == "result.json" && output.status == "available")
        .ok_or_else(missing)?;
    let (machine, path) = output_place(outputs, output).ok_or_else(missing)?;
    let mut download = client.files(machine).download(path).await?;
    let mut text = Vec::new();
    while let Some(piece) = download.chunk().await? {
        text.extend_from_slice(&piece);
        if text.len() > MAX_RESULT {
            return Err(CliError::new(
                "invalid_response",
                "result.json is too large to be shown",
            ));
        }
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn next(ui: Ui, client: &Client, name: &str, server: Option<&Background>) {
    ui.note(format!("\n{}", ui.bold("What to try next")));
    ui.note("  A project of yours:  cd my-agent && nullspace agent init && nullspace agent deploy . && nullspace agent run my-agent --follow");
    ui.note(format!("  Another input:       nullspace agent run {name} --input-json '{{\"text\": \"to be or not to be\"}}' --follow"));
    ui.note("  From Python:         pip install nullspace-sdk==0.1.9");
    ui.note("                       python -c 'from nullspace import Sandbox; s = Sandbox.create(); print(s.commands.run(\"uname\", args=[\"-a\"]).stdout); s.kill()'");
    if let Some(server) = server {
        ui.dim(format!(
            "\nThe server at {} goes on in the background; stop it with: kill {}",
            client.base_url(),
            server.pid
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_urls_become_addresses() {
        assert_eq!(
            listen_address("http://localhost:3000").expect("fine"),
            "127.0.0.1:3000"
        );
        assert_eq!(
            listen_address("http://127.0.0.1").expect("fine"),
            "127.0.0.1:80"
        );
        assert_eq!(
            listen_address("http://[::1]:3100").expect("fine"),
            "[::1]:3100"
        );
        assert!(listen_address("https://localhost:1").is_err());
        assert!(listen_address("http://localhost:1/prefix").is_err());
    }

    #[test]
    fn the_embedded_example_is_a_whole_project() {
        let dir = tempfile::tempdir().expect("a directory");
        for (name, content) in EXAMPLE {
            std::fs::write(dir.path().join(name), content).expect("written");
        }
        let (config, _) = nullspace_project::load(dir.path(), None).expect("a config");
        assert_eq!(config.outputs.paths, ["result.json", "reports/"]);
        let bundle = nullspace_project::Bundle::build(dir.path(), &config).expect("a bundle");
        assert_eq!(bundle.manifest().file_count, EXAMPLE.len() as u64);
    }
}
