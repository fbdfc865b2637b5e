//! `nullspace machine get`

use crate::app::App;
use crate::error::Outcome;

/// Show a machine. Always prints JSON.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The machine's id.
    #[arg(value_name = "MACHINE", value_parser = crate::input::named)]
    machine: String,
    /// Only these fields.
    #[arg(long, value_name = "A,B")]
    fields: Option<String>,
}

pub(super) async fn run(args: &Args, app: &App) -> Outcome {
    let client = app.client()?;
    match &args.fields {
        Some(fields) => app
            .ui
            .json(&client.get_machine_fields(&args.machine, fields).await?)?,
        None => app.ui.json(&client.get_machine(&args.machine).await?)?,
    }
    Ok(0)
}
