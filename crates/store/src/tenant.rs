//! Tenants: who shares nothing with others, what each may have, what it has, and what is whose.

use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::{StoreError, Tx};

/// The tenant that is there from the beginning: of the key that a new server makes.
pub const DEFAULT: &str = "tnt_default";

/// One tenant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TenantRow {
    /// Its id.
    pub id: String,
    /// Its name, that no other has: also the namespace of its templates.
    pub name: String,
    /// Whether its keys are refused.
    pub is_suspended: bool,
    /// The most it may have.
    pub limits: Limits,
    /// When it was made.
    pub created_at: i64,
}

/// The most that a tenant may have, each `None` for no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Machines that have not ended: those that sleep and those that wait in warm pools too.
    pub max_machines: Option<u64>,
    /// Whole CPUs of machines that run.
    pub max_vcpus: Option<u64>,
    /// MiB of memory of machines that run.
    pub max_memory_mb: Option<u64>,
    /// MiB of disk: of machines that have not ended, of volumes and of states that are kept.
    pub max_disk_mb: Option<u64>,
    /// Requests a second.
    pub requests_per_second: Option<u32>,
    /// Requests at once, after a pause.
    pub request_burst: Option<u32>,
}

/// What a tenant has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Machines that have not ended.
    pub machines: u64,
    /// Whole CPUs of those that run.
    pub vcpus: u64,
    /// MiB of memory of those that run.
    pub memory_mb: u64,
    /// MiB of disk.
    pub disk_mb: u64,
}

const COLUMNS: &str = "id, name, is_suspended, max_machines, max_vcpus, max_memory_mb, max_disk_mb, requests_per_second, \
     request_burst, created_at";

fn from_row(row: &Row<'_>) -> rusqlite::Result<TenantRow> {
    let amount = |at: usize| {
        row.get::<_, Option<i64>>(at)
            .map(|value| value.map(unsigned))
    };
    Ok(TenantRow {
        id: row.get(0)?,
        name: row.get(1)?,
        is_suspended: row.get(2)?,
        limits: Limits {
            max_machines: amount(3)?,
            max_vcpus: amount(4)?,
            max_memory_mb: amount(5)?,
            max_disk_mb: amount(6)?,
            requests_per_second: row.get(7)?,
            request_burst: row.get(8)?,
        },
        created_at: row.get(9)?,
    })
}

fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or_default()
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Records a new tenant. Answers whether its name was free.
///
/// # Errors
/// Those of the database.
pub fn insert(tx: &Tx<'_>, row: &TenantRow) -> Result<bool, StoreError> {
    let inserted = tx
        .prepare_cached(&format!(
            "INSERT INTO tenant ({COLUMNS}) VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10) ON CONFLICT (name) DO NOTHING"
        ))?
        .execute(params![
            row.id,
            row.name,
            row.is_suspended,
            row.limits.max_machines.map(signed),
            row.limits.max_vcpus.map(signed),
            row.limits.max_memory_mb.map(signed),
            row.limits.max_disk_mb.map(signed),
            row.limits.requests_per_second,
            row.limits.request_burst,
            row.created_at,
        ])?;
    Ok(inserted > 0)
}

/// Keeps what may change: the limits, and whether it is suspended.
///
/// # Errors
/// Those of the database.
pub fn update(tx: &Tx<'_>, row: &TenantRow) -> Result<(), StoreError> {
    tx.prepare_cached(
        "UPDATE tenant SET is_suspended = ?2, max_machines = ?3, max_vcpus = ?4, max_memory_mb = ?5, max_disk_mb = ?6, \
         requests_per_second = ?7, request_burst = ?8 WHERE id = ?1",
    )?
    .execute(params![
        row.id,
        row.is_suspended,
        row.limits.max_machines.map(signed),
        row.limits.max_vcpus.map(signed),
        row.limits.max_memory_mb.map(signed),
        row.limits.max_disk_mb.map(signed),
        row.limits.requests_per_second,
        row.limits.request_burst,
    ])?;
    Ok(())
}

/// One tenant, by id or by name.
///
/// # Errors
/// Those of the database.
pub fn find(db: &Connection, reference: &str) -> Result<Option<TenantRow>, StoreError> {
    Ok(db
        .prepare_cached(&format!(
            "SELECT {COLUMNS} FROM tenant WHERE (id = ?1 OR name = ?1) AND deleted_at IS NULL"
        ))?
        .query_row([reference], from_row)
        .optional()?)
}

/// Every tenant, oldest first.
///
/// # Errors
/// Those of the database.
pub fn list(db: &Connection) -> Result<Vec<TenantRow>, StoreError> {
    let mut statement = db.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM tenant WHERE deleted_at IS NULL ORDER BY created_at, id"
    ))?;
    let rows = statement.query_map([], from_row)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Removes a tenant that has nothing: its keys are taken back, and its name is free.
///
/// # Errors
/// Those of the database.
pub fn delete(tx: &Tx<'_>, id: &str, now: i64) -> Result<(), StoreError> {
    tx.prepare_cached("UPDATE tenant SET deleted_at = ?2, name = id WHERE id = ?1")?
        .execute(params![id, now])?;
    tx.prepare_cached(
        "UPDATE api_key SET revoked_at = ?2 WHERE tenant_id = ?1 AND revoked_at IS NULL",
    )?
    .execute(params![id, now])?;
    Ok(())
}

/// What a tenant has that keeps it from being removed, as nouns. What only is remembered of it does not count.
///
/// # Errors
/// Those of the database.
pub fn holdings(db: &Connection, id: &str) -> Result<Vec<&'static str>, StoreError> {
    let kinds = [
        (
            "machines",
            "SELECT 1 FROM machine WHERE tenant_id = ?1 AND state IN ('creating', 'running', 'paused')",
        ),
        ("snapshots", "SELECT 1 FROM snapshot WHERE tenant_id = ?1"),
        ("volumes", "SELECT 1 FROM volume WHERE tenant_id = ?1"),
        ("templates", "SELECT 1 FROM template WHERE tenant_id = ?1"),
        (
            "template builds",
            "SELECT 1 FROM template_build WHERE tenant_id = ?1 AND status IN ('waiting', 'building')",
        ),
        (
            "warm pools",
            "SELECT 1 FROM warm_pool WHERE tenant_id = ?1 AND (deleted_at IS NULL \
             OR EXISTS (SELECT 1 FROM warm_instance WHERE pool_id = warm_pool.id))",
        ),
        (
            "agent deployments",
            "SELECT 1 FROM agent_deployment WHERE tenant_id = ?1 AND status <> 'deleted'",
        ),
        (
            "webhooks",
            "SELECT 1 FROM webhook WHERE tenant_id = ?1 AND NOT deleted",
        ),
    ];
    let mut found = Vec::new();
    for (noun, sql) in kinds {
        if db.prepare_cached(sql)?.exists([id])? {
            found.push(noun);
        }
    }
    Ok(found)
}

/// What a tenant has now.
///
/// # Errors
/// Those of the database.
pub fn usage(db: &Connection, id: &str) -> Result<Usage, StoreError> {
    let (machines, vcpus, memory_mb, disk_mb): (i64, i64, i64, i64) = db
        .prepare_cached(
            "SELECT COUNT(*), COALESCE(SUM(iif(state = 'paused', 0, vcpus)), 0), \
             COALESCE(SUM(iif(state = 'paused', 0, memory_mb)), 0), \
             COALESCE(SUM(COALESCE(json_extract(spec, '$.disk_bytes') / 1048576, disk_mb, 0)), 0) \
             FROM machine WHERE tenant_id = ?1 AND state IN ('creating', 'running', 'paused')",
        )?
        .query_row([id], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
        })?;
    let (pooled, pooled_vcpus, pooled_mb, pooled_disk): (i64, i64, i64, i64) = db
        .prepare_cached(
            "SELECT COUNT(*), COALESCE(SUM(one.vcpus), 0), COALESCE(SUM(one.memory_mb), 0), \
             COALESCE(SUM(pool.disk_mb), 0) FROM warm_pool pool JOIN warm_instance one ON one.pool_id = pool.id \
             WHERE pool.tenant_id = ?1 AND one.state IN ('warming', 'ready', 'claimed') \
             AND NOT EXISTS (SELECT 1 FROM machine WHERE machine.id = one.machine_id)",
        )?
        .query_row([id], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
        })?;
    // A volume without a limit has what it was counted to have.
    let volumes: i64 = db
        .prepare_cached(
            "SELECT COALESCE(SUM((COALESCE(max_size_bytes, used_bytes) + 1048575) / 1048576), 0) FROM volume \
             WHERE tenant_id = ?1",
        )?
        .query_row([id], |row| row.get(0))?;
    let kept: i64 = db
        .prepare_cached(
            "SELECT COALESCE(SUM((size_bytes + 1048575) / 1048576), 0) FROM snapshot WHERE tenant_id = ?1 AND NOT in_place",
        )?
        .query_row([id], |row| row.get(0))?;
    Ok(Usage {
        machines: unsigned(machines + pooled),
        vcpus: unsigned(vcpus + pooled_vcpus),
        memory_mb: unsigned(memory_mb + pooled_mb),
        disk_mb: [disk_mb, pooled_disk, volumes, kept]
            .map(unsigned)
            .into_iter()
            .sum(),
    })
}

/// What belongs to a tenant, by id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thing {
    /// A machine, also one that is forgotten but for its events or its outputs.
    Machine,
    /// A snapshot, also one that is forgotten but for its events.
    Snapshot,
    /// A volume.
    Volume,
    /// A deployment, also a deleted one.
    Deployment,
    /// A run.
    Run,
    /// A webhook.
    Webhook,
    /// A build of a template.
    Build,
    /// A file of a build context.
    Blob,
}

/// Whose something is; `None` when there is no such thing.
///
/// # Errors
/// Those of the database.
pub fn owner_of(db: &Connection, thing: Thing, id: &str) -> Result<Option<String>, StoreError> {
    let queries: &[&str] = match thing {
        Thing::Machine => &[
            "SELECT tenant_id FROM machine WHERE id = ?1",
            "SELECT tenant_id FROM agent_deployment WHERE id = (SELECT deployment_id FROM agent_run WHERE machine_id = ?1)",
            "SELECT tenant_id FROM event WHERE machine_id = ?1 LIMIT 1",
            "SELECT tenant_id FROM event WHERE source_machine_id = ?1 LIMIT 1",
            "SELECT tenant_id FROM event WHERE target_machine_id = ?1 LIMIT 1",
            // Those of a pool are nobody's machines until they are handed out.
            "SELECT tenant_id FROM warm_pool WHERE id = (SELECT pool_id FROM warm_instance WHERE machine_id = ?1)",
        ],
        Thing::Snapshot => &[
            "SELECT tenant_id FROM snapshot WHERE id = ?1",
            "SELECT tenant_id FROM event WHERE snapshot_id = ?1 LIMIT 1",
        ],
        Thing::Volume => &["SELECT tenant_id FROM volume WHERE id = ?1"],
        Thing::Deployment => &["SELECT tenant_id FROM agent_deployment WHERE id = ?1"],
        Thing::Run => &[
            "SELECT tenant_id FROM agent_deployment WHERE id = (SELECT deployment_id FROM agent_run WHERE id = ?1)",
        ],
        Thing::Webhook => &["SELECT tenant_id FROM webhook WHERE id = ?1"],
        Thing::Build => &["SELECT tenant_id FROM template_build WHERE id = ?1"],
        Thing::Blob => &["SELECT tenant_id FROM template_blob WHERE id = ?1"],
    };
    for query in queries {
        let found = db
            .prepare_cached(query)?
            .query_row([id], |row| row.get(0))
            .optional()?;
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}
