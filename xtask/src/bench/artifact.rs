//! What is already installed costs nothing, and many runs of one version at once.

use anyhow::{Result, ensure};
use hyper::Method;

use super::{
    agent::Deployment,
    api::{Client, Server},
    table::{Samples, Table},
};

/// Runs that are asked for at once.
const AT_ONCE: usize = 50;
/// Runs that are thrown away: the first makes the artifact, and they fill caches.
const WARM_UP: usize = 3;

pub(crate) async fn run(server: &Server, samples: usize, table: &mut Table) -> Result<()> {
    let mut client = server.client().await?;
    first_output(server, &mut client, samples.min(100), table).await?;
    at_once(server, &mut client, table).await
}

/// From the request for a run to its first line, with and without an install step that was done before.
async fn first_output(
    server: &Server,
    client: &mut Client,
    samples: usize,
    table: &mut Table,
) -> Result<()> {
    let config = |name: &str, install: &str| {
        format!("name = '{name}'\nmode = 'job'\nentrypoint = 'cat line'\n{install}")
    };
    // 1,000 files, 10 MB, and the line.
    let install = r#"install = """
mkdir files && head -c 10000 /dev/urandom > files/0
for n in $(seq 999); do cp files/0 files/$n; done
echo a line > line"""
"#;
    let line = [("line", "a line\n")];
    let plain = Deployment::new(server, &config("bench-plain", ""), &line)?;
    let installed = Deployment::new(server, &config("bench-artifact", install), &[])?;
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for n in 0..samples + WARM_UP {
        let took = [
            plain.first_line(client).await?,
            installed.first_line(client).await?,
        ];
        if n >= WARM_UP {
            without.push(took[0]);
            with.push(took[1]);
        }
    }
    let versions = format!("{}/versions", installed.path);
    let version = client.call(Method::GET, &versions, None).await?;
    let cache = &version["items"][0]["cache_summary"];
    ensure!(cache["artifact_ready"] == true, "no artifact: {cache}");
    let without = Samples::new(without);
    table.row("run without an install step → first line", &without, &[]);
    let goal = [("without", Some(without.p50()), Some(1.3))];
    table.row(
        "run with a ready artifact → first line",
        &Samples::new(with),
        &goal,
    );
    plain.delete(client).await?;
    installed.delete(client).await
}

/// Many runs of a version, all asked for at the same moment, until the last one has ended.
async fn at_once(server: &Server, client: &mut Client, table: &mut Table) -> Result<()> {
    let config = "name = 'bench-many'\nmode = 'job'\nentrypoint = 'python3 -c \"print(1)\"'\n";
    let job = std::sync::Arc::new(Deployment::new(server, config, &[])?);
    let mut alone = Vec::new();
    for n in 0..10 + WARM_UP {
        let took = job.whole_run(client).await?;
        if n >= WARM_UP {
            alone.push(took);
        }
    }
    let alone = Samples::new(alone);
    table.row("one run, until it has ended", &alone, &[]);
    let mut clients = Vec::new();
    for _ in 0..AT_ONCE {
        clients.push(server.client().await?);
    }
    let start = std::time::Instant::now();
    let runs: Vec<_> = clients
        .into_iter()
        .map(|mut client| {
            let job = job.clone();
            tokio::spawn(async move { job.whole_run(&mut client).await })
        })
        .collect();
    let mut failures = Vec::new();
    for run in runs {
        if let Err(error) = run.await? {
            failures.push(error);
        }
    }
    let wall = start.elapsed();
    let goal = [("50 × one", Some(alone.p50() * AT_ONCE as f64), Some(0.7))];
    let what = format!("{AT_ONCE} runs at once, wall");
    table.row(&what, &Samples::new(vec![wall]), &goal);
    let first = failures
        .first()
        .map_or(String::new(), |f| format!(": {f:#}"));
    table.check(
        failures.is_empty(),
        format!(
            "{} of {AT_ONCE} runs at once failed{first} (goal 0)",
            failures.len()
        ),
    );
    client.call(Method::DELETE, &job.path, None).await?;
    Ok(())
}
