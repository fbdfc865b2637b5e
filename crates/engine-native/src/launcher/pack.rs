//! The guest as files that a machine with a kernel of its own can start: this very program and the libraries that it has
//! loaded, so that nothing of a machine's own is needed and none of its code is loaded.
//!
//! A pack is a directory beside the layers, made once for each program and never changed. A machine that goes on from a
//! checkpoint needs the same one, so it has a name that says which it is, and is not removed.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Where a machine sees it. In the machine's own `/dev`, so no layer needs a place for it.
pub(super) const TARGET: &str = "/dev/nullspace";
const PROGRAM: &str = "guest";
const LOADER: &str = "ld.so";
const PREFIX: &str = "guest-";

/// A guest in a directory of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pack {
    /// Tells it from others: 16 hex digits.
    pub name: String,
    /// Where it is on the host.
    pub directory: PathBuf,
}

impl Pack {
    /// The command that starts it inside, but for its own arguments.
    pub(super) fn command(&self) -> Vec<String> {
        let inside = |name: &str| format!("{TARGET}/{name}");
        if !self.directory.join(LOADER).exists() {
            return vec![inside(PROGRAM)];
        }
        let path = ["--library-path".to_owned(), TARGET.to_owned()];
        [inside(LOADER)]
            .into_iter()
            .chain(path)
            .chain([inside(PROGRAM)])
            .collect()
    }
}

/// The pack of a name, if it is there.
#[must_use]
pub fn find(data_dir: &Path, name: &str) -> Option<Pack> {
    let is_name = name.len() == 16 && name.bytes().all(|b| b.is_ascii_hexdigit());
    let directory = data_dir.join("layers").join(format!("{PREFIX}{name}"));
    (is_name && directory.is_dir()).then(|| Pack {
        name: name.to_owned(),
        directory,
    })
}

/// Makes the pack of this program, or finds it made.
pub(super) fn make(data_dir: &Path) -> io::Result<Pack> {
    let files = loaded(&fs::read_to_string("/proc/self/maps")?)?;
    // Reading all of it takes longer than making a machine does; these change whenever it does.
    let mut hash = Sha256::new();
    for (name, source) in &files {
        let meta = fs::metadata(source)?;
        let which = format!(
            "{name} {} {} {} {}.{}\n",
            meta.dev(),
            meta.ino(),
            meta.len(),
            meta.mtime(),
            meta.mtime_nsec()
        );
        hash.update(which.as_bytes());
    }
    let name = hex::encode(&hash.finalize()[..8]);
    if let Some(pack) = find(data_dir, &name) {
        return Ok(pack);
    }
    let layers = data_dir.join("layers");
    let building = layers.join(format!(".building-guest-{}", std::process::id()));
    let directory = layers.join(format!("{PREFIX}{name}"));
    let made = build(&files, &building).and_then(|()| fs::rename(&building, &directory));
    match made {
        Ok(()) => File::open(&layers)?.sync_all()?,
        Err(error) => {
            let _ = fs::remove_dir_all(&building);
            if !directory.is_dir() {
                return Err(error);
            }
        }
    }
    Ok(Pack { name, directory })
}

fn build(files: &[(String, PathBuf)], at: &Path) -> io::Result<()> {
    let _ = fs::remove_dir_all(at);
    fs::create_dir_all(at)?;
    for (name, source) in files {
        let target = at.join(name);
        fs::copy(source, &target)?;
        fs::set_permissions(&target, fs::Permissions::from_mode(0o755))?;
        // A machine that is kept needs it after a crash of the host.
        File::open(&target)?.sync_all()?;
    }
    Ok(())
}

/// The files with code that a process has mapped, by the names that the loader looks for.
fn loaded(maps: &str) -> io::Result<Vec<(String, PathBuf)>> {
    let program = fs::read_link("/proc/self/exe")?;
    let mut files = vec![(PROGRAM.to_owned(), PathBuf::from("/proc/self/exe"))];
    for line in maps.lines() {
        let mut fields = line.split_ascii_whitespace();
        let rights = fields.nth(1).unwrap_or_default();
        let path = fields.nth(3).unwrap_or_default();
        if !rights.contains('x') || !path.starts_with('/') || Path::new(path) == program {
            continue;
        }
        let Some(name) = Path::new(path).file_name().and_then(|name| name.to_str()) else {
            continue;
        };
        let name = match name.starts_with("ld-") || name.starts_with("ld.so") {
            true => LOADER,
            false => name,
        };
        let is_new = !files.iter().any(|(known, _)| known == name);
        // A program that was replaced meanwhile is still what runs, under a name that says so.
        if is_new && Path::new(path).is_file() {
            files.push((name.to_owned(), path.into()));
        }
    }
    Ok(files)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_pack_is_made_once_and_starts_without_anything_else() {
        let data = tempfile::tempdir().unwrap();
        let pack = make(data.path()).unwrap();
        assert_eq!(make(data.path()).unwrap(), pack);
        assert_eq!(find(data.path(), &pack.name), Some(pack.clone()));
        assert_eq!(find(data.path(), "../../../../etc"), None);
        let here = |text: String| text.replace(TARGET, &pack.directory.display().to_string());
        let command: Vec<String> = pack.command().into_iter().map(here).collect();
        let listed = std::process::Command::new(&command[0])
            .args(&command[1..])
            .args(["--list", "a_pack_is_made_once"])
            .output()
            .unwrap();
        assert!(listed.status.success(), "{listed:?}");
    }
}
