//! API keys: who may ask.
//!
//! A key is `ns_live_` and 48 hex digits, or whatever the operator chose. Only its SHA-256 is kept; the
//! valid hashes are in memory, so that a request costs one hash and one look-up.

use std::{collections::HashMap, sync::Arc, sync::RwLock};

use nullspace_api::{Noun, id, time};
use nullspace_store::{Store, key as rows};
use rand::Rng;
use sha2::{Digest, Sha256};

use super::Caller;
use crate::error::Result;

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

/// The valid keys by hash.
#[derive(Debug, Default)]
pub struct Ring(RwLock<HashMap<[u8; 32], Arc<str>>>);

impl Ring {
    /// Who has this key. The look-up is by hash: how long it takes says nothing about a valid key.
    #[must_use]
    pub fn check(&self, key: &str) -> Option<Caller> {
        let hash: [u8; 32] = Sha256::digest(key.as_bytes()).into();
        let keys = self.0.read().unwrap_or_else(|e| e.into_inner());
        let (found, key_id) = keys.get_key_value(&hash)?;
        // The map compares hashes of the hash first; this compares all of it, in constant time.
        let differs = found
            .iter()
            .zip(&hash)
            .fold(0u8, |acc, (a, b)| acc | (a ^ b));
        (differs == 0).then(|| Caller {
            key_id: key_id.clone(),
        })
    }

    /// Reads the valid keys from the record.
    ///
    /// # Errors
    /// When the record cannot be read.
    pub async fn load(&self, store: &Store) -> Result<usize> {
        let rows = store.read(rows::valid).await?;
        let keys: HashMap<_, _> = rows
            .into_iter()
            .filter_map(|row| Some((<[u8; 32]>::try_from(row.hash).ok()?, row.id.into())))
            .collect();
        let count = keys.len();
        *self.0.write().unwrap_or_else(|e| e.into_inner()) = keys;
        Ok(count)
    }

    /// Keeps a key's hash and lets it in from now on.
    ///
    /// # Errors
    /// When the record cannot be written.
    pub async fn register(&self, store: &Store, key: &str, name: &str) -> Result<()> {
        let row = rows::KeyRow {
            id: id::new(id::KEY),
            name: name.to_owned(),
            prefix: key.chars().take(PREFIX.len() + 4).collect(),
            hash: Sha256::digest(key.as_bytes()).to_vec(),
            created_at: time::now(),
        };
        // A key so short that its first letters are most of it shows none of them.
        let row = rows::KeyRow {
            prefix: if key.len() < 24 {
                String::new()
            } else {
                row.prefix
            },
            ..row
        };
        store.write(move |tx| rows::insert(tx, &row)).await?;
        self.load(store).await.map(drop)
    }
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
