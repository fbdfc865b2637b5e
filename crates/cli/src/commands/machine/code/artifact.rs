//! `nullspace machine code artifact …`

use std::io::Write as _;
use std::path::Path;

use clap::Subcommand;
use nullspace_api::code::ListArtifactsQuery;
use nullspace_client::transport::Download;

use crate::app::App;
use crate::error::{CliError, Outcome};

/// Files that came out of code.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List artifacts, newest first
    List(List),
    /// Show what is known of an artifact
    Get(One),
    /// Get the bytes of an artifact
    Download(Take),
    /// Get what a browser would show of an artifact
    Preview(Take),
    /// Remove an artifact
    Delete(One),
}

#[derive(Debug, clap::Args)]
struct List {
    /// The machine's id.
    #[arg(value_name = "MACHINE", value_parser = crate::input::named)]
    machine: String,
    /// Only those of this context.
    #[arg(long, value_name = "ID")]
    context_id: Option<String>,
    /// Only those of this execution.
    #[arg(long, value_name = "N")]
    execution_count: Option<u64>,
    /// Only these: image, html, document or file.
    #[arg(long)]
    kind: Option<String>,
    /// Artifacts of a page.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// Go on after a page.
    #[arg(long)]
    cursor: Option<String>,
}

#[derive(Debug, clap::Args)]
struct One {
    /// The machine's id.
    #[arg(value_name = "MACHINE", value_parser = crate::input::named)]
    machine: String,
    /// The artifact's id.
    #[arg(value_name = "ARTIFACT", value_parser = crate::input::named)]
    artifact: String,
}

#[derive(Debug, clap::Args)]
struct Take {
    #[command(flatten)]
    one: One,
    /// Where to; `-` is standard output.
    #[arg(short, long, value_name = "PATH", default_value = "-")]
    output: String,
}

pub(super) async fn run(args: Args, app: &App) -> Outcome {
    let client = app.client()?;
    match args.command {
        Command::List(args) => {
            let query = ListArtifactsQuery {
                context_id: args.context_id,
                execution_count: args.execution_count,
                kind: args.kind,
                limit: args.limit,
                cursor: args.cursor,
            };
            let page = client.list_code_artifacts(&args.machine, &query).await?;
            app.ui.json(&page)?;
        }
        Command::Get(one) => app.ui.json(
            &client
                .get_code_artifact(&one.machine, &one.artifact)
                .await?,
        )?,
        Command::Download(Take { one, output }) => {
            let bytes = client
                .download_code_artifact(&one.machine, &one.artifact)
                .await?;
            save(bytes, &output, app).await?;
        }
        Command::Preview(Take { one, output }) => {
            let bytes = client
                .preview_code_artifact(&one.machine, &one.artifact)
                .await?;
            save(bytes, &output, app).await?;
        }
        Command::Delete(one) => {
            client
                .delete_code_artifact(&one.machine, &one.artifact)
                .await?;
        }
    }
    Ok(0)
}

/// To standard output, or into a file that is replaced when all of it is there.
async fn save(mut bytes: Download, output: &str, app: &App) -> Result<(), CliError> {
    if output == "-" {
        while let Some(piece) = bytes.chunk().await? {
            app.ui.data(&piece);
        }
        return Ok(());
    }
    let failed = |error: std::io::Error| CliError::local(format!("cannot write {output}"), &error);
    let parent = Path::new(output)
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(parent).map_err(failed)?;
    while let Some(piece) = bytes.chunk().await? {
        file.write_all(&piece).map_err(failed)?;
    }
    file.persist(output)
        .map_err(|error| failed(error.error))
        .map(drop)
}
