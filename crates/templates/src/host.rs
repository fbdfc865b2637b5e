//! The `host` template's skeleton: directories and a minimal `/etc` for a machine that uses this
//! host's own `/usr`.
//!
//! What is copied from the host's `/etc` is named one by one below, is world-readable there, and says
//! nothing about the host's users, network or keys.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use crate::{TemplateError, tree::Root};

/// Goes up when the skeleton changes in a way that its files do not show.
const RECIPE: &str = "host/2";

const DIRECTORIES: [(&str, u32); 21] = [
    ("etc", 0o755),
    ("etc/alternatives", 0o755),
    ("etc/ssl", 0o755),
    ("etc/ssl/certs", 0o755),
    ("etc/uv", 0o755),
    ("dev", 0o755),
    ("home", 0o755),
    ("mnt", 0o755),
    ("opt", 0o755),
    ("proc", 0o755),
    ("root", 0o700),
    ("run", 0o755),
    ("srv", 0o755),
    ("sys", 0o755),
    ("tmp", 0o1777),
    ("usr", 0o755),
    ("var", 0o755),
    ("var/cache", 0o755),
    ("var/lib", 0o755),
    ("var/tmp", 0o1777),
    ("workspace", 0o755),
];

/// Of our own making: the host's users, names and switches are not a machine's.
const FILES: [(&str, &str); 11] = [
    (
        "etc/passwd",
        "root:x:0:0:root:/root:/bin/bash\n\
         daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin\n\
         nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    ),
    (
        "etc/group",
        "root:x:0:\ndaemon:x:1:\ntty:x:5:\nstaff:x:50:\nusers:x:100:\nnogroup:x:65534:\n",
    ),
    (
        "etc/nsswitch.conf",
        "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n\
         services: files\nprotocols: files\nnetworks: files\n",
    ),
    // Regular files for the engine to mount a machine's own over.
    ("etc/resolv.conf", ""),
    ("etc/hostname", ""),
    ("etc/hosts", ""),
    ("etc/machine-id", ""),
    ("etc/shells", "/bin/sh\n/bin/bash\n"),
    (
        "etc/profile",
        "umask 022\n[ -z \"$BASH\" ] || PS1='\\u@\\h:\\w\\$ '\n",
    ),
    // `/usr` cannot be written to, so pip is told to use the home directory outside virtual
    // environments by saying so itself; refusing altogether would help nobody.
    (
        "etc/pip.conf",
        "[global]\nbreak-system-packages = true\ndisable-pip-version-check = true\nroot-user-action = ignore\n",
    ),
    ("etc/uv/uv.toml", "[pip]\nbreak-system-packages = true\n"),
];

/// Files of the host's that belong to its packages, not to its operator.
const COPIED: [&str; 7] = [
    "etc/debian_version",
    "etc/ld.so.cache",
    "etc/mime.types",
    "etc/protocols",
    "etc/services",
    "etc/ssl/openssl.cnf",
    "etc/ssl/certs/ca-certificates.crt",
];

/// A copied file is at most this long (16 MiB); larger ones are left out.
const MAX_COPY: u64 = 16 << 20;

/// What the skeleton is made of, in the order in which it is made. Putting this together only reads, so a
/// server that starts can see by the digest that the tree is there already.
pub(crate) struct Skeleton {
    items: Vec<(String, Item)>,
    /// The host's release: what `/usr` holds goes with it.
    release: Vec<u8>,
}

enum Item {
    /// A directory with these permission bits.
    Dir(u32),
    /// A symbolic link.
    Link(PathBuf),
    /// A file that everybody may read.
    File(Vec<u8>),
}

impl Skeleton {
    /// Looks at the host (`/` but in tests).
    pub(crate) fn of(host: &Path) -> Result<Self, TemplateError> {
        let links = top_links(host)?;
        Ok(Self {
            items: plan(host, links)
                .map_err(TemplateError::file("cannot read the settings of", host))?,
            release: fs::read(host.join("etc/os-release")).unwrap_or_default(),
        })
    }

    /// Names the tree: hex, 64 digits.
    pub(crate) fn digest(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(format!("{RECIPE} {} ", std::env::consts::ARCH));
        let mut field = |kind: &str, bytes: &[u8]| {
            hash.update(format!("{kind} {} ", bytes.len()));
            hash.update(bytes);
        };
        field("release", &self.release);
        for (path, item) in &self.items {
            field("path", path.as_bytes());
            match item {
                Item::Dir(mode) => field("dir", mode.to_string().as_bytes()),
                Item::Link(target) => field("link", target.as_os_str().as_encoded_bytes()),
                Item::File(bytes) => field("file", bytes),
            }
        }
        hex::encode(hash.finalize())
    }

    /// Makes the tree at `root`, which must not be there.
    pub(crate) fn write(&self, root: &Path) -> Result<(), TemplateError> {
        let write = || {
            fs::create_dir(root)?;
            fs::set_permissions(root, fs::Permissions::from_mode(0o755))?;
            let tree = Root::open(root)?;
            for (path, item) in &self.items {
                match item {
                    Item::Dir(mode) => tree.mkdir(path, *mode)?,
                    Item::Link(target) => tree.symlink(path, target)?,
                    Item::File(bytes) => tree.write(path, bytes, 0o644)?,
                }
            }
            Ok(())
        };
        write().map_err(TemplateError::file(
            "cannot make the host skeleton at",
            root,
        ))
    }
}

/// The links from the top directory into `/usr`, as the host has them.
fn top_links(host: &Path) -> Result<Vec<(&'static str, PathBuf)>, TemplateError> {
    let mut links = Vec::new();
    for name in ["bin", "sbin", "lib", "lib32", "lib64", "libx32"] {
        let path = host.join(name);
        match fs::read_link(&path) {
            Ok(target)
                if target
                    .strip_prefix("/")
                    .unwrap_or(&target)
                    .starts_with("usr") =>
            {
                links.push((name, target));
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound && name.starts_with("lib") => {}
            _ => {
                return Err(TemplateError::HostLayout {
                    reason: format!("/{name} is not a link into /usr"),
                });
            }
        }
    }
    Ok(links)
}

fn plan(host: &Path, top: Vec<(&str, PathBuf)>) -> io::Result<Vec<(String, Item)>> {
    let mut items = Vec::new();
    for (path, mode) in DIRECTORIES {
        items.push((path.to_owned(), Item::Dir(mode)));
    }
    let own = [
        ("var/run", PathBuf::from("/run")),
        ("etc/os-release", PathBuf::from("../usr/lib/os-release")),
        ("etc/mtab", PathBuf::from("../proc/self/mounts")),
    ];
    for (path, target) in top.into_iter().chain(own) {
        items.push((path.to_owned(), Item::Link(target)));
    }
    for (path, text) in FILES {
        items.push((path.to_owned(), Item::File(text.into())));
    }
    for path in COPIED {
        if let Some(bytes) = public_file(&host.join(path))? {
            items.push((path.to_owned(), Item::File(bytes)));
        }
    }
    if let Ok(zone) = fs::read_link(host.join("etc/localtime")) {
        items.push(("etc/localtime".to_owned(), Item::Link(zone)));
    }
    // `/usr/bin/python`, `awk`, `editor` and others are links through here.
    copy_links(host, &mut items, "etc/alternatives", |target| {
        target.starts_with("/usr")
    })?;
    // Certificates by hash. The bundle was copied above; a file here may also be somebody's key.
    copy_links(host, &mut items, "etc/ssl/certs", |target| {
        target.starts_with("/usr/share/ca-certificates") || target.components().count() == 1
    })?;
    Ok(items)
}

/// Copies the symbolic links of one directory whose target `wanted` accepts, by name.
fn copy_links(
    host: &Path,
    items: &mut Vec<(String, Item)>,
    dir: &str,
    wanted: impl Fn(&Path) -> bool,
) -> io::Result<()> {
    let entries = match fs::read_dir(host.join(dir)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    let mut links = Vec::new();
    for entry in entries {
        let entry = entry?;
        let (name, kind) = (entry.file_name(), entry.file_type()?);
        let Some(name) = name.to_str().filter(|_| kind.is_symlink()) else {
            continue;
        };
        let target = fs::read_link(entry.path())?;
        if wanted(&target) {
            links.push((format!("{dir}/{name}"), Item::Link(target)));
        }
    }
    links.sort_by(|a, b| a.0.cmp(&b.0));
    items.append(&mut links);
    Ok(())
}

/// A file's bytes if everybody on the host may read it and no private key is in it.
fn public_file(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let meta = match fs::metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    if !meta.is_file() || meta.len() > MAX_COPY || meta.permissions().mode() & 0o004 == 0 {
        return Ok(None);
    }
    let bytes = fs::read(path)?;
    let secret = bytes.windows(11).any(|w| w == b"PRIVATE KEY");
    Ok((!secret).then_some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn fake_host() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let at = |p: &str| dir.path().join(p);
        for d in [
            "usr/bin",
            "usr/lib",
            "etc/alternatives",
            "etc/ssl/certs",
            "etc/ssl/private",
        ] {
            fs::create_dir_all(at(d)).unwrap();
        }
        for (link, target) in [
            ("bin", "usr/bin"),
            ("sbin", "usr/sbin"),
            ("lib", "usr/lib"),
            ("lib64", "usr/lib64"),
            ("etc/alternatives/awk", "/usr/bin/mawk"),
            ("etc/alternatives/odd", "/opt/secret/tool"),
            ("etc/ssl/certs/a1b2.0", "Some_CA.pem"),
            (
                "etc/ssl/certs/Some_CA.pem",
                "/usr/share/ca-certificates/some.crt",
            ),
            ("etc/ssl/certs/corp", "/root/corp.pem"),
        ] {
            symlink(target, at(link)).unwrap();
        }
        for (file, text) in [
            ("etc/os-release", "ID=debian\n"),
            (
                "etc/passwd",
                "root:x:0:0::/root:/bin/sh\nalice:x:1000:1000:Alice:/home/alice:/bin/sh\n",
            ),
            ("etc/shadow", "root:hash"),
            ("etc/hosts", "10.0.0.1 intranet"),
            ("etc/ssl/private/key.pem", "PRIVATE KEY"),
            (
                "etc/ssl/certs/ca-certificates.crt",
                "-----BEGIN CERTIFICATE-----",
            ),
            ("etc/ssl/certs/leaf.pem", "-----BEGIN PRIVATE KEY-----"),
            ("etc/services", "-----BEGIN RSA PRIVATE KEY-----"),
            ("etc/gitconfig", "token"),
        ] {
            fs::write(at(file), text).unwrap();
        }
        dir
    }

    #[test]
    fn nothing_of_the_operators_is_in_it() {
        let host = fake_host();
        let out = tempfile::tempdir().unwrap();
        let root = out.path().join("root");
        Skeleton::of(host.path()).unwrap().write(&root).unwrap();
        let etc = |p: &str| fs::symlink_metadata(root.join("etc").join(p));
        for absent in [
            "shadow",
            "gitconfig",
            "ssl/private",
            "ssl/certs/leaf.pem",
            "ssl/certs/corp",
            "alternatives/odd",
            "services",
        ] {
            assert!(etc(absent).is_err(), "{absent}");
        }
        for present in [
            "ssl/certs/ca-certificates.crt",
            "ssl/certs/a1b2.0",
            "ssl/certs/Some_CA.pem",
            "alternatives/awk",
        ] {
            assert!(etc(present).is_ok(), "{present}");
        }
        assert!(
            !fs::read_to_string(root.join("etc/passwd"))
                .unwrap()
                .contains("alice")
        );
        assert_eq!(fs::read_to_string(root.join("etc/hosts")).unwrap(), "");
        assert_eq!(
            fs::read_link(root.join("bin")).unwrap(),
            Path::new("usr/bin")
        );
        assert_eq!(
            fs::metadata(root.join("tmp")).unwrap().permissions().mode() & 0o7777,
            0o1777
        );
        assert_eq!(
            fs::metadata(root.join("root"))
                .unwrap()
                .permissions()
                .mode()
                & 0o7777,
            0o700
        );
    }

    #[test]
    fn the_digest_follows_the_release_and_the_certificates() {
        let host = fake_host();
        let digest = || Skeleton::of(host.path()).unwrap().digest();
        let first = digest();
        assert_eq!(digest(), first);
        fs::write(
            host.path().join("etc/ssl/certs/ca-certificates.crt"),
            "another",
        )
        .unwrap();
        let second = digest();
        assert_ne!(second, first);
        fs::write(host.path().join("etc/os-release"), "ID=debian\nVERSION=2\n").unwrap();
        assert_ne!(digest(), second);
    }

    #[test]
    fn an_unmerged_host_is_refused() {
        let host = fake_host();
        fs::remove_file(host.path().join("bin")).unwrap();
        fs::create_dir(host.path().join("bin")).unwrap();
        let err = Skeleton::of(host.path()).err().unwrap();
        assert!(err.to_string().contains("/bin is not a link into /usr"));
    }
}
