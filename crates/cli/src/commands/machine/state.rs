//! `nullspace machine hibernate`, `resume`, `fork`.

use crate::app::App;
use crate::error::Outcome;
use crate::input;

/// Stop a machine and keep its memory. Prints what it goes on from as JSON.
///
/// Done when nothing of it runs and its state is safe. Where the server's engine only stops machines where they stand,
/// `metadata.lasts` says that this ends when the host restarts.
#[derive(Debug, clap::Args)]
pub(super) struct Hibernate {
    /// The machine's id.
    #[arg(value_name = "MACHINE", value_parser = input::named)]
    machine: String,
}

/// Let a hibernated machine go on. Prints it as JSON.
#[derive(Debug, clap::Args)]
pub(super) struct Resume {
    /// The machine's id, or that of the snapshot it goes on from.
    #[arg(value_name = "MACHINE", value_parser = input::named)]
    id: String,
}

/// Make another machine that goes on from where this one is. Prints it as JSON.
#[derive(Debug, clap::Args)]
pub(super) struct Fork {
    /// The machine's id.
    #[arg(value_name = "MACHINE", value_parser = input::named)]
    machine: String,
    /// With the same key it is made once, however often this is run.
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
}

pub(super) async fn hibernate(args: &Hibernate, app: &App) -> Outcome {
    app.ui
        .json(&app.client()?.hibernate(&args.machine).await?)?;
    Ok(0)
}

pub(super) async fn resume(args: &Resume, app: &App) -> Outcome {
    app.ui.json(&app.client()?.resume(&args.id).await?)?;
    Ok(0)
}

pub(super) async fn fork(args: &Fork, app: &App) -> Outcome {
    let key = args.idempotency_key.as_deref();
    let made = app.client()?.fork(&args.machine, key).await?;
    app.ui.json(&made)?;
    Ok(0)
}
