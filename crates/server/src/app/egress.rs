//! Rules for traffic out of machines: from requests to [`Rules`], and what became of them in the log.
//!
//! The rules themselves, what they decide and how addresses and names are read is `nullspace-egress`; putting them in
//! force is the engine's.

use std::{
    collections::HashMap,
    num::NonZeroU32,
    str::FromStr,
    time::{Duration, Instant},
};

use nullspace_api::{
    egress::{EgressMode, EgressPolicy, EgressRateLimit},
    machine::NetworkPolicy,
    time,
};
use nullspace_engine::{
    Denial, DeniedTarget,
    egress::{Invalid, Limit, Mode, Rate, Rules},
};
use nullspace_store::{
    event::{self as event_rows, NewEvent},
    machine::MachineRow,
};
use serde_json::{Map, Value, json};
use tokio::sync::broadcast::{Receiver, error::RecvError};

use super::{App, AppState, machine, pool};
use crate::error::{Error, Result};

/// How long the log is silent about a destination that it has told of.
const SILENCE: Duration = Duration::from_secs(60);
/// Destinations of one machine that are told of in that time.
const MAX_TARGETS: usize = 64;
/// How often counts that wait are looked at.
const LOOK: Duration = Duration::from_secs(5);

/// The rules that a create request asks for.
///
/// # Errors
/// `invalid_request` with the field.
pub(super) fn asked_for(network: &NetworkPolicy, internet_access: Option<bool>) -> Result<Rules> {
    let empty = Vec::new();
    let allow = network.allow_out.as_ref().unwrap_or(&empty);
    let deny = network.deny_out.as_ref().unwrap_or(&empty);
    let rules = match &network.egress {
        Some(_) if !allow.is_empty() || !deny.is_empty() => {
            return Err(Error::invalid(
                "network: egress and allow_out or deny_out say the same in two ways",
            )
            .with_action("use egress alone: its allow_cidrs and deny_cidrs"));
        }
        Some(policy) => from_policy(policy, "network.egress")?.unwrap_or_default(),
        None => from_lists(allow, deny, "network")?,
    };
    Ok(match internet_access {
        Some(false) => Rules::deny_all(),
        _ => rules,
    })
}

/// The rules of `allow_out` and `deny_out`.
///
/// # Errors
/// `invalid_request` with the field, below `within`.
pub(super) fn from_lists(allow: &[String], deny: &[String], within: &str) -> Result<Rules> {
    if allow.is_empty() && deny.is_empty() {
        return Ok(Rules::default());
    }
    let rules = Rules {
        mode: Mode::Custom,
        allow_cidrs: list(allow, &format!("{within}.allow_out"))?,
        deny_cidrs: list(deny, &format!("{within}.deny_out"))?,
        ..Rules::default()
    };
    rules
        .checked()
        .map_err(|Invalid(why)| Error::invalid(format!("{within}: {why}")))
}

/// The rules of an `egress` object; `None` for one that says nothing.
///
/// # Errors
/// `invalid_request` with the field, below `within`.
fn from_policy(policy: &EgressPolicy, within: &str) -> Result<Option<Rules>> {
    let lists = [
        ("allow_cidrs", &policy.allow_cidrs),
        ("deny_cidrs", &policy.deny_cidrs),
        ("allow_domains", &policy.allow_domains),
        ("deny_domains", &policy.deny_domains),
    ];
    let given = lists
        .iter()
        .find(|(_, list)| list.as_ref().is_some_and(|list| !list.is_empty()))
        .map(|(name, _)| *name)
        .or(policy.rate_limit.is_some().then_some("rate_limit"));
    let mode = match (policy.mode, given) {
        (None, None) => return Ok(None),
        (Some(EgressMode::AllowAll), Some(field)) => {
            return Err(Error::invalid(format!(
                "{within}.{field}: needs mode custom, not allow_all"
            )));
        }
        (Some(EgressMode::AllowAll), None) => Mode::AllowAll,
        (Some(EgressMode::DenyAll), _) => Mode::DenyAll,
        (Some(EgressMode::Custom) | None, _) => Mode::Custom,
    };
    let field = |name: &str| format!("{within}.{name}");
    let mut rules = Rules {
        mode,
        allow_cidrs: optional(&policy.allow_cidrs, &field("allow_cidrs"))?,
        deny_cidrs: optional(&policy.deny_cidrs, &field("deny_cidrs"))?,
        allow_domains: optional(&policy.allow_domains, &field("allow_domains"))?,
        deny_domains: optional(&policy.deny_domains, &field("deny_domains"))?,
        rate_limit: policy
            .rate_limit
            .map(|limit| rate(limit, &field("rate_limit")))
            .transpose()?,
    }
    .checked()
    .map_err(|Invalid(why)| Error::invalid(field(&why)))?;
    if rules.is_closed() {
        // What was said beside it was looked at, and changes nothing.
        rules = Rules::deny_all();
    }
    Ok(Some(rules))
}

fn optional<T: FromStr<Err = Invalid>>(given: &Option<Vec<String>>, field: &str) -> Result<Vec<T>> {
    list(given.as_deref().unwrap_or_default(), field)
}

fn list<T: FromStr<Err = Invalid>>(given: &[String], field: &str) -> Result<Vec<T>> {
    given
        .iter()
        .enumerate()
        .map(|(n, text)| {
            text.parse()
                .map_err(|Invalid(why)| Error::invalid(format!("{field}[{n}]: {why}")))
        })
        .collect()
}

fn rate(given: EgressRateLimit, field: &str) -> Result<Rate> {
    let number = |name: &str, value: u32| {
        NonZeroU32::new(value)
            .ok_or_else(|| Error::invalid(format!("{field}.{name}: must be 1 or more")))
    };
    let limit = match (given.kbit_per_sec, given.pps) {
        (Some(kbit), None) => Limit::KbitPerSec(number("kbit_per_sec", kbit)?),
        (None, Some(packets)) => Limit::Pps(number("pps", packets)?),
        _ => {
            return Err(Error::invalid(format!(
                "{field}: exactly one of kbit_per_sec and pps is needed"
            )));
        }
    };
    let burst = given.burst.map(|b| number("burst", b)).transpose()?;
    Ok(Rate { limit, burst })
}

/// Rules as the wire shows them.
fn policy(rules: &Rules) -> EgressPolicy {
    fn shown<T: ToString>(list: &[T]) -> Option<Vec<String>> {
        (!list.is_empty()).then(|| list.iter().map(ToString::to_string).collect())
    }
    EgressPolicy {
        mode: Some(match rules.mode {
            Mode::AllowAll => EgressMode::AllowAll,
            Mode::DenyAll => EgressMode::DenyAll,
            Mode::Custom => EgressMode::Custom,
        }),
        allow_cidrs: shown(&rules.allow_cidrs),
        deny_cidrs: shown(&rules.deny_cidrs),
        allow_domains: shown(&rules.allow_domains),
        deny_domains: shown(&rules.deny_domains),
        rate_limit: rules.rate_limit.map(|rate| {
            let (kbit_per_sec, pps) = match rate.limit {
                Limit::KbitPerSec(kbit) => (Some(kbit.get()), None),
                Limit::Pps(packets) => (None, Some(packets.get())),
            };
            EgressRateLimit {
                kbit_per_sec,
                pps,
                burst: rate.burst.map(NonZeroU32::get),
            }
        }),
    }
}

/// A recorded machine's rules as the wire shows them.
pub(super) fn shown(row: &MachineRow) -> EgressPolicy {
    policy(&recorded(row))
}

/// A recorded machine's rules. Those that cannot be read let nothing through.
pub(super) fn recorded(row: &MachineRow) -> Rules {
    match &row.egress {
        None if row.internet_access => Rules::default(),
        None => Rules::deny_all(),
        Some(text) => serde_json::from_str(text).unwrap_or_else(|error| {
            tracing::error!(machine = row.id, %error, "the recorded rules cannot be read");
            Rules::deny_all()
        }),
    }
}

/// Puts rules into a record.
pub(super) fn record(row: &mut MachineRow, rules: &Rules) {
    row.internet_access = !rules.is_closed();
    row.egress = (rules.mode == Mode::Custom)
        .then(|| serde_json::to_string(rules).ok())
        .flatten();
}

/// Replaces the rules of a running machine: as they are afterwards.
///
/// # Errors
/// `invalid_request`, `machine_not_found`, `machine_not_ready`, and those of the engine.
pub async fn set(
    app: &App,
    id: &str,
    policy: &EgressPolicy,
    key_id: Option<&str>,
) -> Result<EgressPolicy> {
    let Some(rules) = from_policy(policy, "egress")? else {
        // An empty object would open everything; whoever means that should say so.
        return Err(Error::invalid(
            "egress.mode: must be allow_all, deny_all or custom",
        ));
    };
    let row = machine::set_egress(app, id, rules, key_id).await?;
    Ok(shown(&row))
}

/// The event of a change.
pub(super) fn updated(
    machine: &MachineRow,
    rules: &Rules,
    key_id: Option<&str>,
    now: i64,
) -> NewEvent {
    NewEvent {
        key_id: key_id.map(str::to_owned),
        actor_kind: if key_id.is_some() { "user" } else { "system" },
        ..internal(
            machine,
            "egress_updated",
            json!({"egress": policy(rules)}),
            now,
        )
    }
}

/// An event that published clients do not know, and so are not shown.
fn internal(machine: &MachineRow, operation: &'static str, metadata: Value, now: i64) -> NewEvent {
    NewEvent {
        tenant_id: machine.tenant_id.clone(),
        occurred_at: now,
        audience: event_rows::Audience::Internal,
        operation,
        status: "succeeded",
        machine_id: Some(machine.id.clone()),
        actor_kind: "system",
        metadata: Some(metadata.to_string()),
        ..NewEvent::default()
    }
}

/// Writes into the log what machines were kept from, until the server stops: the first time at once, then how often
/// it was, at most once a minute.
pub async fn watch_denials(app: AppState, mut denials: Receiver<Denial>) {
    let mut tally = Tally::default();
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let told = tokio::select! {
            denial = denials.recv() => match denial {
                Ok(denial) => tally.count(denial, Instant::now()).into_iter().collect(),
                Err(RecvError::Lagged(_)) => continue,
                Err(RecvError::Closed) => return,
            },
            _ = look.tick() => tally.due(Instant::now()),
            () = app.stopping.cancelled() => return,
        };
        let now = time::now();
        for denial in told {
            if pool::has(&app, &denial.id) {
                // Nobody's yet: there is no machine that it could be told of.
                continue;
            }
            // Of one that is gone by now nobody is told.
            let Some(handle) = app.machines.get(&denial.id) else {
                continue;
            };
            let event = internal(
                &handle.row(),
                "egress_denied",
                Value::Object(described(&denial)),
                now,
            );
            app.store
                .write_later(move |tx| event_rows::append(tx, &event).map(drop));
        }
    }
}

fn described(denial: &Denial) -> Map<String, Value> {
    let mut told = Map::new();
    match &denial.target {
        DeniedTarget::Name(name) => {
            told.insert("name".into(), name.as_str().into());
            told.insert("port".into(), 53.into());
            told.insert("protocol".into(), "dns".into());
        }
        DeniedTarget::Address {
            address,
            protocol,
            port,
        } => {
            let protocol = match protocol {
                1 => "icmp".to_owned(),
                6 => "tcp".to_owned(),
                17 => "udp".to_owned(),
                other => other.to_string(),
            };
            told.insert("address".into(), address.to_string().into());
            if *port != 0 {
                told.insert("port".into(), (*port).into());
            }
            told.insert("protocol".into(), protocol.into());
        }
    }
    told.insert("count".into(), denial.count.into());
    told
}

/// What was told and what waits to be.
#[derive(Default)]
struct Tally {
    machines: HashMap<String, HashMap<DeniedTarget, Counted>>,
}

struct Counted {
    told: Instant,
    since: u64,
}

impl Tally {
    /// Takes a denial: what is to be told now.
    fn count(&mut self, denial: Denial, now: Instant) -> Option<Denial> {
        let targets = self.machines.entry(denial.id.clone()).or_default();
        if let Some(counted) = targets.get_mut(&denial.target) {
            counted.since += denial.count;
            return None;
        }
        // One that tries everything fills no log.
        if targets.len() >= MAX_TARGETS {
            return None;
        }
        targets.insert(
            denial.target.clone(),
            Counted {
                told: now,
                since: 0,
            },
        );
        Some(denial)
    }

    /// What is to be told after a silence. Who was silent too is forgotten.
    fn due(&mut self, now: Instant) -> Vec<Denial> {
        let mut told = Vec::new();
        self.machines.retain(|id, targets| {
            targets.retain(|target, counted| {
                if now.duration_since(counted.told) < SILENCE {
                    return true;
                }
                if counted.since == 0 {
                    return false;
                }
                told.push(Denial {
                    id: id.clone(),
                    target: target.clone(),
                    count: std::mem::take(&mut counted.since),
                });
                counted.told = now;
                true
            });
            !targets.is_empty()
        });
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn denial(port: u16, count: u64) -> Denial {
        Denial {
            id: "mch_1".into(),
            target: DeniedTarget::Address {
                address: [192, 0, 2, 1].into(),
                protocol: 6,
                port,
            },
            count,
        }
    }

    #[test]
    fn the_first_is_told_and_then_counts() {
        let mut tally = Tally::default();
        let start = Instant::now();
        assert_eq!(tally.count(denial(1, 2), start), Some(denial(1, 2)));
        assert_eq!(tally.count(denial(1, 3), start), None);
        assert_eq!(tally.count(denial(1, 4), start), None);
        assert_eq!(tally.due(start + SILENCE / 2), []);
        assert_eq!(tally.due(start + SILENCE), [denial(1, 7)]);
        assert_eq!(tally.due(start + SILENCE), []);
        assert_eq!(tally.due(start + SILENCE * 2), []);
        assert!(tally.machines.is_empty(), "the silent are forgotten");
        assert_eq!(
            tally.count(denial(1, 1), start + SILENCE * 3),
            Some(denial(1, 1))
        );
    }

    #[test]
    fn one_machine_fills_no_log() {
        let mut tally = Tally::default();
        let now = Instant::now();
        let told = (0..1000)
            .filter_map(|port| tally.count(denial(port, 1), now))
            .count();
        assert_eq!(told, MAX_TARGETS);
    }

    #[test]
    fn what_was_asked_for_is_what_is_shown() {
        let text = json!({"mode": "custom", "allow_cidrs": ["1.1.1.1", "10.0.0.0/8"], "deny_cidrs": ["0.0.0.0/0"],
            "allow_domains": ["*.Example.com."], "deny_domains": ["evil.example.com"],
            "rate_limit": {"pps": 100, "burst": 10}});
        let asked: EgressPolicy = serde_json::from_value(text).unwrap();
        let rules = from_policy(&asked, "egress").unwrap().unwrap();
        assert_eq!(
            serde_json::to_value(policy(&rules)).unwrap(),
            json!({"mode": "custom", "allow_cidrs": ["1.1.1.1/32", "10.0.0.0/8"], "deny_cidrs": ["0.0.0.0/0"],
                "allow_domains": ["*.example.com"], "deny_domains": ["evil.example.com"],
                "rate_limit": {"pps": 100, "burst": 10}})
        );
        let closed = EgressPolicy {
            mode: Some(EgressMode::DenyAll),
            ..asked
        };
        assert_eq!(
            from_policy(&closed, "egress").unwrap(),
            Some(Rules::deny_all())
        );
    }
}
