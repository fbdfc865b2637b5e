//! `nullspace agent outputs`

use std::path::{Component, Path, PathBuf};

use nullspace_api::agent::{Output, Outputs};
use nullspace_client::Client;
use nullspace_client::agents::output_place;

use crate::app::App;
use crate::error::{CliError, Outcome};
use crate::reference;
use crate::transfer;
use crate::ui::Ui;

/// Show what a run left behind under the paths that [outputs] declares, or download it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nullspace agent outputs report
  nullspace agent outputs report --run adrun_123 --download ./results")]
pub(super) struct Args {
    /// Id or name.
    #[arg(value_name = "DEPLOYMENT", value_parser = crate::input::named)]
    deployment: String,
    /// This run; without it the latest.
    #[arg(long, value_name = "RUN_ID", value_parser = crate::input::named)]
    run: Option<String>,
    /// Put all that is available into this directory.
    #[arg(long, value_name = "DIR")]
    download: Option<PathBuf>,
}

pub(super) async fn run(args: &Args, app: &App) -> Outcome {
    let ui = app.ui;
    let client = app.client()?;
    let deployment = reference::deployment(&client, &args.deployment).await?;
    let id = match &args.run {
        Some(id) => id.clone(),
        None => reference::latest_run(&client, &deployment).await?.id,
    };
    let outputs = client.get_outputs(&deployment.id, &id).await?;
    if let Some(dir) = &args.download {
        download(ui, &client, &outputs, dir).await?;
    }
    if ui.json {
        ui.json(&outputs)?;
        return Ok(0);
    }
    ui.line("CONFIGURED_PATH\tSTATUS\tKIND\tSIZE_BYTES\tPATH");
    for output in &outputs.outputs {
        let size = output
            .size_bytes
            .map_or_else(|| "-".to_owned(), |size| size.to_string());
        let kind = output.kind.as_deref().unwrap_or("-");
        ui.line(
            [
                output.configured_path.as_str(),
                &output.status,
                kind,
                &size,
                &output.path,
            ]
            .join("\t"),
        );
    }
    Ok(0)
}

/// Puts every available output under `dir`, each where its declared path says.
pub(crate) async fn download(
    ui: Ui,
    client: &Client,
    outputs: &Outputs,
    dir: &Path,
) -> Result<(), CliError> {
    std::fs::create_dir_all(dir)
        .map_err(|error| CliError::local(format!("cannot make {}", dir.display()), &error))?;
    for output in &outputs.outputs {
        if output.status != "available" {
            continue;
        }
        let Some((machine, path)) = output_place(outputs, output) else {
            continue;
        };
        let to = dir.join(local_path(output));
        if let Some(parent) = to.parent() {
            std::fs::create_dir_all(parent).map_err(|error| {
                CliError::local(format!("cannot make {}", parent.display()), &error)
            })?;
        }
        if output.kind.as_deref() == Some("directory") {
            transfer::download_tree(ui, client, machine, path, &to).await?;
        } else {
            transfer::download_file(ui, client, machine, path, &to, None).await?;
        }
        ui.note(format!("Downloaded {}", to.display()));
    }
    Ok(())
}

/// Where an output goes below the download directory, whatever its path says.
fn local_path(output: &Output) -> PathBuf {
    let plain: PathBuf = Path::new(&output.configured_path)
        .components()
        .filter(|part| matches!(part, Component::Normal(_)))
        .collect();
    if plain.as_os_str().is_empty() {
        PathBuf::from("output")
    } else {
        plain
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_output_stays_below_its_directory() {
        let local = |path: &str| {
            local_path(&Output {
                configured_path: path.to_owned(),
                ..Output::default()
            })
        };
        assert_eq!(local("reports/a.md"), Path::new("reports/a.md"));
        assert_eq!(local("/etc/passwd"), Path::new("etc/passwd"));
        assert_eq!(local("../../x"), Path::new("x"));
        assert_eq!(local(".."), Path::new("output"));
    }
}
