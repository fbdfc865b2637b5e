//! API keys, as hashes.

use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::{StoreError, Tx};

/// One key. The key itself is nowhere.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyRow {
    /// Names it.
    pub id: String,
    /// Whose it is.
    pub tenant_id: String,
    /// For people.
    pub name: String,
    /// The key's first letters.
    pub prefix: String,
    /// SHA-256 of the key.
    pub hash: Vec<u8>,
    /// What it may be used for.
    pub scope: String,
    /// When it was made.
    pub created_at: i64,
    /// When it ends.
    pub expires_at: Option<i64>,
    /// When it was used, about.
    pub last_used_at: Option<i64>,
    /// When it was taken back.
    pub revoked_at: Option<i64>,
    /// The key that it replaced.
    pub rotated_from: Option<String>,
}

const COLUMNS: &str = "id, tenant_id, name, prefix, hash, scope, created_at, expires_at, last_used_at, revoked_at, rotated_from";

fn from_row(row: &Row<'_>) -> rusqlite::Result<KeyRow> {
    Ok(KeyRow {
        id: row.get(0)?,
        tenant_id: row.get(1)?,
        name: row.get(2)?,
        prefix: row.get(3)?,
        hash: row.get(4)?,
        scope: row.get(5)?,
        created_at: row.get(6)?,
        expires_at: row.get(7)?,
        last_used_at: row.get(8)?,
        revoked_at: row.get(9)?,
        rotated_from: row.get(10)?,
    })
}

/// Keeps a key. One that is kept already stays as it is.
///
/// # Errors
/// Those of the database.
pub fn insert(tx: &Tx<'_>, row: &KeyRow) -> Result<(), StoreError> {
    tx.prepare_cached(&format!(
        "INSERT INTO api_key ({COLUMNS}) VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11) ON CONFLICT (hash) DO NOTHING"
    ))?
    .execute(params![
        row.id,
        row.tenant_id,
        row.name,
        row.prefix,
        row.hash,
        row.scope,
        row.created_at,
        row.expires_at,
        row.last_used_at,
        row.revoked_at,
        row.rotated_from,
    ])?;
    Ok(())
}

/// The keys that were not taken back; some may be over their time.
///
/// # Errors
/// Those of the database.
pub fn valid(db: &Connection) -> Result<Vec<KeyRow>, StoreError> {
    let mut statement = db.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM api_key WHERE revoked_at IS NULL"
    ))?;
    let rows = statement.query_map([], from_row)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// All keys of a tenant, those that were taken back too, newest first.
///
/// # Errors
/// Those of the database.
pub fn list(db: &Connection, tenant_id: &str) -> Result<Vec<KeyRow>, StoreError> {
    let mut statement = db.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM api_key WHERE tenant_id = ?1 ORDER BY created_at DESC, id DESC"
    ))?;
    let rows = statement.query_map([tenant_id], from_row)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// One key of a tenant.
///
/// # Errors
/// Those of the database.
pub fn get(db: &Connection, tenant_id: &str, id: &str) -> Result<Option<KeyRow>, StoreError> {
    Ok(db
        .prepare_cached(&format!(
            "SELECT {COLUMNS} FROM api_key WHERE tenant_id = ?1 AND id = ?2"
        ))?
        .query_row([tenant_id, id], from_row)
        .optional()?)
}

/// How many keys of a tenant were not taken back.
///
/// # Errors
/// Those of the database.
pub fn count(db: &Connection, tenant_id: &str) -> Result<u64, StoreError> {
    let count: i64 = db
        .prepare_cached("SELECT COUNT(*) FROM api_key WHERE tenant_id = ?1 AND revoked_at IS NULL")?
        .query_row([tenant_id], |row| row.get(0))?;
    Ok(u64::try_from(count).unwrap_or_default())
}

/// Takes a key back.
///
/// # Errors
/// Those of the database.
pub fn revoke(tx: &Tx<'_>, id: &str, now: i64) -> Result<(), StoreError> {
    tx.prepare_cached("UPDATE api_key SET revoked_at = ?2 WHERE id = ?1 AND revoked_at IS NULL")?
        .execute(params![id, now])?;
    Ok(())
}

/// Has a key end at a time, or before it if it does so already.
///
/// # Errors
/// Those of the database.
pub fn expire(tx: &Tx<'_>, id: &str, at: i64) -> Result<(), StoreError> {
    tx.prepare_cached(
        "UPDATE api_key SET expires_at = MIN(COALESCE(expires_at, ?2), ?2) WHERE id = ?1",
    )?
    .execute(params![id, at])?;
    Ok(())
}

/// Notes when a key was used.
///
/// # Errors
/// Those of the database.
pub fn used(tx: &Tx<'_>, id: &str, at: i64) -> Result<(), StoreError> {
    tx.prepare_cached("UPDATE api_key SET last_used_at = ?2 WHERE id = ?1")?
        .execute(params![id, at])?;
    Ok(())
}
