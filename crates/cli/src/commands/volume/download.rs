//! `nullspace volume download`

use std::path::{Path, PathBuf};

use nullspace_client::Client;
use serde_json::json;
use tokio::io::AsyncWriteExt as _;

use crate::error::CliError;
use crate::transfer;
use crate::ui::Ui;

/// Download a file or a directory of a volume.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nullspace volume download data /models/model.bin
  nullspace volume download data /site ./site
  nullspace volume download data / backup.tar --archive")]
pub(super) struct Args {
    /// The volume's id or name.
    #[arg(value_name = "VOLUME", value_parser = crate::input::named)]
    pub(super) volume: String,
    /// The path in the volume.
    #[arg(value_name = "VOLUME_PATH")]
    path: String,
    /// Where it goes; by its own name when absent.
    #[arg(value_name = "LOCAL_DEST")]
    to: Option<PathBuf>,
    /// A directory as the tar that it comes as.
    #[arg(long)]
    archive: bool,
    /// Write over what is there.
    #[arg(long)]
    force: bool,
}

pub(super) async fn run(args: &Args, id: &str, client: &Client, ui: Ui) -> Result<(), CliError> {
    let files = client.files(id);
    let info = files.info(&args.path).await?;
    if args.archive && !info.is_dir {
        return Err(CliError::usage("--archive is for directories"));
    }
    let name = match info.name.as_str() {
        "" | "/" => id,
        // As the server says it, which has it from whoever wrote to the volume.
        name if name.contains('/') || matches!(name, "." | "..") => {
            return Err(CliError::new(
                "invalid_response",
                format!("the server calls it {name:?}"),
            ));
        }
        name => name,
    };
    let name = match args.archive {
        true => format!("{name}.tar"),
        false => name.to_owned(),
    };
    let to = match &args.to {
        Some(to) if to.is_dir() && (args.archive || !info.is_dir) => to.join(&name),
        Some(to) => to.clone(),
        None => PathBuf::from(&name),
    };
    if !args.force && to.exists() {
        return Err(
            CliError::usage(format!("{} is there already", to.display()))
                .hint("Write over it with --force, or name another place."),
        );
    }
    let bytes = match (info.is_dir, args.archive) {
        (true, true) => archive(args, id, client, &to, ui).await?,
        (true, false) => {
            let copied = transfer::download_tree(ui, client, id, &args.path, &to);
            copied.await?.bytes
        }
        (false, _) => {
            let copied = transfer::download_file(ui, client, id, &args.path, &to, Some(&info));
            copied.await?.bytes
        }
    };
    let extracted = info.is_dir && !args.archive;
    if ui.json {
        return ui.json(&json!({
            "volume_id": id, "volume_path": args.path, "local_path": to,
            "kind": if info.is_dir { "directory" } else { "file" }, "bytes_downloaded": bytes,
            "archive_format": args.archive.then_some("tar"), "extracted": extracted,
        }));
    }
    ui.line(match extracted {
        true => format!(
            "Downloaded directory {} to {} ({bytes} bytes)",
            args.path,
            to.display()
        ),
        false => format!(
            "Downloaded {bytes} bytes from {} to {}",
            args.path,
            to.display()
        ),
    });
    Ok(())
}

async fn archive(
    args: &Args,
    id: &str,
    client: &Client,
    to: &Path,
    ui: Ui,
) -> Result<u64, CliError> {
    let fail = |error| CliError::local(format!("cannot write {}", to.display()), &error);
    let mut download = client.files(id).download_archive(&args.path).await?;
    let parent = to
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let (file, path) = tempfile::Builder::new()
        .prefix(".nullspace-")
        .tempfile_in(parent)
        .map_err(fail)?
        .into_parts();
    let mut file = tokio::fs::File::from_std(file);
    let bar = ui.byte_bar(&args.path, None);
    let mut bytes = 0;
    while let Some(piece) = download.chunk().await? {
        file.write_all(&piece).await.map_err(fail)?;
        bytes += piece.len() as u64;
        bar.inc(piece.len() as u64);
    }
    bar.finish_and_clear();
    file.flush().await.map_err(fail)?;
    path.persist(to).map_err(|error| fail(error.error))?;
    Ok(bytes)
}
