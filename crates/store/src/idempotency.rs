//! Idempotency keys: which request made what, so that a repeated request gets the same thing.

use rusqlite::{Connection, OptionalExtension, params};

use crate::{StoreError, Tx};

/// What a key is valid for, and the hash of the body it came with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The API key that asked.
    pub key_id: String,
    /// Method and path.
    pub route: String,
    /// The caller's key.
    pub key: String,
    /// The request's canonical body. It is kept only as a salted hash: it may hold secrets.
    pub body: Vec<u8>,
}

/// How a claim went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The key is new and belongs to `subject` now.
    New,
    /// The same request was made before, for this subject.
    Replay(String),
    /// The key was used with another body.
    Conflict,
}

/// Claims a key for `subject`, or finds who has it. `hash` makes a digest of salt and body.
///
/// # Errors
/// Those of the database.
pub fn claim(
    tx: &Tx<'_>,
    claim: &Claim,
    subject: &str,
    now: i64,
    hash: impl Fn(&[u8], &[u8]) -> Vec<u8>,
) -> Result<Outcome, StoreError> {
    let found = look_up(tx, claim, &hash)?;
    if found != Outcome::New {
        return Ok(found);
    }
    let salt = uuid::Uuid::new_v4().into_bytes();
    tx.prepare_cached(
        "INSERT INTO idempotency (key_id, route, key, salt, body_hash, subject, created_at) \
         VALUES (?1,?2,?3,?4,?5,?6,?7)",
    )?
    .execute(params![
        claim.key_id,
        claim.route,
        claim.key,
        salt,
        hash(&salt, &claim.body),
        subject,
        now
    ])?;
    Ok(Outcome::New)
}

/// Who has a key, without claiming it.
///
/// # Errors
/// Those of the database.
pub fn look_up(
    db: &Connection,
    claim: &Claim,
    hash: impl Fn(&[u8], &[u8]) -> Vec<u8>,
) -> Result<Outcome, StoreError> {
    let found: Option<(Vec<u8>, Vec<u8>, String)> = db
        .prepare_cached(
            "SELECT salt, body_hash, subject FROM idempotency \
             WHERE key_id = ?1 AND route = ?2 AND key = ?3",
        )?
        .query_row(params![claim.key_id, claim.route, claim.key], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })
        .optional()?;
    Ok(match found {
        None => Outcome::New,
        Some((salt, body_hash, subject)) if hash(&salt, &claim.body) == body_hash => {
            Outcome::Replay(subject)
        }
        Some(_) => Outcome::Conflict,
    })
}

/// Frees the keys of a subject that never came to be, so that a repeated request tries again.
///
/// # Errors
/// Those of the database.
pub fn release(tx: &Tx<'_>, subject: &str) -> Result<(), StoreError> {
    tx.prepare_cached("DELETE FROM idempotency WHERE subject = ?1")?
        .execute([subject])?;
    Ok(())
}

/// Forgets keys older than this time.
///
/// # Errors
/// Those of the database.
pub fn forget_before(tx: &Tx<'_>, time: i64) -> Result<usize, StoreError> {
    Ok(tx
        .prepare_cached("DELETE FROM idempotency WHERE created_at < ?1")?
        .execute([time])?)
}
