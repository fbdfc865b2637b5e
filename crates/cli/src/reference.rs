//! What a name on the command line stands for: a deployment, its latest run, a machine behind it.

use std::collections::BTreeMap;

use nullspace_api::agent::{Deployment, ListQuery, Run};
use nullspace_client::Client;
use nullspace_client::agents::{DEPLOYMENT_PREFIX, Service, Target};

use crate::app::App;
use crate::error::CliError;
use crate::input::{self, EnvArgs};

/// The deployment of this id or name.
pub(crate) async fn deployment(client: &Client, reference: &str) -> Result<Deployment, CliError> {
    if reference.starts_with(DEPLOYMENT_PREFIX) {
        return Ok(client.get_deployment(reference).await?);
    }
    client.find_deployment(reference).await?.ok_or_else(|| {
        CliError::new(
            "agent_deployment_not_found",
            format!("no agent deployment is named {reference:?}"),
        )
    })
}

/// The latest run of a deployment.
pub(crate) async fn latest_run(client: &Client, deployment: &Deployment) -> Result<Run, CliError> {
    let query = ListQuery {
        limit: Some(1),
        ..ListQuery::default()
    };
    let page = client.list_runs(&deployment.id, &query).await?;
    page.items.into_iter().next().ok_or_else(|| {
        CliError::new(
            "agent_run_not_found",
            format!("{} has no runs yet", deployment.name),
        )
        .hint(format!(
            "Start one with `nullspace agent run {} --follow`.",
            deployment.name
        ))
    })
}

/// The latest service instance of a deployment, if there ever was one.
pub(crate) async fn any_latest_service(
    client: &Client,
    deployment: &Deployment,
) -> Result<Option<Service>, CliError> {
    let query = ListQuery {
        limit: Some(1),
        ..ListQuery::default()
    };
    let page = client.list_services(&deployment.id, &query).await?;
    Ok(page.items.into_iter().next())
}

/// The latest service instance of a deployment.
pub(crate) async fn latest_service(
    client: &Client,
    deployment: &Deployment,
) -> Result<Service, CliError> {
    any_latest_service(client, deployment)
        .await?
        .ok_or_else(|| {
            CliError::new(
                "agent_service_not_found",
                format!("{} has no service instance yet", deployment.name),
            )
            .hint(start_hint(deployment))
        })
}

fn start_hint(deployment: &Deployment) -> String {
    format!("Start it with `nullspace agent url {}`.", deployment.name)
}

/// The service of this id, or the latest, of a deployment that must be one of services.
pub(crate) async fn service(
    client: &Client,
    deployment: &Deployment,
    id: Option<&str>,
) -> Result<Option<Service>, CliError> {
    if deployment.mode != "service" {
        return Err(CliError::usage(format!(
            "{} is a job; this is for services",
            deployment.name
        ))
        .hint(format!(
            "Run it with `nullspace agent run {} --follow`.",
            deployment.name
        )));
    }
    match id {
        Some(id) => Ok(Some(client.get_service(&deployment.id, id).await?)),
        None => any_latest_service(client, deployment).await,
    }
}

/// The variables for `version` of a deployment, or else for its active one, checked against what that names.
pub(crate) async fn envs(
    app: &App,
    client: &Client,
    what: &str,
    deployment: &Deployment,
    version: Option<&str>,
    args: &EnvArgs,
) -> Result<Option<BTreeMap<String, String>>, CliError> {
    let mut envs = args.given()?;
    if let Some(version) = version.or(deployment.active_version_id.as_deref()) {
        let version = client.get_version(&deployment.id, version).await?;
        envs = input::runtime_envs(what, envs, &version.env_spec, |name| app.var(name))?;
    }
    Ok((!envs.is_empty()).then_some(envs))
}

/// `--run` and `--service`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct TargetArgs {
    /// This run.
    #[arg(long, value_name = "RUN_ID", conflicts_with = "service", value_parser = crate::input::named)]
    pub(crate) run: Option<String>,
    /// This service instance.
    #[arg(long, value_name = "SERVICE_ID", value_parser = crate::input::named)]
    pub(crate) service: Option<String>,
}

/// A run or a service, and the machine behind it.
pub(crate) struct Backing {
    pub(crate) target: Target,
    pub(crate) machine: String,
}

impl TargetArgs {
    /// The run or service that is named, if one is.
    pub(crate) fn named(&self) -> Option<Target> {
        let run = self.run.clone().map(Target::Run);
        run.or_else(|| self.service.clone().map(Target::Service))
    }

    /// The machine of what is named; else, for a job, of the newest failed run that has one, then of the newest run
    /// that has one; for a service, of the newest live instance.
    pub(crate) async fn backing(
        &self,
        client: &Client,
        deployment: &Deployment,
    ) -> Result<Backing, CliError> {
        let none = |what: &str| {
            let next = if deployment.mode == "job" {
                format!(
                    "Machines of runs that succeeded are gone; run with `nullspace agent run {} --retain-on-failure`.",
                    deployment.name
                )
            } else {
                start_hint(deployment)
            };
            CliError::new("machine_not_found", format!("{what} has no machine")).hint(next)
        };
        match self.named() {
            Some(Target::Run(id)) => {
                let run = client.get_run(&deployment.id, &id).await?;
                let machine = run.sandbox_id.ok_or_else(|| none(&format!("run {id}")))?;
                return Ok(Backing {
                    target: Target::Run(id),
                    machine,
                });
            }
            Some(Target::Service(id)) => {
                let service = client.get_service(&deployment.id, &id).await?;
                let machine = service
                    .sandbox_id
                    .ok_or_else(|| none(&format!("service {id}")))?;
                return Ok(Backing {
                    target: Target::Service(id),
                    machine,
                });
            }
            None => {}
        }
        let mut query = ListQuery {
            limit: Some(20),
            ..ListQuery::default()
        };
        if deployment.mode == "job" {
            for status in [Some("failed"), None] {
                query.status = status.map(str::to_owned);
                for run in client.list_runs(&deployment.id, &query).await?.items {
                    if let Some(machine) = run.sandbox_id {
                        return Ok(Backing {
                            target: Target::Run(run.id),
                            machine,
                        });
                    }
                }
            }
        } else {
            for service in client.list_services(&deployment.id, &query).await?.items {
                let live = matches!(service.status.as_str(), "starting" | "ready" | "unhealthy");
                if let (true, Some(machine)) = (live, service.sandbox_id) {
                    return Ok(Backing {
                        target: Target::Service(service.id),
                        machine,
                    });
                }
            }
        }
        Err(none(&deployment.name))
    }
}
