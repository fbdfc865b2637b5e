//! A machine's state on disk: what an engine wrote, and how one knows that all of it is there.

use std::{fs, io, path::Path};

use serde::{Deserialize, Serialize};

/// The file that says what a checkpoint is. Written last: without it there is no checkpoint.
const RECORD: &str = "checkpoint.json";
/// The most bytes of it that are read.
const MAX_RECORD: u64 = 64 << 10;

/// What becomes of a machine whose state was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Afterwards {
    /// It goes on running.
    Run,
    /// It is ended, at the moment that was kept.
    End,
}

/// A finished checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The engine that wrote it, by name; no other one can read it.
    pub engine: String,
    /// What of the engine must be the same to read it: a version, in the engine's own words.
    pub format: String,
    /// Bytes on disk.
    pub bytes: u64,
    /// Of everything in it but this record: 64 hex digits, as the engine's docs say.
    pub digest: String,
}

impl Checkpoint {
    /// The record in a checkpoint's directory; `None` when there is none that can be read, and so no checkpoint.
    #[must_use]
    pub fn read(directory: &Path) -> Option<Self> {
        let path = directory.join(RECORD);
        let length = fs::symlink_metadata(&path).ok()?.len();
        if length > MAX_RECORD {
            return None;
        }
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    }

    /// Puts the record into a directory that holds all else, durably: what else is there must be on disk already.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write(&self, directory: &Path) -> io::Result<()> {
        let passing = directory.join(format!("{RECORD}.new"));
        fs::write(&passing, serde_json::to_vec(self)?)?;
        fs::File::open(&passing)?.sync_all()?;
        fs::rename(&passing, directory.join(RECORD))?;
        fs::File::open(directory)?.sync_all()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_checkpoint_once_its_record_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Checkpoint::read(dir.path()), None);
        fs::write(dir.path().join(RECORD), r#"{"engine":"gvi"#).unwrap();
        assert_eq!(Checkpoint::read(dir.path()), None);
        let checkpoint = Checkpoint {
            engine: "gvisor".into(),
            format: "1".into(),
            bytes: 5,
            digest: "00".repeat(32),
        };
        checkpoint.write(dir.path()).unwrap();
        assert_eq!(Checkpoint::read(dir.path()), Some(checkpoint));
        let long = vec![b' '; MAX_RECORD as usize + 1];
        fs::write(dir.path().join(RECORD), long).unwrap();
        assert_eq!(Checkpoint::read(dir.path()), None);
    }
}
