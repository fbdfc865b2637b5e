//! The `base` template: a small Debian with what agent projects expect, made by `mmdebstrap`.

use std::{
    collections::VecDeque,
    fs,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::Command,
};

use sha2::{Digest, Sha256};

use crate::{
    Phase, Progress, TemplateError,
    kept::{Building, Lock},
    progress::Follow,
    settings::{HostSettings, apt_settings_to_keep},
    sources::{self, Source},
    tree::{self, Root},
};

/// Goes up when the recipe changes in a way that its other inputs do not show.
const RECIPE: &str = "base/2";

/// On top of `minbase` (essential packages and apt).
///
/// No compiler: `build-essential` alone would add about 250 MB, most wheels and npm packages come
/// built, and `apt-get install build-essential` works inside.
const PACKAGES: [&str; 20] = [
    "bash",
    "bzip2",
    "ca-certificates",
    "coreutils",
    "curl",
    "git",
    "gzip",
    "iproute2",
    "less",
    "nodejs",
    "npm",
    "openssh-client",
    "procps",
    "python-is-python3",
    "python3",
    "python3-pip",
    "python3-venv",
    "tar",
    "unzip",
    "xz-utils",
];

/// Installed from the host's Python package index: Debian 12 does not have it.
const PYTHON_TOOL: &str = "uv";

/// Runs on the host with the new root as `$1` once all packages are configured. Its variables come
/// from the environment so that no path needs quoting.
const HOOK: &str = r#"set -e
if [ -n "$NULLSPACE_CA" ]; then
    cp "$NULLSPACE_CA" "$1/tmp/host-ca.crt"
    export PIP_CERT=/tmp/host-ca.crt
fi
chroot "$1" python3 -m pip install --no-cache-dir --break-system-packages --root-user-action=ignore \
    --disable-pip-version-check --no-input --progress-bar=off "$NULLSPACE_PYTHON_TOOL"
rm -f "$1/tmp/host-ca.crt"
for program in python pip uv node npm git curl; do chroot "$1" "$program" --version; done
"#;

/// Stays in the template: what is installed later inside a machine is small and quick too.
const DPKG_CONF: &str = "\
# A machine's writable layer is not worth an fsync per file.
force-unsafe-io
path-exclude=/usr/share/doc/*
path-include=/usr/share/doc/*/copyright
path-exclude=/usr/share/man/*
path-exclude=/usr/share/info/*
path-exclude=/usr/share/locale/*
path-include=/usr/share/locale/locale.alias
path-exclude=/usr/share/lintian/*
";

const APT_CONF: &str = "\
Acquire::Languages \"none\";
// A machine may lack the user that apt would change to.
APT::Sandbox::User \"root\";
Dpkg::Use-Pty \"0\";
";

/// Inside a machine the whole system is the agent's environment: installing into it is the point.
const PIP_CONF: &str = "\
[global]
break-system-packages = true
disable-pip-version-check = true
root-user-action = ignore
";

const UV_TOML: &str = "[pip]\nbreak-system-packages = true\n";

/// What to build, and with which of the host's settings.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) suite: String,
    sources: Vec<Source>,
    host: HostSettings,
}

/// A built tree.
#[derive(Debug)]
pub(crate) struct Built {
    pub(crate) root: PathBuf,
    pub(crate) digest: String,
    pub(crate) packages_digest: String,
    pub(crate) size_bytes: u64,
}

/// What the template is made from, apart from the versions that the archive has today. Mirrors are not
/// part of it: moving to another one is no reason to build again.
pub(crate) fn recipe_digest(suite: &str) -> String {
    let mut hash = Sha256::new();
    for part in [
        RECIPE,
        suite,
        std::env::consts::ARCH,
        PYTHON_TOOL,
        DPKG_CONF,
        APT_CONF,
        PIP_CONF,
        UV_TOML,
    ]
    .iter()
    .chain(&PACKAGES)
    {
        hash.update(format!("{}:{part}", part.len()));
    }
    hex::encode(hash.finalize())
}

impl Plan {
    pub(crate) fn new(host: HostSettings) -> Result<Self, TemplateError> {
        let (suite, sources) = host.suite_and_sources()?;
        Ok(Self {
            suite,
            sources,
            host,
        })
    }

    /// Builds the tree below `building`. All processes of the build end with this one, and hold `lock`
    /// until they have.
    pub(crate) fn build(
        &self,
        building: &Building,
        lock: &Lock,
        progress: &dyn Fn(Progress),
    ) -> Result<Built, TemplateError> {
        if !rustix::process::geteuid().is_root() {
            return Err(TemplateError::NeedsRoot);
        }
        for (tool, package) in [
            ("mmdebstrap", "mmdebstrap"),
            ("setpriv", "util-linux"),
            ("unshare", "util-linux"),
        ] {
            if !installed(tool) {
                return Err(TemplateError::MissingTool { tool, package });
            }
        }
        let root = building.path().join("root");
        self.run(building.path(), &root, lock, progress)?;
        progress(Progress::new(
            Phase::Trimming,
            "removing what belongs to the build alone",
        ));
        self.finish(&root)
            .map_err(TemplateError::file("cannot finish the tree at", &root))?;

        progress(Progress::new(Phase::Hashing, "hashing the tree"));
        let tree = tree::digest(&root, &|fraction| {
            progress(Progress {
                phase: Phase::Hashing,
                fraction: Some(fraction),
                line: String::new(),
            });
        })
        .map_err(TemplateError::file("cannot hash the tree at", &root))?;
        let packages_digest = packages_digest(&root)
            .map_err(TemplateError::file("cannot list the packages of", &root))?;
        Ok(Built {
            digest: layer_digest(&recipe_digest(&self.suite), &tree.digest),
            packages_digest,
            size_bytes: tree.size_bytes,
            root,
        })
    }

    fn run(
        &self,
        building: &Path,
        root: &Path,
        lock: &Lock,
        progress: &dyn Fn(Progress),
    ) -> Result<(), TemplateError> {
        let sources_file = building.join("debian.sources");
        let temporary = building.join("tmp");
        fs::create_dir(&temporary).map_err(TemplateError::file("cannot create", &temporary))?;
        // May hold credentials of a mirror; the directory goes with the build.
        crate::write_private(
            &sources_file,
            sources::render(&self.sources, true).as_bytes(),
        )
        .map_err(TemplateError::file("cannot write", &sources_file))?;

        let (output, writer) = std::io::pipe().map_err(start_error)?;
        let mut command = Command::new("setpriv");
        // The death of this process, however sudden, ends `unshare`, which ends process 1 of the build's
        // process namespace and so everything in it. The mount namespace takes the build's mounts along.
        command
            .args([
                "--pdeathsig",
                "KILL",
                "unshare",
                "--mount",
                "--pid",
                "--fork",
                "--kill-child",
                "--mount-proc",
            ])
            .args([
                "mmdebstrap",
                "--mode=root",
                "--variant=minbase",
                "--format=directory",
                "--verbose",
            ])
            .arg(format!("--include={}", PACKAGES.join(",")))
            .arg("--aptopt=APT::Sandbox::User \"root\"")
            .arg("--aptopt=Acquire::Languages \"none\"");
        for setting in self.host.apt_settings() {
            command.arg(format!("--aptopt={}", setting.trim_end_matches(';')));
        }
        for line in DPKG_CONF.lines().filter(|l| !l.starts_with('#')) {
            command.arg(format!("--dpkgopt={line}"));
        }
        let ca = self
            .host
            .ca_bundle()
            .map(PathBuf::into_os_string)
            .unwrap_or_default();
        command
            .arg(format!("--customize-hook={HOOK}"))
            .arg(&self.suite)
            .args([root, &sources_file])
            .env_clear()
            .envs(self.host.build_env())
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            .env("HOME", "/root")
            .env("LC_ALL", "C.UTF-8")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .env("TMPDIR", &temporary)
            .env("NULLSPACE_CA", ca)
            .env("NULLSPACE_PYTHON_TOOL", PYTHON_TOOL)
            .current_dir("/")
            // The lock file as standard input: it reads as empty, and whoever takes the lock next knows
            // that the last process of this build is gone.
            .stdin(lock.share().map_err(start_error)?)
            .stdout(writer.try_clone().map_err(start_error)?)
            .stderr(writer);
        let mut child = command.spawn().map_err(start_error)?;
        // Its copies of the pipe's end: the output must end when the child's do.
        drop(command);

        let (mut follow, mut tail) = (Follow::new(), VecDeque::new());
        let read = forward(BufReader::new(output), |line| {
            let report = follow.line(line);
            if tail.len() == 20 {
                tail.pop_front();
            }
            tail.push_back(report.line.clone());
            progress(report);
        });
        if read.is_err() {
            // Nothing sensible can be said about a build whose output is lost.
            let _ = child.kill();
        }
        let status = child.wait().map_err(start_error)?;
        if status.success() && read.is_ok() {
            return Ok(());
        }
        Err(TemplateError::Build {
            status: status.to_string(),
            phase: follow.phase(),
            tail: Vec::from(tail).join("\n"),
        })
    }

    /// Makes the tree a template: the build's own settings go, ours come.
    fn finish(&self, root: &Path) -> std::io::Result<()> {
        let tree = Root::open(root)?;
        for dir in [
            "dev",
            "run",
            "tmp",
            "var/tmp",
            "var/lib/apt/lists",
            "var/cache/apt",
            "var/cache/ldconfig",
            "var/log",
            "usr/share/man",
            "usr/share/info",
            "usr/share/lintian",
            "usr/share/doc-base",
            "root/.cache",
            "root/.npm",
        ] {
            tree.empty(dir)?;
        }
        for doc in tree.names("usr/share/doc")? {
            let Some(doc) = doc.to_str() else { continue };
            for name in tree
                .names(&format!("usr/share/doc/{doc}"))
                .unwrap_or_default()
            {
                if name != "copyright" {
                    tree.remove(&format!("usr/share/doc/{doc}/{}", name.to_string_lossy()))?;
                }
            }
        }
        for locale in tree.names("usr/share/locale")? {
            if locale != "locale.alias" {
                tree.remove(&format!("usr/share/locale/{}", locale.to_string_lossy()))?;
            }
        }
        for name in tree.names("var/cache/debconf")? {
            // Only the backups: the databases are what `dpkg-reconfigure` works with.
            if let Some(name) = name.to_str().filter(|n| n.ends_with("-old")) {
                tree.remove(&format!("var/cache/debconf/{name}"))?;
            }
        }
        // apt makes these again, but only as root with no other user's files in the way.
        for dir in [
            "var/lib/apt/lists/partial",
            "var/cache/apt/archives",
            "var/cache/apt/archives/partial",
        ] {
            tree.mkdir(dir, 0o755)?;
        }
        tree.mkdir("var/log/apt", 0o755)?;
        tree.mkdir("workspace", 0o755)?;

        // Left by mmdebstrap: the settings it was called with.
        tree.remove("etc/apt/apt.conf.d/99mmdebstrap")?;
        tree.remove("etc/dpkg/dpkg.cfg.d/99mmdebstrap")?;
        tree.remove("etc/apt/sources.list")?;
        tree.empty("etc/apt/sources.list.d")?;
        tree.write(
            "etc/apt/sources.list.d/debian.sources",
            sources::render(&self.sources, false).as_bytes(),
            0o644,
        )?;
        let mut apt = APT_CONF.to_owned();
        let settings = self.host.apt_settings();
        for setting in apt_settings_to_keep(&settings) {
            apt.push_str(setting);
            apt.push('\n');
        }
        tree.write("etc/apt/apt.conf.d/90nullspace", apt.as_bytes(), 0o644)?;
        tree.write(
            "etc/dpkg/dpkg.cfg.d/90nullspace",
            DPKG_CONF.as_bytes(),
            0o644,
        )?;
        // A mirror of the company's own may be signed with its own key.
        for keyring in sources::keyrings(&self.sources) {
            let Some(inside) = keyring.to_str().map(|p| p.trim_start_matches('/')) else {
                continue;
            };
            if tree.read(inside, 1).ok().flatten().is_some() {
                continue;
            }
            let mut parent = String::new();
            for part in inside
                .split('/')
                .rev()
                .skip(1)
                .collect::<Vec<_>>()
                .into_iter()
                .rev()
            {
                parent = if parent.is_empty() {
                    part.to_owned()
                } else {
                    format!("{parent}/{part}")
                };
                tree.mkdir(&parent, 0o755)?;
            }
            tree.write(inside, &fs::read(&keyring)?, 0o644)?;
        }

        tree.write("etc/pip.conf", PIP_CONF.as_bytes(), 0o644)?;
        tree.mkdir("etc/uv", 0o755)?;
        tree.write("etc/uv/uv.toml", UV_TOML.as_bytes(), 0o644)?;
        // Regular files for the engine to mount a machine's own over; without one, empty is harmless.
        for file in [
            "etc/resolv.conf",
            "etc/hostname",
            "etc/hosts",
            "etc/machine-id",
        ] {
            tree.write(file, b"", 0o644)?;
        }
        tree.symlink("etc/mtab", Path::new("../proc/self/mounts"))?;
        tree.mkdir("tmp", 0o1777)?;
        tree.mkdir("var/tmp", 0o1777)
    }
}

/// A layer's digest, from what it was made of and what it is.
pub(crate) fn layer_digest(recipe_digest: &str, tree: &[u8; 32]) -> String {
    let mut hash = Sha256::new();
    hash.update(recipe_digest);
    hash.update(tree);
    hex::encode(hash.finalize())
}

fn start_error(source: std::io::Error) -> TemplateError {
    TemplateError::Start {
        program: "mmdebstrap",
        source,
    }
}

fn installed(program: &str) -> bool {
    [
        "/usr/local/sbin",
        "/usr/local/bin",
        "/usr/sbin",
        "/usr/bin",
        "/sbin",
        "/bin",
    ]
    .iter()
    .any(|dir| Path::new(dir).join(program).is_file())
}

/// Gives each line (ended by `\n` or `\r`) to `each`; longer ones come in pieces of 4 KiB.
fn forward(mut from: impl BufRead, mut each: impl FnMut(&str)) -> std::io::Result<()> {
    let mut line = Vec::new();
    loop {
        line.clear();
        if from.by_ref().take(4096).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        for part in String::from_utf8_lossy(&line)
            .split(['\r', '\n'])
            .filter(|p| !p.trim().is_empty())
        {
            each(part);
        }
    }
}

/// Over dpkg's database: each package's name, version and architecture, and the versions of what came
/// from the Python index.
fn packages_digest(root: &Path) -> std::io::Result<String> {
    let tree = Root::open(root)?;
    let status = tree
        .read("var/lib/dpkg/status", 64 << 20)?
        .unwrap_or_default();
    let mut lines: Vec<String> = String::from_utf8_lossy(&status)
        .split("\n\n")
        .filter_map(|stanza| {
            let field = |name: &str| {
                stanza
                    .lines()
                    .find_map(|l| l.strip_prefix(name))
                    .map(str::trim)
            };
            Some(format!(
                "{} {} {}",
                field("Package:")?,
                field("Version:")?,
                field("Architecture:")?
            ))
        })
        .collect();
    for python in tree.names("usr/local/lib")? {
        let dir = format!("usr/local/lib/{}/dist-packages", python.to_string_lossy());
        lines.extend(
            tree.names(&dir)?
                .iter()
                .map(|n| n.to_string_lossy().into_owned())
                .filter(|n| n.ends_with(".dist-info")),
        );
    }
    lines.sort();
    Ok(hex::encode(Sha256::digest(lines.join("\n"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_comes_in_lines() {
        let mut lines = Vec::new();
        let long = "x".repeat(5000);
        forward(
            format!("one\r\ntwo\rthree\n\n{long}\nlast").as_bytes(),
            |l| lines.push(l.len()),
        )
        .unwrap();
        assert_eq!(lines, [3, 3, 5, 4096, 904, 4]);
    }

    #[test]
    fn the_recipe_knows_its_suite() {
        assert_eq!(recipe_digest("bookworm"), recipe_digest("bookworm"));
        assert_ne!(recipe_digest("bookworm"), recipe_digest("trixie"));
    }

    #[test]
    fn packages_are_listed_from_the_tree() {
        let dir = tempfile::tempdir().unwrap();
        let dpkg = dir.path().join("var/lib/dpkg");
        fs::create_dir_all(&dpkg).unwrap();
        let a = "Package: a\nArchitecture: all\nVersion: 1\nDescription: x\n";
        let b = "Package: b\nArchitecture: amd64\nVersion: 2\n";
        fs::write(dpkg.join("status"), format!("{a}\n{b}\n")).unwrap();
        let one = packages_digest(dir.path()).unwrap();
        fs::write(dpkg.join("status"), format!("{b}\n{a}\n")).unwrap();
        assert_eq!(packages_digest(dir.path()).unwrap(), one);
        fs::create_dir_all(
            dir.path()
                .join("usr/local/lib/python3.11/dist-packages/uv-1.dist-info"),
        )
        .unwrap();
        assert_ne!(packages_digest(dir.path()).unwrap(), one);
    }
}
