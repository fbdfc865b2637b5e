//! `nullspace audit …`: who asked for what, and what came of it.

use clap::Subcommand;
use nullspace_api::audit::{AuditEntry, ListAuditQuery};

use crate::app::App;
use crate::error::Outcome;
use crate::ui::time;

/// The audit log: who asked for what, and what came of it.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List what was changed, used and refused, newest first
    List(List),
}

/// List what was changed, used and refused, newest first.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nullspace audit list --about mch_123
  nullspace audit list --key key_123 --limit 500 --json

It needs a key of the scope admin or keys:read. An operator's key has the entries of all tenants, and what was
asked without a valid key.")]
struct List {
    /// The most entries.
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    /// Only what was asked with this key, by its id.
    #[arg(long, value_name = "KEY", value_parser = crate::input::named)]
    key: Option<String>,
    /// Only what has this in its path, such as the id of a machine.
    #[arg(long, value_name = "TEXT", value_parser = crate::input::named)]
    about: Option<String>,
    /// Only of this tenant, by its id; with an operator's key.
    #[arg(long, value_name = "TENANT", value_parser = crate::input::named)]
    tenant: Option<String>,
}

pub(crate) async fn run(args: Args, app: &App) -> Outcome {
    let Command::List(args) = args.command;
    let ui = app.ui;
    let query = ListAuditQuery {
        key_id: args.key,
        about: args.about,
        tenant_id: args.tenant,
        ..ListAuditQuery::default()
    };
    let most = usize::try_from(args.limit).unwrap_or(usize::MAX);
    let page = app.client()?.latest_audit(&query, most).await?;
    if ui.json {
        ui.json(&page)?;
        return Ok(0);
    }
    if page.items.is_empty() {
        ui.note("No entries.");
        return Ok(0);
    }
    let header = ["TIME", "KEY", "METHOD", "PATH", "STATUS", "REMOTE"];
    ui.table(header, page.items.iter().map(row));
    if page.next_cursor.is_some() {
        ui.note("There may be more: ask for them with a higher --limit.");
    }
    Ok(0)
}

fn row(entry: &AuditEntry) -> [String; 6] {
    let word = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    [
        time(Some(&entry.at)),
        word(&entry.key_id),
        entry.method.clone(),
        entry.path.clone(),
        match &entry.code {
            Some(code) => format!("{} {code}", entry.status),
            None => entry.status.to_string(),
        },
        word(&entry.remote),
    ]
}
