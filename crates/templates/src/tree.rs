//! File trees that become layers: writing into one without leaving it, hashing it, removing it.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::{FileTypeExt, MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use rustix::{
    fd::{AsFd, AsRawFd, OwnedFd},
    fs::{AtFlags, Mode, OFlags, ResolveFlags},
};
use sha2::{Digest, Sha256};

/// A directory that paths are opened inside of, never joined to: a link in the tree (`/etc/resolv.conf`
/// is often one) must not lead a write to the host's own file.
pub(crate) struct Root {
    fd: OwnedFd,
}

impl Root {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(Self {
            fd: rustix::fs::open(path, flags, Mode::empty())?,
        })
    }

    fn dir(&self, path: &Path) -> io::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let inside =
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        Ok(rustix::fs::openat2(
            &self.fd,
            path,
            flags,
            Mode::empty(),
            inside,
        )?)
    }

    /// The parent directory of `path` opened, and the last segment.
    fn split<'a>(&self, path: &'a str) -> io::Result<(OwnedFd, &'a str)> {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        Ok((self.dir(Path::new(parent))?, name))
    }

    /// Makes one directory; its parent exists. An existing directory only gets the mode.
    pub(crate) fn mkdir(&self, path: &str, mode: u32) -> io::Result<()> {
        let (parent, name) = self.split(path)?;
        match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o700)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(e) => return Err(e.into()),
        }
        // Only once it is known to be a real directory: chmod follows links.
        let dir = self.dir(Path::new(path))?;
        rustix::fs::chmodat(&dir, ".", Mode::from_raw_mode(mode), AtFlags::empty())?;
        Ok(())
    }

    /// Writes a regular file, replacing whatever has its name unless that is a directory.
    pub(crate) fn write(&self, path: &str, bytes: &[u8], mode: u32) -> io::Result<()> {
        let (parent, name) = self.split(path)?;
        self.unlink(&parent, name)?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(rustix::fs::openat(
            &parent,
            name,
            flags,
            Mode::from_raw_mode(0o600),
        )?);
        file.write_all(bytes)?;
        // The mode of `openat` is subject to the umask.
        file.set_permissions(fs::Permissions::from_mode(mode))
    }

    /// Makes a symbolic link, replacing whatever has its name unless that is a directory.
    pub(crate) fn symlink(&self, path: &str, target: &Path) -> io::Result<()> {
        let (parent, name) = self.split(path)?;
        self.unlink(&parent, name)?;
        Ok(rustix::fs::symlinkat(target, &parent, name)?)
    }

    fn unlink(&self, parent: &OwnedFd, name: &str) -> io::Result<()> {
        match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// The names in a directory; empty if it is not there.
    pub(crate) fn names(&self, path: &str) -> io::Result<Vec<OsString>> {
        let dir = match self.dir(Path::new(path)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other?,
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::openat(&dir, ".", flags, Mode::empty())?;
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(dir.as_fd())? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if !matches!(name, b"." | b"..") {
                names.push(OsString::from_vec(name.to_vec()));
            }
        }
        names.sort();
        Ok(names)
    }

    /// Removes a file or a whole directory; fine if it is not there.
    pub(crate) fn remove(&self, path: &str) -> io::Result<()> {
        let (parent, name) = match self.split(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        // The parent is pinned by its descriptor, and the standard removal follows no links.
        let path = PathBuf::from(format!("/proc/self/fd/{}/{name}", parent.as_raw_fd()));
        let removed = match fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_dir() => fs::remove_dir_all(&path),
            Ok(_) => fs::remove_file(&path),
            Err(e) => Err(e),
        };
        match removed {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// Removes what is in a directory and keeps the directory.
    pub(crate) fn empty(&self, path: &str) -> io::Result<()> {
        for name in self.names(path)? {
            if let Some(name) = name.to_str() {
                self.remove(&format!("{path}/{name}"))?;
            }
        }
        Ok(())
    }

    /// Reads a regular file of at most `limit` bytes; none if there is none.
    pub(crate) fn read(&self, path: &str, limit: u64) -> io::Result<Option<Vec<u8>>> {
        let (parent, name) = self.split(path)?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(&parent, name, flags, Mode::empty()) {
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            other => File::from(other?),
        };
        if !file.metadata()?.is_file() {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        file.take(limit).read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    }
}

/// What hashing a tree found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TreeDigest {
    /// Over every path with its kind, mode, owner, size, content or link target, and capabilities.
    /// Times are left out: they say when a tree was made, not what it is.
    pub(crate) digest: [u8; 32],
    /// Sum of the sizes of regular files in bytes, hard links counted once.
    pub(crate) size_bytes: u64,
}

/// Hashes a tree that nobody changes meanwhile, with one thread per core. `progress` is told the
/// fraction of files done.
pub(crate) fn digest(root: &Path, progress: &dyn Fn(f32)) -> io::Result<TreeDigest> {
    let mut entries = Vec::new();
    let mut dirs = vec![PathBuf::new()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(root.join(&dir))? {
            let entry = entry?;
            let path = dir.join(entry.file_name());
            // Of the entry itself: links are not followed.
            let meta = entry.metadata()?;
            if meta.is_dir() {
                dirs.push(path.clone());
            }
            entries.push((path, meta));
        }
    }
    entries.sort_by(|a, b| a.0.as_os_str().cmp(b.0.as_os_str()));

    let mut size_bytes = 0;
    let mut linked = BTreeMap::new();
    for (_, meta) in entries.iter().filter(|(_, meta)| meta.is_file()) {
        if meta.nlink() == 1 || linked.insert((meta.dev(), meta.ino()), ()).is_none() {
            size_bytes += meta.len();
        }
    }

    let next = AtomicUsize::new(0);
    let lines = Mutex::new(vec![[0u8; 32]; entries.len()]);
    let failed: Mutex<Option<io::Error>> = Mutex::new(None);
    let threads = std::thread::available_parallelism()
        .map_or(2, usize::from)
        .min(8);
    let work = |report: Option<&dyn Fn(f32)>| {
        // Batches keep the lock out of the way; trees have tens of thousands of small files.
        const BATCH: usize = 64;
        let mut buffer = vec![0u8; 128 << 10];
        loop {
            let start = next.fetch_add(BATCH, Ordering::Relaxed);
            if start >= entries.len() {
                return;
            }
            let end = (start + BATCH).min(entries.len());
            let mut done = Vec::with_capacity(BATCH);
            for (path, meta) in &entries[start..end] {
                match digest_entry(root, path, meta, &mut buffer) {
                    Ok(line) => done.push(line),
                    Err(e) => {
                        let e = io::Error::new(e.kind(), format!("{}: {e}", path.display()));
                        failed
                            .lock()
                            .unwrap_or_else(|e| e.into_inner())
                            .get_or_insert(e);
                        next.store(entries.len(), Ordering::Relaxed);
                        return;
                    }
                }
            }
            lines.lock().unwrap_or_else(|e| e.into_inner())[start..end].copy_from_slice(&done);
            if let Some(report) = report {
                report(end as f32 / entries.len() as f32);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(|| work(None));
        }
        work(Some(progress));
    });
    if let Some(e) = failed.into_inner().unwrap_or_else(|e| e.into_inner()) {
        return Err(e);
    }

    let mut hash = Sha256::new();
    let meta = fs::symlink_metadata(root)?;
    hash.update(format!(
        "tree {:o} {} {}\n",
        meta.mode(),
        meta.uid(),
        meta.gid()
    ));
    for line in lines.into_inner().unwrap_or_else(|e| e.into_inner()) {
        hash.update(line);
    }
    Ok(TreeDigest {
        digest: hash.finalize().into(),
        size_bytes,
    })
}

fn digest_entry(
    root: &Path,
    path: &Path,
    meta: &fs::Metadata,
    buffer: &mut [u8],
) -> io::Result<[u8; 32]> {
    let full = root.join(path);
    let mut hash = Sha256::new();
    let name = path.as_os_str().as_bytes();
    // Every part has a length before it or a fixed form, so no two trees spell the same bytes.
    hash.update(format!("{} ", name.len()));
    hash.update(name);
    let kind = meta.file_type();
    let size = if meta.is_file() { meta.len() } else { 0 };
    hash.update(format!(
        " {:o} {} {} {size} ",
        meta.mode(),
        meta.uid(),
        meta.gid()
    ));
    if kind.is_file() {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(rustix::fs::open(&full, flags, Mode::empty())?);
        let mut content = Sha256::new();
        loop {
            match file.read(buffer)? {
                0 => break,
                n => content.update(&buffer[..n]),
            }
        }
        hash.update(content.finalize());
        if let Some(caps) = capability(&file)? {
            hash.update(format!(" {} ", caps.len()));
            hash.update(caps);
        }
    } else if kind.is_symlink() {
        hash.update(fs::read_link(&full)?.as_os_str().as_bytes());
    } else if kind.is_block_device() || kind.is_char_device() {
        hash.update(meta.rdev().to_be_bytes());
    }
    Ok(hash.finalize().into())
}

/// The file capabilities of `file` (`ping` has some): they give rights, so they are part of what it is.
fn capability(file: &File) -> io::Result<Option<Vec<u8>>> {
    use rustix::io::Errno;
    let mut value = vec![0u8; 64];
    match rustix::fs::fgetxattr(file, "security.capability", &mut value) {
        Ok(n) => {
            value.truncate(n);
            Ok(Some(value))
        }
        Err(Errno::NODATA | Errno::NOTSUP) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Removes a directory tree, never through a mount: an interrupted build may have left the host's
/// `/dev` mounted below it.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    let path = match fs::canonicalize(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for mount in mounts_below(&fs::read_to_string("/proc/self/mountinfo")?, &path) {
        rustix::mount::unmount(&mount, rustix::mount::UnmountFlags::DETACH)?;
    }
    match fs::remove_dir_all(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Mount points at or below `path`, deepest first.
fn mounts_below(mountinfo: &str, path: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = mountinfo
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(unescape)
        .filter(|mount| mount.starts_with(path))
        .collect();
    found.sort_by_key(|mount| std::cmp::Reverse(mount.components().count()));
    found
}

/// The kernel writes blanks, tabs, line ends and backslashes in mount points as `\ooo`.
fn unescape(text: &str) -> PathBuf {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let octal = bytes
            .get(i + 1..i + 4)
            .and_then(|d| std::str::from_utf8(d).ok());
        match octal.and_then(|d| u8::from_str_radix(d, 8).ok()) {
            Some(byte) if bytes[i] == b'\\' => {
                out.push(byte);
                i += 4;
            }
            _ => {
                out.push(bytes[i]);
                i += 1;
            }
        }
    }
    PathBuf::from(OsString::from_vec(out))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn sample() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("a/b")).unwrap();
        for i in 0..200 {
            fs::write(dir.path().join(format!("a/f{i}")), format!("{i}")).unwrap();
        }
        fs::hard_link(dir.path().join("a/f150"), dir.path().join("a/linked")).unwrap();
        symlink("../f1", dir.path().join("a/b/l")).unwrap();
        dir
    }

    fn hash(dir: &tempfile::TempDir) -> TreeDigest {
        digest(dir.path(), &|f| assert!((0.0..=1.0).contains(&f))).unwrap()
    }

    #[test]
    fn equal_trees_have_equal_digests() {
        let (a, b) = (sample(), sample());
        assert_eq!(hash(&a), hash(&b));
        assert_eq!(hash(&a).size_bytes, 10 + 90 * 2 + 100 * 3);
    }

    #[test]
    fn every_difference_shows() {
        let plain = hash(&sample()).digest;
        let changes: [&dyn Fn(&Path); 6] = [
            &|d| fs::write(d.join("a/f7"), "8").unwrap(),
            &|d| fs::set_permissions(d.join("a/f7"), fs::Permissions::from_mode(0o4755)).unwrap(),
            &|d| fs::rename(d.join("a/f7"), d.join("a/f7x")).unwrap(),
            &|d| {
                fs::remove_file(d.join("a/b/l")).unwrap();
                symlink("../f2", d.join("a/b/l")).unwrap();
            },
            &|d| fs::create_dir(d.join("a/b/c")).unwrap(),
            &|d| fs::set_permissions(d.join("a"), fs::Permissions::from_mode(0o700)).unwrap(),
        ];
        for (i, change) in changes.iter().enumerate() {
            let dir = sample();
            change(dir.path());
            assert_ne!(hash(&dir).digest, plain, "change {i}");
        }
    }

    #[test]
    fn writes_stay_inside() {
        let outside = tempfile::tempdir().unwrap();
        let victim = outside.path().join("victim");
        fs::write(&victim, "untouched").unwrap();
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("etc")).unwrap();
        symlink(&victim, dir.path().join("etc/resolv.conf")).unwrap();
        symlink(outside.path(), dir.path().join("var")).unwrap();
        let root = Root::open(dir.path()).unwrap();

        root.write("etc/resolv.conf", b"", 0o644).unwrap();
        assert!(
            fs::symlink_metadata(dir.path().join("etc/resolv.conf"))
                .unwrap()
                .is_file()
        );
        assert!(root.write("var/victim", b"x", 0o644).is_err());
        assert!(root.write("etc/../../victim", b"x", 0o644).is_err());
        assert!(root.mkdir("var", 0o777).is_err());
        assert!(root.remove("var/victim").is_err());
        assert!(root.names("var").is_err());
        root.remove("var").unwrap();
        assert_eq!(fs::read_to_string(&victim).unwrap(), "untouched");
    }

    #[test]
    fn emptying_keeps_the_directory() {
        let dir = sample();
        symlink("/", dir.path().join("a/b/slash")).unwrap();
        let root = Root::open(dir.path()).unwrap();
        root.empty("a").unwrap();
        assert!(root.names("a").unwrap().is_empty());
        root.empty("missing").unwrap();
        root.remove("missing/too").unwrap();
        assert_eq!(root.read("a/f1", 10).unwrap(), None);
    }

    #[test]
    fn mounts_are_found_below() {
        let info = "1 2 8:1 / / rw - ext4 x rw\n3 1 0:4 / /x/a\\040b/dev rw - d d rw\n\
            4 3 0:4 / /x/a\\040b/dev/pts rw - d d rw\n5 1 0:4 / /x/ab rw - d d rw\n";
        assert_eq!(
            mounts_below(info, Path::new("/x/a b")),
            [PathBuf::from("/x/a b/dev/pts"), PathBuf::from("/x/a b/dev")]
        );
    }
}
