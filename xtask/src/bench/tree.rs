//! A directory of 100,000 files, and a gigabyte of text: listed and searched over the API, and by programs in the machine.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use http_body_util::{BodyExt, Full};
use hyper::Method;
use serde_json::json;

use super::{
    api::{Client, Server},
    table::{Samples, Table},
};

const ROUNDS: usize = 5;
const FILES: usize = 100_000;
const MAKE_FILES: &str =
    "mkdir -p /srv/many && cd /srv/many && seq -f 'file-%06g.txt' 100000 | xargs touch";
/// 1,000 files of a megabyte, each with one line that is looked for.
const MAKE_TEXT: &str = "mkdir -p /srv/text && cd /srv/text && \
    yes 'It was a bright cold day in April, and the clocks were striking thirteen.' | head -c 999900 > /tmp/page && \
    for n in $(seq 1000); do { cat /tmp/page; printf '\\nneedle in hay %04d\\n' $n; } > page-$n; done";
const TEXTS: usize = 1000;

pub(crate) async fn run(server: &Server, table: &mut Table) -> Result<()> {
    let mut client = server.client().await?;
    let body =
        json!({ "template": "base", "vcpus": 2, "memory_mb": 4096, "timeout_ms": 3_600_000 });
    let info = client
        .call(Method::POST, "/v1/machines", Some(body))
        .await?;
    let machine = info["id"].as_str().context("no id")?.to_owned();
    let mut machine = Machine {
        client: &mut client,
        path: format!("/v1/machines/{machine}"),
    };
    machine.shell(MAKE_FILES).await?;
    machine.shell(MAKE_TEXT).await?;

    let (mut ours, mut told, mut names) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let start = Instant::now();
        let bytes = machine.read("/files?path=/srv/many").await?;
        let took = start.elapsed();
        let count = memchr::memmem::find_iter(&bytes, b"\"name\":").count();
        ensure!(count == FILES, "{count} of {FILES} files were listed");
        let facts = machine
            .timed("find /srv/many -printf '%p %y %s %m %U %G %T@\\n'")
            .await?;
        let plain = machine.timed("find /srv/many").await?;
        if round > 0 {
            ours.push(took);
            told.push(facts);
            names.push(plain);
        }
    }
    let (told, names) = (Samples::new(told), Samples::new(names));
    table.row("peer: find, names alone", &names, &[]);
    table.row("peer: find, the same facts", &told, &[]);
    let against = [
        ("find, the same facts", Some(told.p50()), Some(2.0)),
        ("find, names alone", Some(names.p50()), None),
    ];
    table.row("list 100,000 files", &Samples::new(ours), &against);

    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let body = json!({ "path": "/srv/text", "pattern": "needle in h[a-z]+" });
        let path = format!("{}/files/find", machine.path);
        let start = Instant::now();
        let found = machine.client.call(Method::POST, &path, Some(body)).await?;
        let took = start.elapsed();
        let count = found.as_array().map_or(0, Vec::len);
        ensure!(count == TEXTS, "{count} of {TEXTS} lines were found");
        let grep = machine
            .timed("grep -rnE 'needle in h[a-z]+' /srv/text")
            .await?;
        if round > 0 {
            ours.push(took);
            theirs.push(grep);
        }
    }
    let theirs = Samples::new(theirs);
    table.row("peer: grep -r", &theirs, &[]);
    let goal = [("grep -r", Some(theirs.p50()), Some(1.5))];
    table.row("search 1 GB of text", &Samples::new(ours), &goal);
    let path = machine.path.clone();
    client.call(Method::DELETE, &path, None).await.map(drop)
}

struct Machine<'a> {
    client: &'a mut Client,
    /// In the API.
    path: String,
}

impl Machine<'_> {
    async fn shell(&mut self, script: &str) -> Result<String> {
        let body = json!({ "command": script, "shell": true, "timeout_secs": 300 });
        let path = format!("{}/exec", self.path);
        let done = self.client.call(Method::POST, &path, Some(body)).await?;
        ensure!(done["exit_code"] == 0, "{script}: {done}");
        Ok(done["stdout"].as_str().unwrap_or_default().to_owned())
    }

    /// How long a command takes in the machine, by the machine's own clock; what it prints goes through a pipe.
    async fn timed(&mut self, command: &str) -> Result<Duration> {
        let script =
            format!("a=$(date +%s%N); {command} | cat > /dev/null; echo $(($(date +%s%N) - a))");
        let said = self.shell(&script).await?;
        Ok(Duration::from_nanos(
            said.trim().parse().context(said.clone())?,
        ))
    }

    async fn read(&mut self, path: &str) -> Result<bytes::Bytes> {
        let empty = Full::new(bytes::Bytes::new())
            .map_err(|never| match never {})
            .boxed();
        let path = format!("{}{path}", self.path);
        let answer = self
            .client
            .send(Method::GET, &path, "application/json", empty)
            .await?;
        ensure!(answer.status().is_success(), "{path}: {}", answer.status());
        Ok(answer.into_body().collect().await?.to_bytes())
    }
}
