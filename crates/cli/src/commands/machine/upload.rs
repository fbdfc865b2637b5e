//! `nullspace machine upload`

use crate::app::App;
use crate::commands::upload::{self, To, What};
use crate::error::Outcome;

/// Upload a file, a directory or standard input. What is large goes in parts and can be carried on after a cut.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nullspace machine upload mch_123 model.bin /srv/
  nullspace machine upload mch_123 ./site /srv/site --conflict replace --exclude node_modules/
  nullspace machine upload mch_123 model.bin --resume upl_456
  tar c . | nullspace machine upload mch_123 - /tmp/tree.tar

Without DESTINATION the source keeps its name, in the machine's working directory; after one that ends
in / too. A directory's .nullspaceignore says what stays here.")]
pub(super) struct Args {
    /// The machine's id.
    #[arg(value_name = "MACHINE", value_parser = crate::input::named)]
    machine: String,
    #[command(flatten)]
    what: What,
    /// Act as this user of the machine.
    #[arg(long, value_name = "USER")]
    user: Option<String>,
}

pub(super) async fn run(args: &Args, app: &App) -> Outcome {
    let to = To {
        id: &args.machine,
        reference: &args.machine,
        user: args.user.as_deref(),
        noun: "machine",
        base: "",
    };
    upload::run(to, &args.what, app).await
}
