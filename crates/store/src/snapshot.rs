//! Machines' states that are kept.

use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::{StoreError, Tx};

/// One of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotRow {
    /// Its id.
    pub id: String,
    /// Whose state it is.
    pub machine_id: String,
    /// `hibernate`, `snapshot` or `fork`.
    pub kind: String,
    /// Whether all of it is there. If not, the engine is at it, or was when the server died.
    pub is_ready: bool,
    /// The memory is on the host and goes with it; there is nothing on disk.
    pub in_place: bool,
    /// Bytes on disk, or of memory.
    pub size_bytes: u64,
    /// Of what is on disk.
    pub digest: Option<String>,
    /// What a machine made of it is like, JSON.
    pub shape: String,
    /// JSON object.
    pub metadata: String,
    /// Whose it is.
    pub tenant_id: String,
    /// The key that asked for it.
    pub key_id: Option<String>,
    /// The machine that a fork makes of it.
    pub child_id: Option<String>,
    /// How whoever asked for it spells a machine: `sandbox` or `machine`.
    pub noun: String,
    /// When it was asked for.
    pub created_at: i64,
}

const COLUMNS: &str = "id, machine_id, kind, state, in_place, size_bytes, digest, shape, metadata, key_id, noun, created_at, child_id, \
     tenant_id";

fn from_row(row: &Row<'_>) -> rusqlite::Result<SnapshotRow> {
    Ok(SnapshotRow {
        id: row.get(0)?,
        machine_id: row.get(1)?,
        kind: row.get(2)?,
        is_ready: row.get::<_, String>(3)? == "ready",
        in_place: row.get(4)?,
        size_bytes: u64::try_from(row.get::<_, i64>(5)?).unwrap_or_default(),
        digest: row.get(6)?,
        shape: row.get(7)?,
        metadata: row.get(8)?,
        key_id: row.get(9)?,
        noun: row.get(10)?,
        created_at: row.get(11)?,
        child_id: row.get(12)?,
        tenant_id: row.get(13)?,
    })
}

/// Keeps a new one, or what is known about one by now.
///
/// # Errors
/// Those of the database.
pub fn put(tx: &Tx<'_>, row: &SnapshotRow) -> Result<(), StoreError> {
    tx.prepare_cached(
        "INSERT INTO snapshot (id, machine_id, kind, state, in_place, size_bytes, digest, shape, metadata, key_id, noun, created_at, \
         child_id, tenant_id) VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,?14) \
         ON CONFLICT (id) DO UPDATE SET state = ?4, size_bytes = ?6, digest = ?7, metadata = ?9",
    )?
    .execute(params![
        row.id,
        row.machine_id,
        row.kind,
        if row.is_ready { "ready" } else { "writing" },
        row.in_place,
        i64::try_from(row.size_bytes).unwrap_or(i64::MAX),
        row.digest,
        row.shape,
        row.metadata,
        row.key_id,
        row.noun,
        row.created_at,
        row.child_id,
        row.tenant_id,
    ])?;
    Ok(())
}

/// One of them.
///
/// # Errors
/// Those of the database.
pub fn get(db: &Connection, id: &str) -> Result<Option<SnapshotRow>, StoreError> {
    Ok(db
        .prepare_cached(&format!("SELECT {COLUMNS} FROM snapshot WHERE id = ?1"))?
        .query_row([id], from_row)
        .optional()?)
}

/// All of them, newest first.
///
/// # Errors
/// Those of the database.
pub fn all(db: &Connection) -> Result<Vec<SnapshotRow>, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM snapshot ORDER BY seq DESC");
    let mut statement = db.prepare_cached(&sql)?;
    let rows = statement.query_map([], from_row)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Those of a tenant, or of one of its machines, newest first.
///
/// # Errors
/// Those of the database.
pub fn list(
    db: &Connection,
    tenant_id: &str,
    machine_id: Option<&str>,
) -> Result<Vec<SnapshotRow>, StoreError> {
    let sql = format!(
        "SELECT {COLUMNS} FROM snapshot WHERE tenant_id = ?1 AND (?2 IS NULL OR machine_id = ?2) ORDER BY seq DESC"
    );
    let mut statement = db.prepare_cached(&sql)?;
    let rows = statement.query_map(params![tenant_id, machine_id], from_row)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Forgets one; one that is not there is fine.
///
/// # Errors
/// Those of the database.
pub fn delete(tx: &Tx<'_>, id: &str) -> Result<(), StoreError> {
    tx.prepare_cached("DELETE FROM snapshot WHERE id = ?1")?
        .execute([id])?;
    Ok(())
}
