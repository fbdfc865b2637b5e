//! Services. Three write to a row, each to columns of its own: the service's supervisor ([`update`]), requests to
//! stop and to restart ([`request_stop`], [`request_restart`]), and whoever appends to the log ([`take_log`]).

use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::{
    StoreError, Tx,
    agent_log::{self, Log},
};

/// Half of the most output that the log of a service keeps, in bytes: what is older than the half before goes.
const HALF_A_LOG: u64 = 128 << 20;

/// One service, as it is kept.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServiceRow {
    /// Its place in the order of creation; set by [`insert`].
    pub seq: i64,
    /// Its id.
    pub id: String,
    /// Its deployment.
    pub deployment_id: String,
    /// The version that is wanted.
    pub version_id: String,
    /// See `nullspace_lifecycle::service`.
    pub status: String,
    /// Where it listens in its machine.
    pub port: u16,
    /// Its port on the host.
    pub gateway_port: Option<u16>,
    /// The run of its backing that takes traffic.
    pub serving_run_id: Option<String>,
    /// The run of its newest backing.
    pub run_id: Option<String>,
    /// How often its entry point was started again.
    pub restart_count: u32,
    /// JSON object: what the checks said last.
    pub readiness: String,
    /// Why it failed, or why its last restart did.
    pub failure_reason: Option<String>,
    /// Values of environment variables, sealed.
    pub envs: Option<Vec<u8>>,
    /// Requests to start and restart, counted.
    pub wanted: u64,
    /// The one of them that the supervisor has followed.
    pub followed: u64,
    /// Why the last was made.
    pub restart_reason: Option<String>,
    /// When somebody asked to stop.
    pub stop_requested_at: Option<i64>,
    /// Why.
    pub stop_reason: Option<String>,
    /// For how long the machine is then kept, in seconds.
    pub stop_retain: Option<u64>,
    /// Events in the log.
    pub log_count: u64,
    /// The first of them that is still there.
    pub log_first: u64,
    /// The key that asked for it.
    pub key_id: Option<String>,
    /// What it was created with.
    pub idempotency_key: Option<String>,
    /// When it was recorded.
    pub created_at: i64,
    /// When it last changed.
    pub updated_at: i64,
    /// When it first was ready.
    pub started_at: Option<i64>,
    /// When it ended.
    pub stopped_at: Option<i64>,
}

const COLUMNS: &str = "seq, id, deployment_id, version_id, status, port, gateway_port, serving_run_id, run_id, \
     restart_count, readiness, failure_reason, envs, wanted, followed, restart_reason, stop_requested_at, \
     stop_reason, stop_retain, log_count, log_first, key_id, idempotency_key, created_at, updated_at, started_at, \
     stopped_at";

fn from_row(row: &Row<'_>) -> rusqlite::Result<ServiceRow> {
    Ok(ServiceRow {
        seq: row.get(0)?,
        id: row.get(1)?,
        deployment_id: row.get(2)?,
        version_id: row.get(3)?,
        status: row.get(4)?,
        port: row.get(5)?,
        gateway_port: row.get(6)?,
        serving_run_id: row.get(7)?,
        run_id: row.get(8)?,
        restart_count: row.get(9)?,
        readiness: row.get(10)?,
        failure_reason: row.get(11)?,
        envs: row.get(12)?,
        wanted: unsigned(row.get(13)?),
        followed: unsigned(row.get(14)?),
        restart_reason: row.get(15)?,
        stop_requested_at: row.get(16)?,
        stop_reason: row.get(17)?,
        stop_retain: row.get::<_, Option<i64>>(18)?.map(unsigned),
        log_count: unsigned(row.get(19)?),
        log_first: unsigned(row.get(20)?),
        key_id: row.get(21)?,
        idempotency_key: row.get(22)?,
        created_at: row.get(23)?,
        updated_at: row.get(24)?,
        started_at: row.get(25)?,
        stopped_at: row.get(26)?,
    })
}

fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or_default()
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Keeps a new service and answers with its place in the order.
///
/// # Errors
/// When the id is taken.
pub fn insert(tx: &Tx<'_>, row: &ServiceRow) -> Result<i64, StoreError> {
    tx.prepare_cached(
        "INSERT INTO agent_service (id, deployment_id, version_id, status, port, readiness, envs, key_id, \
         idempotency_key, created_at, updated_at) VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11)",
    )?
    .execute(params![
        row.id,
        row.deployment_id,
        row.version_id,
        row.status,
        row.port,
        row.readiness,
        row.envs,
        row.key_id,
        row.idempotency_key,
        row.created_at,
        row.updated_at,
    ])?;
    Ok(tx.last_insert_rowid())
}

/// Keeps what the supervisor decides.
///
/// # Errors
/// Those of the database.
pub fn update(tx: &Tx<'_>, row: &ServiceRow) -> Result<(), StoreError> {
    tx.prepare_cached(
        "UPDATE agent_service SET status = ?2, gateway_port = ?3, serving_run_id = ?4, run_id = ?5, \
         restart_count = ?6, readiness = ?7, failure_reason = ?8, followed = ?9, updated_at = ?10, \
         started_at = ?11, stopped_at = ?12, envs = CASE WHEN ?12 IS NULL THEN envs ELSE NULL END WHERE seq = ?1",
    )?
    .execute(params![
        row.seq,
        row.status,
        row.gateway_port,
        row.serving_run_id,
        row.run_id,
        row.restart_count,
        row.readiness,
        row.failure_reason,
        signed(row.followed),
        row.updated_at,
        row.started_at,
        row.stopped_at,
    ])?;
    Ok(())
}

/// Notes that somebody wants it stopped; the first wish stays. Answers whether it had not ended.
///
/// # Errors
/// Those of the database.
pub fn request_stop(
    tx: &Tx<'_>,
    id: &str,
    reason: Option<&str>,
    retain: Option<u64>,
    now: i64,
) -> Result<bool, StoreError> {
    let changed = tx
        .prepare_cached(
            "UPDATE agent_service SET \
             stop_reason = CASE WHEN stop_requested_at IS NULL THEN ?2 ELSE stop_reason END, \
             stop_retain = CASE WHEN stop_requested_at IS NULL THEN ?3 ELSE stop_retain END, \
             stop_requested_at = coalesce(stop_requested_at, ?4) WHERE id = ?1 AND stopped_at IS NULL",
        )?
        .execute(params![id, reason, retain.map(signed), now])?;
    Ok(changed > 0)
}

/// Notes that somebody wants it to run that version from the start, also when it has ended.
///
/// # Errors
/// Those of the database.
pub fn request_restart(
    tx: &Tx<'_>,
    id: &str,
    version_id: &str,
    port: u16,
    envs: Option<&[u8]>,
    reason: Option<&str>,
    now: i64,
) -> Result<(), StoreError> {
    tx.prepare_cached(
        "UPDATE agent_service SET version_id = ?2, port = ?3, envs = ?4, restart_reason = ?5, wanted = wanted + 1, \
         status = 'starting', stop_requested_at = NULL, stop_reason = NULL, stop_retain = NULL, stopped_at = NULL, \
         failure_reason = NULL, updated_at = ?6 WHERE id = ?1",
    )?
    .execute(params![id, version_id, port, envs, reason, now])?;
    Ok(())
}

/// Notes that the version that was wanted last came to nothing, and which one goes on, unless another is wanted by now.
///
/// # Errors
/// Those of the database.
pub fn fall_back(tx: &Tx<'_>, id: &str, version_id: &str, port: u16) -> Result<(), StoreError> {
    tx.prepare_cached(
        "UPDATE agent_service SET version_id = ?2, port = ?3 WHERE id = ?1 AND wanted = followed",
    )?
    .execute(params![id, version_id, port])?;
    Ok(())
}

/// Appends events to a service's log and answers how many there are then. `bytes` of output are among them; what
/// is too old to be kept goes.
///
/// # Errors
/// Those of the database.
pub fn take_log(
    tx: &Tx<'_>,
    id: &str,
    events: &[agent_log::NewLog],
    bytes: u64,
) -> Result<u64, StoreError> {
    let (seq, count, kept): (i64, i64, i64) = tx
        .prepare_cached(
            "UPDATE agent_service SET log_count = log_count + ?2, log_bytes = log_bytes + ?3 WHERE id = ?1 \
             RETURNING seq, log_count, log_bytes",
        )?
        .query_row(params![id, signed(agent_log::count(events)), signed(bytes)], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })?;
    let count = unsigned(count);
    let log = Log::Service(seq);
    agent_log::append(tx, log, count - agent_log::count(events), events)?;
    if unsigned(kept) > HALF_A_LOG {
        let first: i64 = tx
            .prepare_cached(
                "UPDATE agent_service SET log_first = log_mark, log_mark = log_count, log_bytes = 0 WHERE id = ?1 \
                 RETURNING log_first",
            )?
            .query_row([id], |row| row.get(0))?;
        agent_log::drop_before(tx, log, unsigned(first))?;
    }
    Ok(count)
}

/// One service.
///
/// # Errors
/// Those of the database.
pub fn get(db: &Connection, id: &str) -> Result<Option<ServiceRow>, StoreError> {
    Ok(db
        .prepare_cached(&format!(
            "SELECT {COLUMNS} FROM agent_service WHERE id = ?1"
        ))?
        .query_row([id], from_row)
        .optional()?)
}

/// What a list of services is narrowed to.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Of this deployment.
    pub deployment_id: String,
    /// Only this status.
    pub status: Option<String>,
    /// Only of this version.
    pub version_id: Option<String>,
    /// Only what was made before this place in the order.
    pub before: Option<i64>,
    /// At most this many.
    pub limit: u32,
}

/// Services, newest first.
///
/// # Errors
/// Those of the database.
pub fn list(db: &Connection, filter: &Filter) -> Result<Vec<ServiceRow>, StoreError> {
    let mut statement = db.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM agent_service WHERE deployment_id = ?1 AND seq < ?2 \
         AND (?3 IS NULL OR status = ?3) AND (?4 IS NULL OR version_id = ?4) ORDER BY seq DESC LIMIT ?5"
    ))?;
    let before = filter.before.unwrap_or(i64::MAX);
    let rows = statement.query_map(
        params![
            filter.deployment_id,
            before,
            filter.status,
            filter.version_id,
            filter.limit
        ],
        from_row,
    )?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Every service that has not ended, oldest first; of one deployment when it is given.
///
/// # Errors
/// Those of the database.
pub fn unfinished(
    db: &Connection,
    deployment_id: Option<&str>,
) -> Result<Vec<ServiceRow>, StoreError> {
    let mut statement = db.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM agent_service WHERE stopped_at IS NULL \
         AND (?1 IS NULL OR deployment_id = ?1) ORDER BY seq"
    ))?;
    let rows = statement.query_map([deployment_id], from_row)?;
    Ok(rows.collect::<Result<_, _>>()?)
}
