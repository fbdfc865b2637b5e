//! `nullspace agent url`

use std::time::{Duration, Instant};

use nullspace_api::agent::CreateServiceRequest;

use crate::app::App;
use crate::error::{CliError, Outcome};
use crate::input::EnvArgs;
use crate::reference;

/// Print where a service can be opened. One that was never started is started.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nullspace agent url my-api
  curl \"$(nullspace agent url my-api)\"
  nullspace agent url my-api --env-file .env.production     the first start

There is a URL while the service is ready and its config has public_url = true under
[permissions]. A service that was stopped stays so; `nullspace agent restart` starts it again.")]
pub(super) struct Args {
    /// Id or name.
    #[arg(value_name = "DEPLOYMENT", value_parser = crate::input::named)]
    deployment: String,
    /// This service instance; without it the latest.
    #[arg(long, value_name = "SERVICE_ID", value_parser = crate::input::named)]
    service: Option<String>,
    #[command(flatten)]
    envs: EnvArgs,
    /// How long a service that starts is waited for, in seconds; 0 for not at all.
    #[arg(long, value_name = "N", default_value_t = 120)]
    wait: u64,
}

/// Pause between looks at a service that starts.
const POLL: Duration = Duration::from_millis(200);

pub(super) async fn run(args: &Args, app: &App) -> Outcome {
    let ui = app.ui;
    let client = app.client()?;
    let deployment = reference::deployment(&client, &args.deployment).await?;
    let service = match reference::service(&client, &deployment, args.service.as_deref()).await? {
        Some(_) if args.envs.is_given() => {
            return Err(CliError::usage(
                "--env and --env-file are for the start of a service, and there is one already",
            )
            .hint(format!(
                "Use them with `nullspace agent restart {}`.",
                deployment.name
            )));
        }
        Some(service) => service,
        None => {
            let what = "agent service start";
            let envs = reference::envs(app, &client, what, &deployment, None, &args.envs).await?;
            let request = CreateServiceRequest {
                version_id: None,
                envs,
            };
            client
                .create_service(&deployment.id, &request, None)
                .await?
        }
    };
    let patience = Instant::now() + Duration::from_secs(args.wait);
    let url = loop {
        let url = client.get_service_url(&deployment.id, &service.id).await?;
        let is_on_its_way = url.public_url.is_none() && url.status == "starting";
        if !is_on_its_way || Instant::now() >= patience {
            break url;
        }
        tokio::time::sleep(POLL).await;
    };
    if ui.json {
        ui.json(&url)?;
        return Ok(0);
    }
    let Some(public) = &url.public_url else {
        ui.line(format!(
            "Service {} has no public URL yet ({})",
            url.service_id, url.status
        ));
        let name = &deployment.name;
        ui.dim(match url.status.as_str() {
            "ready" => {
                "It has one with public_url = true under [permissions]; then deploy and restart."
                    .to_owned()
            }
            "stopped" | "failed" => format!("Start it again: nullspace agent restart {name}"),
            _ => format!("Next: nullspace agent status {name}"),
        });
        return Ok(0);
    };
    ui.line(public);
    if let (Some(header), Some(token)) = (&url.traffic_access_header, &url.traffic_access_token) {
        ui.note(format!("Requests need the header {header}: {token}"));
    }
    Ok(0)
}
