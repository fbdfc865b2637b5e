//! `nullspace agent stop`

use nullspace_api::agent::StopServiceRequest;
use nullspace_client::agents::Target;

use super::machine;
use crate::app::App;
use crate::error::{CliError, Outcome};
use crate::reference::{self, TargetArgs};

/// Stop a service, or end a run. Without --run and --service: the latest.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nullspace agent stop my-api
  nullspace agent stop my-api --retain-sandbox     keep its machine for a look inside
  nullspace agent stop report --run adrun_123 --reason \"wrong input\"

What has ended stays as it is.")]
pub(super) struct Args {
    /// Id or name.
    #[arg(value_name = "DEPLOYMENT", value_parser = crate::input::named)]
    deployment: String,
    #[command(flatten)]
    target: TargetArgs,
    /// Kept with the run, or in the log of the service.
    #[arg(long)]
    reason: Option<String>,
    /// Keep the machine of a service.
    #[arg(long, alias = "retain-machine")]
    retain_sandbox: bool,
}

pub(super) async fn run(args: &Args, app: &App) -> Outcome {
    let client = app.client()?;
    let deployment = reference::deployment(&client, &args.deployment).await?;
    let of_service = match args.target.named() {
        Some(target) => matches!(target, Target::Service(_)),
        None => deployment.mode == "service",
    };
    if of_service {
        let service = match &args.target.service {
            Some(id) => client.get_service(&deployment.id, id).await?,
            None => reference::latest_service(&client, &deployment).await?,
        };
        let request = StopServiceRequest {
            reason: args.reason.clone(),
            retain_sandbox: Some(args.retain_sandbox),
        };
        let service = client
            .stop_service(&deployment.id, &service.id, &request)
            .await?;
        if app.ui.json {
            app.ui.json(&service)?;
            return Ok(0);
        }
        app.ui.line(format!("{} {}", service.id, service.status));
        // A machine that goes with the service is nothing to look into.
        let kept = args.retain_sandbox || service.retained_until.is_some();
        if let Some(machine) = service.sandbox_id.filter(|_| kept) {
            let target = Target::Service(service.id);
            machine::tell(app.ui, &deployment.name, &target, &machine);
        }
        return Ok(0);
    }
    if args.retain_sandbox {
        return Err(
            CliError::usage("--retain-sandbox is for services only").hint(format!(
                "Keep the machine of a failed run: nullspace agent run {} --retain-on-failure",
                deployment.name
            )),
        );
    }
    let run = match &args.target.run {
        Some(id) => client.get_run(&deployment.id, id).await?,
        None => reference::latest_run(&client, &deployment).await?,
    };
    let run = client
        .cancel_run(&deployment.id, &run.id, args.reason.as_deref())
        .await?;
    if app.ui.json {
        app.ui.json(&run)?;
    } else {
        app.ui.line(format!("{} {}", run.id, run.status));
    }
    Ok(0)
}
