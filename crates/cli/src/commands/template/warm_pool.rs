//! `nullspace template warm-pool …`: machines that are made beforehand.

use std::time::Duration;

use clap::{Subcommand, ValueEnum};
use nullspace_api::machine::WarmPoolMode;
use nullspace_api::pool::{
    CreatePoolRequest, ListPoolsQuery, PoolInfo, PoolResources, UpdatePoolRequest, VersionPolicy,
};
use nullspace_client::pools::PoolAction;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::app::App;
use crate::error::{CliError, Outcome};
use crate::input;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a pool
    #[command(after_help = "Examples:
  nullspace template warm-pool create reviewer:stable --name reviewers --min-ready 2 --max-ready 4
  nullspace machine create --template reviewer:stable --warm-pool twp_… --warm-pool-mode prefer")]
    Create(CreateArgs),
    /// List pools
    List(ListArgs),
    /// Show a pool
    Get(One),
    /// Wait until enough machines of a pool are ready
    Wait(WaitArgs),
    /// Change how many machines a pool keeps ready
    Scale(ScaleArgs),
    /// Have a pool make and hand out machines
    Enable(One),
    /// Have a pool hand out none, and end those that wait
    Disable(One),
    /// Empty a pool, and disable it then
    Drain(One),
    /// Have a pool look now at what is to be done
    Reconcile(One),
    /// Delete a pool; machines that it handed out go on
    Delete(One),
}

#[derive(Debug, clap::Args)]
struct One {
    /// The pool's id.
    #[arg(value_name = "WARM_POOL_ID", value_parser = input::named)]
    pool: String,
}

/// What becomes of requests that name no mode.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Mode {
    Prefer,
    Require,
    Bypass,
}

/// What becomes of a pool when its template is built again.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Policy {
    #[value(name = "pinned_build")]
    PinnedBuild,
    #[value(name = "track_tag")]
    TrackTag,
}

#[derive(Debug, clap::Args)]
struct CreateArgs {
    /// What machines start from.
    #[arg(value_name = "TEMPLATE_REF", value_parser = input::named)]
    template: String,
    /// A name for people.
    #[arg(long, value_name = "NAME")]
    name: String,
    /// Machines that are kept ready.
    #[arg(long, value_name = "N")]
    min_ready: u32,
    /// The most that are ready or on their way.
    #[arg(long, value_name = "N")]
    max_ready: u32,
    /// Whole CPUs of each.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    vcpus: u32,
    /// Memory of each in MiB.
    #[arg(long, value_name = "MB", default_value_t = 512, value_parser = clap::value_parser!(u64).range(1..))]
    memory: u64,
    /// The most that may be written in each, in MiB [default: the server's].
    #[arg(long, value_name = "MB", value_parser = clap::value_parser!(u64).range(1..))]
    disk: Option<u64>,
    /// The mode of requests that name none.
    #[arg(long, value_name = "MODE", value_enum, ignore_case = true)]
    checkout_policy: Option<Mode>,
    /// Seconds that a machine beyond --min-ready may wait.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    idle_timeout: Option<u64>,
    /// Seconds after which another takes a machine's place.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    stale_after: Option<u64>,
    /// Keep to the build that the reference means now, or follow a tag.
    #[arg(long, value_name = "POLICY", value_enum, ignore_case = true)]
    version_policy: Option<Policy>,
    /// The tag to follow, with track_tag.
    #[arg(long, value_name = "TAG")]
    track_tag: Option<String>,
    /// A label; may be repeated.
    #[arg(long = "label", value_name = "KEY=VALUE")]
    labels: Vec<String>,
    /// All metadata as a JSON object; single entries go over it.
    #[arg(long, value_name = "JSON")]
    metadata_json: Option<String>,
    /// One entry of metadata; may be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    metadata: Vec<String>,
}

#[derive(Debug, clap::Args)]
struct ListArgs {
    /// Only pools of this reference.
    #[arg(long, value_name = "TEMPLATE_REF")]
    template: Option<String>,
    /// Only in this state; all but deleted ones without it.
    #[arg(long, value_parser = ["enabled", "disabled", "draining", "deleted"], ignore_case = true)]
    state: Option<String>,
    /// Only with this label; may be repeated.
    #[arg(long = "label", value_name = "KEY=VALUE")]
    labels: Vec<String>,
    /// Only ready, warming, degraded, draining or unavailable ones.
    #[arg(long, value_name = "STATUS")]
    status: Option<String>,
    /// The most pools, up to 200.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
}

#[derive(Debug, clap::Args)]
struct WaitArgs {
    #[command(flatten)]
    one: One,
    /// How many are to be ready; those that the pool keeps without it.
    #[arg(long, value_name = "N")]
    min_ready: Option<u32>,
    /// Give up after so many seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 300.0)]
    timeout: f64,
    /// Seconds between two looks.
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0)]
    interval: f64,
}

#[derive(Debug, clap::Args)]
struct ScaleArgs {
    #[command(flatten)]
    one: One,
    /// Machines that are kept ready.
    #[arg(long, value_name = "N", required_unless_present = "max_ready")]
    min_ready: Option<u32>,
    /// The most that are ready or on their way.
    #[arg(long, value_name = "N")]
    max_ready: Option<u32>,
}

pub(super) async fn run(args: Args, app: &App) -> Outcome {
    let client = app.client()?;
    match args.command {
        Command::Create(args) => show(app, &client.create_warm_pool(&request(args)?).await?),
        Command::List(args) => list(args, app).await,
        Command::Get(one) => show(app, &client.get_warm_pool(&one.pool).await?),
        Command::Wait(args) => wait(&args, app).await,
        Command::Scale(args) => {
            let change = UpdatePoolRequest {
                min_ready: args.min_ready,
                max_ready: args.max_ready,
                ..UpdatePoolRequest::default()
            };
            show(
                app,
                &client.update_warm_pool(&args.one.pool, &change).await?,
            )
        }
        Command::Enable(one) => tell(&one, PoolAction::Enable, app).await,
        Command::Disable(one) => tell(&one, PoolAction::Disable, app).await,
        Command::Drain(one) => tell(&one, PoolAction::Drain, app).await,
        Command::Reconcile(one) => tell(&one, PoolAction::Reconcile, app).await,
        Command::Delete(one) => {
            client.delete_warm_pool(&one.pool).await?;
            let id = &one.pool;
            match app.ui.json {
                true => app
                    .ui
                    .json(&json!({"id": id, "warm_pool": {"id": id}, "deleted": true}))?,
                false => app.ui.line(format!("{id}\tdeleted")),
            }
            Ok(0)
        }
    }
}

fn request(args: CreateArgs) -> Result<CreatePoolRequest, CliError> {
    let labels = input::pairs("--label", &args.labels)?;
    Ok(CreatePoolRequest {
        template_ref: Some(args.template),
        name: args.name,
        min_ready: args.min_ready,
        max_ready: args.max_ready,
        resources: PoolResources {
            vcpus: args.vcpus,
            memory_mb: args.memory,
            disk_mb: args.disk,
        },
        idle_timeout_seconds: args.idle_timeout,
        stale_after_seconds: args.stale_after,
        checkout_policy: args.checkout_policy.map(|mode| match mode {
            Mode::Prefer => WarmPoolMode::Prefer,
            Mode::Require => WarmPoolMode::Require,
            Mode::Bypass => WarmPoolMode::Bypass,
        }),
        version_policy: args.version_policy.map(|policy| match policy {
            Policy::PinnedBuild => VersionPolicy::PinnedBuild,
            Policy::TrackTag => VersionPolicy::TrackTag,
        }),
        track_tag: args.track_tag,
        labels: (!labels.is_empty()).then(|| {
            let words = labels.into_iter();
            words
                .map(|(key, value)| (key, Value::String(value)))
                .collect()
        }),
        metadata: input::metadata(&args.metadata, args.metadata_json.as_deref())?,
        ..CreatePoolRequest::default()
    })
}

async fn list(args: ListArgs, app: &App) -> Outcome {
    let query = ListPoolsQuery {
        template: args.template,
        state: args.state.map(|state| state.to_lowercase()),
        label: args.labels,
        status: args.status,
        limit: args.limit,
    };
    let pools = app.client()?.list_warm_pools(&query).await?;
    if app.ui.json {
        let items: Vec<Value> = pools.iter().map(whole).collect();
        app.ui.json(&json!({ "items": items }))?;
    } else if pools.is_empty() {
        app.ui.note("No warm pools.");
    } else {
        pools.iter().for_each(|pool| print(app, pool));
    }
    Ok(0)
}

async fn tell(one: &One, action: PoolAction, app: &App) -> Outcome {
    show(app, &app.client()?.tell_warm_pool(&one.pool, action).await?)
}

async fn wait(args: &WaitArgs, app: &App) -> Outcome {
    let seconds = |flag: &str, value: f64| {
        Duration::try_from_secs_f64(value)
            .map_err(|_| CliError::usage(format!("{flag}: {value} is no number of seconds")))
    };
    let (timeout, interval) = (
        seconds("--timeout", args.timeout)?,
        seconds("--interval", args.interval)?,
    );
    let client = app.client()?;
    let deadline = Instant::now() + timeout.min(Duration::from_secs(365 * 24 * 3600));
    loop {
        let pool = client.get_warm_pool(&args.one.pool).await?;
        let target = args.min_ready.unwrap_or(pool.min_ready);
        if pool.status.ready >= target {
            return show(app, &pool);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let id = &args.one.pool;
            let ready = pool.status.ready;
            let error = CliError::new(
                "timeout",
                format!("{ready} machines of warm pool {id} are ready, not {target}"),
            );
            return Err(match pool.degraded_reason {
                Some(reason) => error.hint(format!("What is in the way: {}.", word(&reason))),
                None => error,
            });
        }
        tokio::time::sleep(interval.min(left)).await;
    }
}

fn word(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(word)) => word,
        _ => String::new(),
    }
}

/// A pool, with its id where programs that know the published client look for it.
fn whole(pool: &PoolInfo) -> Value {
    let mut value = serde_json::to_value(pool).unwrap_or_default();
    if let Value::Object(fields) = &mut value {
        fields.insert("warm_pool".to_owned(), json!({"id": pool.id}));
    }
    value
}

fn show(app: &App, pool: &PoolInfo) -> Outcome {
    match app.ui.json {
        true => app.ui.json(&whole(pool))?,
        false => print(app, pool),
    }
    Ok(0)
}

fn print(app: &App, pool: &PoolInfo) {
    app.ui.line(format!(
        "{}\t{}\tready {}/{}\t{}",
        pool.id,
        pool.state.as_str(),
        pool.status.ready,
        pool.status.target,
        pool.template_ref
    ));
    if let Some(reason) = &pool.degraded_reason {
        app.ui.line(format!("degraded: {}", word(reason)));
    }
}
