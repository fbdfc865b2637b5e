//! `nullspace tenant …`: who shares nothing with others, and what each may have.

use std::str::FromStr;

use clap::Subcommand;
use nullspace_api::tenant::{
    CreateTenantRequest, TenantInfo, TenantLimits, UpdateTenantLimits, UpdateTenantRequest,
};
use serde_json::json;

use crate::app::App;
use crate::error::{CliError, Outcome};
use crate::ui::time;

/// Tenants: who shares nothing with others, and what each may have.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nullspace tenant create acme --max-machines 20 --max-memory-mb 16384
  nullspace key create --tenant acme
  nullspace tenant set acme --max-machines none --requests-per-second 50
  nullspace tenant show

All but `tenant show` without a tenant need an operator's key.")]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a tenant
    Create(Create),
    /// List tenants with what they have, oldest first
    List,
    /// Show a tenant: what it may have and what it has
    Show(Show),
    /// Change what a tenant may have, or suspend it
    Set(Set),
    /// Delete a tenant that has nothing any more; its keys are refused
    Delete(One),
}

/// Make a tenant. It has no key yet: key create --tenant makes one.
#[derive(Debug, clap::Args)]
struct Create {
    /// Also the namespace of its templates: words of a-z and 0-9 with - between, at most 63 characters.
    #[arg(value_name = "NAME", value_parser = crate::input::named)]
    name: String,
    /// Machines that have not ended, those that sleep and those in warm pools too.
    #[arg(long, value_name = "N")]
    max_machines: Option<u64>,
    /// Whole CPUs of machines that run or wait in warm pools.
    #[arg(long, value_name = "N")]
    max_vcpus: Option<u64>,
    /// Memory of the same machines, in MiB.
    #[arg(long, value_name = "MB")]
    max_memory_mb: Option<u64>,
    /// Disk of machines, volumes and kept states, in MiB.
    #[arg(long, value_name = "MB")]
    max_disk_mb: Option<u64>,
    /// Requests a second, at least 1.
    #[arg(long, value_name = "N")]
    requests_per_second: Option<u32>,
    /// Requests at once after a pause, at least 1 [default: those of a second].
    #[arg(long, value_name = "N")]
    request_burst: Option<u32>,
}

/// Change what a tenant may have, or suspend it: what is not given stays.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nullspace tenant set acme --max-machines 50 --max-disk-mb none
  nullspace tenant set acme --suspend

The word none takes a limit away. What a tenant has beyond a new limit stays. Keys of a suspended one are
refused; what runs goes on.")]
struct Set {
    #[command(flatten)]
    one: One,
    /// Machines that have not ended, those that sleep and those in warm pools too; or none.
    #[arg(long, value_name = "N")]
    max_machines: Option<Limit<u64>>,
    /// Whole CPUs of machines that run or wait in warm pools; or none.
    #[arg(long, value_name = "N")]
    max_vcpus: Option<Limit<u64>>,
    /// Memory of the same machines, in MiB; or none.
    #[arg(long, value_name = "MB")]
    max_memory_mb: Option<Limit<u64>>,
    /// Disk of machines, volumes and kept states, in MiB; or none.
    #[arg(long, value_name = "MB")]
    max_disk_mb: Option<Limit<u64>>,
    /// Requests a second, at least 1; or none.
    #[arg(long, value_name = "N")]
    requests_per_second: Option<Limit<u32>>,
    /// Requests at once after a pause, at least 1; or none: those of a second.
    #[arg(long, value_name = "N")]
    request_burst: Option<Limit<u32>>,
    /// Refuse its keys.
    #[arg(long, conflicts_with = "resume")]
    suspend: bool,
    /// Let its keys in again.
    #[arg(long)]
    resume: bool,
}

/// Show a tenant.
#[derive(Debug, clap::Args)]
struct Show {
    /// Id or name, with an operator's key [default: your own].
    #[arg(value_name = "TENANT", value_parser = crate::input::named)]
    tenant: Option<String>,
}

#[derive(Debug, clap::Args)]
struct One {
    /// Id or name.
    #[arg(value_name = "TENANT", value_parser = crate::input::named)]
    tenant: String,
}

/// A number, or `none` for no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Limit<T>(Option<T>);

impl<T: FromStr> FromStr for Limit<T> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self(None));
        }
        match text.parse::<T>() {
            Ok(number) => Ok(Self(Some(number))),
            Err(_) => Err("must be a whole number, or none".to_owned()),
        }
    }
}

impl Set {
    fn request(&self) -> Result<UpdateTenantRequest, CliError> {
        let request = UpdateTenantRequest {
            suspended: match (self.suspend, self.resume) {
                (true, _) => Some(true),
                (_, true) => Some(false),
                _ => None,
            },
            limits: UpdateTenantLimits {
                max_machines: self.max_machines.map(|limit| limit.0),
                max_vcpus: self.max_vcpus.map(|limit| limit.0),
                max_memory_mb: self.max_memory_mb.map(|limit| limit.0),
                max_disk_mb: self.max_disk_mb.map(|limit| limit.0),
                requests_per_second: self.requests_per_second.map(|limit| limit.0),
                request_burst: self.request_burst.map(|limit| limit.0),
            },
        };
        if request == UpdateTenantRequest::default() {
            return Err(CliError::usage("nothing is to be changed")
                .hint("Give a limit such as --max-machines, --suspend or --resume."));
        }
        Ok(request)
    }
}

pub(crate) async fn run(args: Args, app: &App) -> Outcome {
    let client = app.client()?;
    match args.command {
        Command::Create(args) => {
            let request = CreateTenantRequest {
                name: args.name,
                limits: TenantLimits {
                    max_machines: args.max_machines,
                    max_vcpus: args.max_vcpus,
                    max_memory_mb: args.max_memory_mb,
                    max_disk_mb: args.max_disk_mb,
                    requests_per_second: args.requests_per_second,
                    request_burst: args.request_burst,
                },
            };
            let made = client.create_tenant(&request).await?;
            show(app, &made)?;
            if !app.ui.json {
                app.ui.note(format!(
                    "It has no key yet. Make one with `nullspace key create --tenant {}`.",
                    made.name
                ));
            }
        }
        Command::List => {
            let tenants = client.list_tenants().await?;
            match app.ui.json {
                true => app.ui.json(&tenants)?,
                false => list(app, &tenants.items),
            }
        }
        Command::Show(args) => {
            let tenant = match &args.tenant {
                Some(tenant) => client.get_tenant(tenant).await?,
                None => client.own_tenant().await?,
            };
            show(app, &tenant)?;
        }
        Command::Set(args) => {
            let request = args.request()?;
            let changed = client.update_tenant(&args.one.tenant, &request).await?;
            show(app, &changed)?;
        }
        Command::Delete(One { tenant }) => {
            client.delete_tenant(&tenant).await?;
            match app.ui.json {
                true => app.ui.json(&json!({"id": tenant, "deleted": true}))?,
                false => app.ui.line(format!("Deleted {tenant}")),
            }
        }
    }
    Ok(0)
}

fn state(tenant: &TenantInfo) -> &'static str {
    match tenant.suspended {
        true => "suspended",
        false => "active",
    }
}

fn list(app: &App, tenants: &[TenantInfo]) {
    let of = |used: u64, most: Option<u64>| match most {
        Some(most) => format!("{used}/{most}"),
        None => used.to_string(),
    };
    let rows = tenants.iter().map(|tenant| {
        let (usage, limits) = (&tenant.usage, &tenant.limits);
        [
            tenant.id.clone(),
            tenant.name.clone(),
            state(tenant).to_owned(),
            of(usage.machines, limits.max_machines),
            of(usage.vcpus, limits.max_vcpus),
            of(usage.memory_mb, limits.max_memory_mb) + " MiB",
            of(usage.disk_mb, limits.max_disk_mb) + " MiB",
            time(Some(&tenant.created_at)),
        ]
    });
    let header = [
        "ID", "NAME", "STATE", "MACHINES", "VCPUS", "MEMORY", "DISK", "CREATED",
    ];
    app.ui.table(header, rows);
}

fn show(app: &App, tenant: &TenantInfo) -> Result<(), CliError> {
    let ui = app.ui;
    if ui.json {
        return ui.json(tenant);
    }
    ui.line(format!("ID: {}", tenant.id));
    ui.line(format!("Name: {}", tenant.name));
    ui.line(format!("State: {}", state(tenant)));
    ui.line(format!("Created: {}", time(Some(&tenant.created_at))));
    let (usage, limits) = (&tenant.usage, &tenant.limits);
    let rows = [
        ("machines", Some(usage.machines), limits.max_machines),
        ("CPUs", Some(usage.vcpus), limits.max_vcpus),
        ("MiB of memory", Some(usage.memory_mb), limits.max_memory_mb),
        ("MiB of disk", Some(usage.disk_mb), limits.max_disk_mb),
        (
            "requests a second",
            None,
            limits.requests_per_second.map(u64::from),
        ),
        (
            "requests at once",
            None,
            limits.request_burst.map(u64::from),
        ),
    ];
    let count = |count: Option<u64>| count.map_or("-".to_owned(), |count| count.to_string());
    let rows = rows.map(|(what, has, most)| [what.to_owned(), count(has), count(most)]);
    ui.table(["WHAT", "HAS", "LIMIT"], rows);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use serde_json::Value;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: Set,
    }

    fn asked(line: &str) -> Option<Value> {
        let line = Line::try_parse_from(["x", "acme"].into_iter().chain(line.split_whitespace()));
        let request = line.ok()?.args.request().ok()?;
        Some(serde_json::to_value(request).expect("json"))
    }

    #[test]
    fn none_takes_a_limit_away() {
        assert_eq!(
            asked(
                "--max-machines none --max-vcpus 0 --requests-per-second 50 --request-burst none"
            ),
            Some(json!({"limits": {
                "max_machines": null, "max_vcpus": 0, "requests_per_second": 50, "request_burst": null,
            }}))
        );
        assert_eq!(
            asked("--suspend"),
            Some(json!({"suspended": true, "limits": {}}))
        );
        assert_eq!(
            asked("--resume --max-disk-mb 1024"),
            Some(json!({"suspended": false, "limits": {"max_disk_mb": 1024}}))
        );
        for bad in [
            "",
            "--suspend --resume",
            "--max-machines",
            "--max-machines=",
            "--max-machines=-1",
            "--max-memory-mb 1.5",
            "--max-disk-mb null",
            "--request-burst 4294967296",
        ] {
            assert_eq!(asked(bad), None, "{bad}");
        }
    }
}
