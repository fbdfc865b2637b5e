//! The schema's history. A migration is never changed once it was released: add another.

use rusqlite::Connection;

use crate::StoreError;

/// In order; the position is the schema version, counted from 1.
const MIGRATIONS: &[&str] = &[
    include_str!("../migrations/0001_machines.sql"),
    include_str!("../migrations/0002_agents.sql"),
    include_str!("../migrations/0003_services.sql"),
    include_str!("../migrations/0004_artifacts.sql"),
    include_str!("../migrations/0005_log_lines.sql"),
    include_str!("../migrations/0006_uploads.sql"),
    include_str!("../migrations/0007_ssh.sql"),
    include_str!("../migrations/0008_events.sql"),
    include_str!("../migrations/0009_egress.sql"),
    include_str!("../migrations/0010_previews.sql"),
    include_str!("../migrations/0011_webhooks.sql"),
    include_str!("../migrations/0012_code.sql"),
    include_str!("../migrations/0013_snapshots.sql"),
    include_str!("../migrations/0014_templates.sql"),
    include_str!("../migrations/0015_volumes.sql"),
    include_str!("../migrations/0016_warm_pools.sql"),
];

/// Brings the database to the newest schema, each step in a transaction of its own.
pub(crate) fn run(connection: &mut Connection) -> Result<(), StoreError> {
    run_all(connection, MIGRATIONS)
}

fn run_all(connection: &mut Connection, migrations: &[&str]) -> Result<(), StoreError> {
    let found: u32 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let known = migrations.len() as u32;
    if found > known {
        return Err(StoreError::TooNew { found, known });
    }
    for (version, sql) in (1u32..).zip(migrations).skip(found as usize) {
        let transaction = connection.transaction()?;
        transaction.execute_batch(sql)?;
        transaction.pragma_update(None, "user_version", version)?;
        transaction.commit()?;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn steps_run_once_and_newer_schemas_are_refused() {
        let mut db = Connection::open_in_memory().unwrap();
        let steps = ["CREATE TABLE a (x)", "CREATE TABLE b (x)"];
        run_all(&mut db, &steps[..1]).unwrap();
        run_all(&mut db, &steps).unwrap();
        run_all(&mut db, &steps).unwrap();
        db.execute_batch("INSERT INTO a VALUES (1); INSERT INTO b VALUES (1)")
            .unwrap();
        let refused = run_all(&mut db, &steps[..1]);
        assert!(
            matches!(refused, Err(StoreError::TooNew { found: 2, known: 1 })),
            "{refused:?}"
        );
    }
}
