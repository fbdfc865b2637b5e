//! Layers that steps of builds wrote or that images have, and files of build contexts.

use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::{StoreError, Tx};

/// One layer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LayerRow {
    /// Its id, and the name of its tree.
    pub id: String,
    /// Digest of what it depends on.
    pub key: String,
    /// Bytes on disk.
    pub size_bytes: u64,
    /// When it was made.
    pub created_at: i64,
    /// When a build last asked for it.
    pub used_at: i64,
    /// Whether its tree is known to be on the disk.
    pub is_synced: bool,
}

fn from_row(row: &Row<'_>) -> rusqlite::Result<LayerRow> {
    Ok(LayerRow {
        id: row.get(0)?,
        key: row.get(1)?,
        size_bytes: u64::try_from(row.get::<_, i64>(2)?).unwrap_or_default(),
        created_at: row.get(3)?,
        used_at: row.get(4)?,
        is_synced: row.get(5)?,
    })
}

const COLUMNS: &str = "id, key, size_bytes, created_at, used_at, is_synced";

/// Keeps a new layer.
///
/// # Errors
/// When the id is taken.
pub fn insert(tx: &Tx<'_>, row: &LayerRow) -> Result<(), StoreError> {
    tx.prepare_cached(
        "INSERT INTO template_layer (id, key, size_bytes, created_at, used_at) VALUES (?1,?2,?3,?4,?5)",
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

/// Keeps a layer of an image that may be known, whose tree is on the disk.
///
/// # Errors
/// Those of the database.
pub fn note(tx: &Tx<'_>, row: &LayerRow) -> Result<(), StoreError> {
    tx.prepare_cached(
        "INSERT INTO template_layer (id, key, size_bytes, created_at, used_at, is_synced) VALUES (?1,?2,?3,?4,?5,1) \
         ON CONFLICT (id) DO NOTHING",
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

/// Layers count as used from now on.
///
/// # Errors
/// Those of the database.
pub fn used(tx: &Tx<'_>, ids: &[String], now: i64) -> Result<(), StoreError> {
    let mut statement =
        tx.prepare_cached("UPDATE template_layer SET used_at = ?2 WHERE id = ?1")?;
    for id in ids {
        statement.execute(params![id, now])?;
    }
    Ok(())
}

/// Notes that the trees of layers are on the disk.
///
/// # Errors
/// Those of the database.
pub fn synced(tx: &Tx<'_>, ids: &[String]) -> Result<(), StoreError> {
    let mut statement =
        tx.prepare_cached("UPDATE template_layer SET is_synced = 1 WHERE id = ?1")?;
    for id in ids {
        statement.execute([id])?;
    }
    Ok(())
}

/// Forgets the layers whose trees may not have reached the disk. Called at start-up.
///
/// # Errors
/// Those of the database.
pub fn forget_unsynced(tx: &Tx<'_>) -> Result<usize, StoreError> {
    Ok(tx
        .prepare_cached("DELETE FROM template_layer WHERE is_synced = 0")?
        .execute([])?)
}

/// The newest layer of a key; it counts as used from now on.
///
/// # Errors
/// Those of the database.
pub fn take(tx: &Tx<'_>, key: &str, now: i64) -> Result<Option<LayerRow>, StoreError> {
    let found = tx
        .prepare_cached(&format!(
            "SELECT {COLUMNS} FROM template_layer WHERE key = ?1 ORDER BY seq DESC LIMIT 1"
        ))?
        .query_row([key], from_row)
        .optional()?;
    if let Some(row) = &found {
        tx.prepare_cached("UPDATE template_layer SET used_at = ?2 WHERE id = ?1")?
            .execute(params![row.id, now])?;
    }
    Ok(found)
}

/// Every layer, the one that was not used for longest first.
///
/// # Errors
/// Those of the database.
pub fn all(db: &Connection) -> Result<Vec<LayerRow>, StoreError> {
    let mut statement = db.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM template_layer ORDER BY used_at, seq"
    ))?;
    let rows = statement.query_map([], from_row)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Forgets a layer: whether there was one.
///
/// # Errors
/// Those of the database.
pub fn remove(tx: &Tx<'_>, id: &str) -> Result<bool, StoreError> {
    let removed = tx
        .prepare_cached("DELETE FROM template_layer WHERE id = ?1")?
        .execute([id])?;
    Ok(removed > 0)
}

/// A file of a build context.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlobRow {
    /// Its id, and the name of its file.
    pub id: String,
    /// Who sent it: nobody else learns that it is there.
    pub tenant_id: String,
    /// SHA-256 of its bytes in hex.
    pub sha256: String,
    /// How many they are.
    pub size_bytes: u64,
    /// Whether they are there.
    pub is_stored: bool,
    /// Whether whoever of the tenant has the same bytes is given it.
    pub is_shared: bool,
    /// When somebody last asked for it.
    pub used_at: i64,
}

fn blob_from_row(row: &Row<'_>) -> rusqlite::Result<BlobRow> {
    Ok(BlobRow {
        id: row.get(0)?,
        sha256: row.get(1)?,
        size_bytes: u64::try_from(row.get::<_, i64>(2)?).unwrap_or_default(),
        is_stored: row.get(3)?,
        is_shared: row.get(4)?,
        used_at: row.get(5)?,
        tenant_id: row.get(6)?,
    })
}

const BLOB_COLUMNS: &str = "id, sha256, size_bytes, is_stored, is_shared, used_at, tenant_id";

/// Records a file that is about to be sent.
///
/// # Errors
/// When the id is taken.
pub fn insert_blob(tx: &Tx<'_>, row: &BlobRow) -> Result<(), StoreError> {
    tx.prepare_cached(
        "INSERT INTO template_blob (id, sha256, size_bytes, is_shared, used_at, tenant_id) VALUES (?1,?2,?3,?4,?5,?6)",
    )?
    .execute(params![
        row.id,
        row.sha256,
        i64::try_from(row.size_bytes).unwrap_or(i64::MAX),
        row.is_shared,
        row.used_at,
        row.tenant_id,
    ])?;
    Ok(())
}

/// The blob of these bytes that others of the tenant may be given, one that is there before one that is not.
///
/// # Errors
/// Those of the database.
pub fn blob_of(
    db: &Connection,
    tenant_id: &str,
    sha256: &str,
    size_bytes: u64,
) -> Result<Option<BlobRow>, StoreError> {
    Ok(db
        .prepare_cached(&format!(
            "SELECT {BLOB_COLUMNS} FROM template_blob WHERE sha256 = ?1 AND size_bytes = ?2 AND is_shared = 1 AND tenant_id = ?3 \
             ORDER BY is_stored DESC LIMIT 1"
        ))?
        .query_row(
            params![
                sha256,
                i64::try_from(size_bytes).unwrap_or(i64::MAX),
                tenant_id
            ],
            blob_from_row,
        )
        .optional()?)
}

/// One blob.
///
/// # Errors
/// Those of the database.
pub fn blob(db: &Connection, id: &str) -> Result<Option<BlobRow>, StoreError> {
    Ok(db
        .prepare_cached(&format!(
            "SELECT {BLOB_COLUMNS} FROM template_blob WHERE id = ?1"
        ))?
        .query_row([id], blob_from_row)
        .optional()?)
}

/// Notes that somebody asked for it; with `stored` that its bytes are there.
///
/// # Errors
/// Those of the database.
pub fn touch_blob(tx: &Tx<'_>, id: &str, stored: bool, now: i64) -> Result<(), StoreError> {
    tx.prepare_cached(
        "UPDATE template_blob SET used_at = ?3, is_stored = is_stored OR ?2 WHERE id = ?1",
    )?
    .execute(params![id, stored, now])?;
    Ok(())
}

/// Blobs that nobody asked for since a time.
///
/// # Errors
/// Those of the database.
pub fn blobs_unused_since(db: &Connection, time: i64) -> Result<Vec<BlobRow>, StoreError> {
    let mut statement = db.prepare_cached(&format!(
        "SELECT {BLOB_COLUMNS} FROM template_blob WHERE used_at < ?1"
    ))?;
    let rows = statement.query_map([time], blob_from_row)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Forgets a blob that nobody asked for since a time. Answers whether it did.
///
/// # Errors
/// Those of the database.
pub fn remove_blob(tx: &Tx<'_>, id: &str, unused_since: i64) -> Result<bool, StoreError> {
    let removed = tx
        .prepare_cached("DELETE FROM template_blob WHERE id = ?1 AND used_at < ?2")?
        .execute(params![id, unused_since])?;
    Ok(removed > 0)
}
