//! An event on its way to a webhook's receiver: from the time that is in it to the arrival of the request. What it takes to
//! record the event is in there too.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::mpsc::{self, Sender},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use hyper::Method;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    api::Server,
    table::{Samples, Table},
};

/// How long the last of them may take.
const LIMIT: Duration = Duration::from_secs(30);
const PATH: &str = "/v1/lifecycle/webhooks";

pub(crate) async fn run(server: &Server, n: usize, table: &mut Table) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let url = format!("http://{}/", listener.local_addr()?);
    let (sender, arrived) = mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let sender = sender.clone();
            std::thread::spawn(move || serve(stream, &sender));
        }
    });
    let mut client = server.client().await?;
    let body = json!({"url": url, "operations": ["create", "destroy"], "signing_secret": "bench"});
    let hook = client.call(Method::POST, PATH, Some(body)).await?;
    let hook = format!("{PATH}/{}", hook["id"].as_str().context("no id")?);
    for _ in 0..n {
        let machine = client.create().await?;
        client.delete(&machine).await?;
    }
    let mut late = Vec::new();
    while late.len() < 4 * n {
        late.push(arrived.recv_timeout(LIMIT).context("an event is missing")?);
    }
    client.call(Method::DELETE, &hook, None).await?;
    ensure!(arrived.try_recv().is_err(), "an event came twice");
    table.row_within(
        "event → at a webhook's receiver",
        &Samples::new(late),
        100.0,
    );
    Ok(())
}

/// One kept connection.
fn serve(stream: TcpStream, arrived: &Sender<Duration>) {
    let Ok(mut answers) = stream.try_clone() else {
        return;
    };
    let _ = answers.set_nodelay(true);
    let mut reader = BufReader::new(stream);
    while let Some((at, event)) = request(&mut reader) {
        let happened = event["occurred_at"].as_str().and_then(|t| t.parse().ok());
        let happened = happened.unwrap_or(Timestamp::UNIX_EPOCH);
        let late = at.duration_since(happened);
        let _ = arrived.send(late.unsigned_abs());
        if answers
            .write_all(b"HTTP/1.1 204 No Content\r\n\r\n")
            .is_err()
        {
            return;
        }
    }
}

/// When a request's first line was there, and its body.
fn request(reader: &mut BufReader<TcpStream>) -> Option<(Timestamp, Value)> {
    let (mut line, mut length, mut at) = (String::new(), 0, None);
    while line != "\r\n" {
        line.clear();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        at.get_or_insert_with(Timestamp::now);
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((at?, serde_json::from_slice(&body).ok()?))
}
