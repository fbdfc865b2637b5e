//! Runs: what a user asked a job for, and the backings of services. The run's own task is the only one that changes a
//! row, but for a request to cancel, which has columns and a function of its own.

use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::{StoreError, Tx, agent_log};

/// One run, as it is kept. Values of environment variables are never in here.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RunRow {
    /// Its place in the order of creation; set by [`insert`].
    pub seq: i64,
    /// Its id.
    pub id: String,
    /// Its deployment.
    pub deployment_id: String,
    /// The version that runs.
    pub version_id: String,
    /// The service that it backs.
    pub service_id: Option<String>,
    /// See `nullspace_lifecycle::run`.
    pub status: String,
    /// JSON object.
    pub input: String,
    /// Whether it was given values of environment variables.
    pub has_envs: bool,
    /// Its machine.
    pub machine_id: Option<String>,
    /// The process of the install command.
    pub install_process_id: Option<u32>,
    /// How it ended.
    pub install_exit_code: Option<i32>,
    /// The process of the entry point.
    pub process_id: Option<u32>,
    /// How the run's last process ended.
    pub exit_code: Option<i32>,
    /// Why it did not succeed.
    pub failure_reason: Option<String>,
    /// For how long the machine is kept on failure.
    pub retain_seconds: Option<u64>,
    /// Until when it is kept.
    pub retained_until: Option<i64>,
    /// When somebody asked to cancel; changed by [`request_cancel`] alone.
    pub cancel_requested_at: Option<i64>,
    /// Why; changed by [`request_cancel`] alone.
    pub cancel_reason: Option<String>,
    /// Bytes of the current process's output that are kept.
    pub output_offset: u64,
    /// The begin of a line of standard output.
    pub partial_stdout: Option<Vec<u8>>,
    /// The begin of a line of standard error.
    pub partial_stderr: Option<Vec<u8>>,
    /// Events in the log.
    pub log_count: u64,
    /// Bytes of output in the log.
    pub log_bytes: u64,
    /// JSON object: what it left behind.
    pub outputs: Option<String>,
    /// The key that asked for it.
    pub key_id: Option<String>,
    /// What it was created with.
    pub idempotency_key: Option<String>,
    /// The artifact that is a layer of its machine; changed by `agent_artifact::take` too.
    pub artifact_id: Option<String>,
    /// Whether it makes an artifact for its version and nothing else.
    pub is_build: bool,
    /// How often its entry point was started again.
    pub restarts: u32,
    /// When it was recorded.
    pub created_at: i64,
    /// When it last changed.
    pub updated_at: i64,
    /// When its machine was there.
    pub machine_at: Option<i64>,
    /// When the machine had its bundle and input.
    pub unpacked_at: Option<i64>,
    /// When the install command was started.
    pub install_started_at: Option<i64>,
    /// When the install command had ended well.
    pub installed_at: Option<i64>,
    /// When the entry point first wrote something.
    pub first_output_at: Option<i64>,
    /// When the entry point was started.
    pub started_at: Option<i64>,
    /// When it ended.
    pub completed_at: Option<i64>,
}

const COLUMNS: &str = "seq, id, deployment_id, version_id, status, input, has_envs, machine_id, \
     install_process_id, install_exit_code, process_id, exit_code, failure_reason, retain_seconds, \
     retained_until, cancel_requested_at, cancel_reason, output_offset, partial_stdout, partial_stderr, \
     log_count, outputs, key_id, idempotency_key, created_at, updated_at, started_at, completed_at, log_bytes, service_id, \
     restarts, machine_at, unpacked_at, install_started_at, installed_at, first_output_at, artifact_id, is_build";

fn from_row(row: &Row<'_>) -> rusqlite::Result<RunRow> {
    Ok(RunRow {
        seq: row.get(0)?,
        id: row.get(1)?,
        deployment_id: row.get(2)?,
        version_id: row.get(3)?,
        status: row.get(4)?,
        input: row.get(5)?,
        has_envs: row.get(6)?,
        machine_id: row.get(7)?,
        install_process_id: row.get(8)?,
        install_exit_code: row.get(9)?,
        process_id: row.get(10)?,
        exit_code: row.get(11)?,
        failure_reason: row.get(12)?,
        retain_seconds: row.get::<_, Option<i64>>(13)?.map(unsigned),
        retained_until: row.get(14)?,
        cancel_requested_at: row.get(15)?,
        cancel_reason: row.get(16)?,
        output_offset: unsigned(row.get(17)?),
        partial_stdout: row.get(18)?,
        partial_stderr: row.get(19)?,
        log_count: unsigned(row.get(20)?),
        outputs: row.get(21)?,
        key_id: row.get(22)?,
        idempotency_key: row.get(23)?,
        created_at: row.get(24)?,
        updated_at: row.get(25)?,
        started_at: row.get(26)?,
        completed_at: row.get(27)?,
        log_bytes: unsigned(row.get(28)?),
        service_id: row.get(29)?,
        restarts: row.get(30)?,
        machine_at: row.get(31)?,
        unpacked_at: row.get(32)?,
        install_started_at: row.get(33)?,
        installed_at: row.get(34)?,
        first_output_at: row.get(35)?,
        artifact_id: row.get(36)?,
        is_build: row.get(37)?,
    })
}

fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or_default()
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Keeps a new run and answers with its place in the order.
///
/// # Errors
/// When the id is taken.
pub fn insert(tx: &Tx<'_>, row: &RunRow) -> Result<i64, StoreError> {
    tx.prepare_cached(
        "INSERT INTO agent_run (id, deployment_id, version_id, status, input, has_envs, retain_seconds, \
         log_count, key_id, idempotency_key, created_at, updated_at, service_id, is_build) \
         VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,?14)",
    )?
    .execute(params![
        row.id,
        row.deployment_id,
        row.version_id,
        row.status,
        row.input,
        row.has_envs,
        row.retain_seconds.map(signed),
        signed(row.log_count),
        row.key_id,
        row.idempotency_key,
        row.created_at,
        row.updated_at,
        row.service_id,
        row.is_build,
    ])?;
    Ok(tx.last_insert_rowid())
}

/// Keeps what changes over a run's life, except a request to cancel.
///
/// # Errors
/// Those of the database.
pub fn update(tx: &Tx<'_>, row: &RunRow) -> Result<(), StoreError> {
    tx.prepare_cached(
        "UPDATE agent_run SET status = ?2, machine_id = ?3, install_process_id = ?4, install_exit_code = ?5, \
         process_id = ?6, exit_code = ?7, failure_reason = ?8, retained_until = ?9, output_offset = ?10, \
         partial_stdout = ?11, partial_stderr = ?12, log_count = ?13, outputs = ?14, updated_at = ?15, \
         started_at = ?16, completed_at = ?17, log_bytes = ?18, restarts = ?19, machine_at = ?20, unpacked_at = ?21, \
         install_started_at = ?22, installed_at = ?23, first_output_at = ?24, artifact_id = ?25 WHERE seq = ?1",
    )?
    .execute(params![
        row.seq,
        row.status,
        row.machine_id,
        row.install_process_id,
        row.install_exit_code,
        row.process_id,
        row.exit_code,
        row.failure_reason,
        row.retained_until,
        signed(row.output_offset),
        row.partial_stdout,
        row.partial_stderr,
        signed(row.log_count),
        row.outputs,
        row.updated_at,
        row.started_at,
        row.completed_at,
        signed(row.log_bytes),
        row.restarts,
        row.machine_at,
        row.unpacked_at,
        row.install_started_at,
        row.installed_at,
        row.first_output_at,
        row.artifact_id,
    ])?;
    Ok(())
}

/// Keeps how far the output of the current process is in the log. Goes with `agent_log::append` in one
/// transaction.
///
/// # Errors
/// Those of the database.
pub fn advance(tx: &Tx<'_>, row: &RunRow) -> Result<(), StoreError> {
    tx.prepare_cached(
        "UPDATE agent_run SET output_offset = ?2, partial_stdout = ?3, partial_stderr = ?4, log_count = ?5, \
         log_bytes = ?6, first_output_at = ?7 WHERE seq = ?1",
    )?
    .execute(params![
        row.seq,
        signed(row.output_offset),
        row.partial_stdout,
        row.partial_stderr,
        signed(row.log_count),
        signed(row.log_bytes),
        row.first_output_at,
    ])?;
    Ok(())
}

/// Appends events to the log of a run that has ended, and answers how many there are then.
///
/// # Errors
/// Those of the database.
pub fn append_late(tx: &Tx<'_>, seq: i64, events: &[agent_log::NewLog]) -> Result<u64, StoreError> {
    let count: i64 = tx
        .prepare_cached(
            "UPDATE agent_run SET log_count = log_count + ?2 WHERE seq = ?1 RETURNING log_count",
        )?
        .query_row(params![seq, signed(agent_log::count(events))], |row| {
            row.get(0)
        })?;
    let count = unsigned(count);
    let from = count.saturating_sub(agent_log::count(events));
    agent_log::append(tx, agent_log::Log::Run(seq), from, events)?;
    Ok(count)
}

/// Notes that somebody wants the run cancelled; the first reason stays. Answers whether the run had not ended.
///
/// # Errors
/// Those of the database.
pub fn request_cancel(
    tx: &Tx<'_>,
    id: &str,
    reason: Option<&str>,
    now: i64,
) -> Result<bool, StoreError> {
    let changed = tx
        .prepare_cached(
            "UPDATE agent_run SET cancel_reason = CASE WHEN cancel_requested_at IS NULL THEN ?2 \
             ELSE cancel_reason END, cancel_requested_at = coalesce(cancel_requested_at, ?3) \
             WHERE id = ?1 AND completed_at IS NULL",
        )?
        .execute(params![id, reason, now])?;
    Ok(changed > 0)
}

/// One run.
///
/// # Errors
/// Those of the database.
pub fn get(db: &Connection, id: &str) -> Result<Option<RunRow>, StoreError> {
    one(db, "id = ?1", id)
}

/// The run that a machine was made for.
///
/// # Errors
/// Those of the database.
pub fn by_machine(db: &Connection, machine_id: &str) -> Result<Option<RunRow>, StoreError> {
    one(db, "machine_id = ?1", machine_id)
}

fn one(db: &Connection, condition: &str, value: &str) -> Result<Option<RunRow>, StoreError> {
    Ok(db
        .prepare_cached(&format!(
            "SELECT {COLUMNS} FROM agent_run WHERE {condition}"
        ))?
        .query_row([value], from_row)
        .optional()?)
}

/// What a list of runs is narrowed to.
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

/// Runs that users asked for, newest first.
///
/// # Errors
/// Those of the database.
pub fn list(db: &Connection, filter: &Filter) -> Result<Vec<RunRow>, StoreError> {
    let mut statement = db.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM agent_run WHERE deployment_id = ?1 AND seq < ?2 AND service_id IS NULL AND is_build = 0 \
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

/// Every run that has not ended, oldest first; of one deployment when it is given.
///
/// # Errors
/// Those of the database.
pub fn unfinished(db: &Connection, deployment_id: Option<&str>) -> Result<Vec<RunRow>, StoreError> {
    let mut statement = db.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM agent_run WHERE completed_at IS NULL \
         AND (?1 IS NULL OR deployment_id = ?1) ORDER BY seq"
    ))?;
    let rows = statement.query_map([deployment_id], from_row)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// The runs that back a service, oldest first: those that have not ended, and those that the service names.
///
/// # Errors
/// Those of the database.
pub fn of_service(db: &Connection, service_id: &str) -> Result<Vec<RunRow>, StoreError> {
    let mut statement = db.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM agent_run WHERE service_id = ?1 AND (completed_at IS NULL OR id IN \
         (SELECT run_id FROM agent_service WHERE id = ?1 UNION \
         SELECT serving_run_id FROM agent_service WHERE id = ?1)) ORDER BY seq"
    ))?;
    let rows = statement.query_map([service_id], from_row)?;
    Ok(rows.collect::<Result<_, _>>()?)
}
