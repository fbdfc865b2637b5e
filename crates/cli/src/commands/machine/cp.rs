//! `nullspace machine cp`

use std::path::{Path, PathBuf};

use nullspace_client::Client;
use serde::Serialize;

use crate::app::App;
use crate::error::{CliError, Outcome};
use crate::transfer::{self, Copied};

/// Copy files and directories to or from a machine.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nullspace machine cp data.csv mch_123:/workspace/
  nullspace machine cp ./project mch_123:/workspace/project
  nullspace machine cp mch_123:/workspace/result.json .
  tar c . | nullspace machine cp - mch_123:/tmp/tree.tar

Into a directory that is there, or a path that ends in /, the source is put under its own name. A
local name with a colon is written with ./ before it.")]
pub(super) struct Args {
    /// A local path, MACHINE:PATH, or - for standard input.
    #[arg(value_name = "FROM")]
    from: String,
    /// A local path, MACHINE:PATH, or - for standard output.
    #[arg(value_name = "TO")]
    to: String,
    /// Directories are always copied whole; accepted for habit's sake.
    #[arg(long, short = 'r', hide = true)]
    recursive: bool,
}

#[derive(Serialize)]
struct Report<'a> {
    from: &'a str,
    to: &'a str,
    #[serde(flatten)]
    copied: Copied,
}

/// One side of a copy.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    Local(PathBuf),
    Machine { id: String, path: String },
    Stream,
}

impl Place {
    fn parse(text: &str) -> Self {
        if text == "-" {
            return Self::Stream;
        }
        match text.split_once(':') {
            Some((id, path))
                if !id.is_empty()
                    && id
                        .chars()
                        .all(|c| c.is_ascii_alphanumeric() || "_-".contains(c)) =>
            {
                Self::Machine {
                    id: id.to_owned(),
                    path: if path.is_empty() {
                        ".".to_owned()
                    } else {
                        path.to_owned()
                    },
                }
            }
            _ => Self::Local(PathBuf::from(text)),
        }
    }
}

pub(super) async fn run(args: &Args, app: &App) -> Outcome {
    let ui = app.ui;
    let client = app.client()?;
    let copied = match (Place::parse(&args.from), Place::parse(&args.to)) {
        (Place::Stream, Place::Machine { id, path }) => {
            transfer::upload_stdin(ui, &client, &id, &path).await?
        }
        (Place::Machine { id, path }, Place::Stream) => {
            transfer::download_stdout(ui, &client, &id, &path).await?
        }
        (Place::Local(from), Place::Machine { id, path }) => {
            let name = from
                .canonicalize()
                .ok()
                .and_then(|from| from.file_name().map(ToOwned::to_owned));
            let name = name.ok_or_else(|| {
                CliError::usage(format!("no such file or directory: {}", from.display()))
            })?;
            let inside =
                path.ends_with('/') || path == "." || is_remote_dir(&client, &id, &path).await?;
            let path = match inside {
                true => format!("{}/{}", path.trim_end_matches('/'), name.to_string_lossy()),
                false => path,
            };
            if from.is_dir() {
                transfer::upload_tree(ui, &client, &from, &id, &path).await?
            } else {
                transfer::upload_file(ui, &client, &from, &id, &path).await?
            }
        }
        (Place::Machine { id, path }, Place::Local(to)) => {
            let info = client.files(&id).info(&path).await?;
            let to = if to.is_dir() || args.to.ends_with('/') {
                to.join(Path::new(&info.name))
            } else {
                to
            };
            if let Some(parent) = to.parent().filter(|_| args.to.ends_with('/')) {
                std::fs::create_dir_all(parent).map_err(|error| {
                    CliError::local(format!("cannot make {}", parent.display()), &error)
                })?;
            }
            if info.is_dir {
                transfer::download_tree(ui, &client, &id, &path, &to).await?
            } else {
                transfer::download_file(ui, &client, &id, &path, &to, Some(&info)).await?
            }
        }
        _ => {
            return Err(CliError::usage(
                "one side must be MACHINE:PATH, the other a local path or -",
            )
            .hint("For example: nullspace machine cp data.csv mch_123:/workspace/."));
        }
    };
    if ui.json {
        ui.json(&Report {
            from: &args.from,
            to: &args.to,
            copied,
        })?;
    } else if args.to != "-" {
        let what = if copied.files == 1 { "file" } else { "files" };
        ui.note(format!(
            "Copied {} {what}, {} bytes",
            copied.files, copied.bytes
        ));
    }
    Ok(0)
}

async fn is_remote_dir(client: &Client, id: &str, path: &str) -> Result<bool, CliError> {
    match client.files(id).info(path).await {
        Ok(info) => Ok(info.is_dir),
        // The code of a missing machine is another one; that is not for this function to hide.
        Err(error) if error.code() == "not_found" => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_machine_only_with_an_id_before_the_colon() {
        let machine = |id: &str, path: &str| Place::Machine {
            id: id.to_owned(),
            path: path.to_owned(),
        };
        assert_eq!(Place::parse("mch_1:/a:b"), machine("mch_1", "/a:b"));
        assert_eq!(Place::parse("mch_1:"), machine("mch_1", "."));
        assert_eq!(Place::parse("-"), Place::Stream);
        for local in ["a", "./a:b", "/x:y", ":x"] {
            assert_eq!(Place::parse(local), Place::Local(PathBuf::from(local)));
        }
    }
}
