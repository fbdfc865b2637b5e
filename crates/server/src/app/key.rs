//! API keys: who may ask, for which tenant, and for what.
//!
//! ```text
//!  made ──▶ let in ──▶ taken back, or over its time ──▶ refused
//!                 └──▶ rotated: a new one is let in at once, the old one for a day
//! ```
//! A key is `ns_live_` and 48 hex digits, or whatever the operator chose. Only its SHA-256 is kept; the
//! valid hashes are in memory, so that a request costs one hash and one look-up.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicI64, Ordering},
    },
};

use nullspace_api::{
    Noun,
    error::code,
    id,
    key::{CreateKeyRequest, CreatedKey, DefaultKey, KeyInfo},
    time,
};
use nullspace_store::{
    Store,
    key::{self as rows, KeyRow},
    preview as preview_rows,
};
use rand::Rng;
use sha2::{Digest, Sha256};

use super::{
    App, Caller, preview,
    scope::{self, Access, Area, Need, Scope},
    tenant::{self, Tenant},
};
use crate::error::{Error, Kind, Result};

/// The longest name, in characters.
const MAX_NAME: usize = 128;
/// Keys of one tenant that are not taken back.
const MAX_KEYS: u64 = 1000;
/// How long a key is let in after it was replaced, in microseconds.
const ROTATED: i64 = 24 * 3600 * 1_000_000;
/// How exact it is noted when a key was used, in microseconds.
const USED: i64 = 60 * 1_000_000;
/// The name of a tenant's first key.
const DEFAULT_NAME: &str = "default";

/// How keys spell a machine, by what they asked for last. Some answers have one word for it and no path that tells which.
#[derive(Debug, Default)]
pub struct Spelling(RwLock<HashMap<Arc<str>, Noun>>);

impl Spelling {
    /// Notes what a key said.
    pub fn said(&self, caller: &Caller, noun: Noun) {
        if self.of(&caller.key_id) != Some(noun) {
            let mut all = self.0.write().unwrap_or_else(|e| e.into_inner());
            all.insert(caller.key_id.clone(), noun);
        }
    }

    /// What it said last.
    #[must_use]
    pub fn of(&self, key_id: &str) -> Option<Noun> {
        let all = self.0.read().unwrap_or_else(|e| e.into_inner());
        all.get(key_id).copied()
    }
}

/// What minted keys begin with.
pub const PREFIX: &str = "ns_live_";

/// The valid keys by hash, and the tenants.
#[derive(Debug, Default)]
pub struct Ring {
    known: RwLock<Known>,
    /// Held from reading the record until that is known: a key that was taken back must not come again with what was read before.
    loading: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Known {
    keys: HashMap<[u8; 32], Arc<Entry>>,
    /// The ids of keys that were not taken back.
    kept: HashSet<String>,
    tenants: HashMap<Arc<str>, Arc<Tenant>>,
}

#[derive(Debug)]
struct Entry {
    caller: Caller,
    expires_at: Option<i64>,
    used_at: AtomicI64,
}

impl Ring {
    /// Who has this key. The look-up is by hash: how long it takes says nothing about a valid key.
    ///
    /// # Errors
    /// `unauthorized`; `permission_denied` when the tenant is suspended.
    pub fn check(&self, store: &Store, key: &str) -> Result<Caller> {
        let refused = |message: &str| {
            Error::new(Kind::Unauthorized, code::UNAUTHORIZED, message)
                .with_action("send the header `Authorization: Bearer <key>` with a valid key")
        };
        let hash: [u8; 32] = Sha256::digest(key.as_bytes()).into();
        let entry = {
            let known = self.read();
            let found = known.keys.get_key_value(&hash);
            // The map compares hashes of the hash first; this compares all of it, in constant time.
            found
                .filter(|(found, _)| {
                    let differs = found
                        .iter()
                        .zip(&hash)
                        .fold(0u8, |acc, (a, b)| acc | (a ^ b));
                    differs == 0
                })
                .map(|(_, entry)| entry.clone())
        };
        let entry = entry.ok_or_else(|| refused("this api key is not valid"))?;
        let now = time::now();
        if entry.expires_at.is_some_and(|at| at <= now) {
            return Err(refused("this api key is over its time"));
        }
        if entry.caller.tenant.is_suspended {
            return Err(Error::new(
                Kind::Forbidden,
                code::PERMISSION_DENIED,
                "the tenant of this api key is suspended",
            )
            .with_action("ask the operator of this server"));
        }
        if now.abs_diff(entry.used_at.load(Ordering::Relaxed)) >= USED.unsigned_abs() {
            entry.used_at.store(now, Ordering::Relaxed);
            let id = entry.caller.key_id.clone();
            store.write_later(move |tx| rows::used(tx, &id, now));
        }
        Ok(entry.caller.clone())
    }

    /// A tenant, by id.
    #[must_use]
    pub fn tenant(&self, id: &str) -> Option<Arc<Tenant>> {
        self.read().tenants.get(id).cloned()
    }

    /// Whether a key was not taken back, whatever its time.
    pub(crate) fn is_kept(&self, key_id: &str) -> bool {
        self.read().kept.contains(key_id)
    }

    /// Whether keys of a tenant are refused.
    pub(crate) fn is_suspended(&self, tenant_id: &str) -> bool {
        self.tenant(tenant_id)
            .is_none_or(|tenant| tenant.is_suspended)
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Known> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the tenants and the valid keys from the record; answers whether an operator's is among them.
    ///
    /// # Errors
    /// When the record cannot be read.
    pub async fn load(&self, store: &Store) -> Result<bool> {
        let _alone = self.loading.lock().await;
        let tenants = tenant::read(store, |id| self.tenant(id)).await?;
        let tenants: HashMap<_, _> = tenants
            .into_iter()
            .map(|tenant| (tenant.id.clone(), tenant))
            .collect();
        let rows = store.read(rows::valid).await?;
        let kept = rows.iter().map(|row| row.id.clone()).collect();
        let keys: HashMap<_, _> = rows
            .into_iter()
            .filter_map(|row| {
                let caller = Caller {
                    key_id: row.id.into(),
                    tenant: tenants.get(&*row.tenant_id)?.clone(),
                    scope: Arc::new(Scope::parse(&row.scope).ok()?),
                };
                let entry = Entry {
                    caller,
                    expires_at: row.expires_at,
                    used_at: AtomicI64::new(row.last_used_at.unwrap_or_default()),
                };
                Some((<[u8; 32]>::try_from(row.hash).ok()?, Arc::new(entry)))
            })
            .collect();
        let operator = Need(Area::Server, Access::Write);
        let has_operator = keys.values().any(|entry: &Arc<Entry>| {
            entry.expires_at.is_none() && entry.caller.scope.allows(operator)
        });
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = Known {
            keys,
            kept,
            tenants,
        };
        Ok(has_operator)
    }

    /// Keeps an operator's key of the first tenant and lets it in from now on.
    ///
    /// # Errors
    /// When the record cannot be written.
    pub async fn register(&self, store: &Store, key: &str, name: &str) -> Result<()> {
        let row = KeyRow {
            name: name.to_owned(),
            scope: scope::OPERATOR.to_owned(),
            ..row(key, tenant::DEFAULT)
        };
        store.write(move |tx| rows::insert(tx, &row)).await?;
        self.load(store).await.map(drop)
    }
}

fn row(key: &str, tenant_id: &str) -> KeyRow {
    KeyRow {
        id: id::new(id::KEY),
        tenant_id: tenant_id.to_owned(),
        // A key so short that its first letters are most of it shows none of them.
        prefix: match key.len() < 24 {
            true => String::new(),
            false => key.chars().take(PREFIX.len() + 4).collect(),
        },
        hash: Sha256::digest(key.as_bytes()).to_vec(),
        created_at: time::now(),
        ..KeyRow::default()
    }
}

/// Makes a key of a tenant. It may do no more than the one that asks.
///
/// # Errors
/// `invalid_request`, `permission_denied`, `tenant_not_found`, `capacity_exceeded`.
pub async fn create(
    app: &App,
    caller: &Caller,
    tenant: &str,
    request: CreateKeyRequest,
) -> Result<CreatedKey> {
    let scope = Scope::parse(request.scope.as_deref().unwrap_or(scope::DEFAULT))?;
    check_covers(caller, &scope)?;
    let name = request.name.unwrap_or_default();
    if name.chars().count() > MAX_NAME || name.chars().any(char::is_control) {
        return Err(Error::invalid(format!(
            "name: must be at most {MAX_NAME} characters without control characters"
        )));
    }
    let expires_at = match request.expires_in_seconds {
        None => None,
        Some(0) => return Err(Error::invalid("expires_in_seconds: must be at least 1")),
        Some(seconds) => Some(after(seconds)?),
    };
    let key = mint();
    let row = KeyRow {
        name,
        scope: scope.as_str().to_owned(),
        expires_at,
        ..row(&key, "")
    };
    let tenant = tenant.to_owned();
    let row = insert(app, move |tx| {
        Ok(KeyRow {
            tenant_id: tenant::find(tx, &tenant)?.id,
            ..row
        })
    })
    .await?;
    Ok(created(row, key))
}

/// Nobody gives others what is not theirs.
fn check_covers(caller: &Caller, scope: &Scope) -> Result<()> {
    if caller.scope.covers(scope) {
        return Ok(());
    }
    Err(Error::new(
        Kind::Forbidden,
        code::PERMISSION_DENIED,
        format!(
            "this api key has the scope {:?}, and cannot make one with {:?}",
            caller.scope.as_str(),
            scope.as_str()
        ),
    )
    .with_action("ask for a narrower scope, or with another key"))
}

fn after(seconds: u64) -> Result<i64> {
    i64::try_from(seconds)
        .ok()
        .and_then(|seconds| seconds.checked_mul(1_000_000))
        .and_then(|micros| time::now().checked_add(micros))
        // Later times have five digits of years, which nobody can read back.
        .filter(|at| *at < 253_402_300_800_000_000)
        .ok_or_else(|| Error::invalid("expires_in_seconds: is after the year 9999"))
}

async fn insert(
    app: &App,
    make: impl FnOnce(&nullspace_store::Tx<'_>) -> Result<KeyRow> + Send + 'static,
) -> Result<KeyRow> {
    let row = app
        .store
        .write(move |tx| {
            let row = make(tx)?;
            if rows::count(tx, &row.tenant_id)? >= MAX_KEYS {
                return Err(Error::new(
                    Kind::Limit,
                    code::CAPACITY_EXCEEDED,
                    format!("{MAX_KEYS} api keys are there, the most a tenant can have"),
                )
                .with_action("revoke keys that are no longer needed"));
            }
            rows::insert(tx, &row)?;
            Ok(row)
        })
        .await?;
    app.keys.load(&app.store).await?;
    Ok(row)
}

fn created(row: KeyRow, key: String) -> CreatedKey {
    CreatedKey {
        id: row.id,
        key,
        prefix: row.prefix,
        name: Some(row.name).filter(|name| !name.is_empty()),
        scope: Some(row.scope),
        expires_at: row.expires_at.map(time::rfc3339),
    }
}

/// The first key of the caller's tenant of the name `default`, made if there is none that is let in.
///
/// # Errors
/// As [`create`].
pub async fn default_key(app: &App, caller: &Caller) -> Result<DefaultKey> {
    let there = list(app, &caller.tenant.id).await?;
    let there = there
        .into_iter()
        .find(|key| key.is_active && key.name.as_deref() == Some(DEFAULT_NAME));
    if let Some(key) = there {
        return Ok(DefaultKey {
            created: false,
            id: key.id,
            prefix: key.prefix,
            key: None,
            name: key.name,
            scope: key.scope,
            expires_at: key.expires_at,
        });
    }
    let request = CreateKeyRequest {
        name: Some(DEFAULT_NAME.to_owned()),
        ..CreateKeyRequest::default()
    };
    let made = create(app, caller, &caller.tenant.id, request).await?;
    Ok(DefaultKey {
        created: true,
        id: made.id,
        prefix: made.prefix,
        key: Some(made.key),
        name: made.name,
        scope: made.scope,
        expires_at: made.expires_at,
    })
}

/// The keys of a tenant, newest first, those that were taken back too.
///
/// # Errors
/// `tenant_not_found`.
pub async fn list(app: &App, tenant: &str) -> Result<Vec<KeyInfo>> {
    let tenant = tenant.to_owned();
    let rows = app
        .store
        .read(move |db| {
            let tenant = tenant::find(db, &tenant)?;
            Ok::<_, Error>(rows::list(db, &tenant.id)?)
        })
        .await?;
    let now = time::now();
    let shown = rows.into_iter().map(|row| KeyInfo {
        is_active: row.revoked_at.is_none() && row.expires_at.is_none_or(|at| at > now),
        id: row.id,
        prefix: row.prefix,
        name: Some(row.name).filter(|name| !name.is_empty()),
        created_at: Some(time::rfc3339(row.created_at)),
        last_used_at: row.last_used_at.map(time::rfc3339),
        scope: Some(row.scope),
        expires_at: row.expires_at.map(time::rfc3339),
        revoked_at: row.revoked_at.map(time::rfc3339),
        rotation_parent_key_id: row.rotated_from,
    });
    Ok(shown.collect())
}

fn not_found(id: &str) -> Error {
    let shown: String = id.chars().take(MAX_NAME).collect();
    Error::not_found(code::KEY_NOT_FOUND, format!("no api key {shown:?}"))
}

/// Takes a key of the caller's tenant back, and what it opened: previews end, and nobody logs in with what it gave out. Doing it
/// again is fine.
///
/// # Errors
/// `key_not_found`, `permission_denied` for one that may do more, `conflict` for the one that asks.
pub async fn revoke(app: &App, caller: &Caller, id: &str) -> Result<()> {
    if *caller.key_id == *id {
        return Err(
            Error::conflict(code::CONFLICT, "this is the api key that asks")
                .with_action("revoke it with another key, or rotate it"),
        );
    }
    let (caller, id) = (caller.clone(), id.to_owned());
    let revoked = app
        .store
        .write(move |tx| {
            let row = rows::get(tx, &caller.tenant.id, &id)?.ok_or_else(|| not_found(&id))?;
            check_covers(&caller, &Scope::parse(&row.scope)?)?;
            let now = time::now();
            rows::revoke(tx, &id, now)?;
            Ok::<_, Error>(preview_rows::revoke_of_key(tx, &id, now)?)
        })
        .await?;
    preview::end(app, &revoked);
    app.keys.load(&app.store).await.map(drop)
}

/// Replaces a key of the caller's tenant by a new one with the same name and scope. The old one is let in for a day.
///
/// # Errors
/// `key_not_found`, `permission_denied` for one that may do more, `conflict` for one that is not let in any more.
pub async fn rotate(app: &App, caller: &Caller, id: &str) -> Result<CreatedKey> {
    let key = mint();
    let new = row(&key, &caller.tenant.id);
    let (caller, id) = (caller.clone(), id.to_owned());
    let made = insert(app, move |tx| {
        let old = rows::get(tx, &caller.tenant.id, &id)?.ok_or_else(|| not_found(&id))?;
        check_covers(&caller, &Scope::parse(&old.scope)?)?;
        let now = time::now();
        if old.revoked_at.is_some() || old.expires_at.is_some_and(|at| at <= now) {
            return Err(
                Error::conflict(code::CONFLICT, "this api key is not let in any more")
                    .with_action("make a new one"),
            );
        }
        rows::expire(tx, &id, now + ROTATED)?;
        Ok(KeyRow {
            name: old.name,
            scope: old.scope,
            expires_at: old.expires_at,
            rotated_from: Some(id),
            ..new
        })
    })
    .await?;
    Ok(created(made, key))
}

/// A new key.
#[must_use]
pub fn mint() -> String {
    let mut bytes = [0u8; 24];
    rand::rng().fill(&mut bytes);
    format!("{PREFIX}{}", hex::encode(bytes))
}

#[cfg(test)]
mod tests {
    #[test]
    fn minted_keys_look_right() {
        let key = super::mint();
        assert_eq!(key.len(), 56);
        assert!(key[8..].bytes().all(|b| b.is_ascii_hexdigit()));
    }
}
