//! Code interpreter: contexts, runs, artifacts.

use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::{StoreError, Tx};

/// A kernel of a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContextRow {
    /// Its id.
    pub id: String,
    /// Where it is.
    pub machine_id: String,
    /// `python3`, `javascript`, `typescript`.
    pub language: String,
    /// Where its code starts.
    pub cwd: String,
    /// Whether code without a context runs in it.
    pub is_default: bool,
    /// Which process of the machine had its kernel last.
    pub instance: Option<String>,
    /// When it was made.
    pub created_at: i64,
}

/// A run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunRow {
    /// Its place among all; set when it is recorded.
    pub seq: i64,
    /// Its id.
    pub id: String,
    /// Where it runs.
    pub machine_id: String,
    /// In which context.
    pub context_id: String,
    /// See `nullspace_api::code::CodeRunStatus`.
    pub status: String,
    /// Its time limit.
    pub timeout_secs: u64,
    /// When it was asked for.
    pub created_at: i64,
    /// When it began to run.
    pub started_at: Option<i64>,
    /// When it ended.
    pub completed_at: Option<i64>,
    /// When somebody asked to cancel it.
    pub cancel_requested_at: Option<i64>,
    /// When it is forgotten.
    pub expires_at: i64,
    /// What it gave, as JSON.
    pub execution: Option<String>,
    /// Why it failed for another reason than an error of the code.
    pub failure_reason: Option<String>,
}

/// A file that came out of a piece of code.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ArtifactRow {
    /// Its place among all; set when it is recorded.
    pub seq: i64,
    /// Its id.
    pub id: String,
    /// Where it came from.
    pub machine_id: String,
    /// From which context.
    pub context_id: String,
    /// From which execution of the kernel.
    pub execution_count: Option<u64>,
    /// See `nullspace_api::code::ArtifactKind`.
    pub kind: String,
    /// Its MIME type.
    pub mime_type: String,
    /// A name for it.
    pub name: String,
    /// Its size.
    pub size_bytes: u64,
    /// Of its bytes, in hex.
    pub sha256: String,
    /// When it came.
    pub created_at: i64,
    /// When it is removed.
    pub expires_at: i64,
    /// More about it, as JSON.
    pub metadata: Option<String>,
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or_default()
}

const CONTEXT: &str = "id, machine_id, language, cwd, is_default, instance, created_at";

fn context_row(row: &Row<'_>) -> rusqlite::Result<ContextRow> {
    Ok(ContextRow {
        id: row.get(0)?,
        machine_id: row.get(1)?,
        language: row.get(2)?,
        cwd: row.get(3)?,
        is_default: row.get(4)?,
        instance: row.get(5)?,
        created_at: row.get(6)?,
    })
}

/// Records a new context.
///
/// # Errors
/// When the id is taken, or the machine has a default one of the language already.
pub fn insert_context(tx: &Tx<'_>, row: &ContextRow) -> Result<(), StoreError> {
    tx.prepare_cached(&format!(
        "INSERT INTO code_context ({CONTEXT}) VALUES (?1,?2,?3,?4,?5,?6,?7)"
    ))?
    .execute(params![
        row.id,
        row.machine_id,
        row.language,
        row.cwd,
        row.is_default,
        row.instance,
        row.created_at,
    ])?;
    Ok(())
}

/// The contexts of a machine, oldest first.
///
/// # Errors
/// Those of the database.
pub fn contexts(db: &Connection, machine_id: &str) -> Result<Vec<ContextRow>, StoreError> {
    let sql =
        format!("SELECT {CONTEXT} FROM code_context WHERE machine_id = ?1 ORDER BY created_at, id");
    let mut query = db.prepare_cached(&sql)?;
    let rows = query.query_map([machine_id], context_row)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// One context of a machine.
///
/// # Errors
/// Those of the database.
pub fn context(
    db: &Connection,
    machine_id: &str,
    id: &str,
) -> Result<Option<ContextRow>, StoreError> {
    let sql = format!("SELECT {CONTEXT} FROM code_context WHERE id = ?1 AND machine_id = ?2");
    let mut query = db.prepare_cached(&sql)?;
    Ok(query.query_row([id, machine_id], context_row).optional()?)
}

/// Notes which process of the machine has a context's kernel.
///
/// # Errors
/// Those of the database.
pub fn set_instance(tx: &Tx<'_>, id: &str, instance: &str) -> Result<(), StoreError> {
    tx.prepare_cached("UPDATE code_context SET instance = ?2 WHERE id = ?1")?
        .execute([id, instance])?;
    Ok(())
}

/// Removes a context. Answers whether it was there.
///
/// # Errors
/// Those of the database.
pub fn remove_context(tx: &Tx<'_>, machine_id: &str, id: &str) -> Result<bool, StoreError> {
    let removed = tx
        .prepare_cached("DELETE FROM code_context WHERE id = ?1 AND machine_id = ?2")?
        .execute([id, machine_id])?;
    Ok(removed > 0)
}

/// Removes the contexts of machines that ended.
///
/// # Errors
/// Those of the database.
pub fn forget_contexts(tx: &Tx<'_>) -> Result<usize, StoreError> {
    Ok(tx
        .prepare_cached(
            "DELETE FROM code_context WHERE machine_id NOT IN \
             (SELECT id FROM machine WHERE state NOT IN ('destroyed', 'error'))",
        )?
        .execute([])?)
}

const RUN: &str = "seq, id, machine_id, context_id, status, timeout_secs, created_at, started_at, completed_at, \
     cancel_requested_at, expires_at, execution, failure_reason";

fn run_row(row: &Row<'_>) -> rusqlite::Result<RunRow> {
    Ok(RunRow {
        seq: row.get(0)?,
        id: row.get(1)?,
        machine_id: row.get(2)?,
        context_id: row.get(3)?,
        status: row.get(4)?,
        timeout_secs: unsigned(row.get(5)?),
        created_at: row.get(6)?,
        started_at: row.get(7)?,
        completed_at: row.get(8)?,
        cancel_requested_at: row.get(9)?,
        expires_at: row.get(10)?,
        execution: row.get(11)?,
        failure_reason: row.get(12)?,
    })
}

/// Records a new run.
///
/// # Errors
/// When the id is taken.
pub fn insert_run(tx: &Tx<'_>, row: &RunRow) -> Result<(), StoreError> {
    tx.prepare_cached(
        "INSERT INTO code_run (id, machine_id, context_id, status, timeout_secs, created_at, expires_at) \
         VALUES (?1,?2,?3,?4,?5,?6,?7)",
    )?
    .execute(params![
        row.id,
        row.machine_id,
        row.context_id,
        row.status,
        signed(row.timeout_secs),
        row.created_at,
        row.expires_at,
    ])?;
    Ok(())
}

/// One run of a machine.
///
/// # Errors
/// Those of the database.
pub fn run(db: &Connection, machine_id: &str, id: &str) -> Result<Option<RunRow>, StoreError> {
    let sql = format!("SELECT {RUN} FROM code_run WHERE id = ?1 AND machine_id = ?2");
    let mut query = db.prepare_cached(&sql)?;
    Ok(query.query_row([id, machine_id], run_row).optional()?)
}

/// Runs that have not ended.
///
/// # Errors
/// Those of the database.
pub fn open_runs(db: &Connection) -> Result<Vec<RunRow>, StoreError> {
    let sql =
        format!("SELECT {RUN} FROM code_run WHERE status IN ('queued', 'running') ORDER BY seq");
    let mut query = db.prepare_cached(&sql)?;
    let rows = query.query_map([], run_row)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Which runs are wanted.
#[derive(Clone, Debug, Default)]
pub struct RunFilter {
    /// Of this machine.
    pub machine_id: String,
    /// In this status.
    pub status: Option<String>,
    /// Of this context.
    pub context_id: Option<String>,
    /// Older than this place.
    pub before: Option<i64>,
    /// At most so many.
    pub limit: u32,
}

/// Runs of a machine, newest first.
///
/// # Errors
/// Those of the database.
pub fn runs(db: &Connection, filter: &RunFilter) -> Result<Vec<RunRow>, StoreError> {
    let sql = format!(
        "SELECT {RUN} FROM code_run WHERE machine_id = ?1 AND (?2 IS NULL OR status = ?2) \
         AND (?3 IS NULL OR context_id = ?3) AND (?4 IS NULL OR seq < ?4) ORDER BY seq DESC LIMIT ?5"
    );
    let mut query = db.prepare_cached(&sql)?;
    let rows = query.query_map(
        params![
            filter.machine_id,
            filter.status,
            filter.context_id,
            filter.before,
            filter.limit
        ],
        run_row,
    )?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// A run began. One that ended meanwhile stays as it is.
///
/// # Errors
/// Those of the database.
pub fn run_started(tx: &Tx<'_>, id: &str, now: i64) -> Result<(), StoreError> {
    tx.prepare_cached(
        "UPDATE code_run SET status = 'running', started_at = ?2 WHERE id = ?1 AND status = 'queued'",
    )?
    .execute(params![id, now])?;
    Ok(())
}

/// Somebody asked to cancel a run. One that ended stays as it is.
///
/// # Errors
/// Those of the database.
pub fn run_cancelling(tx: &Tx<'_>, id: &str, now: i64) -> Result<(), StoreError> {
    tx.prepare_cached(
        "UPDATE code_run SET cancel_requested_at = COALESCE(cancel_requested_at, ?2) \
         WHERE id = ?1 AND status IN ('queued', 'running')",
    )?
    .execute(params![id, now])?;
    Ok(())
}

/// A run ended. The first end counts.
///
/// # Errors
/// Those of the database.
pub fn run_ended(
    tx: &Tx<'_>,
    id: &str,
    status: &str,
    execution: Option<&str>,
    failure_reason: Option<&str>,
    now: i64,
) -> Result<(), StoreError> {
    tx.prepare_cached(
        "UPDATE code_run SET status = ?2, execution = ?3, failure_reason = ?4, completed_at = ?5 \
         WHERE id = ?1 AND status IN ('queued', 'running')",
    )?
    .execute(params![id, status, execution, failure_reason, now])?;
    Ok(())
}

/// Removes runs that are over their time.
///
/// # Errors
/// Those of the database.
pub fn forget_runs(tx: &Tx<'_>, now: i64) -> Result<usize, StoreError> {
    Ok(tx
        .prepare_cached(
            "DELETE FROM code_run WHERE expires_at <= ?1 AND status NOT IN ('queued', 'running')",
        )?
        .execute([now])?)
}

const ARTIFACT: &str = "seq, id, machine_id, context_id, execution_count, kind, mime_type, name, size_bytes, sha256, \
     created_at, expires_at, metadata";

fn artifact_row(row: &Row<'_>) -> rusqlite::Result<ArtifactRow> {
    Ok(ArtifactRow {
        seq: row.get(0)?,
        id: row.get(1)?,
        machine_id: row.get(2)?,
        context_id: row.get(3)?,
        execution_count: row.get::<_, Option<i64>>(4)?.map(unsigned),
        kind: row.get(5)?,
        mime_type: row.get(6)?,
        name: row.get(7)?,
        size_bytes: unsigned(row.get(8)?),
        sha256: row.get(9)?,
        created_at: row.get(10)?,
        expires_at: row.get(11)?,
        metadata: row.get(12)?,
    })
}

/// Records an artifact whose bytes are on disk; one that is recorded already stays as it is.
///
/// # Errors
/// Those of the database.
pub fn insert_artifact(tx: &Tx<'_>, row: &ArtifactRow) -> Result<(), StoreError> {
    tx.prepare_cached(
        "INSERT OR IGNORE INTO code_artifact (id, machine_id, context_id, execution_count, kind, mime_type, name, \
         size_bytes, sha256, created_at, expires_at, metadata) VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12)",
    )?
    .execute(params![
        row.id,
        row.machine_id,
        row.context_id,
        row.execution_count.map(signed),
        row.kind,
        row.mime_type,
        row.name,
        signed(row.size_bytes),
        row.sha256,
        row.created_at,
        row.expires_at,
        row.metadata,
    ])?;
    Ok(())
}

/// One artifact of a machine.
///
/// # Errors
/// Those of the database.
pub fn artifact(
    db: &Connection,
    machine_id: &str,
    id: &str,
) -> Result<Option<ArtifactRow>, StoreError> {
    let sql = format!("SELECT {ARTIFACT} FROM code_artifact WHERE id = ?1 AND machine_id = ?2");
    let mut query = db.prepare_cached(&sql)?;
    Ok(query.query_row([id, machine_id], artifact_row).optional()?)
}

/// Which artifacts are wanted.
#[derive(Clone, Debug, Default)]
pub struct ArtifactFilter {
    /// Of this machine.
    pub machine_id: String,
    /// Of this context.
    pub context_id: Option<String>,
    /// Of this execution.
    pub execution_count: Option<u64>,
    /// Of this kind.
    pub kind: Option<String>,
    /// Older than this place.
    pub before: Option<i64>,
    /// At most so many.
    pub limit: u32,
}

/// Artifacts of a machine, newest first.
///
/// # Errors
/// Those of the database.
pub fn artifacts(db: &Connection, filter: &ArtifactFilter) -> Result<Vec<ArtifactRow>, StoreError> {
    let sql = format!(
        "SELECT {ARTIFACT} FROM code_artifact WHERE machine_id = ?1 AND (?2 IS NULL OR context_id = ?2) \
         AND (?3 IS NULL OR execution_count = ?3) AND (?4 IS NULL OR kind = ?4) AND (?5 IS NULL OR seq < ?5) \
         ORDER BY seq DESC LIMIT ?6"
    );
    let mut query = db.prepare_cached(&sql)?;
    let rows = query.query_map(
        params![
            filter.machine_id,
            filter.context_id,
            filter.execution_count.map(signed),
            filter.kind,
            filter.before,
            filter.limit
        ],
        artifact_row,
    )?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Removes an artifact from the record. Answers whether it was there.
///
/// # Errors
/// Those of the database.
pub fn remove_artifact(tx: &Tx<'_>, machine_id: &str, id: &str) -> Result<bool, StoreError> {
    let removed = tx
        .prepare_cached("DELETE FROM code_artifact WHERE id = ?1 AND machine_id = ?2")?
        .execute([id, machine_id])?;
    Ok(removed > 0)
}

/// Removes the oldest artifacts of a machine from the record until at most so many with at most so many bytes are left.
/// Answers with their ids.
///
/// # Errors
/// Those of the database.
pub fn trim_artifacts(
    tx: &Tx<'_>,
    machine_id: &str,
    most: u64,
    most_bytes: u64,
) -> Result<Vec<String>, StoreError> {
    let rows: Vec<(String, i64)> = tx
        .prepare_cached(
            "SELECT id, size_bytes FROM code_artifact WHERE machine_id = ?1 ORDER BY seq DESC",
        )?
        .query_map([machine_id], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<Result<_, _>>()?;
    let (mut count, mut bytes, mut gone) = (0, 0, Vec::new());
    for (id, size) in rows {
        count += 1;
        bytes += unsigned(size);
        if count > most || bytes > most_bytes {
            remove_artifact(tx, machine_id, &id)?;
            gone.push(id);
        }
    }
    Ok(gone)
}

/// Removes artifacts that are over their time from the record. Answers with their ids.
///
/// # Errors
/// Those of the database.
pub fn forget_artifacts(tx: &Tx<'_>, now: i64) -> Result<Vec<String>, StoreError> {
    let mut query =
        tx.prepare_cached("DELETE FROM code_artifact WHERE expires_at <= ?1 RETURNING id")?;
    let rows = query.query_map([now], |row| row.get(0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// The ids of all artifacts.
///
/// # Errors
/// Those of the database.
pub fn artifact_ids(db: &Connection) -> Result<Vec<String>, StoreError> {
    let mut query = db.prepare_cached("SELECT id FROM code_artifact")?;
    let rows = query.query_map([], |row| row.get(0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::Store;

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("nullspace.db")).unwrap();
        (dir, store)
    }

    #[tokio::test]
    async fn a_machine_has_one_default_context_of_a_language() {
        let (_dir, store) = store();
        let row = |id: &str, is_default| ContextRow {
            id: id.into(),
            machine_id: "mch_1".into(),
            language: "python3".into(),
            cwd: "/".into(),
            is_default,
            ..ContextRow::default()
        };
        let add = |row: ContextRow| store.write(move |tx| insert_context(tx, &row));
        add(row("a", true)).await.unwrap();
        add(row("b", false)).await.unwrap();
        assert!(add(row("c", true)).await.is_err());
        let all = store.read(|db| contexts(db, "mch_1")).await.unwrap();
        assert_eq!(all.len(), 2);
        store.write(forget_contexts).await.unwrap();
        let all = store.read(|db| contexts(db, "mch_1")).await.unwrap();
        assert_eq!(all, [], "the machine is not known");
    }

    #[tokio::test]
    async fn the_first_end_of_a_run_counts() {
        let (_dir, store) = store();
        let row = RunRow {
            id: "r".into(),
            machine_id: "m".into(),
            status: "queued".into(),
            expires_at: 50,
            ..RunRow::default()
        };
        store.write(move |tx| insert_run(tx, &row)).await.unwrap();
        let end = |status: &'static str| {
            store.write(move |tx| run_ended(tx, "r", status, Some("{}"), None, 9))
        };
        store.write(|tx| forget_runs(tx, 60)).await.unwrap();
        assert_eq!(store.read(open_runs).await.unwrap().len(), 1);
        store.write(|tx| run_started(tx, "r", 5)).await.unwrap();
        end("cancelled").await.unwrap();
        end("succeeded").await.unwrap();
        let found = store.read(|db| run(db, "m", "r")).await.unwrap().unwrap();
        assert_eq!(
            (found.status.as_str(), found.started_at),
            ("cancelled", Some(5))
        );
        store.write(|tx| forget_runs(tx, 60)).await.unwrap();
        assert_eq!(store.read(|db| run(db, "m", "r")).await.unwrap(), None);
    }

    #[tokio::test]
    async fn the_oldest_artifacts_go_first() {
        let (_dir, store) = store();
        for n in 0..5 {
            let row = ArtifactRow {
                id: format!("a{n}"),
                machine_id: "m".into(),
                size_bytes: 10,
                ..ArtifactRow::default()
            };
            store
                .write(move |tx| insert_artifact(tx, &row))
                .await
                .unwrap();
        }
        let trim = |most, bytes| store.write(move |tx| trim_artifacts(tx, "m", most, bytes));
        assert_eq!(trim(4, 1000).await.unwrap(), ["a0"]);
        assert_eq!(trim(4, 25).await.unwrap(), ["a2", "a1"]);
        assert_eq!(store.read(artifact_ids).await.unwrap().len(), 2);
    }
}
