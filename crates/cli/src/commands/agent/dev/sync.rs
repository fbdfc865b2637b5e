//! Bringing changes of the project into the machine. What the program made there stays.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;

use nullspace_api::exec::ExecRequest;
use nullspace_client::Client;
use nullspace_project::{Entry, Kind, Manifest};
use tokio_util::io::ReaderStream;

use crate::error::CliError;
use crate::transfer;

/// Files after whose change the install step runs again.
const DEPENDENCIES: [&str; 5] = [
    "requirements.txt",
    "pyproject.toml",
    "uv.lock",
    "package.json",
    "package-lock.json",
];
/// Paths removed by one command.
const BATCH: usize = 200;

/// How one bundle becomes another; paths are relative to the project.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changes<'a> {
    /// Files and links that are gone, or something else now.
    remove: Vec<&'a str>,
    /// Directories that are something else now: nothing in them can stay.
    clear: Vec<&'a str>,
    /// Directories that are gone, the deepest first; they stay if something is in them.
    remove_dirs: Vec<&'a str>,
    /// What is new or different, directories before what is in them.
    put: Vec<&'a Entry>,
}

impl<'a> Changes<'a> {
    /// What is included in `old` and `new`, and not the same.
    pub(super) fn between(old: &'a Manifest, new: &'a Manifest) -> Self {
        let by_path = |manifest: &'a Manifest| -> BTreeMap<&'a str, &'a Entry> {
            let included = manifest.included();
            included.map(|entry| (entry.path.as_str(), entry)).collect()
        };
        let (before, after) = (by_path(old), by_path(new));
        let mut changes = Self::default();
        for (path, was) in before.iter().rev() {
            match (was.kind, after.get(path)) {
                (_, Some(is)) if is.kind == was.kind => {}
                (Kind::Dir, Some(_)) => changes.clear.push(path),
                (Kind::Dir, None) => changes.remove_dirs.push(path),
                _ => changes.remove.push(path),
            }
        }
        changes.put = after
            .values()
            .filter(|is| {
                before
                    .get(is.path.as_str())
                    .is_none_or(|was| !same(was, is))
            })
            .copied()
            .collect();
        changes
    }

    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Files and links that come or go.
    pub(super) fn files(&self) -> usize {
        let put = self.put.iter().filter(|entry| entry.kind != Kind::Dir);
        let gone = self
            .remove
            .iter()
            .filter(|path| !self.put.iter().any(|entry| entry.path == **path));
        put.count() + gone.count()
    }

    /// Whether what the project needs may be something else now.
    pub(super) fn need_install(&self) -> bool {
        let put = self.put.iter().map(|entry| entry.path.as_str());
        self.remove.iter().copied().chain(put).any(|path| {
            let name = path.rsplit('/').next().unwrap_or_default();
            DEPENDENCIES.contains(&name)
        })
    }

    /// Makes them below `workdir` of the machine.
    pub(super) async fn apply(
        &self,
        client: &Client,
        machine: &str,
        root: &Path,
        workdir: &str,
    ) -> Result<(), CliError> {
        for (script, paths) in [
            (r#"rm -f -- "$@""#, &self.remove),
            (r#"rm -rf -- "$@""#, &self.clear),
            // Those with something in them stay.
            (r#"rmdir -- "$@" 2>/dev/null; true"#, &self.remove_dirs),
        ] {
            for batch in paths.chunks(BATCH) {
                remove(client, machine, script, workdir, batch).await?;
            }
        }
        put(client, machine, root, workdir, &self.put).await
    }
}

/// Whether the machine would see no difference.
fn same(a: &Entry, b: &Entry) -> bool {
    a.kind == b.kind
        && a.digest == b.digest
        && (a.kind == Kind::Symlink || a.archived_mode() == b.archived_mode())
}

async fn remove(
    client: &Client,
    machine: &str,
    script: &str,
    workdir: &str,
    paths: &[&str],
) -> Result<(), CliError> {
    let request = ExecRequest {
        command: script.to_owned(),
        args: Some(
            paths
                .iter()
                .map(|path| format!("{workdir}/{path}"))
                .collect(),
        ),
        shell: Some(true),
        ..ExecRequest::default()
    };
    let response = client.exec(machine, &request).await?;
    if response.exit_code == 0 {
        return Ok(());
    }
    Err(CliError::new(
        "file_error",
        format!(
            "cannot remove files in the machine: {}",
            response.stderr.trim()
        ),
    ))
}

/// Uploads entries, one by one.
pub(super) async fn put(
    client: &Client,
    machine: &str,
    root: &Path,
    workdir: &str,
    entries: &[&Entry],
) -> Result<(), CliError> {
    for entry in entries {
        let to = format!("{workdir}/{}", entry.path);
        match entry.kind {
            Kind::Dir => client.files(machine).make_dir(&to).await?,
            Kind::Symlink => {
                let target = entry.symlink_target.as_deref().unwrap_or_default();
                transfer::send_link(client, machine, &to, Path::new(target)).await?;
                continue;
            }
            Kind::File => {
                let from = root.join(&entry.path);
                let file = match tokio::fs::File::open(&from).await {
                    Ok(file) => file,
                    // It went since it was seen: the next look will tell.
                    Err(error) if error.kind() == ErrorKind::NotFound => continue,
                    Err(error) => {
                        let what = format!("cannot open {}", from.display());
                        return Err(CliError::local(what, &error));
                    }
                };
                // It may grow or shrink meanwhile, so there is no length to promise.
                let content = ReaderStream::new(file);
                client.files(machine).upload(&to, None, content).await?;
            }
        }
        client
            .files(machine)
            .set_permissions(&to, &format!("{:04o}", entry.archived_mode() & 0o777))
            .await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use nullspace_project::{AgentConfig, Bundle};
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    fn bundle(root: &Path) -> Bundle {
        Bundle::build(root, &AgentConfig::default()).expect("a bundle")
    }

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("made");
        std::fs::write(path, text).expect("written");
    }

    #[test]
    fn only_what_is_bundled_counts() {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path();
        write(root, ".gitignore", "*.log\n");
        write(root, "main.py", "1");
        let old = bundle(root);
        write(root, "x.log", "1");
        write(root, ".env", "SECRET=1");
        write(root, "node_modules/a/index.js", "1");
        write(root, "__pycache__/main.pyc", "1");
        // The same content, written again.
        write(root, "main.py", "1");
        let new = bundle(root);
        let changes = Changes::between(old.manifest(), new.manifest());
        assert!(changes.is_empty(), "{changes:?}");
        write(root, "main.py", "2");
        let new = bundle(root);
        let changes = Changes::between(old.manifest(), new.manifest());
        assert_eq!((changes.files(), changes.need_install()), (1, false));
        assert_eq!(changes.put[0].path, "main.py");
    }

    #[test]
    fn changes_are_told_by_what_they_need() {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path();
        for path in ["kept", "gone", "d/e/f", "dir-then-file/x", "script"] {
            write(root, path, "1");
        }
        symlink("kept", root.join("link-then-file")).expect("a link");
        let old = bundle(root);
        std::fs::remove_file(root.join("gone")).expect("removed");
        std::fs::remove_dir_all(root.join("d")).expect("removed");
        std::fs::remove_dir_all(root.join("dir-then-file")).expect("removed");
        std::fs::remove_file(root.join("link-then-file")).expect("removed");
        write(root, "dir-then-file", "1");
        write(root, "link-then-file", "1");
        write(root, "new/deep/file", "1");
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(root.join("script"), mode).expect("a mode");
        let new = bundle(root);
        let changes = Changes::between(old.manifest(), new.manifest());
        assert_eq!(
            changes.remove,
            ["link-then-file", "gone", "dir-then-file/x", "d/e/f"]
        );
        assert_eq!(changes.clear, ["dir-then-file"]);
        assert_eq!(changes.remove_dirs, ["d/e", "d"]);
        let put: Vec<_> = changes
            .put
            .iter()
            .map(|entry| entry.path.as_str())
            .collect();
        assert_eq!(
            put,
            [
                "dir-then-file",
                "link-then-file",
                "new",
                "new/deep",
                "new/deep/file",
                "script"
            ]
        );
        // One for each file that is new, different or gone; one that became a file counts once.
        assert_eq!(changes.files(), 7);
    }

    #[test]
    fn dependencies_are_installed_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path();
        write(root, "main.py", "1");
        write(root, "web/package.json", "{}");
        let old = bundle(root);
        let needs =
            |old: &Bundle| Changes::between(old.manifest(), bundle(root).manifest()).need_install();
        assert!(!needs(&old));
        write(root, "requirements.txt", "x");
        assert!(needs(&old), "a new one");
        let old = bundle(root);
        std::fs::remove_file(root.join("web/package.json")).expect("removed");
        assert!(needs(&old), "one that is gone");
    }
}
