//! `nullspace key …`: API keys, made, listed, replaced and taken back.

use clap::Subcommand;
use nullspace_api::key::{CreateKeyRequest, CreatedKey, KeyInfo};
use serde_json::json;

use crate::app::App;
use crate::error::{CliError, Outcome};
use crate::ui::time;

/// API keys: who may ask, for which tenant, and for what.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a key
    Create(Create),
    /// List keys
    List(List),
    /// Take a key back: it is refused from now on
    Revoke(One),
    /// Replace a key by a new one with the same name and scope
    #[command(after_help = "Example:
  nullspace key rotate key_123

The new key is printed, and shown this once. The old one is let in for a day more, or until it ends
if that is sooner.")]
    Rotate(One),
}

/// Make a key. It is printed, and shown this once.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nullspace key create --name ci --scope 'machines:write templates:read'
  nullspace key create --name visitor --scope read --expires-in 86400
  nullspace key create --tenant acme --scope admin

A scope is one or more of these words:
  read        look at everything of the tenant
  write       change it too; not its keys
  admin       its keys and its audit log too
  operator    the server and all tenants too
  AREA:read, AREA:write
              of machines, volumes, templates, agents, webhooks, keys or server alone
No key makes one that may do more than itself.")]
struct Create {
    /// For people, at most 128 characters.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// What it may be used for, words with spaces between [default: write].
    #[arg(long, value_name = "SCOPE")]
    scope: Option<String>,
    /// After how many seconds it ends [default: never].
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    expires_in: Option<u64>,
    /// Id or name of the tenant it is for, with an operator's key [default: your own].
    #[arg(long, value_name = "TENANT", value_parser = crate::input::named)]
    tenant: Option<String>,
}

/// List keys, newest first, those that are refused too; without the keys themselves.
#[derive(Debug, clap::Args)]
struct List {
    /// Id or name of the tenant, with an operator's key [default: your own].
    #[arg(long, value_name = "TENANT", value_parser = crate::input::named)]
    tenant: Option<String>,
}

#[derive(Debug, clap::Args)]
struct One {
    /// The key's id, not the key itself.
    #[arg(value_name = "KEY", value_parser = crate::input::named)]
    key: String,
}

pub(crate) async fn run(args: Args, app: &App) -> Outcome {
    let client = app.client()?;
    match args.command {
        Command::Create(args) => {
            let request = CreateKeyRequest {
                name: args.name,
                scope: args.scope,
                expires_in_seconds: args.expires_in,
            };
            let made = match &args.tenant {
                Some(tenant) => client.create_tenant_key(tenant, &request).await?,
                None => client.create_key(&request).await?,
            };
            show(app, &made)?;
        }
        Command::List(args) => {
            let keys = match &args.tenant {
                Some(tenant) => client.list_tenant_keys(tenant).await?,
                None => client.list_keys().await?,
            };
            list(app, &keys)?;
        }
        Command::Revoke(One { key }) => {
            client.revoke_key(&key).await?;
            match app.ui.json {
                true => app.ui.json(&json!({"id": key, "revoked": true}))?,
                false => app.ui.line(format!("Revoked {key}")),
            }
        }
        Command::Rotate(One { key }) => {
            show(app, &client.rotate_key(&key).await?)?;
            if !app.ui.json {
                app.ui
                    .note(format!("{key} is let in for at most a day more."));
            }
        }
    }
    Ok(0)
}

/// The key alone on stdout, for a `$(…)`.
fn show(app: &App, made: &CreatedKey) -> Result<(), CliError> {
    if app.ui.json {
        return app.ui.json(made);
    }
    app.ui.line(&made.key);
    app.ui.note(format!(
        "This is the only time that the key is shown. Its id is {}, its scope: {}",
        made.id,
        made.scope.as_deref().unwrap_or("-")
    ));
    Ok(())
}

fn list(app: &App, keys: &[KeyInfo]) -> Result<(), CliError> {
    if app.ui.json {
        return app.ui.json(&keys);
    }
    if keys.is_empty() {
        app.ui
            .note("No keys. Make one with `nullspace key create`.");
        return Ok(());
    }
    let word = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    let rows = keys.iter().map(|key| {
        [
            key.id.clone(),
            word(&key.name),
            key.prefix.clone(),
            word(&key.scope),
            state(key).to_owned(),
            time(key.created_at.as_deref()),
            time(key.last_used_at.as_deref()),
            time(key.expires_at.as_deref()),
        ]
    });
    let header = [
        "ID", "NAME", "PREFIX", "SCOPE", "STATE", "CREATED", "USED", "ENDS",
    ];
    app.ui.table(header, rows);
    Ok(())
}

fn state(key: &KeyInfo) -> &'static str {
    match (key.is_active, &key.revoked_at) {
        (true, _) => "active",
        (_, Some(_)) => "revoked",
        (_, None) => "expired",
    }
}
