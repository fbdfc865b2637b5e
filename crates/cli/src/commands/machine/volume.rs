//! `nullspace machine volume …`: volumes of a machine that runs. Our own: the published command line mounts them at the
//! making of a machine alone.

use clap::Subcommand;
use nullspace_api::machine::VolumeMount;

use crate::app::App;
use crate::error::Outcome;

/// Volumes of a machine that runs.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nullspace machine volume attach mch_123 data /data
  nullspace machine volume attach mch_123 data /models --subpath models --read-only
  nullspace machine volume detach mch_123 vat_456")]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the volumes of a machine
    List(Of),
    /// Mount a volume
    Attach(Attach),
    /// Take a volume out; what is open in it stays open
    Detach(One),
    /// Look whether a volume is where it should be
    Health(One),
    /// Take a volume out and put it back
    Remount(One),
}

#[derive(Debug, clap::Args)]
struct Of {
    /// The machine's id.
    #[arg(value_name = "MACHINE", value_parser = crate::input::named)]
    machine: String,
}

#[derive(Debug, clap::Args)]
struct One {
    #[command(flatten)]
    of: Of,
    /// The id of the mount, from `list`.
    #[arg(value_name = "ATTACHMENT", value_parser = crate::input::named)]
    attachment: String,
}

#[derive(Debug, clap::Args)]
struct Attach {
    #[command(flatten)]
    of: Of,
    /// The volume's id or name.
    #[arg(value_name = "VOLUME", value_parser = crate::input::named)]
    volume: String,
    /// Where, in the machine.
    #[arg(value_name = "PATH")]
    path: String,
    /// Only this directory of it.
    #[arg(long, value_name = "PATH")]
    subpath: Option<String>,
    /// Refuse writes.
    #[arg(long)]
    read_only: bool,
}

pub(super) async fn run(args: Args, app: &App) -> Outcome {
    let client = app.client()?;
    let shown = match args.command {
        Command::List(of) => {
            app.ui.json(&client.machine_volumes(&of.machine).await?)?;
            return Ok(0);
        }
        Command::Attach(args) => {
            let mount = VolumeMount {
                reference: args.volume,
                mount_path: args.path,
                read_only: Some(args.read_only),
                subpath: args.subpath,
            };
            client.attach_volume(&args.of.machine, &mount).await?
        }
        Command::Detach(One { of, attachment }) => {
            client.detach_volume(&of.machine, &attachment).await?
        }
        Command::Health(One { of, attachment }) => {
            client.check_volume(&of.machine, &attachment).await?
        }
        Command::Remount(One { of, attachment }) => {
            client.remount_volume(&of.machine, &attachment).await?
        }
    };
    app.ui.json(&shown)?;
    Ok(0)
}
