//! `nullspace agent restart`

use nullspace_api::agent::{CreateServiceRequest, RestartServiceRequest};

use crate::app::App;
use crate::error::Outcome;
use crate::input::EnvArgs;
use crate::reference;

/// Restart a service with the active version. Its id and its address stay; traffic moves when the new one is ready.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nullspace agent deploy . && nullspace agent restart my-api
  nullspace agent restart my-api --env-file .env.production --reason \"new key\"

Variables are not taken over from before: those that the project names under [env] are taken from
--env, --env-file, then from this environment.")]
pub(super) struct Args {
    /// Id or name.
    #[arg(value_name = "DEPLOYMENT", value_parser = crate::input::named)]
    deployment: String,
    /// This service instance; without it the latest, which is started if there is none.
    #[arg(long, value_name = "SERVICE_ID", value_parser = crate::input::named)]
    service: Option<String>,
    /// Kept in the log of the service.
    #[arg(long)]
    reason: Option<String>,
    #[command(flatten)]
    envs: EnvArgs,
}

pub(super) async fn run(args: &Args, app: &App) -> Outcome {
    let client = app.client()?;
    let deployment = reference::deployment(&client, &args.deployment).await?;
    let service = reference::service(&client, &deployment, args.service.as_deref()).await?;
    let version = service.as_ref().map(|service| service.version_id.as_str());
    let what = "agent service restart";
    let envs = reference::envs(app, &client, what, &deployment, version, &args.envs).await?;
    let service = match service {
        Some(service) => service,
        None => {
            let request = CreateServiceRequest {
                version_id: None,
                envs: envs.clone(),
            };
            client
                .create_service(&deployment.id, &request, None)
                .await?
        }
    };
    let request = RestartServiceRequest {
        reason: args.reason.clone(),
        envs,
    };
    let service = client
        .restart_service(&deployment.id, &service.id, &request)
        .await?;
    if app.ui.json {
        app.ui.json(&service)?;
    } else {
        app.ui.line(format!("{} {}", service.id, service.status));
        app.ui
            .dim(format!("Next: nullspace agent status {}", deployment.name));
    }
    Ok(0)
}
