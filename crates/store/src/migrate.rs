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
    include_str!("../migrations/0017_tenants.sql"),
    include_str!("../migrations/0018_isolation.sql"),
];

/// Brings the database to the newest schema, each step in a transaction of its own.
pub(crate) fn run(connection: &mut Connection) -> Result<(), StoreError> {
    // A table is made anew by dropping it, which would take along what refers to it.
    connection.pragma_update(None, "foreign_keys", false)?;
    let ran = run_all(connection, MIGRATIONS);
    connection.pragma_update(None, "foreign_keys", true)?;
    ran
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

    /// What is made anew keeps what it had and what refers to it, and everything of before has an owner.
    #[test]
    fn what_was_there_before_tenants_stays() {
        let mut db = Connection::open_in_memory().unwrap();
        run_all(&mut db, &MIGRATIONS[..16]).unwrap();
        db.execute_batch(
            "INSERT INTO volume (id, name, state, used_bytes, created_at) VALUES ('vol_1', 'data', 'available', 7, 1); \
             INSERT INTO volume_attachment (id, volume_id, machine_id, mount_path, read_only, state, created_at, updated_at) \
             VALUES ('vat_1', 'vol_1', 'mch_1', '/data', 0, 'mounted', 1, 1); \
             INSERT INTO template (id, name, created_at) VALUES ('tmpl_1', 'mine', 1); \
             INSERT INTO template_tag (template_id, tag, build_id, created_at) VALUES ('tmpl_1', 'v1', 'tb_1', 1); \
             INSERT INTO template_alias (name, template_id, created_at) VALUES ('old', 'tmpl_1', 1); \
             INSERT INTO template_claim (token, name, key_id, expires_at) VALUES ('t', 'next', 'key_1', 9); \
             INSERT INTO agent_deployment (id, name, mode, status, metadata, versions, created_at, updated_at) \
             VALUES ('adpl_1', 'a', 'job', 'active', '{}', 0, 1, 1); \
             INSERT INTO api_key (id, name, prefix, hash, created_at) VALUES ('key_1', '', '', x'00', 1);",
        )
        .unwrap();
        run(&mut db).unwrap();
        let one = |sql: &str| -> String { db.query_row(sql, [], |row| row.get(0)).unwrap() };
        assert_eq!(
            one("SELECT name || used_bytes FROM volume WHERE tenant_id = 'tnt_default'"),
            "data7"
        );
        assert_eq!(one("SELECT volume_id FROM volume_attachment"), "vol_1");
        assert_eq!(one("SELECT tag FROM template_tag"), "v1");
        assert_eq!(
            one("SELECT template_id FROM template_alias WHERE tenant_id = 'tnt_default'"),
            "tmpl_1"
        );
        assert_eq!(one("SELECT name FROM template_claim"), "next");
        assert_eq!(one("SELECT tenant_id FROM agent_deployment"), "tnt_default");
        assert_eq!(one("SELECT scope FROM api_key"), "operator");
        let broken = db
            .prepare("PRAGMA foreign_key_check")
            .unwrap()
            .exists([])
            .unwrap();
        assert!(!broken);
        // References lead to the new tables.
        db.execute("DELETE FROM template", []).unwrap();
        assert_eq!(one("SELECT CAST(COUNT(*) AS TEXT) FROM template_tag"), "0");
        assert!(db.execute("DELETE FROM volume", []).is_err());
        assert!(
            db.execute(
                "INSERT INTO template (id, tenant_id, name, created_at) VALUES ('t', '', 'x', 1)",
                []
            )
            .is_err()
        );
    }
}
