//! `nullspace lifecycle webhooks …`

use std::io::Read as _;

use clap::Subcommand;
use nullspace_api::{
    event::OPERATIONS,
    webhook::{CreateWebhookRequest, Secret, UpdateWebhookRequest},
};

use crate::app::App;
use crate::error::{CliError, Outcome};

/// Webhooks: each event of the chosen operations is sent to a URL, signed.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a webhook
    Create(Create),
    /// List webhooks
    List,
    /// Show a webhook
    Get(One),
    /// Change a webhook
    Update(Update),
    /// Delete a webhook with what waits for it
    Delete(One),
    /// List what was sent, newest first
    Deliveries(Deliveries),
    /// Show what was sent, and how that went
    Delivery(Delivery),
}

#[derive(Debug, clap::Args)]
struct One {
    /// The webhook's id.
    #[arg(value_name = "WEBHOOK", value_parser = crate::input::named)]
    webhook: String,
}

/// Make a webhook.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nullspace lifecycle webhooks create --url https://example.com/hook --operation create \\
    --operation destroy --signing-secret -  < secret.txt

Each event is POSTed as JSON with X-Nullspace-Signature: sha256=HEX, the HMAC-SHA256 of the body.
Anything but a 2xx is tried again for three days. Receivers at private addresses need the server's
setting webhook_private_receivers.")]
struct Create {
    /// Where to: https://… or http://…
    #[arg(long)]
    url: String,
    /// An operation that is sent; at least one, may be repeated.
    #[arg(long = "operation", value_parser = OPERATIONS, ignore_case = true)]
    operations: Vec<String>,
    /// Signs what is sent; - reads it from standard input.
    #[arg(long, value_name = "SECRET", allow_hyphen_values = true)]
    signing_secret: String,
    #[command(flatten)]
    switch: Switch,
}

/// Whether it works.
#[derive(Debug, clap::Args)]
struct Switch {
    /// It works (default for a new one).
    #[arg(long, overrides_with = "disabled")]
    enabled: bool,
    /// Nothing is queued for it, and what was queued waits.
    #[arg(long, overrides_with = "enabled")]
    disabled: bool,
}

impl Switch {
    fn given(&self) -> Option<bool> {
        match (self.enabled, self.disabled) {
            (true, _) => Some(true),
            (_, true) => Some(false),
            _ => None,
        }
    }
}

/// Change a webhook: what is not given stays.
#[derive(Debug, clap::Args)]
struct Update {
    /// The webhook's id.
    #[arg(value_name = "WEBHOOK", value_parser = crate::input::named)]
    webhook: String,
    /// Where to.
    #[arg(long)]
    url: Option<String>,
    /// The operations that are sent, in place of those before; may be repeated.
    #[arg(long = "operation", value_parser = OPERATIONS, ignore_case = true)]
    operations: Vec<String>,
    /// A new secret; - reads it from standard input.
    #[arg(long, value_name = "SECRET", allow_hyphen_values = true)]
    signing_secret: Option<String>,
    #[command(flatten)]
    switch: Switch,
}

#[derive(Debug, clap::Args)]
struct Deliveries {
    /// The webhook's id.
    #[arg(value_name = "WEBHOOK", value_parser = crate::input::named)]
    webhook: String,
    /// Deliveries to skip.
    #[arg(long, value_name = "N", default_value_t = 0)]
    offset: u64,
    /// The most deliveries, up to 200.
    #[arg(long, value_name = "N", default_value_t = 50)]
    limit: u32,
}

#[derive(Debug, clap::Args)]
struct Delivery {
    /// The webhook's id.
    #[arg(value_name = "WEBHOOK", value_parser = crate::input::named)]
    webhook: String,
    /// The delivery's id.
    #[arg(value_name = "DELIVERY", value_parser = crate::input::named)]
    delivery: String,
}

pub(super) async fn run(args: Args, app: &App) -> Outcome {
    let client = app.client()?;
    match args.command {
        Command::Create(args) => {
            if args.operations.is_empty() {
                return Err(CliError::usage("no operation is to be sent")
                    .hint("Give at least one --operation, such as --operation create."));
            }
            let request = CreateWebhookRequest {
                operations: lower(args.operations),
                signing_secret: secret(args.signing_secret)?,
                enabled: Some(args.switch.given().unwrap_or(true)),
                url: args.url,
            };
            app.ui.json(&client.create_webhook(&request).await?)?;
        }
        Command::List => app.ui.json(&client.list_webhooks().await?)?,
        Command::Get(args) => app.ui.json(&client.get_webhook(&args.webhook).await?)?,
        Command::Update(args) => {
            let request = UpdateWebhookRequest {
                enabled: args.switch.given(),
                operations: (!args.operations.is_empty()).then(|| lower(args.operations)),
                signing_secret: args.signing_secret.map(secret).transpose()?,
                url: args.url,
            };
            if request == UpdateWebhookRequest::default() {
                return Err(CliError::usage("nothing is to be changed")
                    .hint("Give --url, --operation, --signing-secret, --enabled or --disabled."));
            }
            let changed = client.update_webhook(&args.webhook, &request).await?;
            app.ui.json(&changed)?;
        }
        Command::Delete(args) => {
            client.delete_webhook(&args.webhook).await?;
            if app.ui.json {
                app.ui
                    .json(&serde_json::json!({"id": args.webhook, "deleted": true}))?;
            } else {
                app.ui
                    .line(format!("Deleted lifecycle webhook {}", args.webhook));
            }
        }
        Command::Deliveries(args) => {
            let deliveries = client
                .list_webhook_deliveries(&args.webhook, args.offset, args.limit)
                .await?;
            app.ui.json(&deliveries)?;
        }
        Command::Delivery(args) => {
            let detail = client
                .get_webhook_delivery(&args.webhook, &args.delivery)
                .await?;
            app.ui.json(&detail)?;
        }
    }
    Ok(0)
}

fn lower(words: Vec<String>) -> Vec<String> {
    words
        .into_iter()
        .map(|word| word.to_ascii_lowercase())
        .collect()
}

fn secret(text: String) -> Result<Secret, CliError> {
    if text != "-" {
        return Ok(Secret(text));
    }
    let mut read = String::new();
    std::io::stdin()
        .read_to_string(&mut read)
        .map_err(|error| CliError::local("cannot read the signing secret", &error))?;
    Ok(Secret(read.trim_end_matches(['\r', '\n']).to_owned()))
}
