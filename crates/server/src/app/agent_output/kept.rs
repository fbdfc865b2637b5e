//! Kept outputs, as the routes of machines that are gone find them.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use async_trait::async_trait;
use nullspace_api::{agent::Output, file::FileInfo, time};
use nullspace_store::{
    Store,
    agent_run::{self as runs, RunRow},
};
use rustix::fs::{Mode, OFlags};

use super::{beneath, manifest, open_dir, plain, root};
use crate::app::output::{KeptFile, Outputs};

/// The most entries of a list.
const MAX_LIST: usize = 200_000;

/// The kept outputs, as `GET …/file` and its like find them.
#[derive(Debug)]
pub(in crate::app) struct Kept {
    store: Store,
    data_dir: PathBuf,
}

/// Where a path that was in a machine is kept.
struct Place {
    /// The copy of a declared path.
    top: PathBuf,
    /// The rest of the path, below it; empty for the declared path itself.
    rest: PathBuf,
}

impl Kept {
    pub(in crate::app) fn new(store: Store, data_dir: PathBuf) -> Self {
        Self { store, data_dir }
    }

    /// The run that the machine was made for.
    async fn run(&self, machine_id: &str) -> io::Result<Option<RunRow>> {
        let machine_id = machine_id.to_owned();
        self.store
            .read(move |db| runs::by_machine(db, &machine_id))
            .await
            .map_err(io::Error::other)
    }

    async fn place(&self, machine_id: &str, path: &str) -> io::Result<Option<Place>> {
        let Some(run) = self.run(machine_id).await? else {
            return Ok(None);
        };
        let manifest = manifest(run.outputs.as_deref()).unwrap_or_default();
        let root = root(&self.data_dir).join(&run.id);
        Ok(find(&manifest.outputs, path).map(|(number, rest)| Place {
            top: root.join(number.to_string()),
            rest,
        }))
    }
}

/// The declared path that is, or holds, this path; the longest one.
fn find(outputs: &[Output], path: &str) -> Option<(usize, PathBuf)> {
    outputs
        .iter()
        .enumerate()
        .filter(|(_, output)| output.status == "available")
        .filter_map(|(number, output)| {
            let rest = Path::new(path).strip_prefix(&output.path).ok()?;
            let whole = rest.as_os_str().is_empty();
            let rest = if whole { PathBuf::new() } else { plain(rest)? };
            (whole || output.kind.as_deref() == Some("directory")).then_some((
                output.path.len(),
                number,
                rest,
            ))
        })
        .max_by_key(|(length, ..)| *length)
        .map(|(_, number, rest)| (number, rest))
}

impl Place {
    /// Opens what is there, unless nothing is.
    fn open(&self) -> io::Result<Option<fs::File>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = if self.rest.as_os_str().is_empty() {
            rustix::fs::open(&self.top, flags, Mode::empty()).map_err(io::Error::from)
        } else {
            open_dir(&self.top).and_then(|top| beneath(&top, &self.rest, flags, 0))
        };
        match opened {
            Ok(file) => Ok(Some(file.into())),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

#[async_trait]
impl Outputs for Kept {
    async fn is_leaving(&self, machine_id: &str) -> io::Result<bool> {
        let run = self.run(machine_id).await?;
        Ok(run.is_some_and(|run| run.completed_at.is_some() && run.retained_until.is_none()))
    }

    async fn open(&self, machine_id: &str, path: &str) -> io::Result<Option<KeptFile>> {
        let Some(place) = self.place(machine_id, path).await? else {
            return Ok(None);
        };
        blocking(move || {
            let Some(file) = place.open()? else {
                return Ok(None);
            };
            let metadata = file.metadata()?;
            Ok(metadata.is_file().then(|| KeptFile {
                size: metadata.len(),
                file: tokio::fs::File::from_std(file),
            }))
        })
        .await
    }

    async fn info(&self, machine_id: &str, path: &str) -> io::Result<Option<FileInfo>> {
        let Some(place) = self.place(machine_id, path).await? else {
            return Ok(None);
        };
        let path = path.to_owned();
        blocking(move || {
            let Some(file) = place.open()? else {
                return Ok(None);
            };
            Ok(Some(describe(&path, &file.metadata()?)))
        })
        .await
    }

    async fn list(
        &self,
        machine_id: &str,
        path: &str,
        depth: u32,
    ) -> io::Result<Option<Vec<FileInfo>>> {
        let Some(place) = self.place(machine_id, path).await? else {
            return Ok(None);
        };
        let path = path.trim_end_matches('/').to_owned();
        blocking(move || {
            let Some(dir) = place
                .open()?
                .filter(|file| file.metadata().is_ok_and(|m| m.is_dir()))
            else {
                return Ok(None);
            };
            let mut found = Vec::new();
            walk(&dir, &path, depth.max(1), &mut found)?;
            found.sort_by(|a, b| a.path.cmp(&b.path));
            Ok(Some(found))
        })
        .await
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(io::Error::other)?
}

fn walk(dir: &fs::File, path: &str, depth: u32, found: &mut Vec<FileInfo>) -> io::Result<()> {
    for entry in rustix::fs::Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if matches!(name.as_str(), "." | "..") {
            continue;
        }
        if found.len() >= MAX_LIST {
            return Err(io::Error::other("too many files"));
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = fs::File::from(rustix::fs::openat(
            dir,
            entry.file_name(),
            flags,
            Mode::empty(),
        )?);
        let metadata = file.metadata()?;
        let path = format!("{path}/{name}");
        let info = describe(&path, &metadata);
        found.push(info);
        if metadata.is_dir() && depth > 1 {
            walk(&file, &path, depth - 1, found)?;
        }
    }
    Ok(())
}

/// A kept file or directory as the wire shows it.
fn describe(path: &str, metadata: &fs::Metadata) -> FileInfo {
    let mode = format!("{:04o}", metadata.mode() & 0o7777);
    let is_dir = metadata.is_dir();
    FileInfo {
        name: path.rsplit('/').next().unwrap_or_default().to_owned(),
        path: path.to_owned(),
        is_dir,
        size: if is_dir { 0 } else { metadata.len() },
        kind: if is_dir { "dir" } else { "file" }.into(),
        permissions: mode.clone(),
        mode,
        owner: "root".into(),
        group: "root".into(),
        modified_time: time::rfc3339(
            metadata.mtime().saturating_mul(1_000_000) + metadata.mtime_nsec() / 1000,
        ),
        symlink_target: None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_found_below_what_was_declared() {
        let output = |path: &str, kind: &str, status: &str| Output {
            path: path.into(),
            kind: Some(kind.into()),
            status: status.into(),
            ..Output::default()
        };
        let outputs = [
            output("/w/result.json", "file", "available"),
            output("/w/reports", "directory", "available"),
            output("/w/gone", "file", "missing"),
        ];
        let found = |path: &str| {
            find(&outputs, path).map(|(n, rest)| (n, rest.to_str().unwrap().to_owned()))
        };
        assert_eq!(found("/w/result.json"), Some((0, String::new())));
        assert_eq!(found("/w/reports"), Some((1, String::new())));
        assert_eq!(found("/w/reports/a/b"), Some((1, "a/b".into())));
        for path in [
            "/w",
            "/w/gone",
            "/w/result.json/x",
            "/w/reports/../result.json",
            "/w/reportsx",
        ] {
            assert_eq!(found(path), None, "{path}");
        }
    }
}
