//! Ports of machines that are seen from outside, and who may see them.

use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::{StoreError, Tx};

/// A port that has a way in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PreviewPortRow {
    /// The machine.
    pub machine_id: String,
    /// The port in it.
    pub port: u16,
    /// Its port on the host, if it has one.
    pub gateway_port: Option<u16>,
    /// Whether requests need no token of a grant.
    pub published: bool,
}

/// One grant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PreviewGrantRow {
    /// Its id.
    pub id: String,
    /// The machine.
    pub machine_id: String,
    /// The port in it.
    pub port: u16,
    /// Whether a proxy sends the token.
    pub proxy: bool,
    /// Whether requests may pass.
    pub http: bool,
    /// Whether WebSockets may pass.
    pub websocket: bool,
    /// The API key that asked.
    pub key_id: Option<String>,
    /// When it was made.
    pub created_at: i64,
    /// When it is over.
    pub expires_at: i64,
    /// When it was taken back.
    pub revoked_at: Option<i64>,
    /// What passed.
    pub used: PreviewUse,
    /// When it last changed.
    pub updated_at: i64,
}

/// What passed with a grant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PreviewUse {
    /// Requests.
    pub http_count: u64,
    /// WebSockets.
    pub websocket_count: u64,
    /// Bytes to the machine.
    pub bytes_in: u64,
    /// Bytes from the machine.
    pub bytes_out: u64,
    /// When it was used first.
    pub first_used_at: Option<i64>,
    /// When it was used last.
    pub last_used_at: Option<i64>,
    /// The code of the last request that was refused or not answered.
    pub last_error_code: Option<String>,
    /// When that was.
    pub last_error_at: Option<i64>,
}

/// Keeps a port as it is now. Once published it stays so.
///
/// # Errors
/// Those of the database.
pub fn keep_port(tx: &Tx<'_>, row: &PreviewPortRow) -> Result<(), StoreError> {
    tx.prepare_cached(
        "INSERT INTO preview_port (machine_id, port, gateway_port, published) VALUES (?1,?2,?3,?4) \
         ON CONFLICT (machine_id, port) DO UPDATE SET gateway_port = excluded.gateway_port, \
         published = published OR excluded.published",
    )?
    .execute(params![
        row.machine_id,
        row.port,
        row.gateway_port,
        row.published,
    ])?;
    Ok(())
}

/// Every port that has a way in.
///
/// # Errors
/// Those of the database.
pub fn ports(db: &Connection) -> Result<Vec<PreviewPortRow>, StoreError> {
    let mut statement = db.prepare_cached(
        "SELECT machine_id, port, gateway_port, published FROM preview_port ORDER BY machine_id, port",
    )?;
    let rows = statement.query_map([], |row| {
        Ok(PreviewPortRow {
            machine_id: row.get(0)?,
            port: row.get(1)?,
            gateway_port: row.get(2)?,
            published: row.get(3)?,
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Forgets the ports of a machine that has ended.
///
/// # Errors
/// Those of the database.
pub fn close_ports(tx: &Tx<'_>, machine_id: &str) -> Result<(), StoreError> {
    tx.prepare_cached("DELETE FROM preview_port WHERE machine_id = ?1")?
        .execute([machine_id])?;
    Ok(())
}

const COLUMNS: &str = "id, machine_id, port, proxy, http, websocket, key_id, created_at, expires_at, revoked_at, \
     http_count, websocket_count, bytes_in, bytes_out, first_used_at, last_used_at, last_error_code, \
     last_error_at, updated_at";

fn from_row(row: &Row<'_>) -> rusqlite::Result<PreviewGrantRow> {
    Ok(PreviewGrantRow {
        id: row.get(0)?,
        machine_id: row.get(1)?,
        port: row.get(2)?,
        proxy: row.get(3)?,
        http: row.get(4)?,
        websocket: row.get(5)?,
        key_id: row.get(6)?,
        created_at: row.get(7)?,
        expires_at: row.get(8)?,
        revoked_at: row.get(9)?,
        used: PreviewUse {
            http_count: unsigned(row.get(10)?),
            websocket_count: unsigned(row.get(11)?),
            bytes_in: unsigned(row.get(12)?),
            bytes_out: unsigned(row.get(13)?),
            first_used_at: row.get(14)?,
            last_used_at: row.get(15)?,
            last_error_code: row.get(16)?,
            last_error_at: row.get(17)?,
        },
        updated_at: row.get(18)?,
    })
}

fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or_default()
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Records a new grant, which nobody has used.
///
/// # Errors
/// When the id is taken.
pub fn insert(tx: &Tx<'_>, row: &PreviewGrantRow) -> Result<(), StoreError> {
    tx.prepare_cached(
        "INSERT INTO preview_grant (id, machine_id, port, proxy, http, websocket, key_id, created_at, expires_at, \
         http_count, websocket_count, bytes_in, bytes_out, updated_at) \
         VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,0,0,0,0,?8)",
    )?
    .execute(params![
        row.id,
        row.machine_id,
        row.port,
        row.proxy,
        row.http,
        row.websocket,
        row.key_id,
        row.created_at,
        row.expires_at,
    ])?;
    Ok(())
}

/// One grant of a machine.
///
/// # Errors
/// Those of the database.
pub fn get(
    db: &Connection,
    machine_id: &str,
    id: &str,
) -> Result<Option<PreviewGrantRow>, StoreError> {
    Ok(db
        .prepare_cached(&format!(
            "SELECT {COLUMNS} FROM preview_grant WHERE id = ?2 AND machine_id = ?1"
        ))?
        .query_row([machine_id, id], from_row)
        .optional()?)
}

/// The grants of a machine, newest first; of one port, if one is named.
///
/// # Errors
/// Those of the database.
pub fn list(
    db: &Connection,
    machine_id: &str,
    port: Option<u16>,
) -> Result<Vec<PreviewGrantRow>, StoreError> {
    let sql = format!(
        "SELECT {COLUMNS} FROM preview_grant WHERE machine_id = ?1 AND (?2 IS NULL OR port = ?2) ORDER BY seq DESC"
    );
    let mut statement = db.prepare_cached(&sql)?;
    let rows = statement.query_map(params![machine_id, port], from_row)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// The grants of all machines whose time is not over, revoked ones among them.
///
/// # Errors
/// Those of the database.
pub fn in_time(db: &Connection, now: i64) -> Result<Vec<PreviewGrantRow>, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM preview_grant WHERE expires_at > ?1 ORDER BY seq");
    let mut statement = db.prepare_cached(&sql)?;
    let rows = statement.query_map([now], from_row)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// How many grants of a machine are remembered.
///
/// # Errors
/// Those of the database.
pub fn count_of(db: &Connection, machine_id: &str) -> Result<u64, StoreError> {
    let count = db
        .prepare_cached("SELECT COUNT(*) FROM preview_grant WHERE machine_id = ?1")?
        .query_row([machine_id], |row| row.get(0))?;
    Ok(unsigned(count))
}

/// Forgets the oldest grants of a machine that are over or revoked, at most so many, and answers how many.
///
/// # Errors
/// Those of the database.
pub fn forget_over(
    tx: &Tx<'_>,
    machine_id: &str,
    now: i64,
    most: u64,
) -> Result<usize, StoreError> {
    Ok(tx
        .prepare_cached(
            "DELETE FROM preview_grant WHERE seq IN (SELECT seq FROM preview_grant WHERE machine_id = ?1 \
             AND (expires_at <= ?2 OR revoked_at IS NOT NULL) ORDER BY seq LIMIT ?3)",
        )?
        .execute(params![machine_id, now, signed(most)])?)
}

/// Takes a grant back; one that was is left as it is.
///
/// # Errors
/// Those of the database.
pub fn revoke(tx: &Tx<'_>, machine_id: &str, id: &str, now: i64) -> Result<(), StoreError> {
    tx.prepare_cached(
        "UPDATE preview_grant SET revoked_at = ?3, updated_at = ?3 \
         WHERE machine_id = ?1 AND id = ?2 AND revoked_at IS NULL",
    )?
    .execute(params![machine_id, id, now])?;
    Ok(())
}

/// Revokes what a key asked for; answers what that was.
///
/// # Errors
/// Those of the database.
pub fn revoke_of_key(
    tx: &Tx<'_>,
    key_id: &str,
    now: i64,
) -> Result<Vec<PreviewGrantRow>, StoreError> {
    let mut rows = in_time(tx, now)?;
    rows.retain(|row| row.key_id.as_deref() == Some(key_id) && row.revoked_at.is_none());
    for row in &rows {
        revoke(tx, &row.machine_id, &row.id, now)?;
    }
    Ok(rows)
}

/// Keeps what passed with a grant so far.
///
/// # Errors
/// Those of the database.
pub fn keep_use(tx: &Tx<'_>, id: &str, used: &PreviewUse, now: i64) -> Result<(), StoreError> {
    tx.prepare_cached(
        "UPDATE preview_grant SET http_count = ?2, websocket_count = ?3, bytes_in = ?4, bytes_out = ?5, \
         first_used_at = ?6, last_used_at = ?7, last_error_code = ?8, last_error_at = ?9, updated_at = ?10 \
         WHERE id = ?1",
    )?
    .execute(params![
        id,
        signed(used.http_count),
        signed(used.websocket_count),
        signed(used.bytes_in),
        signed(used.bytes_out),
        used.first_used_at,
        used.last_used_at,
        used.last_error_code,
        used.last_error_at,
        now,
    ])?;
    Ok(())
}

/// Forgets grants that were over before this time, and answers how many.
///
/// # Errors
/// Those of the database.
pub fn forget_before(tx: &Tx<'_>, time: i64) -> Result<usize, StoreError> {
    Ok(tx
        .prepare_cached("DELETE FROM preview_grant WHERE expires_at < ?1")?
        .execute([time])?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::Store;

    fn grant(id: &str, port: u16, at: i64) -> PreviewGrantRow {
        PreviewGrantRow {
            id: id.into(),
            machine_id: "mch_1".into(),
            port,
            http: true,
            created_at: at,
            expires_at: at + 10,
            updated_at: at,
            ..PreviewGrantRow::default()
        }
    }

    #[tokio::test]
    async fn grants_are_kept_used_revoked_and_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("nullspace.db")).unwrap();
        let used = PreviewUse {
            http_count: 3,
            bytes_out: 1 << 40,
            first_used_at: Some(11),
            last_used_at: Some(12),
            last_error_code: Some("service_timeout".into()),
            last_error_at: Some(12),
            ..PreviewUse::default()
        };
        let kept = used.clone();
        store
            .write(move |tx| {
                for (id, port, at) in [("pvg_1", 80, 10), ("pvg_2", 81, 20), ("pvg_3", 80, 30)] {
                    insert(tx, &grant(id, port, at))?;
                }
                keep_use(tx, "pvg_1", &kept, 13)?;
                revoke(tx, "mch_1", "pvg_3", 31)?;
                // Another machine's name does not revoke it, and a second time changes nothing.
                revoke(tx, "mch_2", "pvg_2", 31)?;
                revoke(tx, "mch_1", "pvg_3", 32)
            })
            .await
            .unwrap();
        let ids = |rows: Vec<PreviewGrantRow>| -> Vec<String> {
            rows.into_iter().map(|row| row.id).collect()
        };
        let read = |port| store.read(move |db| list(db, "mch_1", port));
        assert_eq!(ids(read(None).await.unwrap()), ["pvg_3", "pvg_2", "pvg_1"]);
        assert_eq!(ids(read(Some(80)).await.unwrap()), ["pvg_3", "pvg_1"]);
        let one = |id: &'static str| store.read(move |db| get(db, "mch_1", id));
        assert_eq!(one("pvg_1").await.unwrap().unwrap().used, used);
        assert_eq!(one("pvg_3").await.unwrap().unwrap().revoked_at, Some(31));
        assert_eq!(one("pvg_2").await.unwrap().unwrap(), grant("pvg_2", 81, 20));
        let open = store.read(|db| in_time(db, 20)).await.unwrap();
        assert_eq!(ids(open), ["pvg_2", "pvg_3"]);
        // The oldest that is over goes first.
        store
            .write(|tx| forget_over(tx, "mch_1", 25, 1))
            .await
            .unwrap();
        assert_eq!(ids(read(None).await.unwrap()), ["pvg_3", "pvg_2"]);
        store.write(|tx| forget_before(tx, 31)).await.unwrap();
        assert_eq!(ids(read(None).await.unwrap()), ["pvg_3"]);
    }

    #[tokio::test]
    async fn a_published_port_stays_published_until_its_machine_ends() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("nullspace.db")).unwrap();
        let row = |published, gateway_port| PreviewPortRow {
            machine_id: "mch_1".into(),
            port: 80,
            gateway_port: Some(gateway_port),
            published,
        };
        for (published, gateway_port) in [(false, 20_000), (true, 20_000), (false, 20_001)] {
            let row = row(published, gateway_port);
            store.write(move |tx| keep_port(tx, &row)).await.unwrap();
        }
        assert_eq!(store.read(ports).await.unwrap(), [row(true, 20_001)]);
        store.write(|tx| close_ports(tx, "mch_1")).await.unwrap();
        assert_eq!(store.read(ports).await.unwrap(), []);
    }
}
