//! What the commands of files do, of machines and of volumes.

use std::io::{Read as _, Write as _};
use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use clap::ValueEnum;
use nullspace_api::file::FileInfo;
use nullspace_api::socket::{ClientMessage, ServerMessage};
use nullspace_client::{Client, files::Files};
use serde::Serialize;
use serde_json::{Value, json};
use tokio_util::io::ReaderStream;

use crate::error::CliError;
use crate::ui::Ui;

/// How content is written here.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Encoding {
    /// As it is.
    Utf8,
    /// In base64.
    Base64,
}

/// Prints a file.
pub(crate) async fn read(
    files: Files<'_>,
    path: &str,
    encoding: Encoding,
    ui: Ui,
) -> Result<(), CliError> {
    let mut download = files.download(path).await?;
    let as_it_is = matches!(encoding, Encoding::Utf8);
    let mut all = Vec::new();
    while let Some(piece) = download.chunk().await? {
        match as_it_is && !ui.json {
            true => ui.data(&piece),
            false => all.extend_from_slice(&piece),
        }
    }
    let text = || match as_it_is {
        true => String::from_utf8_lossy(&all).into_owned(),
        false => BASE64.encode(&all),
    };
    if ui.json {
        let encoding = if as_it_is { "utf8" } else { "base64" };
        ui.json(&json!({"path": path, "encoding": encoding, "content": text()}))?;
    } else if !as_it_is {
        ui.data(text().as_bytes());
    }
    Ok(())
}

/// Writes standard input to a file.
pub(crate) async fn write(
    files: Files<'_>,
    path: &str,
    encoding: Encoding,
) -> Result<(), CliError> {
    match encoding {
        Encoding::Utf8 => {
            let content = ReaderStream::with_capacity(tokio::io::stdin(), 256 << 10);
            files.upload(path, None, content).await?;
        }
        Encoding::Base64 => {
            let mut text = Vec::new();
            std::io::stdin()
                .lock()
                .read_to_end(&mut text)
                .map_err(|error| CliError::local("cannot read standard input", &error))?;
            text.retain(|byte| !byte.is_ascii_whitespace());
            let content = BASE64
                .decode(text)
                .map_err(|_| CliError::usage("standard input is not base64"))?;
            put(files, path, content).await?;
        }
    }
    Ok(())
}

async fn put(files: Files<'_>, path: &str, content: Vec<u8>) -> Result<(), CliError> {
    let length = Some(content.len() as u64);
    let content = futures_util::stream::iter([Ok(Bytes::from(content))]);
    Ok(files.upload(path, length, content).await?)
}

/// Writes the files that a text says, and prints what is there then.
pub(crate) async fn write_all(files: Files<'_>, text: &str, ui: Ui) -> Result<(), CliError> {
    let list = parse_files(text)?;
    let (mut written, mut failed) = (Vec::new(), Vec::new());
    let count = list.len();
    for (path, content) in list {
        let done = match put(files, &path, content.into_bytes()).await {
            Ok(()) => files.info(&path).await.map_err(CliError::from),
            Err(error) => Err(error),
        };
        match done {
            Ok(info) => written.push(info),
            Err(error) => failed.push((path, error)),
        }
    }
    // All are tried; the first that failed says why.
    if let Some((path, mut error)) = failed.into_iter().next() {
        let missing = count - written.len();
        error.message = format!(
            "{missing} of {count} files were not written; {path}: {}",
            error.message
        );
        return Err(error);
    }
    ui.json(&written)
}

fn parse_files(text: &str) -> Result<Vec<(String, String)>, CliError> {
    let wrong = || {
        CliError::usage("FILES_JSON must be an object of paths and texts, or a list of them")
            .hint("For example: '{\"/srv/a.txt\": \"text\"}'.")
    };
    let text = match text.strip_prefix('@') {
        None => text.to_owned(),
        Some(path) => std::fs::read_to_string(path)
            .map_err(|error| CliError::usage(format!("cannot read {path}: {error}")))?,
    };
    let pair = |path: Option<&Value>, content: Option<&Value>| {
        Some((path?.as_str()?.to_owned(), content?.as_str()?.to_owned()))
    };
    match serde_json::from_str(&text) {
        Ok(Value::Object(files)) => files
            .iter()
            .map(|(path, content)| Some((path.clone(), content.as_str()?.to_owned())))
            .collect::<Option<_>>(),
        Ok(Value::Array(files)) => files
            .iter()
            .map(|file| pair(file.get("path"), file.get("content")))
            .collect(),
        _ => None,
    }
    .ok_or_else(wrong)
}

/// Prints what is in a directory.
pub(crate) fn show_list(entries: &[FileInfo], ui: Ui) -> Result<(), CliError> {
    if ui.json {
        return ui.json(&entries);
    }
    if entries.is_empty() {
        ui.line("No files found.");
    }
    for entry in entries {
        let line = format!(
            "{}\t{}\t{}\t{}",
            entry.name, entry.kind, entry.size, entry.path
        );
        ui.line(crate::ui::tame(&line).replace('\n', " "));
    }
    Ok(())
}

/// One line of `watch`; both words are the same, as the published program has them.
#[derive(Serialize)]
struct Change<'a> {
    r#type: &'a str,
    name: &'a str,
    path: &'a str,
    event_type: &'a str,
}

/// What is watched.
pub(crate) struct Watch {
    pub(crate) path: String,
    pub(crate) user: Option<String>,
    pub(crate) recursive: bool,
    /// Seconds.
    pub(crate) timeout: Option<f64>,
}

/// Prints what happens to files of a machine or a volume, a line of JSON each.
pub(crate) async fn watch(
    client: &Client,
    owner: &str,
    what: Watch,
    ui: Ui,
) -> Result<(), CliError> {
    let limit = match what.timeout.map(Duration::try_from_secs_f64) {
        None => None,
        Some(Ok(limit)) => Some(limit),
        Some(Err(_)) => return Err(CliError::usage("--timeout must be a number of seconds")),
    };
    let mut socket = client.socket(owner).await?;
    socket
        .send(&ClientMessage::FileWatch {
            id: "watch".to_owned(),
            path: what.path,
            user: what.user,
            recursive: what.recursive,
            timeout_secs: what.timeout,
        })
        .await?;
    let follow = async {
        while let Some(message) = socket.next().await? {
            match message {
                ServerMessage::FileWatchStarted { .. } => {
                    ui.dim("Watching; Ctrl-C ends it.");
                    let _ = std::io::stderr().flush();
                }
                ServerMessage::FileEvent {
                    event, name, path, ..
                } => ui.json_line(&Change {
                    r#type: &event,
                    name: &name,
                    path: &path,
                    event_type: &event,
                })?,
                ServerMessage::Error { code, message, .. } => {
                    return Err(CliError::new(code, message));
                }
                _ => {}
            }
        }
        Err(CliError::new("watch_error", "the connection was closed"))
    };
    match limit {
        None => follow.await,
        Some(limit) => tokio::time::timeout(limit, follow).await.unwrap_or(Ok(())),
    }
}
