//! Agent Deployments.

use std::collections::HashSet;

use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::{StoreError, Tx};

/// One deployment, as it is kept.
#[derive(Clone, Debug, PartialEq)]
pub struct DeploymentRow {
    /// Its place in the order of creation; set by [`insert`].
    pub seq: i64,
    /// Its id.
    pub id: String,
    /// Whose it is.
    pub tenant_id: String,
    /// Unique among those of the tenant that are not deleted.
    pub name: String,
    /// `job` or `service`.
    pub mode: String,
    /// `active`, `paused` or `deleted`.
    pub status: String,
    /// For people.
    pub description: Option<String>,
    /// JSON object.
    pub metadata: String,
    /// The version that runs when none is named.
    pub active_version_id: Option<String>,
    /// Number of the newest version.
    pub versions: i64,
    /// The key that asked for it.
    pub key_id: Option<String>,
    /// When it was made.
    pub created_at: i64,
    /// When it was last changed.
    pub updated_at: i64,
    /// When it was deleted.
    pub deleted_at: Option<i64>,
}

const COLUMNS: &str = "seq, id, name, mode, status, description, metadata, active_version_id, versions, \
     key_id, created_at, updated_at, deleted_at, tenant_id";

fn from_row(row: &Row<'_>) -> rusqlite::Result<DeploymentRow> {
    Ok(DeploymentRow {
        seq: row.get(0)?,
        id: row.get(1)?,
        name: row.get(2)?,
        mode: row.get(3)?,
        status: row.get(4)?,
        description: row.get(5)?,
        metadata: row.get(6)?,
        active_version_id: row.get(7)?,
        versions: row.get(8)?,
        key_id: row.get(9)?,
        created_at: row.get(10)?,
        updated_at: row.get(11)?,
        deleted_at: row.get(12)?,
        tenant_id: row.get(13)?,
    })
}

/// Keeps a new deployment.
///
/// # Errors
/// When the id or, among those that are not deleted, the name is taken.
pub fn insert(tx: &Tx<'_>, row: &DeploymentRow) -> Result<(), StoreError> {
    tx.prepare_cached(
        "INSERT INTO agent_deployment (id, name, mode, status, description, metadata, active_version_id, \
         versions, key_id, created_at, updated_at, deleted_at, tenant_id) \
         VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13)",
    )?
    .execute(params![
        row.id,
        row.name,
        row.mode,
        row.status,
        row.description,
        row.metadata,
        row.active_version_id,
        row.versions,
        row.key_id,
        row.created_at,
        row.updated_at,
        row.deleted_at,
        row.tenant_id,
    ])?;
    Ok(())
}

/// Keeps what may change.
///
/// # Errors
/// When the name is taken.
pub fn update(tx: &Tx<'_>, row: &DeploymentRow) -> Result<(), StoreError> {
    tx.prepare_cached(
        "UPDATE agent_deployment SET name = ?2, status = ?3, description = ?4, metadata = ?5, \
         active_version_id = ?6, versions = ?7, updated_at = ?8, deleted_at = ?9 WHERE id = ?1",
    )?
    .execute(params![
        row.id,
        row.name,
        row.status,
        row.description,
        row.metadata,
        row.active_version_id,
        row.versions,
        row.updated_at,
        row.deleted_at,
    ])?;
    Ok(())
}

/// One deployment by id, also a deleted one.
///
/// # Errors
/// Those of the database.
pub fn get(db: &Connection, id: &str) -> Result<Option<DeploymentRow>, StoreError> {
    Ok(db
        .prepare_cached(&format!(
            "SELECT {COLUMNS} FROM agent_deployment WHERE id = ?1"
        ))?
        .query_row([id], from_row)
        .optional()?)
}

/// A tenant's deployment of that name that is not deleted.
///
/// # Errors
/// Those of the database.
pub fn by_name(
    db: &Connection,
    tenant_id: &str,
    name: &str,
) -> Result<Option<DeploymentRow>, StoreError> {
    Ok(db
        .prepare_cached(&format!(
            "SELECT {COLUMNS} FROM agent_deployment WHERE tenant_id = ?1 AND name = ?2 AND status <> 'deleted'"
        ))?
        .query_row([tenant_id, name], from_row)
        .optional()?)
}

/// What a list of deployments is narrowed to.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Only of this tenant.
    pub tenant_id: String,
    /// Only this mode.
    pub mode: Option<String>,
    /// Only this status; all but deleted ones when absent.
    pub status: Option<String>,
    /// Only what was made before this place in the order.
    pub before: Option<i64>,
    /// At most this many.
    pub limit: u32,
}

/// Deployments, newest first.
///
/// # Errors
/// Those of the database.
pub fn list(db: &Connection, filter: &Filter) -> Result<Vec<DeploymentRow>, StoreError> {
    let mut statement = db.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM agent_deployment WHERE seq < ?1 AND (?2 IS NULL OR mode = ?2) \
         AND CASE WHEN ?3 IS NULL THEN status <> 'deleted' ELSE status = ?3 END \
         AND tenant_id = ?5 ORDER BY seq DESC LIMIT ?4"
    ))?;
    let before = filter.before.unwrap_or(i64::MAX);
    let rows = statement.query_map(
        params![
            before,
            filter.mode,
            filter.status,
            filter.limit,
            filter.tenant_id
        ],
        from_row,
    )?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Runs whose machine may still live.
const LIVE_RUNS: &str =
    "(completed_at IS NULL OR machine_id IN (SELECT id FROM machine WHERE ended_at IS NULL))";

fn words(db: &Connection, query: &str) -> Result<HashSet<String>, StoreError> {
    let mut statement = db.prepare_cached(query)?;
    let rows = statement.query_map([], |row| row.get(0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// The trees of bundles that a version or a machine needs.
///
/// # Errors
/// Those of the database.
pub fn needed_bundles(db: &Connection) -> Result<HashSet<String>, StoreError> {
    words(
        db,
        &format!(
            "SELECT DISTINCT version.bundle FROM agent_version version \
             JOIN agent_deployment deployment ON deployment.id = version.deployment_id \
             WHERE (deployment.status <> 'deleted' AND version.deleted_at IS NULL) \
             OR version.id IN (SELECT version_id FROM agent_run WHERE {LIVE_RUNS})"
        ),
    )
}

/// The runs whose outputs are needed: those of deployments that are not deleted, and those that go on.
///
/// # Errors
/// Those of the database.
pub fn needed_outputs(db: &Connection) -> Result<HashSet<String>, StoreError> {
    words(
        db,
        "SELECT run.id FROM agent_run run JOIN agent_deployment deployment ON deployment.id = run.deployment_id \
         WHERE deployment.status <> 'deleted' OR run.completed_at IS NULL",
    )
}
