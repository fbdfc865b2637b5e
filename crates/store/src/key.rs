//! API keys, as hashes.

use rusqlite::{Connection, params};

use crate::{StoreError, Tx};

/// One key. The key itself is nowhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRow {
    /// Names it.
    pub id: String,
    /// For people.
    pub name: String,
    /// The key's first letters.
    pub prefix: String,
    /// SHA-256 of the key.
    pub hash: Vec<u8>,
    /// When it was made.
    pub created_at: i64,
}

/// Keeps a key. One that is kept already stays as it is.
///
/// # Errors
/// Those of the database.
pub fn insert(tx: &Tx<'_>, row: &KeyRow) -> Result<(), StoreError> {
    tx.prepare_cached(
        "INSERT INTO api_key (id, name, prefix, hash, created_at) VALUES (?1,?2,?3,?4,?5) \
         ON CONFLICT (hash) DO NOTHING",
    )?
    .execute(params![
        row.id,
        row.name,
        row.prefix,
        row.hash,
        row.created_at
    ])?;
    Ok(())
}

/// The keys that are valid.
///
/// # Errors
/// Those of the database.
pub fn valid(db: &Connection) -> Result<Vec<KeyRow>, StoreError> {
    let mut statement = db.prepare_cached(
        "SELECT id, name, prefix, hash, created_at FROM api_key WHERE revoked_at IS NULL",
    )?;
    let rows = statement.query_map([], |row| {
        Ok(KeyRow {
            id: row.get(0)?,
            name: row.get(1)?,
            prefix: row.get(2)?,
            hash: row.get(3)?,
            created_at: row.get(4)?,
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}
