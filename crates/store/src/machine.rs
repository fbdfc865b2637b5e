//! Machines.

use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::{
    StoreError, Tx, json,
    volume::{self, AttachmentRow},
};

/// One machine, as it is kept. Runtime values of environment variables are never in here.
#[derive(Clone, Debug, PartialEq)]
pub struct MachineRow {
    /// Its place in the order of creation; set by [`insert`].
    pub seq: i64,
    /// Its id.
    pub id: String,
    /// `creating`, `running`, `paused`, `destroyed` or `error`.
    pub state: String,
    /// What it started from, by name.
    pub template: String,
    /// The same, by digest.
    pub layer_digest: String,
    /// Whole CPUs.
    pub vcpus: u32,
    /// MiB.
    pub memory_mb: u64,
    /// MiB, if asked for.
    pub disk_mb: Option<u64>,
    /// The engine that made it; unknown of machines of before this was recorded.
    pub isolation: Option<String>,
    /// Time limit.
    pub timeout_ms: Option<u64>,
    /// `destroy` or `hibernate`.
    pub timeout_action: String,
    /// When the limit is reached.
    pub timeout_at: Option<i64>,
    /// Whether use wakes it.
    pub auto_resume: bool,
    /// Whether it may reach the internet, or some of it.
    pub internet_access: bool,
    /// The rules for that, JSON; `None` for all or nothing.
    pub egress: Option<String>,
    /// Whether previews are open to all.
    pub allow_public_traffic: bool,
    /// The host that previews tell programs; `${PORT}` stands for the port.
    pub mask_request_host: Option<String>,
    /// Default working directory of commands.
    pub cwd: String,
    /// JSON object.
    pub metadata: String,
    /// Whose it is.
    pub tenant_id: String,
    /// The key that asked for it.
    pub key_id: Option<String>,
    /// The run or service it backs.
    pub owner: Option<String>,
    /// Why the state is `error`.
    pub failure_reason: Option<String>,
    /// When it was recorded.
    pub created_at: i64,
    /// When it first ran.
    pub started_at: Option<i64>,
    /// When it ended.
    pub ended_at: Option<i64>,
    /// What the engine was given, JSON, without the values of environment variables.
    pub spec: Option<String>,
    /// What a paused one goes on from.
    pub snapshot_id: Option<String>,
    /// The volumes that it has; written through [`volume`] alone.
    pub volumes: Vec<AttachmentRow>,
}

/// The last are its volumes as JSON, in the order in which they were asked for.
const COLUMNS: &str = "seq, id, state, template, layer_digest, vcpus, memory_mb, disk_mb, timeout_ms, \
     timeout_action, timeout_at, auto_resume, internet_access, allow_public_traffic, cwd, metadata, \
     key_id, owner, failure_reason, created_at, started_at, ended_at, egress, mask_request_host, spec, snapshot_id, \
     tenant_id, isolation, (SELECT json_group_array(json_object('id', a.id, 'volume_id', a.volume_id, 'machine_id', a.machine_id, \
     'mount_path', a.mount_path, 'read_only', json(iif(a.read_only, 'true', 'false')), 'subpath', a.subpath, \
     'state', a.state, 'error_code', a.error_code, 'error_message', a.error_message, \
     'created_at', a.created_at, 'updated_at', a.updated_at) ORDER BY a.seq) \
     FROM volume_attachment a WHERE a.machine_id = machine.id) AS volumes";

fn from_row(row: &Row<'_>) -> rusqlite::Result<MachineRow> {
    Ok(MachineRow {
        seq: row.get(0)?,
        id: row.get(1)?,
        state: row.get(2)?,
        template: row.get(3)?,
        layer_digest: row.get(4)?,
        vcpus: row.get(5)?,
        memory_mb: unsigned(row.get(6)?),
        disk_mb: row.get::<_, Option<i64>>(7)?.map(unsigned),
        timeout_ms: row.get::<_, Option<i64>>(8)?.map(unsigned),
        timeout_action: row.get(9)?,
        timeout_at: row.get(10)?,
        auto_resume: row.get(11)?,
        internet_access: row.get(12)?,
        allow_public_traffic: row.get(13)?,
        cwd: row.get(14)?,
        metadata: row.get(15)?,
        key_id: row.get(16)?,
        owner: row.get(17)?,
        failure_reason: row.get(18)?,
        created_at: row.get(19)?,
        started_at: row.get(20)?,
        ended_at: row.get(21)?,
        egress: row.get(22)?,
        mask_request_host: row.get(23)?,
        spec: row.get(24)?,
        snapshot_id: row.get(25)?,
        tenant_id: row.get(26)?,
        isolation: row.get(27)?,
        volumes: volume::of_a_machine(row.get_ref("volumes")?.as_str()?),
    })
}

fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or_default()
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Keeps a new machine and answers with its place in the order.
///
/// # Errors
/// When the id is taken.
pub fn insert(tx: &Tx<'_>, row: &MachineRow) -> Result<i64, StoreError> {
    tx.prepare_cached(
        "INSERT INTO machine (id, state, template, layer_digest, vcpus, memory_mb, disk_mb, timeout_ms, \
         timeout_action, timeout_at, auto_resume, internet_access, allow_public_traffic, cwd, metadata, \
         key_id, owner, failure_reason, created_at, started_at, ended_at, egress, mask_request_host, spec, snapshot_id, \
         tenant_id, isolation)          VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,?14,?15,?16,?17,?18,?19,?20,?21,?22,?23,?24,?25,?26,?27)",
    )?
    .execute(params![
        row.id,
        row.state,
        row.template,
        row.layer_digest,
        row.vcpus,
        signed(row.memory_mb),
        row.disk_mb.map(signed),
        row.timeout_ms.map(signed),
        row.timeout_action,
        row.timeout_at,
        row.auto_resume,
        row.internet_access,
        row.allow_public_traffic,
        row.cwd,
        row.metadata,
        row.key_id,
        row.owner,
        row.failure_reason,
        row.created_at,
        row.started_at,
        row.ended_at,
        row.egress,
        row.mask_request_host,
        row.spec,
        row.snapshot_id,
        row.tenant_id,
        row.isolation,
    ])?;
    Ok(tx.last_insert_rowid())
}

/// Keeps what changes over a machine's life: state, times, limit, rules, failure. Its volumes follow the state.
///
/// # Errors
/// Those of the database.
pub fn update(tx: &Tx<'_>, row: &MachineRow) -> Result<(), StoreError> {
    tx.prepare_cached(
        "UPDATE machine SET state = ?2, timeout_ms = ?3, timeout_action = ?4, timeout_at = ?5, \
         failure_reason = ?6, started_at = ?7, ended_at = ?8, internet_access = ?9, egress = ?10, \
         snapshot_id = ?11 WHERE id = ?1",
    )?
    .execute(params![
        row.id,
        row.state,
        row.timeout_ms.map(signed),
        row.timeout_action,
        row.timeout_at,
        row.failure_reason,
        row.started_at,
        row.ended_at,
        row.internet_access,
        row.egress,
        row.snapshot_id,
    ])?;
    volume::follow(tx, row)
}

/// One machine.
///
/// # Errors
/// Those of the database.
pub fn get(db: &Connection, id: &str) -> Result<Option<MachineRow>, StoreError> {
    Ok(db
        .prepare_cached(&format!("SELECT {COLUMNS} FROM machine WHERE id = ?1"))?
        .query_row([id], from_row)
        .optional()?)
}

/// What a list of machines is narrowed to.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Only of this tenant.
    pub tenant_id: String,
    /// Any of these states; all when empty.
    pub states: Vec<String>,
    /// Only of this template.
    pub template: Option<String>,
    /// Only with all of this in the metadata; the values are compared as JSON.
    pub metadata: serde_json::Map<String, serde_json::Value>,
    /// Only what was made before this place in the order.
    pub before: Option<i64>,
    /// At most this many.
    pub limit: u32,
}

/// Machines, newest first.
///
/// # Errors
/// Those of the database.
pub fn list(db: &Connection, filter: &Filter) -> Result<Vec<MachineRow>, StoreError> {
    let mut sql = format!("SELECT {COLUMNS} FROM machine WHERE tenant_id = ?1 AND seq < ?2");
    let mut values: Vec<Box<dyn rusqlite::ToSql>> = vec![
        Box::new(filter.tenant_id.clone()),
        Box::new(filter.before.unwrap_or(i64::MAX)),
    ];
    if !filter.states.is_empty() {
        let marks = vec!["?"; filter.states.len()].join(",");
        sql.push_str(&format!(" AND state IN ({marks})"));
        for state in &filter.states {
            values.push(Box::new(state.clone()));
        }
    }
    if let Some(template) = &filter.template {
        sql.push_str(" AND template = ?");
        values.push(Box::new(template.clone()));
    }
    sql.push_str(" ORDER BY seq DESC");
    let mut statement = db.prepare_cached(&sql)?;
    let arguments = rusqlite::params_from_iter(values.iter().map(AsRef::as_ref));
    let mut rows = statement.query(arguments)?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let machine = from_row(row)?;
        if json::holds(&machine.metadata, &filter.metadata) {
            found.push(machine);
            if found.len() == filter.limit as usize {
                break;
            }
        }
    }
    Ok(found)
}

/// Every machine that has not ended, oldest first.
///
/// # Errors
/// Those of the database.
pub fn unfinished(db: &Connection) -> Result<Vec<MachineRow>, StoreError> {
    let sql = format!(
        "SELECT {COLUMNS} FROM machine WHERE state IN ('creating', 'running', 'paused') ORDER BY seq"
    );
    let mut statement = db.prepare_cached(&sql)?;
    let rows = statement.query_map([], from_row)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Machines that were recorded as destroyed, of which the log says that it was asked for but not that it is done. What
/// is forgotten of the log goes from its old end, so that of none the one is left without the other.
///
/// # Errors
/// Those of the database.
pub fn destroyed_untold(db: &Connection) -> Result<Vec<MachineRow>, StoreError> {
    let told = |status: &str| {
        format!(
            "EXISTS (SELECT 1 FROM event WHERE event.machine_id = machine.id \
             AND event.operation = 'destroy' AND event.status = '{status}')"
        )
    };
    let sql = format!(
        "SELECT {COLUMNS} FROM machine WHERE state = 'destroyed' AND {} AND NOT {} ORDER BY seq",
        told("requested"),
        told("succeeded")
    );
    let mut statement = db.prepare_cached(&sql)?;
    let rows = statement.query_map([], from_row)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Forgets machines that ended before this time, and answers how many.
///
/// # Errors
/// Those of the database.
pub fn forget_ended_before(tx: &Tx<'_>, time: i64) -> Result<usize, StoreError> {
    Ok(tx
        .prepare_cached("DELETE FROM machine WHERE ended_at < ?1")?
        .execute([time])?)
}
