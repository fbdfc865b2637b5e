//! `nullspace machine egress …`: what a machine may reach, changed while it runs.

use clap::Subcommand;
use nullspace_api::egress::{EgressMode, EgressPolicy, EgressRateLimit};
use serde_json::Value;

use crate::app::App;
use crate::error::{CliError, Outcome};
use crate::input;

/// What a machine may reach.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the rules of a machine
    Get(Get),
    /// Replace the rules of a running machine
    Set(Box<Set>),
}

/// Show the rules of a machine. Always prints JSON.
#[derive(Debug, clap::Args)]
struct Get {
    /// The machine's id.
    #[arg(value_name = "MACHINE", value_parser = input::named)]
    machine: String,
}

/// Replace the rules of a running machine, all of them at once. Prints the new ones as JSON.
///
/// Of two that fit, the more specific decides: a longer prefix, an exact name before a wildcard. With anything
/// allowed by --allow-cidr or --allow-domain, everything else is not. Open connections that the new rules do not
/// allow end.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nullspace machine egress set mch_123 --deny-all
  nullspace machine egress set mch_123 --allow-domain pypi.org --allow-domain '*.pythonhosted.org'
  nullspace machine egress set mch_123 --deny-cidr 10.0.0.0/8 --kbit-per-sec 10000
  nullspace machine egress set mch_123 --policy-json \"$(nullspace machine egress get mch_456)\"")]
#[command(group(clap::ArgGroup::new("rules").required(true).multiple(true).args([
    "allow_all", "deny_all", "policy_json", "allow_cidr", "deny_cidr", "allow_domain", "deny_domain", "kbit_per_sec",
    "pps",
])))]
#[command(group(clap::ArgGroup::new("custom").multiple(true).args([
    "allow_cidr", "deny_cidr", "allow_domain", "deny_domain", "kbit_per_sec", "pps",
])))]
struct Set {
    /// The machine's id.
    #[arg(value_name = "MACHINE", value_parser = input::named)]
    machine: String,
    /// No rules.
    #[arg(long, conflicts_with_all = ["deny_all", "policy_json", "custom"])]
    allow_all: bool,
    /// No network at all.
    #[arg(long, conflicts_with_all = ["policy_json", "custom"])]
    deny_all: bool,
    /// All rules as a JSON object.
    #[arg(long, value_name = "JSON", conflicts_with = "custom")]
    policy_json: Option<String>,
    /// An IPv4 network or address that may be reached; may be repeated.
    #[arg(long, value_name = "CIDR")]
    allow_cidr: Vec<String>,
    /// One that may not; may be repeated.
    #[arg(long, value_name = "CIDR")]
    deny_cidr: Vec<String>,
    /// A host name, or *.NAME for all below it, that may be resolved and reached; may be repeated.
    #[arg(long, value_name = "NAME")]
    allow_domain: Vec<String>,
    /// One that does not exist for the machine; may be repeated.
    #[arg(long, value_name = "NAME")]
    deny_domain: Vec<String>,
    /// The most that leaves the machine in a second, in thousands of bits.
    #[arg(long, value_name = "N", conflicts_with = "pps")]
    kbit_per_sec: Option<u32>,
    /// The same in packets.
    #[arg(long, value_name = "N")]
    pps: Option<u32>,
    /// What may leave at once beyond that: kilobytes, or packets.
    #[arg(long, value_name = "N", conflicts_with_all = ["allow_all", "deny_all", "policy_json"])]
    burst: Option<u32>,
}

pub(super) async fn run(args: Args, app: &App) -> Outcome {
    let egress = match args.command {
        Command::Get(args) => {
            let machine = app.client()?.get_machine(&args.machine).await?;
            machine.egress.ok_or_else(|| {
                CliError::new(
                    "invalid_response",
                    "the server does not say what the rules are",
                )
            })?
        }
        Command::Set(args) => {
            let policy = policy(&args)?;
            app.client()?.update_egress(&args.machine, policy).await?
        }
    };
    app.ui.json(&egress)?;
    Ok(0)
}

fn policy(args: &Set) -> Result<EgressPolicy, CliError> {
    if let Some(json) = &args.policy_json {
        return serde_json::from_value(Value::Object(input::object("--policy-json", json)?))
            .map_err(|error| CliError::usage(format!("--policy-json: {error}")));
    }
    let listed = |list: &[String]| (!list.is_empty()).then(|| list.to_vec());
    let limit = EgressRateLimit {
        kbit_per_sec: args.kbit_per_sec,
        pps: args.pps,
        burst: args.burst,
    };
    Ok(EgressPolicy {
        mode: Some(match (args.allow_all, args.deny_all) {
            (true, _) => EgressMode::AllowAll,
            (_, true) => EgressMode::DenyAll,
            _ => EgressMode::Custom,
        }),
        allow_cidrs: listed(&args.allow_cidr),
        deny_cidrs: listed(&args.deny_cidr),
        allow_domains: listed(&args.allow_domain),
        deny_domains: listed(&args.deny_domain),
        rate_limit: (limit != EgressRateLimit::default()).then_some(limit),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use serde_json::json;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: Set,
    }

    fn asked(line: &str) -> Option<Value> {
        let line = Line::try_parse_from(["x", "mch_1"].into_iter().chain(line.split_whitespace()));
        let policy = policy(&line.ok()?.args).ok()?;
        Some(serde_json::to_value(policy).expect("json"))
    }

    #[test]
    fn flags_become_rules() {
        assert_eq!(asked("--deny-all"), Some(json!({"mode": "deny_all"})));
        assert_eq!(asked("--allow-all"), Some(json!({"mode": "allow_all"})));
        assert_eq!(
            asked(
                "--allow-cidr 1.1.1.1 --allow-cidr 10.0.0.0/8 --deny-cidr 0.0.0.0/0 --allow-domain *.a.example \
                 --deny-domain b.example --kbit-per-sec 8 --burst 64"
            ),
            Some(
                json!({"mode": "custom", "allow_cidrs": ["1.1.1.1", "10.0.0.0/8"], "deny_cidrs": ["0.0.0.0/0"],
                "allow_domains": ["*.a.example"], "deny_domains": ["b.example"],
                "rate_limit": {"kbit_per_sec": 8, "burst": 64}})
            )
        );
        assert_eq!(
            asked("--policy-json {\"mode\":\"deny_all\"}"),
            Some(json!({"mode": "deny_all"}))
        );
        for bad in [
            "",
            "--burst 1",
            "--allow-all --deny-all",
            "--deny-all --allow-cidr 1.1.1.1",
            "--kbit-per-sec 1 --pps 1",
            "--policy-json {} --pps 1",
            "--policy-json {\"x\":1}",
        ] {
            assert_eq!(asked(bad), None, "{bad}");
        }
    }
}
