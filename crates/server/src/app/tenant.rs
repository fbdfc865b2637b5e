//! Tenants: who shares nothing with others. A key belongs to one, and so does everything that is made with it.
//!
//! ```text
//!  key ──▶ Ring (key.rs) ──▶ Caller { tenant } ──▶ http::guard: is what the path names the tenant's?
//!                                             └──▶ lists, names, references: only among the tenant's
//!  create, resume ──▶ in the transaction that records it: does the tenant have more than it may now? ──▶ nothing of it is kept
//! ```
//! Limits are looked at where the record is written, so that two requests at once cannot pass together what one may not.

use std::{fmt, num::NonZeroU32, sync::Arc, time::Duration};

use governor::{
    DefaultDirectRateLimiter, Quota,
    clock::{Clock, DefaultClock},
};
use nullspace_api::{
    error::code,
    id,
    template::BUILTIN_NAMESPACE,
    tenant::{CreateTenantRequest, TenantInfo, TenantLimits, TenantUsage, UpdateTenantRequest},
    time,
};
use nullspace_store::{
    Store,
    machine::MachineRow,
    rusqlite::Connection,
    tenant::{self as rows, Limits, TenantRow, Usage},
};

use super::App;
use crate::error::{Error, Kind, Result};

pub use rows::DEFAULT;

/// The longest name: it is a label.
const MAX_NAME: usize = 63;

/// A tenant, as requests need it.
pub struct Tenant {
    /// Its id.
    pub id: Arc<str>,
    /// Its name, and the namespace of its templates.
    pub name: Arc<str>,
    /// Whether its keys are refused.
    pub(super) is_suspended: bool,
    limits: Limits,
    rate: Option<DefaultDirectRateLimiter>,
}

impl fmt::Debug for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tenant")
            .field("id", &self.id)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Tenant {
    fn new(row: TenantRow) -> Self {
        let per_second = row.limits.requests_per_second.and_then(NonZeroU32::new);
        let burst = row.limits.request_burst.and_then(NonZeroU32::new);
        let rate = per_second.map(|rate| {
            DefaultDirectRateLimiter::direct(
                Quota::per_second(rate).allow_burst(burst.unwrap_or(rate)),
            )
        });
        Self {
            id: row.id.into(),
            name: row.name.into(),
            is_suspended: row.is_suspended,
            limits: row.limits,
            rate,
        }
    }

    /// The same after it was read again: what was spent of its rate stays spent, unless the rate is another.
    fn renewed(row: TenantRow, before: Option<&Arc<Self>>) -> Arc<Self> {
        match before {
            Some(before)
                if *before.name == *row.name
                    && before.is_suspended == row.is_suspended
                    && before.limits == row.limits =>
            {
                before.clone()
            }
            _ => Arc::new(Self::new(row)),
        }
    }

    /// Takes a request from its rate.
    ///
    /// # Errors
    /// `rate_limit_exceeded`.
    pub(crate) fn take_request(&self) -> Result<()> {
        let Some(rate) = &self.rate else {
            return Ok(());
        };
        rate.check().map_err(|until| {
            let wait: Duration = until.wait_time_from(DefaultClock::default().now());
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            Error::new(
                Kind::Limit,
                code::RATE_LIMIT_EXCEEDED,
                "more requests than this tenant may make",
            )
            .with_action("wait, and make fewer requests")
            .with_retry_after(u32::try_from(seconds.max(1)).unwrap_or(u32::MAX))
        })
    }
}

/// Every tenant, read again.
pub(super) async fn read(
    store: &Store,
    before: impl Fn(&str) -> Option<Arc<Tenant>>,
) -> Result<Vec<Arc<Tenant>>> {
    let rows = store.read(rows::list).await?;
    Ok(rows
        .into_iter()
        .map(|row| {
            let before = before(&row.id);
            Tenant::renewed(row, before.as_ref())
        })
        .collect())
}

/// Refuses to have a machine go on that sleeps, where that is too much for its tenant. Several that are woken at the same moment may
/// pass together.
///
/// # Errors
/// `quota_exceeded`.
pub(super) async fn may_resume(app: &App, machine: &MachineRow) -> Result<()> {
    let (id, vcpus, memory_mb) = (
        machine.tenant_id.clone(),
        u64::from(machine.vcpus),
        machine.memory_mb,
    );
    app.store
        .read(move |db| {
            with(db, &id, Adding::Resumed, |usage| {
                usage.vcpus += vcpus;
                usage.memory_mb += memory_mb;
            })
        })
        .await
}

/// What a request is about to add to what a tenant has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Adding {
    /// A machine.
    Machine,
    /// A machine that slept runs again.
    Resumed,
    /// A volume, or a state that is kept.
    Disk,
}

/// Refuses what is too much for a tenant. Called in the transaction that records it, after that was written.
///
/// # Errors
/// `quota_exceeded`.
pub(super) fn within(db: &Connection, tenant_id: &str, adding: Adding) -> Result<()> {
    with(db, tenant_id, adding, |_| ())
}

fn with(
    db: &Connection,
    tenant_id: &str,
    adding: Adding,
    add: impl FnOnce(&mut Usage),
) -> Result<()> {
    let limits = rows::find(db, tenant_id)?
        .map(|row| row.limits)
        .unwrap_or_default();
    let none = Limits {
        requests_per_second: limits.requests_per_second,
        request_burst: limits.request_burst,
        ..Limits::default()
    };
    if limits == none {
        return Ok(());
    }
    let mut usage = rows::usage(db, tenant_id)?;
    add(&mut usage);
    over(&limits, &usage, adding).map_or(Ok(()), |(what, most, with)| {
        Err(Error::new(
            Kind::Forbidden,
            code::QUOTA_EXCEEDED,
            format!("this tenant may have {most} {what}, and would have {with}"),
        )
        .with_action("delete what is no longer needed, or ask the operator for a higher limit"))
    })
}

/// The first limit that is passed: of what, how much, and what there would be.
fn over(limits: &Limits, usage: &Usage, adding: Adding) -> Option<(&'static str, u64, u64)> {
    let all = [
        ("machines", limits.max_machines, usage.machines),
        ("CPUs", limits.max_vcpus, usage.vcpus),
        ("MiB of memory", limits.max_memory_mb, usage.memory_mb),
        ("MiB of disk", limits.max_disk_mb, usage.disk_mb),
    ];
    let counts = match adding {
        Adding::Machine => &all[..],
        Adding::Resumed => &all[1..3],
        Adding::Disk => &all[3..],
    };
    counts.iter().find_map(|(what, most, has)| {
        most.filter(|most| has > most)
            .map(|most| (*what, most, *has))
    })
}

fn not_found(reference: &str) -> Error {
    let shown: String = reference.chars().take(MAX_NAME).collect();
    Error::not_found(code::TENANT_NOT_FOUND, format!("no tenant {shown:?}"))
}

/// A tenant as it is on record.
///
/// # Errors
/// `tenant_not_found`.
pub(super) fn find(db: &Connection, reference: &str) -> Result<TenantRow> {
    rows::find(db, reference)?.ok_or_else(|| not_found(reference))
}

fn check_name(name: &str) -> Result<()> {
    let is_label = name.len() <= MAX_NAME
        && name.split('-').all(|part| {
            !part.is_empty()
                && part
                    .chars()
                    .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit())
        });
    if !is_label || name == BUILTIN_NAMESPACE {
        return Err(Error::invalid(format!(
            "name: must be words of a-z and 0-9 with `-` between, at most {MAX_NAME} characters, and not {BUILTIN_NAMESPACE}"
        )));
    }
    Ok(())
}

fn check_limits(limits: &Limits) -> Result<()> {
    for (field, value) in [
        ("requests_per_second", limits.requests_per_second),
        ("request_burst", limits.request_burst),
    ] {
        if value == Some(0) {
            return Err(
                Error::invalid(format!("limits.{field}: must be at least 1"))
                    .with_action("suspend a tenant that may make no requests at all"),
            );
        }
    }
    if limits.request_burst.is_some() && limits.requests_per_second.is_none() {
        return Err(Error::invalid(
            "limits.request_burst: needs requests_per_second",
        ));
    }
    Ok(())
}

/// Makes a tenant. It has no key yet.
///
/// # Errors
/// `invalid_request`, `tenant_conflict` when the name is taken.
pub async fn create(app: &App, request: CreateTenantRequest) -> Result<TenantInfo> {
    check_name(&request.name)?;
    let asked = request.limits;
    let limits = Limits {
        max_machines: asked.max_machines,
        max_vcpus: asked.max_vcpus,
        max_memory_mb: asked.max_memory_mb,
        max_disk_mb: asked.max_disk_mb,
        requests_per_second: asked.requests_per_second,
        request_burst: asked.request_burst,
    };
    check_limits(&limits)?;
    let row = TenantRow {
        id: id::new(id::TENANT),
        name: request.name,
        is_suspended: false,
        limits,
        created_at: time::now(),
    };
    let recording = row.clone();
    app.store
        .write(move |tx| {
            if !rows::insert(tx, &recording)? {
                return Err(Error::conflict(
                    code::TENANT_CONFLICT,
                    format!("there is a tenant {:?} already", recording.name),
                )
                .with_action("choose another name"));
            }
            Ok(())
        })
        .await?;
    app.keys.load(&app.store).await?;
    Ok(info(row, Usage::default()))
}

/// One tenant, by id or name.
///
/// # Errors
/// `tenant_not_found`.
pub async fn get(app: &App, reference: &str) -> Result<TenantInfo> {
    let reference = reference.to_owned();
    let (row, usage) = app
        .store
        .read(move |db| {
            let row = find(db, &reference)?;
            let usage = rows::usage(db, &row.id)?;
            Ok::<_, Error>((row, usage))
        })
        .await?;
    Ok(info(row, usage))
}

/// Every tenant, oldest first.
///
/// # Errors
/// When the record cannot be read.
pub async fn list(app: &App) -> Result<Vec<TenantInfo>> {
    app.store
        .read(|db| {
            let all = rows::list(db)?.into_iter().map(|row| {
                let usage = rows::usage(db, &row.id)?;
                Ok(info(row, usage))
            });
            all.collect()
        })
        .await
}

/// Changes what a tenant may have, and whether its keys are let in.
///
/// # Errors
/// `invalid_request`, `tenant_not_found`.
pub async fn update(
    app: &App,
    reference: &str,
    request: UpdateTenantRequest,
) -> Result<TenantInfo> {
    let reference = reference.to_owned();
    let (row, usage) = app
        .store
        .write(move |tx| {
            let mut row = find(tx, &reference)?;
            if let Some(suspended) = request.suspended {
                if suspended && row.id == DEFAULT {
                    return Err(Error::invalid(
                        "suspended: the first tenant has the operator's keys, and cannot be suspended",
                    ));
                }
                row.is_suspended = suspended;
            }
            let (new, limits) = (request.limits, &mut row.limits);
            limits.max_machines = new.max_machines.unwrap_or(limits.max_machines);
            limits.max_vcpus = new.max_vcpus.unwrap_or(limits.max_vcpus);
            limits.max_memory_mb = new.max_memory_mb.unwrap_or(limits.max_memory_mb);
            limits.max_disk_mb = new.max_disk_mb.unwrap_or(limits.max_disk_mb);
            limits.requests_per_second =
                new.requests_per_second.unwrap_or(limits.requests_per_second);
            limits.request_burst = new.request_burst.unwrap_or(limits.request_burst);
            check_limits(limits)?;
            rows::update(tx, &row)?;
            let usage = rows::usage(tx, &row.id)?;
            Ok((row, usage))
        })
        .await?;
    app.keys.load(&app.store).await?;
    Ok(info(row, usage))
}

/// Removes a tenant that has nothing; its keys are refused from now on.
///
/// # Errors
/// `tenant_not_found`, `tenant_conflict` with what it has, `invalid_request` for the first one.
pub async fn delete(app: &App, reference: &str) -> Result<()> {
    let reference = reference.to_owned();
    app.store
        .write(move |tx| {
            let row = find(tx, &reference)?;
            if row.id == DEFAULT {
                return Err(Error::invalid(
                    "the first tenant has the operator's keys, and stays",
                ));
            }
            let holdings = rows::holdings(tx, &row.id)?;
            if !holdings.is_empty() {
                return Err(Error::conflict(
                    code::TENANT_CONFLICT,
                    format!("tenant {} still has {}", row.name, holdings.join(", ")),
                )
                .with_action("delete them with a key of the tenant, and then the tenant"));
            }
            rows::delete(tx, &row.id, time::now())?;
            Ok(())
        })
        .await?;
    app.keys.load(&app.store).await.map(drop)
}

fn info(row: TenantRow, usage: Usage) -> TenantInfo {
    TenantInfo {
        id: row.id,
        name: row.name,
        suspended: row.is_suspended,
        limits: TenantLimits {
            max_machines: row.limits.max_machines,
            max_vcpus: row.limits.max_vcpus,
            max_memory_mb: row.limits.max_memory_mb,
            max_disk_mb: row.limits.max_disk_mb,
            requests_per_second: row.limits.requests_per_second,
            request_burst: row.limits.request_burst,
        },
        usage: TenantUsage {
            machines: usage.machines,
            vcpus: usage.vcpus,
            memory_mb: usage.memory_mb,
            disk_mb: usage.disk_mb,
        },
        created_at: time::rfc3339(row.created_at),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_much() {
        let limits = Limits {
            max_machines: Some(2),
            max_memory_mb: Some(512),
            max_disk_mb: Some(0),
            ..Limits::default()
        };
        let usage = Usage {
            machines: 3,
            vcpus: 99,
            memory_mb: 512,
            disk_mb: 1,
        };
        assert_eq!(
            over(&limits, &usage, Adding::Machine),
            Some(("machines", 2, 3))
        );
        assert_eq!(over(&limits, &usage, Adding::Resumed), None);
        assert_eq!(
            over(&limits, &usage, Adding::Disk),
            Some(("MiB of disk", 0, 1))
        );
        assert_eq!(over(&Limits::default(), &usage, Adding::Machine), None);
    }

    #[test]
    fn names_are_labels() {
        for good in ["a", "team-1", "0"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "-a",
            "a--b",
            "a-",
            "A",
            "a_b",
            "a/b",
            "nullspace",
            &"a".repeat(64),
        ] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_rate_is_kept_when_other_things_change() {
        let row = |per_second| TenantRow {
            id: "tnt_1".into(),
            name: "a".into(),
            limits: Limits {
                requests_per_second: per_second,
                request_burst: Some(1),
                ..Limits::default()
            },
            ..TenantRow::default()
        };
        let first = Tenant::renewed(row(Some(1)), None);
        assert!(first.take_request().is_ok());
        let refused = first.take_request().unwrap_err();
        assert_eq!(
            (refused.code, refused.retry_after),
            ("rate_limit_exceeded", Some(1))
        );
        let same = Tenant::renewed(row(Some(1)), Some(&first));
        assert!(same.take_request().is_err());
        let without = Tenant::renewed(row(None), Some(&first));
        assert!((0..100).all(|_| without.take_request().is_ok()));
    }
}
