//! `nullspace agent rollback`

use nullspace_api::agent::UpdateDeploymentRequest;
use nullspace_client::agents::Version;

use crate::app::App;
use crate::error::{CliError, Outcome};
use crate::reference;

/// Make an earlier version the active one again: that which runs when none is named.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nullspace agent rollback report                           the newest usable version before the active one
  nullspace agent rollback report --version-id adver_123    this one, be it older or newer
  nullspace agent rollback my-api && nullspace agent restart my-api")]
pub(super) struct Args {
    /// Id or name.
    #[arg(value_name = "DEPLOYMENT", value_parser = crate::input::named)]
    deployment: String,
    /// This version.
    #[arg(long, value_name = "ID", value_parser = crate::input::named)]
    version_id: Option<String>,
}

pub(super) async fn run(args: &Args, app: &App) -> Outcome {
    let ui = app.ui;
    let client = app.client()?;
    let deployment = reference::deployment(&client, &args.deployment).await?;
    let (id, shown) = match &args.version_id {
        Some(id) => (id.clone(), id.clone()),
        None => {
            let versions = client.all_versions(&deployment.id).await?;
            let active = deployment.active_version_id.as_deref();
            let Some(version) = before(&versions, active) else {
                return Err(CliError::usage(format!(
                    "{} has no usable version before the active one",
                    deployment.name
                ))
                .hint(format!(
                    "See them with `nullspace agent versions {}`, and name one with --version-id.",
                    deployment.name
                )));
            };
            let shown = format!("version {} ({})", version.version_number, version.id);
            (version.id.clone(), shown)
        }
    };
    let request = UpdateDeploymentRequest {
        active_version_id: Some(id),
        ..UpdateDeploymentRequest::default()
    };
    let deployment = client.update_deployment(&deployment.id, &request).await?;
    if ui.json {
        ui.json(&deployment)?;
        return Ok(0);
    }
    ui.line(format!("Active in {}: {shown}", deployment.name));
    if deployment.mode == "service" {
        ui.dim(format!("Next: nullspace agent restart {}", deployment.name));
    }
    Ok(0)
}

/// The newest version that can run, of those older than the active one.
fn before<'a>(versions: &'a [Version], active: Option<&str>) -> Option<&'a Version> {
    let active = versions
        .iter()
        .find(|version| Some(version.id.as_str()) == active)?
        .version_number;
    versions
        .iter()
        .filter(|version| version.version_number < active)
        .filter(|version| matches!(version.status.as_str(), "ready" | "superseded"))
        .max_by_key(|version| version.version_number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn version(number: u64, status: &str) -> Version {
        serde_json::from_value(json!({
            "id": format!("adver_{number}"), "deployment_id": "d", "version_number": number, "bundle_digest": "",
            "template": "base", "workdir": "/w", "entrypoint_command": "e", "status": status,
        }))
        .expect("a version")
    }

    #[test]
    fn the_newest_usable_version_before_the_active_one_is_taken() {
        let versions = [
            version(5, "ready"),
            version(4, "failed"),
            version(2, "superseded"),
            version(3, "created"),
            version(1, "superseded"),
        ];
        let taken = |active: &str| Some(before(&versions, Some(active))?.version_number);
        assert_eq!(taken("adver_5"), Some(2));
        assert_eq!(taken("adver_2"), Some(1));
        assert_eq!(taken("adver_1"), None);
        assert_eq!(taken("adver_9"), None);
        assert_eq!(before(&versions, None), None);
    }
}
