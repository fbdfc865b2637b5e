//! A local directory: what is in it, without what is ignored, and as the archive that a server unpacks.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read as _, Seek as _, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path, PathBuf};

use ignore::gitignore::{Gitignore, GitignoreBuilder};

use crate::error::CliError;

/// File of a directory with patterns for what stays here, in the syntax of `.gitignore`.
const IGNORE_FILE: &str = ".nullspaceignore";
/// Deepest tree.
const MAX_DEPTH: usize = 128;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Dir,
    Link,
}

impl Kind {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Dir => "dir",
            Self::Link => "symlink",
        }
    }
}

/// One entry.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// From the root of the tree, with `/` between the segments.
    pub(crate) path: String,
    pub(crate) kind: Kind,
    /// Bytes of a file.
    pub(crate) size: u64,
    pub(crate) mode: u32,
    /// What a link says.
    pub(crate) target: Option<PathBuf>,
    /// Whether no pattern keeps it here.
    pub(crate) is_included: bool,
}

/// A directory as it was when it was looked at.
#[derive(Debug)]
pub(crate) struct Tree {
    root: PathBuf,
    ignored: Gitignore,
    /// Parents before what is in them, names in order.
    pub(crate) entries: Vec<Entry>,
}

impl Tree {
    /// Looks at a directory.
    ///
    /// # Errors
    /// For what cannot be read, names that are no UTF-8, links that lead out, and what is no file, directory or link.
    pub(crate) fn read(root: &Path, exclude: &[String]) -> Result<Self, CliError> {
        let mut tree = Self {
            root: root.to_owned(),
            ignored: patterns(root, exclude)?,
            entries: Vec::new(),
        };
        tree.add(root, "", 0)?;
        Ok(tree)
    }

    fn add(&mut self, directory: &Path, inside: &str, depth: usize) -> Result<(), CliError> {
        if depth > MAX_DEPTH {
            return Err(CliError::usage(format!(
                "{} is too deep",
                directory.display()
            )));
        }
        let read = |error: io::Error| {
            CliError::local(format!("cannot list {}", directory.display()), &error)
        };
        let entries: io::Result<Vec<_>> = fs::read_dir(directory).map_err(read)?.collect();
        let mut entries = entries.map_err(read)?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let path = entry.path();
            let name = entry.file_name();
            let name = name.to_str().ok_or_else(|| {
                CliError::usage(format!("the name of {} is not UTF-8", path.display()))
                    .hint("Rename it, or leave it out with --exclude.")
            })?;
            let inside = match inside {
                "" => name.to_owned(),
                inside => format!("{inside}/{name}"),
            };
            let meta = entry.metadata().map_err(|error| {
                CliError::local(format!("cannot read {}", path.display()), &error)
            })?;
            let is_included = !self.is_ignored(&inside, meta.is_dir());
            let refused = |what: &str| {
                Err(CliError::usage(format!("{}: {what}", path.display()))
                    .hint("Leave it out with --exclude."))
            };
            let (kind, target) = match meta.file_type() {
                kind if kind.is_dir() => (Kind::Dir, None),
                kind if kind.is_file() => (Kind::File, None),
                kind if kind.is_symlink() => {
                    let target = fs::read_link(&path).map_err(|error| {
                        CliError::local(format!("cannot read {}", path.display()), &error)
                    })?;
                    if is_included && leads_out(&inside, &target) {
                        return refused("is a link that leads out of the directory");
                    }
                    (Kind::Link, Some(target))
                }
                _ if !is_included => continue,
                _ => return refused("is neither a file, a directory nor a link"),
            };
            self.entries.push(Entry {
                path: inside.clone(),
                kind,
                size: if kind == Kind::File { meta.len() } else { 0 },
                mode: meta.permissions().mode() & 0o777,
                target,
                is_included,
            });
            // What is in a directory that stays here stays here too, and may be large.
            if kind == Kind::Dir && is_included {
                self.add(&path, &inside, depth + 1)?;
            }
        }
        Ok(())
    }

    /// Whether a pattern keeps such an entry here.
    pub(crate) fn is_ignored(&self, path: &str, is_dir: bool) -> bool {
        self.ignored.matched(path, is_dir).is_ignore()
    }

    /// What travels.
    pub(crate) fn included(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(|entry| entry.is_included)
    }

    /// Where an entry is.
    pub(crate) fn local(&self, entry: &Entry) -> PathBuf {
        self.root.join(&entry.path)
    }

    /// The entries that `wanted` says, as a tar in a file that has no name. The same tree gives the same bytes.
    ///
    /// # Errors
    /// For what cannot be read, or changes meanwhile.
    pub(crate) fn archive(&self, wanted: impl Fn(&Entry) -> bool) -> Result<File, CliError> {
        let mut file = tempfile::tempfile()
            .map_err(|error| CliError::local("cannot make a temporary file", &error))?;
        let mut archive = tar::Builder::new(BufWriter::with_capacity(1 << 18, &mut file));
        for entry in self.included().filter(|entry| wanted(entry)) {
            self.pack(&mut archive, entry).map_err(|error| {
                let path = self.local(entry);
                CliError::local(format!("cannot pack {}", path.display()), &error)
            })?;
        }
        let finish = |error: io::Error| CliError::local("cannot finish the archive", &error);
        let mut out = archive.into_inner().map_err(finish)?;
        out.flush().map_err(finish)?;
        drop(out);
        file.rewind().map_err(finish)?;
        Ok(file)
    }

    fn pack(&self, archive: &mut tar::Builder<impl Write>, entry: &Entry) -> io::Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_mode(entry.mode);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(entry.size);
        match entry.kind {
            Kind::Dir => {
                header.set_entry_type(tar::EntryType::Directory);
                archive.append_data(&mut header, format!("{}/", entry.path), io::empty())
            }
            Kind::Link => {
                header.set_entry_type(tar::EntryType::Symlink);
                let target = entry.target.as_deref().unwrap_or(Path::new(""));
                archive.append_link(&mut header, &entry.path, target)
            }
            Kind::File => {
                let file = File::open(self.local(entry))?;
                let mut bytes = file.take(entry.size);
                archive.append_data(&mut header, &entry.path, &mut bytes)?;
                match bytes.limit() {
                    0 => Ok(()),
                    _ => Err(io::Error::other("it became shorter while it was read")),
                }
            }
        }
    }
}

fn patterns(root: &Path, exclude: &[String]) -> Result<Gitignore, CliError> {
    let wrong = |error: ignore::Error| CliError::usage(format!("ignore pattern: {error}"));
    let mut patterns = GitignoreBuilder::new("");
    let file = root.join(IGNORE_FILE);
    match fs::read_to_string(&file) {
        Ok(text) => {
            for line in text.lines() {
                patterns.add_line(None, line).map_err(wrong)?;
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => {
            let what = format!("cannot read {}", file.display());
            return Err(CliError::local(what, &error));
        }
    }
    for line in exclude {
        patterns.add_line(None, line).map_err(wrong)?;
    }
    patterns.build().map_err(wrong)
}

/// Whether a link at `path` of a tree points at something outside.
fn leads_out(path: &str, target: &Path) -> bool {
    let mut depth = path.matches('/').count();
    for part in target.components() {
        match part {
            Component::Normal(_) => depth += 1,
            Component::CurDir => {}
            Component::ParentDir if depth > 0 => depth -= 1,
            _ => return true,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_tree_is_the_same_archive_without_what_is_ignored() {
        let root = tempfile::tempdir().expect("a directory");
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            fs::write(path, text).expect("written");
        };
        write("a.txt", "a");
        write("logs/x.log", "x");
        write("logs/keep.log", "k");
        write("node_modules/huge", "h");
        write(".nullspaceignore", "*.log\n!keep.log\n# no\n");
        std::os::unix::fs::symlink("../a.txt", root.path().join("logs/link")).expect("a link");
        let exclude = ["node_modules/".to_owned()];
        let tree = Tree::read(root.path(), &exclude).expect("read");
        let names: Vec<_> = tree.included().map(|entry| &*entry.path).collect();
        assert_eq!(
            names,
            [
                ".nullspaceignore",
                "a.txt",
                "logs",
                "logs/keep.log",
                "logs/link"
            ]
        );
        let bytes = |tree: &Tree| {
            let mut bytes = Vec::new();
            let mut file = tree.archive(|_| true).expect("packed");
            file.read_to_end(&mut bytes).expect("read");
            bytes
        };
        let first = bytes(&tree);
        fs::write(root.path().join("a.txt"), "a").expect("written again");
        assert_eq!(
            first,
            bytes(&Tree::read(root.path(), &exclude).expect("read"))
        );
        fs::write(root.path().join("a.txt"), "").expect("written again");
        assert!(
            tree.archive(|_| true).is_err(),
            "a file that became shorter"
        );
    }

    #[test]
    fn links_stay_inside() {
        for (path, target, out) in [
            ("a", "b", false),
            ("d/a", "../b", false),
            ("a", "../b", true),
            ("d/a", "x/../../b", false),
            ("d/a", "../../d/a", true),
            ("a", "/etc/passwd", true),
        ] {
            assert_eq!(leads_out(path, Path::new(target)), out, "{path} {target}");
        }
    }
}
