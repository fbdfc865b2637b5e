//! Warm pools, and the machines in them.

use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::{StoreError, Tx};

/// One pool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolRow {
    /// Its id.
    pub id: String,
    /// For people.
    pub name: String,
    /// `enabled`, `disabled`, `draining` or `deleted`.
    pub state: String,
    /// What was asked for.
    pub template_ref: String,
    /// Machines that are kept ready.
    pub min_ready: u32,
    /// The most that are ready or on their way.
    pub max_ready: u32,
    /// Whole CPUs of each.
    pub vcpus: u32,
    /// MiB of each.
    pub memory_mb: u64,
    /// MiB that must be free for each.
    pub disk_mb: Option<u64>,
    /// How long one beyond `min_ready` may wait, in seconds.
    pub idle_timeout_secs: u64,
    /// How old one may become, in seconds.
    pub stale_after_secs: u64,
    /// `prefer`, `require` or `bypass`.
    pub checkout_policy: String,
    /// `pinned_build` or `track_tag`.
    pub version_policy: String,
    /// With `track_tag`.
    pub track_tag: Option<String>,
    /// JSON object.
    pub labels: String,
    /// JSON object.
    pub metadata: String,
    /// What machines are made of.
    pub resolved: Option<String>,
    /// Its build, if it was built here.
    pub build_id: Option<String>,
    /// Its digest.
    pub digest: Option<String>,
    /// How often that changed.
    pub generation: u64,
    /// What it was before.
    pub previous_resolved: Option<String>,
    /// Its build.
    pub previous_build_id: Option<String>,
    /// Its digest.
    pub previous_digest: Option<String>,
    /// Whose it is.
    pub tenant_id: String,
    /// The key that asked for the pool.
    pub key_id: Option<String>,
    /// When it was made.
    pub created_at: i64,
    /// When it was changed last.
    pub updated_at: i64,
    /// When it was enabled last.
    pub enabled_at: Option<i64>,
    /// When it was disabled last.
    pub disabled_at: Option<i64>,
    /// When it was told to drain last.
    pub drain_requested_at: Option<i64>,
    /// When it was deleted.
    pub deleted_at: Option<i64>,
}

/// One machine of a pool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InstanceRow {
    /// Its id; it keeps it when it is handed out.
    pub machine_id: String,
    /// Whose it is.
    pub pool_id: String,
    /// `warming`, `ready`, `claimed` (about to be handed out), `handed_out` or `releasing`.
    pub state: String,
    /// The digest of its layers.
    pub digest: String,
    /// Whole CPUs.
    pub vcpus: u32,
    /// MiB.
    pub memory_mb: u64,
    /// When it was recorded.
    pub created_at: i64,
    /// When it became ready.
    pub ready_at: Option<i64>,
}

const COLUMNS: &str = "id, name, state, template_ref, min_ready, max_ready, vcpus, memory_mb, disk_mb, idle_timeout_secs, \
     stale_after_secs, checkout_policy, version_policy, track_tag, labels, metadata, resolved, build_id, digest, generation, \
     previous_resolved, previous_build_id, previous_digest, key_id, created_at, updated_at, enabled_at, disabled_at, \
     drain_requested_at, deleted_at, tenant_id";

fn from_row(row: &Row<'_>) -> rusqlite::Result<PoolRow> {
    Ok(PoolRow {
        id: row.get(0)?,
        name: row.get(1)?,
        state: row.get(2)?,
        template_ref: row.get(3)?,
        min_ready: row.get(4)?,
        max_ready: row.get(5)?,
        vcpus: row.get(6)?,
        memory_mb: unsigned(row.get(7)?),
        disk_mb: row.get::<_, Option<i64>>(8)?.map(unsigned),
        idle_timeout_secs: unsigned(row.get(9)?),
        stale_after_secs: unsigned(row.get(10)?),
        checkout_policy: row.get(11)?,
        version_policy: row.get(12)?,
        track_tag: row.get(13)?,
        labels: row.get(14)?,
        metadata: row.get(15)?,
        resolved: row.get(16)?,
        build_id: row.get(17)?,
        digest: row.get(18)?,
        generation: unsigned(row.get(19)?),
        previous_resolved: row.get(20)?,
        previous_build_id: row.get(21)?,
        previous_digest: row.get(22)?,
        key_id: row.get(23)?,
        created_at: row.get(24)?,
        updated_at: row.get(25)?,
        enabled_at: row.get(26)?,
        disabled_at: row.get(27)?,
        drain_requested_at: row.get(28)?,
        deleted_at: row.get(29)?,
        tenant_id: row.get(30)?,
    })
}

fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or_default()
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Keeps a new pool, or what is known about one by now.
///
/// # Errors
/// Those of the database.
pub fn put(tx: &Tx<'_>, row: &PoolRow) -> Result<(), StoreError> {
    tx.prepare_cached(&format!(
        "INSERT INTO warm_pool ({COLUMNS}) VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,?14,?15,?16,?17,?18,?19,?20,\
         ?21,?22,?23,?24,?25,?26,?27,?28,?29,?30,?31) ON CONFLICT (id) DO UPDATE SET name = ?2, state = ?3, template_ref = ?4, \
         min_ready = ?5, max_ready = ?6, vcpus = ?7, memory_mb = ?8, disk_mb = ?9, idle_timeout_secs = ?10, \
         stale_after_secs = ?11, checkout_policy = ?12, version_policy = ?13, track_tag = ?14, labels = ?15, metadata = ?16, \
         resolved = ?17, build_id = ?18, digest = ?19, generation = ?20, previous_resolved = ?21, previous_build_id = ?22, \
         previous_digest = ?23, updated_at = ?26, enabled_at = ?27, disabled_at = ?28, drain_requested_at = ?29, \
         deleted_at = ?30"
    ))?
    .execute(params![
        row.id,
        row.name,
        row.state,
        row.template_ref,
        row.min_ready,
        row.max_ready,
        row.vcpus,
        signed(row.memory_mb),
        row.disk_mb.map(signed),
        signed(row.idle_timeout_secs),
        signed(row.stale_after_secs),
        row.checkout_policy,
        row.version_policy,
        row.track_tag,
        row.labels,
        row.metadata,
        row.resolved,
        row.build_id,
        row.digest,
        signed(row.generation),
        row.previous_resolved,
        row.previous_build_id,
        row.previous_digest,
        row.key_id,
        row.created_at,
        row.updated_at,
        row.enabled_at,
        row.disabled_at,
        row.drain_requested_at,
        row.deleted_at,
        row.tenant_id,
    ])?;
    Ok(())
}

/// Every pool, oldest first.
///
/// # Errors
/// Those of the database.
pub fn list(db: &Connection) -> Result<Vec<PoolRow>, StoreError> {
    let mut statement =
        db.prepare_cached(&format!("SELECT {COLUMNS} FROM warm_pool ORDER BY seq"))?;
    let rows = statement.query_map([], from_row)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Every machine of every pool, those that were handed out too.
///
/// # Errors
/// Those of the database.
pub fn instances(db: &Connection) -> Result<Vec<InstanceRow>, StoreError> {
    let mut statement = db.prepare_cached(
        "SELECT machine_id, pool_id, state, digest, vcpus, memory_mb, created_at, ready_at FROM warm_instance \
         ORDER BY created_at, machine_id",
    )?;
    let rows = statement.query_map([], |row| {
        Ok(InstanceRow {
            machine_id: row.get(0)?,
            pool_id: row.get(1)?,
            state: row.get(2)?,
            digest: row.get(3)?,
            vcpus: row.get(4)?,
            memory_mb: unsigned(row.get(5)?),
            created_at: row.get(6)?,
            ready_at: row.get(7)?,
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Keeps a machine that is about to be made.
///
/// # Errors
/// When the id is taken.
pub fn insert_instance(tx: &Tx<'_>, row: &InstanceRow) -> Result<(), StoreError> {
    tx.prepare_cached(
        "INSERT INTO warm_instance (machine_id, pool_id, state, digest, vcpus, memory_mb, created_at, ready_at) \
         VALUES (?1,?2,?3,?4,?5,?6,?7,?8)",
    )?
    .execute(params![
        row.machine_id,
        row.pool_id,
        row.state,
        row.digest,
        row.vcpus,
        signed(row.memory_mb),
        row.created_at,
        row.ready_at,
    ])?;
    Ok(())
}

/// A machine is ready: whether it was still on its way.
///
/// # Errors
/// Those of the database.
pub fn set_ready(tx: &Tx<'_>, machine_id: &str, now: i64) -> Result<bool, StoreError> {
    let count = tx
        .prepare_cached(
            "UPDATE warm_instance SET state = 'ready', ready_at = ?2 WHERE machine_id = ?1 AND state = 'warming'",
        )?
        .execute(params![machine_id, now])?;
    Ok(count == 1)
}

/// Hands a machine out: whether it was ready, and is now whose who asks.
///
/// # Errors
/// Those of the database.
pub fn claim(tx: &Tx<'_>, machine_id: &str, now: i64) -> Result<bool, StoreError> {
    let count = tx
        .prepare_cached(
            "UPDATE warm_instance SET state = 'claimed', claimed_at = ?2 WHERE machine_id = ?1 AND state = 'ready'",
        )?
        .execute(params![machine_id, now])?;
    Ok(count == 1)
}

/// A machine that was handed out has what is its own: nothing is in doubt any more.
///
/// # Errors
/// Those of the database.
pub fn hand_out(tx: &Tx<'_>, machine_id: &str) -> Result<(), StoreError> {
    tx.prepare_cached(
        "UPDATE warm_instance SET state = 'handed_out' WHERE machine_id = ?1 AND state = 'claimed'",
    )?
    .execute([machine_id])?;
    Ok(())
}

/// The pool that a machine was handed out of.
///
/// # Errors
/// Those of the database.
pub fn claimed_from(db: &Connection, machine_id: &str) -> Result<Option<String>, StoreError> {
    Ok(db
        .prepare_cached(
            "SELECT pool_id FROM warm_instance WHERE machine_id = ?1 AND state IN ('claimed', 'handed_out')",
        )?
        .query_row([machine_id], |row| row.get(0))
        .optional()?)
}

/// A machine is about to be ended: whether it was the pool's, and is not handed out.
///
/// # Errors
/// Those of the database.
pub fn release(tx: &Tx<'_>, machine_id: &str) -> Result<bool, StoreError> {
    let count = tx
        .prepare_cached(
            "UPDATE warm_instance SET state = 'releasing' WHERE machine_id = ?1 AND state NOT IN ('claimed', 'handed_out')",
        )?
        .execute([machine_id])?;
    Ok(count == 1)
}

/// Forgets a machine that is gone; one that is not there is fine.
///
/// # Errors
/// Those of the database.
pub fn delete_instance(tx: &Tx<'_>, machine_id: &str) -> Result<(), StoreError> {
    tx.prepare_cached("DELETE FROM warm_instance WHERE machine_id = ?1 AND state NOT IN ('claimed', 'handed_out')")?
        .execute([machine_id])?;
    Ok(())
}

/// Forgets machines that were handed out and are forgotten themselves, and pools that were deleted before this time and have
/// none left: answers these.
///
/// # Errors
/// Those of the database.
pub fn forget(tx: &Tx<'_>, before: i64) -> Result<Vec<String>, StoreError> {
    tx.prepare_cached(
        "DELETE FROM warm_instance WHERE state IN ('claimed', 'handed_out') AND machine_id NOT IN (SELECT id FROM machine)",
    )?
    .execute([])?;
    let mut statement = tx.prepare_cached(
        "DELETE FROM warm_pool WHERE deleted_at < ?1 AND id NOT IN (SELECT pool_id FROM warm_instance) RETURNING id",
    )?;
    let rows = statement.query_map([before], |row| row.get(0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}
