//! Builds of templates and what they say.

use rusqlite::{Connection, OptionalExtension, Row, params, params_from_iter, types::Value};

use crate::{StoreError, Tx};

/// One build.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BuildRow {
    /// Its place in the order of builds; set by [`insert`].
    pub seq: i64,
    /// Its id.
    pub id: String,
    /// What it is a build of.
    pub template_id: String,
    /// Whose it is.
    pub tenant_id: String,
    /// The template's name when it was asked for.
    pub name: String,
    /// The key that asked for it.
    pub key_id: String,
    /// See `nullspace_api::template_build::BuildStatus`.
    pub status: String,
    /// `native` or `buildkit`.
    pub backend: String,
    /// `declarative`, `dockerfile`, `oci_import` or `template_base`.
    pub source_type: String,
    /// JSON: what only is told back.
    pub view: String,
    /// What was asked, sealed.
    pub definition: Vec<u8>,
    /// Ids of layers that it needs, JSON list.
    pub layers: String,
    /// What machines start from, sealed.
    pub artifact: Option<Vec<u8>>,
    /// The digest of that.
    pub digest: Option<String>,
    /// How many entries its log has.
    pub entries: u64,
    /// When it was asked for.
    pub created_at: i64,
    /// When it changed last.
    pub updated_at: i64,
    /// When its template was deleted.
    pub deleted_at: Option<i64>,
}

const COLUMNS: &str = "seq, id, template_id, name, key_id, status, backend, source_type, view, definition, layers, \
     artifact, digest, entries, created_at, updated_at, deleted_at, tenant_id";
/// Builds whose layers something needs: those of templates that are there, those at work, and those below machines
/// that live or wait in pools, and below states that are kept.
const NEEDED: &str = "((status IN ('waiting', 'building') OR (status = 'ready' AND deleted_at IS NULL)) \
     OR digest IN (SELECT layer_digest FROM machine WHERE ended_at IS NULL) \
     OR digest IN (SELECT digest FROM warm_instance) \
     OR digest IN (SELECT json_extract(shape, '$.layer_digest') FROM snapshot))";

fn from_row(row: &Row<'_>) -> rusqlite::Result<BuildRow> {
    Ok(BuildRow {
        seq: row.get(0)?,
        id: row.get(1)?,
        template_id: row.get(2)?,
        name: row.get(3)?,
        key_id: row.get(4)?,
        status: row.get(5)?,
        backend: row.get(6)?,
        source_type: row.get(7)?,
        view: row.get(8)?,
        definition: row.get(9)?,
        layers: row.get(10)?,
        artifact: row.get(11)?,
        digest: row.get(12)?,
        entries: u64::try_from(row.get::<_, i64>(13)?).unwrap_or_default(),
        created_at: row.get(14)?,
        updated_at: row.get(15)?,
        deleted_at: row.get(16)?,
        tenant_id: row.get(17)?,
    })
}

/// Records a new build; answers its place in the order.
///
/// # Errors
/// When the id is taken.
pub fn insert(tx: &Tx<'_>, row: &BuildRow) -> Result<i64, StoreError> {
    tx.prepare_cached(
        "INSERT INTO template_build (id, template_id, name, key_id, status, backend, source_type, view, definition, \
         created_at, updated_at, tenant_id) VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?10,?11)",
    )?
    .execute(params![
        row.id,
        row.template_id,
        row.name,
        row.key_id,
        row.status,
        row.backend,
        row.source_type,
        row.view,
        row.definition,
        row.created_at,
        row.tenant_id,
    ])?;
    Ok(tx.last_insert_rowid())
}

/// Keeps what changes.
///
/// # Errors
/// Those of the database.
pub fn update(tx: &Tx<'_>, row: &BuildRow) -> Result<(), StoreError> {
    tx.prepare_cached(
        "UPDATE template_build SET status = ?2, view = ?3, layers = ?4, artifact = ?5, digest = ?6, entries = ?7, \
         updated_at = ?8 WHERE seq = ?1",
    )?
    .execute(params![
        row.seq,
        row.status,
        row.view,
        row.layers,
        row.artifact,
        row.digest,
        i64::try_from(row.entries).unwrap_or(i64::MAX),
        row.updated_at,
    ])?;
    Ok(())
}

/// One build, also of a template that was deleted.
///
/// # Errors
/// Those of the database.
pub fn get(db: &Connection, id: &str) -> Result<Option<BuildRow>, StoreError> {
    Ok(db
        .prepare_cached(&format!(
            "SELECT {COLUMNS} FROM template_build WHERE id = ?1"
        ))?
        .query_row([id], from_row)
        .optional()?)
}

/// The newest ready build with that digest.
///
/// # Errors
/// Those of the database.
pub fn by_digest(db: &Connection, digest: &str) -> Result<Option<BuildRow>, StoreError> {
    Ok(db
        .prepare_cached(&format!(
            "SELECT {COLUMNS} FROM template_build WHERE digest = ?1 AND status = 'ready' ORDER BY seq DESC LIMIT 1"
        ))?
        .query_row([digest], from_row)
        .optional()?)
}

/// Which builds.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Of this template.
    pub template_id: String,
    /// With this status.
    pub status: Option<String>,
    /// Of this way.
    pub backend: Option<String>,
    /// Of this source.
    pub source_type: Option<String>,
    /// Before this place in the order.
    pub before: Option<i64>,
    /// At most so many.
    pub limit: u32,
}

/// Builds, the newest first.
///
/// # Errors
/// Those of the database.
pub fn list(db: &Connection, filter: &Filter) -> Result<Vec<BuildRow>, StoreError> {
    let mut sql = format!("SELECT {COLUMNS} FROM template_build WHERE template_id = ?");
    let mut values: Vec<Value> = vec![filter.template_id.clone().into()];
    for (column, wanted) in [
        ("status", &filter.status),
        ("backend", &filter.backend),
        ("source_type", &filter.source_type),
    ] {
        if let Some(wanted) = wanted {
            sql.push_str(&format!(" AND {column} = ?"));
            values.push(wanted.clone().into());
        }
    }
    if let Some(before) = filter.before {
        sql.push_str(" AND seq < ?");
        values.push(before.into());
    }
    sql.push_str(" ORDER BY seq DESC LIMIT ?");
    values.push(i64::from(filter.limit).into());
    let mut statement = db.prepare_cached(&sql)?;
    let rows = statement.query_map(params_from_iter(values), from_row)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Builds that were at work.
///
/// # Errors
/// Those of the database.
pub fn unfinished(db: &Connection) -> Result<Vec<BuildRow>, StoreError> {
    let mut statement = db.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM template_build WHERE status IN ('waiting', 'building') ORDER BY seq"
    ))?;
    let rows = statement.query_map([], from_row)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Builds whose layers something needs.
///
/// # Errors
/// Those of the database.
pub fn needed(db: &Connection) -> Result<Vec<BuildRow>, StoreError> {
    let mut statement = db.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM template_build WHERE {NEEDED}"
    ))?;
    let rows = statement.query_map([], from_row)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Something that a build says, JSON, and when.
pub type Entry = (i64, String);

/// Appends entries, the first with number `from`. The caller keeps the count.
///
/// # Errors
/// When a number is taken.
pub fn append(tx: &Tx<'_>, build_seq: i64, from: u64, entries: &[Entry]) -> Result<(), StoreError> {
    let mut statement = tx.prepare_cached(
        "INSERT INTO template_log (build_seq, number, at, entry) VALUES (?1,?2,?3,?4)",
    )?;
    for (number, (at, entry)) in (from..).zip(entries) {
        let number = i64::try_from(number).unwrap_or(i64::MAX);
        statement.execute(params![build_seq, number, at, entry])?;
    }
    Ok(())
}

/// Entries from a number on, in order: number, time, JSON.
///
/// # Errors
/// Those of the database.
pub fn log(
    db: &Connection,
    build_seq: i64,
    from: u64,
    limit: u32,
) -> Result<Vec<(u64, i64, String)>, StoreError> {
    let mut statement = db.prepare_cached(
        "SELECT number, at, entry FROM template_log WHERE build_seq = ?1 AND number >= ?2 ORDER BY number LIMIT ?3",
    )?;
    let from = i64::try_from(from).unwrap_or(i64::MAX);
    let rows = statement.query_map(params![build_seq, from, limit], |row| {
        let number: i64 = row.get(0)?;
        Ok((
            u64::try_from(number).unwrap_or_default(),
            row.get(1)?,
            row.get(2)?,
        ))
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Forgets builds of deleted templates that ended before a time and that nothing needs, with their logs.
///
/// # Errors
/// Those of the database.
pub fn forget_deleted_before(tx: &Tx<'_>, time: i64) -> Result<usize, StoreError> {
    let gone = tx
        .prepare_cached(&format!(
            "DELETE FROM template_build WHERE deleted_at < ?1 AND NOT {NEEDED}"
        ))?
        .execute([time])?;
    if gone > 0 {
        tx.prepare_cached(
            "DELETE FROM template_log WHERE build_seq NOT IN (SELECT seq FROM template_build)",
        )?
        .execute([])?;
    }
    Ok(gone)
}
