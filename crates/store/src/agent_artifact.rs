//! What install commands left behind, kept as layers.

use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::{StoreError, Tx};

/// One artifact, as it is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ArtifactRow {
    /// Its id, and the name of its tree.
    pub id: String,
    /// Digest of what it depends on.
    pub key: String,
    /// Bytes on disk.
    pub size_bytes: u64,
    /// When it was made.
    pub created_at: i64,
    /// When a run last asked for it.
    pub used_at: i64,
}

const COLUMNS: &str = "id, key, size_bytes, created_at, used_at";
/// Runs that need their artifact: those that go on, and those whose machine lives.
const IN_USE: &str = "id IN (SELECT artifact_id FROM agent_run WHERE artifact_id IS NOT NULL AND \
     (completed_at IS NULL OR machine_id IN (SELECT id FROM machine WHERE ended_at IS NULL)))";

fn from_row(row: &Row<'_>) -> rusqlite::Result<ArtifactRow> {
    Ok(ArtifactRow {
        id: row.get(0)?,
        key: row.get(1)?,
        size_bytes: u64::try_from(row.get::<_, i64>(2)?).unwrap_or_default(),
        created_at: row.get(3)?,
        used_at: row.get(4)?,
    })
}

/// Keeps a new artifact.
///
/// # Errors
/// When the id is taken.
pub fn insert(tx: &Tx<'_>, row: &ArtifactRow) -> Result<(), StoreError> {
    tx.prepare_cached(
        "INSERT INTO agent_artifact (id, key, size_bytes, created_at, used_at) VALUES (?1,?2,?3,?4,?5)",
    )?
    .execute(params![
        row.id,
        row.key,
        i64::try_from(row.size_bytes).unwrap_or(i64::MAX),
        row.created_at,
        row.used_at,
    ])?;
    Ok(())
}

/// Notes that the tree of an artifact is on the disk.
///
/// # Errors
/// Those of the database.
pub fn synced(tx: &Tx<'_>, id: &str) -> Result<(), StoreError> {
    tx.prepare_cached("UPDATE agent_artifact SET is_synced = 1 WHERE id = ?1")?
        .execute([id])?;
    Ok(())
}

/// Forgets the artifacts whose trees may not have reached the disk, but for those that something needs. Called at
/// start-up.
///
/// # Errors
/// Those of the database.
pub fn forget_unsynced(tx: &Tx<'_>) -> Result<usize, StoreError> {
    Ok(tx
        .prepare_cached(&format!(
            "DELETE FROM agent_artifact WHERE is_synced = 0 AND NOT {IN_USE}"
        ))?
        .execute([])?)
}

/// The newest artifact of a key.
///
/// # Errors
/// Those of the database.
pub fn newest(db: &Connection, key: &str) -> Result<Option<ArtifactRow>, StoreError> {
    Ok(db
        .prepare_cached(&format!(
            "SELECT {COLUMNS} FROM agent_artifact WHERE key = ?1 ORDER BY seq DESC LIMIT 1"
        ))?
        .query_row([key], from_row)
        .optional()?)
}

/// Gives a run the newest artifact of a key: from now on it is in use.
///
/// # Errors
/// Those of the database.
pub fn take(
    tx: &Tx<'_>,
    key: &str,
    run_seq: i64,
    now: i64,
) -> Result<Option<ArtifactRow>, StoreError> {
    let Some(row) = newest(tx, key)? else {
        return Ok(None);
    };
    tx.prepare_cached("UPDATE agent_artifact SET used_at = ?2 WHERE id = ?1")?
        .execute(params![row.id, now])?;
    tx.prepare_cached("UPDATE agent_run SET artifact_id = ?2 WHERE seq = ?1")?
        .execute(params![run_seq, row.id])?;
    Ok(Some(row))
}

/// Every artifact, the one that was not used for longest first, and whether something needs it.
///
/// # Errors
/// Those of the database.
pub fn all(db: &Connection) -> Result<Vec<(ArtifactRow, bool)>, StoreError> {
    let mut statement = db.prepare_cached(&format!(
        "SELECT {COLUMNS}, {IN_USE} FROM agent_artifact ORDER BY used_at, seq"
    ))?;
    let rows = statement.query_map([], |row| Ok((from_row(row)?, row.get(5)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Forgets an artifact, unless something needs it. Answers whether it did.
///
/// # Errors
/// Those of the database.
pub fn remove(tx: &Tx<'_>, id: &str) -> Result<bool, StoreError> {
    let removed = tx
        .prepare_cached(&format!(
            "DELETE FROM agent_artifact WHERE id = ?1 AND NOT {IN_USE}"
        ))?
        .execute([id])?;
    Ok(removed > 0)
}
