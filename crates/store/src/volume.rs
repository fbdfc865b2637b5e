//! Volumes, and where they are mounted.

use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::Deserialize;

use crate::{StoreError, Tx, machine::MachineRow};

/// One volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VolumeRow {
    /// Its id.
    pub id: String,
    /// Whose it is.
    pub tenant_id: String,
    /// Its name; no other of the tenant has it.
    pub name: String,
    /// `available` or `deleting`.
    pub state: String,
    /// The most bytes it may have.
    pub max_size_bytes: Option<u64>,
    /// The most files, directories and links.
    pub max_file_count: Option<u64>,
    /// Bytes that it had when they were counted last.
    pub used_bytes: u64,
    /// Files, directories and links at that time.
    pub inode_count: u64,
    /// When that was.
    pub counted_at: Option<i64>,
    /// The key that asked for it.
    pub key_id: Option<String>,
    /// When it was made.
    pub created_at: i64,
    /// Places where it is mounted, or about to be, or was to be; not written by [`insert`].
    pub attachments: u64,
    /// Those where it is, in machines that run or sleep; not written by [`insert`].
    pub mounts: u64,
    /// Those where it could not be; not written by [`insert`].
    pub failed: u64,
}

/// One place where a volume is mounted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct AttachmentRow {
    /// Its id.
    pub id: String,
    /// The volume.
    pub volume_id: String,
    /// The machine.
    pub machine_id: String,
    /// Absolute, in the machine.
    pub mount_path: String,
    /// Whether writes are refused.
    pub read_only: bool,
    /// The directory of the volume that is shown; all of it when absent.
    pub subpath: Option<String>,
    /// `mounting`, `mounted`, `paused`, `remounting`, `failed` or `releasing`.
    pub state: String,
    /// With `failed`.
    pub error_code: Option<String>,
    /// With `failed`.
    pub error_message: Option<String>,
    /// When it was asked for.
    pub created_at: i64,
    /// When it changed last.
    pub updated_at: i64,
}

const COLUMNS: &str = "id, name, state, max_size_bytes, max_file_count, used_bytes, inode_count, counted_at, key_id, \
     created_at, tenant_id, (SELECT COUNT(*) FROM volume_attachment a WHERE a.volume_id = volume.id), \
     (SELECT COUNT(*) FROM volume_attachment a WHERE a.volume_id = volume.id AND a.state IN ('mounted', 'paused')), \
     (SELECT COUNT(*) FROM volume_attachment a WHERE a.volume_id = volume.id AND a.state = 'failed')";
const ATTACHMENT: &str = "id, volume_id, machine_id, mount_path, read_only, subpath, state, error_code, error_message, \
     created_at, updated_at";

fn from_row(row: &Row<'_>) -> rusqlite::Result<VolumeRow> {
    Ok(VolumeRow {
        id: row.get(0)?,
        name: row.get(1)?,
        state: row.get(2)?,
        max_size_bytes: row.get::<_, Option<i64>>(3)?.map(unsigned),
        max_file_count: row.get::<_, Option<i64>>(4)?.map(unsigned),
        used_bytes: unsigned(row.get(5)?),
        inode_count: unsigned(row.get(6)?),
        counted_at: row.get(7)?,
        key_id: row.get(8)?,
        created_at: row.get(9)?,
        tenant_id: row.get(10)?,
        attachments: unsigned(row.get(11)?),
        mounts: unsigned(row.get(12)?),
        failed: unsigned(row.get(13)?),
    })
}

fn attachment(row: &Row<'_>) -> rusqlite::Result<AttachmentRow> {
    Ok(AttachmentRow {
        id: row.get(0)?,
        volume_id: row.get(1)?,
        machine_id: row.get(2)?,
        mount_path: row.get(3)?,
        read_only: row.get(4)?,
        subpath: row.get(5)?,
        state: row.get(6)?,
        error_code: row.get(7)?,
        error_message: row.get(8)?,
        created_at: row.get(9)?,
        updated_at: row.get(10)?,
    })
}

fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or_default()
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Records a new volume. Answers whether its name was free.
///
/// # Errors
/// Those of the database.
pub fn insert(tx: &Tx<'_>, row: &VolumeRow) -> Result<bool, StoreError> {
    let inserted = tx
        .prepare_cached(
            "INSERT INTO volume (id, name, state, max_size_bytes, max_file_count, key_id, created_at, tenant_id) \
             VALUES (?1,?2,?3,?4,?5,?6,?7,?8) ON CONFLICT (tenant_id, name) DO NOTHING",
        )?
        .execute(params![
            row.id,
            row.name,
            row.state,
            row.max_size_bytes.map(signed),
            row.max_file_count.map(signed),
            row.key_id,
            row.created_at,
            row.tenant_id,
        ])?;
    Ok(inserted > 0)
}

/// One volume, by id.
///
/// # Errors
/// Those of the database.
pub fn get(db: &Connection, id: &str) -> Result<Option<VolumeRow>, StoreError> {
    Ok(db
        .prepare_cached(&format!("SELECT {COLUMNS} FROM volume WHERE id = ?1"))?
        .query_row([id], from_row)
        .optional()?)
}

/// A volume of a tenant, by name.
///
/// # Errors
/// Those of the database.
pub fn by_name(
    db: &Connection,
    tenant_id: &str,
    name: &str,
) -> Result<Option<VolumeRow>, StoreError> {
    Ok(db
        .prepare_cached(&format!(
            "SELECT {COLUMNS} FROM volume WHERE tenant_id = ?1 AND name = ?2"
        ))?
        .query_row([tenant_id, name], from_row)
        .optional()?)
}

/// The volumes of a tenant, newest first.
///
/// # Errors
/// Those of the database.
pub fn list(db: &Connection, tenant_id: &str) -> Result<Vec<VolumeRow>, StoreError> {
    let mut statement = db.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM volume WHERE tenant_id = ?1 ORDER BY seq DESC"
    ))?;
    let rows = statement.query_map([tenant_id], from_row)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// All volumes, newest first.
///
/// # Errors
/// Those of the database.
pub fn all(db: &Connection) -> Result<Vec<VolumeRow>, StoreError> {
    let mut statement =
        db.prepare_cached(&format!("SELECT {COLUMNS} FROM volume ORDER BY seq DESC"))?;
    let rows = statement.query_map([], from_row)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// How many there are.
///
/// # Errors
/// Those of the database.
pub fn count(db: &Connection) -> Result<u64, StoreError> {
    Ok(unsigned(
        db.prepare_cached("SELECT COUNT(*) FROM volume")?
            .query_row([], |row| row.get(0))?,
    ))
}

/// Moves a volume to another state.
///
/// # Errors
/// Those of the database.
pub fn set_state(tx: &Tx<'_>, id: &str, state: &str) -> Result<(), StoreError> {
    tx.prepare_cached("UPDATE volume SET state = ?2 WHERE id = ?1")?
        .execute([id, state])?;
    Ok(())
}

/// Forgets a volume that is mounted nowhere.
///
/// # Errors
/// Those of the database.
pub fn remove(tx: &Tx<'_>, id: &str) -> Result<(), StoreError> {
    tx.prepare_cached("DELETE FROM volume WHERE id = ?1")?
        .execute([id])?;
    Ok(())
}

/// Notes what a volume has.
///
/// # Errors
/// Those of the database.
pub fn counted(tx: &Tx<'_>, id: &str, bytes: u64, inodes: u64, now: i64) -> Result<(), StoreError> {
    tx.prepare_cached(
        "UPDATE volume SET used_bytes = ?2, inode_count = ?3, counted_at = ?4 WHERE id = ?1",
    )?
    .execute(params![id, signed(bytes), signed(inodes), now])?;
    Ok(())
}

/// The volumes that a machine can write to now.
///
/// # Errors
/// Those of the database.
pub fn written(db: &Connection) -> Result<Vec<String>, StoreError> {
    let mut statement = db.prepare_cached(
        "SELECT DISTINCT volume_id FROM volume_attachment WHERE read_only = 0 AND state = 'mounted'",
    )?;
    let ids = statement.query_map([], |row| row.get(0))?;
    Ok(ids.collect::<Result<_, _>>()?)
}

/// Records that a volume is to be mounted. Answers whether the volume is there to be.
///
/// # Errors
/// When the machine has something at the path already.
pub fn attach(tx: &Tx<'_>, row: &AttachmentRow) -> Result<bool, StoreError> {
    let inserted = tx
        .prepare_cached(
            "INSERT INTO volume_attachment (id, volume_id, machine_id, mount_path, read_only, subpath, state, \
             created_at, updated_at) SELECT ?1, id, ?3, ?4, ?5, ?6, ?7, ?8, ?8 FROM volume WHERE id = ?2 \
             AND state = 'available'",
        )?
        .execute(params![
            row.id,
            row.volume_id,
            row.machine_id,
            row.mount_path,
            row.read_only,
            row.subpath,
            row.state,
            row.created_at,
        ])?;
    Ok(inserted > 0)
}

/// Where a volume is mounted, in the order in which that was asked for.
///
/// # Errors
/// Those of the database.
pub fn attachments(db: &Connection, volume_id: &str) -> Result<Vec<AttachmentRow>, StoreError> {
    let mut statement = db.prepare_cached(&format!(
        "SELECT {ATTACHMENT} FROM volume_attachment WHERE volume_id = ?1 ORDER BY seq"
    ))?;
    let rows = statement.query_map([volume_id], attachment)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Notes what became of an attachment.
///
/// # Errors
/// Those of the database.
pub fn update_attachment(tx: &Tx<'_>, row: &AttachmentRow) -> Result<(), StoreError> {
    tx.prepare_cached(
        "UPDATE volume_attachment SET state = ?2, error_code = ?3, error_message = ?4, updated_at = ?5 WHERE id = ?1",
    )?
    .execute(params![
        row.id,
        row.state,
        row.error_code,
        row.error_message,
        row.updated_at
    ])?;
    Ok(())
}

/// Forgets an attachment: the volume is not mounted there any more.
///
/// # Errors
/// Those of the database.
pub fn detach(tx: &Tx<'_>, id: &str) -> Result<(), StoreError> {
    tx.prepare_cached("DELETE FROM volume_attachment WHERE id = ?1")?
        .execute([id])?;
    Ok(())
}

/// Makes the attachments of a machine what its state says: with the machine that now runs they are mounted, with one that
/// sleeps they do, with one that ended they are gone.
pub(crate) fn follow(tx: &Tx<'_>, machine: &MachineRow) -> Result<(), StoreError> {
    const NOW: &str = "CAST(unixepoch('subsec') * 1000000 AS INTEGER)";
    match machine.state.as_str() {
        "destroyed" | "error" => tx
            .prepare_cached("DELETE FROM volume_attachment WHERE machine_id = ?1")?
            .execute([&machine.id])?,
        _ if machine.volumes.is_empty() => 0,
        // One that was asked for later goes its own way.
        "running" => tx
            .prepare_cached(&format!(
                "UPDATE volume_attachment SET state = 'mounted', updated_at = {NOW} WHERE machine_id = ?1 \
                 AND (state = 'paused' OR (state = 'mounting' AND created_at <= ?2))"
            ))?
            .execute(params![machine.id, machine.created_at])?,
        "paused" => tx
            .prepare_cached(&format!(
                "UPDATE volume_attachment SET state = 'paused', updated_at = {NOW} WHERE machine_id = ?1 \
                 AND state = 'mounted'"
            ))?
            .execute([&machine.id])?,
        _ => 0,
    };
    Ok(())
}

/// The attachments of a machine from the column `volumes` of a query of machines.
pub(crate) fn of_a_machine(json: &str) -> Vec<AttachmentRow> {
    match json {
        "[]" => Vec::new(),
        json => serde_json::from_str(json).unwrap_or_default(),
    }
}
