//! Values that must survive a restart of the server without being readable in the database.
//!
//! One key per data directory, in `keys/seal.key` (0600), made at the first start. Whoever has the database alone, or a
//! copy of it, has nothing. Used for the environments of services and for their traffic tokens.

use std::{
    fs, io,
    io::{Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
};

use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    hmac,
    rand::{SecureRandom, SystemRandom},
};

/// Bytes of the key.
const KEY: usize = 32;
/// More than any secret that is kept takes.
const MAX_SECRET: u64 = 64 << 10;

/// Seals and opens.
pub(crate) struct Seal {
    key: LessSafeKey,
    tokens: hmac::Key,
    random: SystemRandom,
}

impl std::fmt::Debug for Seal {
    /// Without the keys.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Seal")
    }
}

impl Seal {
    /// Reads the key of a data directory, or makes it.
    ///
    /// # Errors
    /// When it cannot be read, written, or is not a key.
    pub(crate) fn open(data_dir: &Path) -> io::Result<Self> {
        let random = SystemRandom::new();
        let bytes = kept(data_dir, "seal.key", || {
            let mut bytes = vec![0; KEY];
            random.fill(&mut bytes).map_err(unspecified)?;
            Ok(bytes)
        })?;
        if bytes.len() != KEY {
            return Err(io::Error::other(format!(
                "keys/seal.key does not hold {KEY} bytes"
            )));
        }
        let key = UnboundKey::new(&AES_256_GCM, &bytes).map_err(unspecified)?;
        let tokens = hmac::sign(
            &hmac::Key::new(hmac::HMAC_SHA256, &bytes),
            b"traffic tokens",
        );
        Ok(Self {
            key: LessSafeKey::new(key),
            tokens: hmac::Key::new(hmac::HMAC_SHA256, tokens.as_ref()),
            random,
        })
    }

    /// Seals for `owner`: opened for another it fails.
    ///
    /// # Errors
    /// When the system has no random numbers.
    pub(crate) fn seal(&self, owner: &str, plain: &[u8]) -> io::Result<Vec<u8>> {
        let mut nonce = [0; NONCE_LEN];
        self.random.fill(&mut nonce).map_err(unspecified)?;
        let mut data = plain.to_vec();
        self.key
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(owner),
                &mut data,
            )
            .map_err(unspecified)?;
        Ok([nonce.as_slice(), &data].concat())
    }

    /// Opens what [`Seal::seal`] made for the same owner; `None` for anything else.
    #[must_use]
    pub(crate) fn open_sealed(&self, owner: &str, sealed: &[u8]) -> Option<Vec<u8>> {
        let (nonce, data) = sealed.split_at_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut data = data.to_vec();
        let plain = self
            .key
            .open_in_place(nonce, Aad::from(owner), &mut data)
            .ok()?;
        Some(plain.to_vec())
    }

    /// A token for `owner` that nobody without the key can make. The same every time.
    #[must_use]
    pub(crate) fn token(&self, owner: &str) -> String {
        hex::encode(hmac::sign(&self.tokens, owner.as_bytes()))
    }

    /// Whether this is the token for `owner`; takes as long for any other.
    #[must_use]
    pub(crate) fn is_token(&self, owner: &str, token: &str) -> bool {
        hex::decode(token)
            .is_ok_and(|token| hmac::verify(&self.tokens, owner.as_bytes(), &token).is_ok())
    }
}

/// A secret of the data directory: what the file `name` in `keys/` holds, or what `make` makes for it at the first start.
///
/// # Errors
/// When it cannot be read, made or written.
pub(crate) fn kept(
    data_dir: &Path,
    name: &str,
    make: impl FnOnce() -> io::Result<Vec<u8>>,
) -> io::Result<Vec<u8>> {
    let directory = data_dir.join("keys");
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&directory)?;
    let path = directory.join(name);
    match fs::File::open(&path) {
        Ok(file) => {
            let mut bytes = Vec::new();
            file.take(MAX_SECRET).read_to_end(&mut bytes)?;
            Ok(bytes)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let bytes = make()?;
            // Whole or not at all, and on the disk before anything depends on it.
            let new = directory.join(format!("{name}.new"));
            let mut file = fs::File::options()
                .create(true)
                .truncate(true)
                .write(true)
                .mode(0o600)
                .open(&new)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            fs::File::open(&directory)?.sync_all()?;
            Ok(bytes)
        }
        Err(error) => Err(error),
    }
}

fn unspecified(_: ring::error::Unspecified) -> io::Error {
    io::Error::other("the cryptography refused")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_is_sealed_is_opened_by_the_same_directory_for_the_same_owner_alone() {
        let directory = tempfile::tempdir().unwrap();
        let seal = Seal::open(directory.path()).unwrap();
        let sealed = seal.seal("adsvc_1", b"TOKEN=secret").unwrap();
        assert!(!sealed.windows(6).any(|part| part == b"secret"));
        assert_ne!(sealed, seal.seal("adsvc_1", b"TOKEN=secret").unwrap());
        let again = Seal::open(directory.path()).unwrap();
        assert_eq!(
            again.open_sealed("adsvc_1", &sealed).unwrap(),
            b"TOKEN=secret"
        );
        assert_eq!(seal.token("a"), again.token("a"));
        assert_ne!(seal.token("a"), seal.token("b"));
        assert!(again.is_token("a", &seal.token("a")) && !again.is_token("b", &seal.token("a")));
        let other = tempfile::tempdir().unwrap();
        let other = Seal::open(other.path()).unwrap();
        assert!(again.open_sealed("adsvc_2", &sealed).is_none());
        assert!(other.open_sealed("adsvc_1", &sealed).is_none());
        assert!(seal.open_sealed("adsvc_1", &sealed[..5]).is_none());
        let mode = |path: &str| {
            let path = directory.path().join(path);
            fs::metadata(path).unwrap().permissions().mode() & 0o777
        };
        assert_eq!((mode("keys"), mode("keys/seal.key")), (0o700, 0o600));
    }

    #[test]
    fn a_key_that_is_cut_is_no_key() {
        let directory = tempfile::tempdir().unwrap();
        Seal::open(directory.path()).unwrap();
        fs::write(directory.path().join("keys/seal.key"), "short").unwrap();
        assert!(Seal::open(directory.path()).is_err());
    }
}
