//! Versions of Agent Deployments.

use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::{StoreError, Tx};

/// One version, as it is kept.
#[derive(Clone, Debug, PartialEq)]
pub struct VersionRow {
    /// Its place in the order of creation; set by [`insert`].
    pub seq: i64,
    /// Its id.
    pub id: String,
    /// Its deployment.
    pub deployment_id: String,
    /// Whose its deployment is; not written by [`insert`].
    pub tenant_id: String,
    /// 1, 2, 3, … within the deployment.
    pub number: i64,
    /// 64 hex digits.
    pub bundle_digest: String,
    /// Name of the bundle's tree on disk.
    pub bundle: String,
    /// JSON object: the config as the wire has it.
    pub config: String,
    /// JSON object: the manifest without its entries.
    pub manifest_head: String,
    /// `created`, `building`, `ready`, `failed` or `superseded`.
    pub status: String,
    /// `auto`, `no_cache` or `rebuild`.
    pub cache_policy: String,
    /// Why it failed.
    pub failure_reason: Option<String>,
    /// When it was made.
    pub created_at: i64,
    /// When its bundle was there.
    pub ready_at: Option<i64>,
    /// The run that makes, or made, its artifact at its upload.
    pub build_id: Option<String>,
    /// When somebody deleted it.
    pub deleted_at: Option<i64>,
}

const COLUMNS: &str = "seq, id, deployment_id, number, bundle_digest, bundle, config, manifest_head, status, \
     cache_policy, failure_reason, created_at, ready_at, build_id, deleted_at, \
     (SELECT tenant_id FROM agent_deployment deployment WHERE deployment.id = deployment_id)";

fn from_row(row: &Row<'_>) -> rusqlite::Result<VersionRow> {
    Ok(VersionRow {
        seq: row.get(0)?,
        id: row.get(1)?,
        deployment_id: row.get(2)?,
        number: row.get(3)?,
        bundle_digest: row.get(4)?,
        bundle: row.get(5)?,
        config: row.get(6)?,
        manifest_head: row.get(7)?,
        status: row.get(8)?,
        cache_policy: row.get(9)?,
        failure_reason: row.get(10)?,
        created_at: row.get(11)?,
        ready_at: row.get(12)?,
        build_id: row.get(13)?,
        deleted_at: row.get(14)?,
        tenant_id: row.get(15)?,
    })
}

/// Keeps a new version and its whole manifest.
///
/// # Errors
/// When the id or the number is taken.
pub fn insert(tx: &Tx<'_>, row: &VersionRow, manifest: &str) -> Result<(), StoreError> {
    tx.prepare_cached(
        "INSERT INTO agent_version (id, deployment_id, number, bundle_digest, bundle, config, manifest_head, \
         status, cache_policy, failure_reason, created_at, ready_at) \
         VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12)",
    )?
    .execute(params![
        row.id,
        row.deployment_id,
        row.number,
        row.bundle_digest,
        row.bundle,
        row.config,
        row.manifest_head,
        row.status,
        row.cache_policy,
        row.failure_reason,
        row.created_at,
        row.ready_at,
    ])?;
    tx.prepare_cached("INSERT INTO agent_manifest (version_id, manifest) VALUES (?1, ?2)")?
        .execute(params![row.id, manifest])?;
    Ok(())
}

/// Keeps what may change: the status and what belongs to it.
///
/// # Errors
/// Those of the database.
pub fn update(tx: &Tx<'_>, row: &VersionRow) -> Result<(), StoreError> {
    tx.prepare_cached(
        "UPDATE agent_version SET status = ?2, failure_reason = ?3, ready_at = ?4, build_id = ?5, deleted_at = ?6 WHERE id = ?1",
    )?
    .execute(params![
        row.id,
        row.status,
        row.failure_reason,
        row.ready_at,
        row.build_id,
        row.deleted_at,
    ])?;
    Ok(())
}

/// One version.
///
/// # Errors
/// Those of the database.
pub fn get(db: &Connection, id: &str) -> Result<Option<VersionRow>, StoreError> {
    Ok(db
        .prepare_cached(&format!(
            "SELECT {COLUMNS} FROM agent_version WHERE id = ?1"
        ))?
        .query_row([id], from_row)
        .optional()?)
}

/// The whole manifest of a version, JSON.
///
/// # Errors
/// Those of the database.
pub fn manifest(db: &Connection, id: &str) -> Result<Option<String>, StoreError> {
    Ok(db
        .prepare_cached("SELECT manifest FROM agent_manifest WHERE version_id = ?1")?
        .query_row([id], |row| row.get(0))
        .optional()?)
}

/// What a list of versions is narrowed to.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Of this deployment.
    pub deployment_id: String,
    /// Only this status.
    pub status: Option<String>,
    /// Only what was made before this place in the order.
    pub before: Option<i64>,
    /// At most this many.
    pub limit: u32,
}

/// Versions that are not deleted, newest first.
///
/// # Errors
/// Those of the database.
pub fn list(db: &Connection, filter: &Filter) -> Result<Vec<VersionRow>, StoreError> {
    let mut statement = db.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM agent_version WHERE deployment_id = ?1 AND seq < ?2 AND deleted_at IS NULL \
         AND (?3 IS NULL OR status = ?3) ORDER BY seq DESC LIMIT ?4"
    ))?;
    let before = filter.before.unwrap_or(i64::MAX);
    let rows = statement.query_map(
        params![filter.deployment_id, before, filter.status, filter.limit],
        from_row,
    )?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// The versions whose artifact is being made.
///
/// # Errors
/// Those of the database.
pub fn building(db: &Connection) -> Result<Vec<VersionRow>, StoreError> {
    let mut statement = db.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM agent_version WHERE status = 'building' ORDER BY seq"
    ))?;
    let rows = statement.query_map([], from_row)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// The versions that can be run: not deleted, nor their deployment.
///
/// # Errors
/// Those of the database.
pub fn live(db: &Connection) -> Result<Vec<VersionRow>, StoreError> {
    let mut statement = db.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM agent_version WHERE deleted_at IS NULL AND deployment_id IN \
         (SELECT id FROM agent_deployment WHERE status <> 'deleted') ORDER BY seq"
    ))?;
    let rows = statement.query_map([], from_row)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Whether a run or a service that goes on has this version.
///
/// # Errors
/// Those of the database.
pub fn is_in_use(db: &Connection, id: &str) -> Result<bool, StoreError> {
    Ok(db
        .prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM agent_run WHERE version_id = ?1 AND completed_at IS NULL) \
             OR EXISTS (SELECT 1 FROM agent_service WHERE version_id = ?1 AND stopped_at IS NULL)",
        )?
        .query_row([id], |row| row.get(0))?)
}
