//! Uploads in parts.

use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::{StoreError, Tx};

/// One upload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UploadRow {
    /// Its id.
    pub id: String,
    /// The machine or the volume where it goes.
    pub machine_id: String,
    /// The user of the machine that it is made as.
    pub user: Option<String>,
    /// `file` or `directory_tar`.
    pub kind: String,
    /// What the client reads it from.
    pub source_kind: String,
    /// Absolute, once the machine has said which path it is.
    pub target_path: String,
    /// The file in the machine that takes the parts.
    pub staging: Option<String>,
    /// All bytes.
    pub content_length: u64,
    /// Bytes of each part but the last.
    pub part_size: u64,
    /// How many.
    pub part_count: u32,
    /// The lowest that is missing; `part_count` when none is.
    pub next_part: u32,
    /// Bytes of the parts that are there.
    pub accepted_bytes: u64,
    /// `merge`, `replace` or `error`.
    pub conflict: String,
    /// SHA-256 of all bytes, if it was announced.
    pub whole_sha256: Option<String>,
    /// See `nullspace_api::upload::UploadStatus`.
    pub status: String,
    /// Bytes that were published.
    pub published_bytes: Option<u64>,
    /// Files that were.
    pub published_files: Option<u64>,
    /// When it was begun.
    pub created_at: i64,
    /// When it changed last.
    pub updated_at: i64,
    /// When it is given up.
    pub expires_at: i64,
}

const COLUMNS: &str = "id, machine_id, user, kind, source_kind, target_path, staging, content_length, part_size, \
     part_count, next_part, accepted_bytes, conflict, whole_sha256, status, published_bytes, published_files, \
     created_at, updated_at, expires_at";
/// Uploads that are not over.
const OPEN: &str = "status IN ('created', 'uploading', 'staged', 'completing')";

fn from_row(row: &Row<'_>) -> rusqlite::Result<UploadRow> {
    let unsigned = |column: usize| -> rusqlite::Result<u64> {
        Ok(u64::try_from(row.get::<_, i64>(column)?).unwrap_or_default())
    };
    let optional = |column: usize| -> rusqlite::Result<Option<u64>> {
        Ok(row
            .get::<_, Option<i64>>(column)?
            .and_then(|value| u64::try_from(value).ok()))
    };
    Ok(UploadRow {
        id: row.get(0)?,
        machine_id: row.get(1)?,
        user: row.get(2)?,
        kind: row.get(3)?,
        source_kind: row.get(4)?,
        target_path: row.get(5)?,
        staging: row.get(6)?,
        content_length: unsigned(7)?,
        part_size: unsigned(8)?,
        part_count: row.get(9)?,
        next_part: row.get(10)?,
        accepted_bytes: unsigned(11)?,
        conflict: row.get(12)?,
        whole_sha256: row.get(13)?,
        status: row.get(14)?,
        published_bytes: optional(15)?,
        published_files: optional(16)?,
        created_at: row.get(17)?,
        updated_at: row.get(18)?,
        expires_at: row.get(19)?,
    })
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Records a new upload.
///
/// # Errors
/// When the id is taken.
pub fn insert(tx: &Tx<'_>, row: &UploadRow) -> Result<(), StoreError> {
    tx.prepare_cached(
        "INSERT INTO upload (id, machine_id, user, kind, source_kind, target_path, content_length, part_size, \
         part_count, conflict, whole_sha256, status, created_at, updated_at, expires_at) \
         VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,?13,?14)",
    )?
    .execute(params![
        row.id,
        row.machine_id,
        row.user,
        row.kind,
        row.source_kind,
        row.target_path,
        signed(row.content_length),
        signed(row.part_size),
        row.part_count,
        row.conflict,
        row.whole_sha256,
        row.status,
        row.created_at,
        row.expires_at,
    ])?;
    Ok(())
}

/// One upload of a machine.
///
/// # Errors
/// Those of the database.
pub fn get(db: &Connection, machine_id: &str, id: &str) -> Result<Option<UploadRow>, StoreError> {
    Ok(db
        .prepare_cached(&format!(
            "SELECT {COLUMNS} FROM upload WHERE id = ?1 AND machine_id = ?2"
        ))?
        .query_row([id, machine_id], from_row)
        .optional()?)
}

/// How many uploads of a machine are not over, and their bytes.
///
/// # Errors
/// Those of the database.
pub fn open_of(db: &Connection, machine_id: &str) -> Result<(u64, u64), StoreError> {
    Ok(db
        .prepare_cached(&format!(
            "SELECT COUNT(*), COALESCE(SUM(content_length), 0) FROM upload WHERE machine_id = ?1 AND {OPEN}"
        ))?
        .query_row([machine_id], |row| {
            Ok((
                u64::try_from(row.get::<_, i64>(0)?).unwrap_or_default(),
                u64::try_from(row.get::<_, i64>(1)?).unwrap_or_default(),
            ))
        })?)
}

/// Notes where the machine keeps the parts and which path the target is.
///
/// # Errors
/// Those of the database.
pub fn staged(tx: &Tx<'_>, id: &str, staging: &str, target: &str) -> Result<(), StoreError> {
    tx.prepare_cached("UPDATE upload SET staging = ?2, target_path = ?3 WHERE id = ?1")?
        .execute([id, staging, target])?;
    Ok(())
}

/// Forgets an upload that never began.
///
/// # Errors
/// Those of the database.
pub fn remove(tx: &Tx<'_>, id: &str) -> Result<(), StoreError> {
    tx.prepare_cached("DELETE FROM upload WHERE id = ?1")?
        .execute([id])?;
    Ok(())
}

/// The numbers of the parts that are there, in order.
///
/// # Errors
/// Those of the database.
pub fn parts(db: &Connection, id: &str) -> Result<Vec<u32>, StoreError> {
    let mut parts =
        db.prepare_cached("SELECT part FROM upload_part WHERE upload_id = ?1 ORDER BY part")?;
    let parts = parts.query_map([id], |row| row.get(0))?;
    Ok(parts.collect::<rusqlite::Result<_>>()?)
}

/// The checksum of a part, if it is there.
///
/// # Errors
/// Those of the database.
pub fn part(db: &Connection, id: &str, part: u32) -> Result<Option<String>, StoreError> {
    Ok(db
        .prepare_cached("SELECT sha256 FROM upload_part WHERE upload_id = ?1 AND part = ?2")?
        .query_row(params![id, part], |row| row.get(0))
        .optional()?)
}

/// Notes that a part is there.
///
/// # Errors
/// Those of the database.
pub fn accept(
    tx: &Tx<'_>,
    row: &UploadRow,
    part: u32,
    sha256: &str,
    bytes: u64,
    now: i64,
) -> Result<(), StoreError> {
    let is_new = tx
        .prepare_cached(
            "INSERT INTO upload_part (upload_id, part, sha256) VALUES (?1,?2,?3) ON CONFLICT DO NOTHING",
        )?
        .execute(params![row.id, part, sha256])?;
    if is_new == 0 {
        return Ok(());
    }
    let mut next: u32 = tx
        .prepare_cached("SELECT next_part FROM upload WHERE id = ?1")?
        .query_row([&row.id], |row| row.get(0))?;
    while next < row.part_count && self::part(tx, &row.id, next)?.is_some() {
        next += 1;
    }
    let status = match next == row.part_count {
        true => "staged",
        false => "uploading",
    };
    tx.prepare_cached(
        "UPDATE upload SET accepted_bytes = accepted_bytes + ?2, next_part = ?3, status = ?4, updated_at = ?5 \
         WHERE id = ?1 AND status IN ('created', 'uploading')",
    )?
    .execute(params![row.id, signed(bytes), next, status, now])?;
    Ok(())
}

/// Moves an upload that is not over to another status. Answers whether it did.
///
/// # Errors
/// Those of the database.
pub fn set_status(tx: &Tx<'_>, id: &str, status: &str, now: i64) -> Result<bool, StoreError> {
    let changed = tx
        .prepare_cached(&format!(
            "UPDATE upload SET status = ?2, updated_at = ?3 WHERE id = ?1 AND {OPEN}"
        ))?
        .execute(params![id, status, now])?;
    Ok(changed > 0)
}

/// Notes that an upload is in its place.
///
/// # Errors
/// Those of the database.
pub fn completed(
    tx: &Tx<'_>,
    id: &str,
    bytes: u64,
    files: u64,
    now: i64,
) -> Result<(), StoreError> {
    tx.prepare_cached(&format!(
        "UPDATE upload SET status = 'completed', is_staged = 0, published_bytes = ?2, published_files = ?3, \
         updated_at = ?4 WHERE id = ?1 AND {OPEN}"
    ))?
    .execute(params![id, signed(bytes), signed(files), now])?;
    Ok(())
}

/// Gives up what is over its time.
///
/// # Errors
/// Those of the database.
pub fn expire(tx: &Tx<'_>, now: i64) -> Result<usize, StoreError> {
    Ok(tx
        .prepare_cached(&format!(
            "UPDATE upload SET status = 'expired', updated_at = ?1 WHERE expires_at <= ?1 AND {OPEN}"
        ))?
        .execute([now])?)
}

/// Uploads that are over and whose staged files may still be there.
///
/// # Errors
/// Those of the database.
pub fn left(db: &Connection) -> Result<Vec<UploadRow>, StoreError> {
    let mut statement = db.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM upload WHERE is_staged = 1 AND NOT {OPEN} LIMIT 1000"
    ))?;
    let rows = statement.query_map([], from_row)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Notes that the staged file is gone.
///
/// # Errors
/// Those of the database.
pub fn cleared(tx: &Tx<'_>, id: &str) -> Result<(), StoreError> {
    tx.prepare_cached("UPDATE upload SET is_staged = 0 WHERE id = ?1")?
        .execute([id])?;
    Ok(())
}

/// Forgets uploads that are over and were to expire before this time, and those of machines and volumes that are forgotten.
///
/// # Errors
/// Those of the database.
pub fn forget_before(tx: &Tx<'_>, time: i64) -> Result<usize, StoreError> {
    Ok(tx
        .prepare_cached(&format!(
            "DELETE FROM upload WHERE (expires_at < ?1 AND is_staged = 0 AND NOT {OPEN}) \
             OR (machine_id NOT IN (SELECT id FROM machine) AND machine_id NOT IN (SELECT id FROM volume))"
        ))?
        .execute([time])?)
}
