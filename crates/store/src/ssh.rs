//! Who may log in to a machine over SSH.

use rusqlite::{Connection, OptionalExtension, params};

use crate::{StoreError, Tx};

/// One grant: a key may log in to a machine as a user of it, for a while.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SshGrantRow {
    /// Its id, which the certificate carries.
    pub id: String,
    /// Where to.
    pub machine_id: String,
    /// As whom.
    pub user: String,
    /// Of the public key, as OpenSSH writes it: `SHA256:…`.
    pub fingerprint: String,
    /// The API key that asked.
    pub key_id: Option<String>,
    /// When it was made.
    pub created_at: i64,
    /// When it is over.
    pub expires_at: i64,
}

/// Records a new grant.
///
/// # Errors
/// When the id is taken.
pub fn insert(tx: &Tx<'_>, row: &SshGrantRow) -> Result<(), StoreError> {
    tx.prepare_cached(
        "INSERT INTO ssh_grant (id, machine_id, user, fingerprint, key_id, created_at, expires_at) \
         VALUES (?1,?2,?3,?4,?5,?6,?7)",
    )?
    .execute(params![
        row.id,
        row.machine_id,
        row.user,
        row.fingerprint,
        row.key_id,
        row.created_at,
        row.expires_at,
    ])?;
    Ok(())
}

/// One grant.
///
/// # Errors
/// Those of the database.
pub fn get(db: &Connection, id: &str) -> Result<Option<SshGrantRow>, StoreError> {
    Ok(db
        .prepare_cached(
            "SELECT id, machine_id, user, fingerprint, key_id, created_at, expires_at FROM ssh_grant WHERE id = ?1",
        )?
        .query_row([id], |row| {
            Ok(SshGrantRow {
                id: row.get(0)?,
                machine_id: row.get(1)?,
                user: row.get(2)?,
                fingerprint: row.get(3)?,
                key_id: row.get(4)?,
                created_at: row.get(5)?,
                expires_at: row.get(6)?,
            })
        })
        .optional()?)
}

/// How many grants of a machine are not over.
///
/// # Errors
/// Those of the database.
pub fn open_of(db: &Connection, machine_id: &str, now: i64) -> Result<u64, StoreError> {
    let count: i64 = db
        .prepare_cached("SELECT COUNT(*) FROM ssh_grant WHERE machine_id = ?1 AND expires_at > ?2")?
        .query_row(params![machine_id, now], |row| row.get(0))?;
    Ok(u64::try_from(count).unwrap_or_default())
}

/// Forgets grants that were over before this time.
///
/// # Errors
/// Those of the database.
pub fn forget_before(tx: &Tx<'_>, time: i64) -> Result<usize, StoreError> {
    Ok(tx
        .prepare_cached("DELETE FROM ssh_grant WHERE expires_at < ?1")?
        .execute([time])?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::Store;

    #[tokio::test]
    async fn a_grant_is_kept_until_it_is_over_and_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("nullspace.db")).unwrap();
        let row = SshGrantRow {
            id: "ssh_1".into(),
            machine_id: "mch_1".into(),
            user: "root".into(),
            fingerprint: "SHA256:x".into(),
            key_id: None,
            created_at: 10,
            expires_at: 20,
        };
        let kept = row.clone();
        store.write(move |tx| insert(tx, &kept)).await.unwrap();
        assert_eq!(store.read(|db| get(db, "ssh_1")).await.unwrap(), Some(row));
        let open = |now| store.read(move |db| open_of(db, "mch_1", now));
        assert_eq!((open(19).await.unwrap(), open(20).await.unwrap()), (1, 0));
        store.write(|tx| forget_before(tx, 21)).await.unwrap();
        assert_eq!(store.read(|db| get(db, "ssh_1")).await.unwrap(), None);
    }
}
