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
        let directory = data_dir.join("keys");
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)?;
        let path = directory.join("seal.key");
        let random = SystemRandom::new();
        let mut bytes = Vec::new();
        match fs::File::open(&path) {
            Ok(file) => {
                file.take(KEY as u64 + 1).read_to_end(&mut bytes)?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                bytes = vec![0; KEY];
                random.fill(&mut bytes).map_err(unspecified)?;
                // Whole or not at all, and on the disk before anything is sealed with it.
                let new = directory.join("seal.key.new");
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
            }
            Err(error) => return Err(error),
        }
        if bytes.len() != KEY {
            return Err(io::Error::other(format!(
                "{} does not hold {KEY} bytes",
                path.display()
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
