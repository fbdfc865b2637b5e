//! A registry of a test's own (Debian's docker-registry), and images made by umoci and skopeo.

// Each test file uses a part of it.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

pub mod cutting;
pub mod fake;

use std::{
    fs,
    io::Read,
    net::{TcpListener, TcpStream},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use nullspace_image::{Images, Limits, Registries};

/// What the private registry lets in.
pub const USER: &str = "robot";
pub const PASSWORD: &str = "open-sesame";
/// The same as `htpasswd -nbB` writes it.
const HTPASSWD: &str = "robot:$2y$05$ynN7acwmF/LfCydXsrimC.5Bdtq1OgEEPORjKkJfIYm5uSj3EEMVG";

/// A registry with data of its own. Ends when dropped.
pub struct Registry {
    child: Child,
    port: u16,
    directory: PathBuf,
    private: bool,
}

impl Registry {
    pub fn start(directory: &Path, private: bool) -> Self {
        let port = free_port();
        fs::create_dir_all(directory).unwrap();
        let child = run(directory, port, private);
        let registry = Self {
            child,
            port,
            directory: directory.to_owned(),
            private,
        };
        registry.wait();
        registry
    }

    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn start_again(&mut self) {
        self.child = run(&self.directory, self.port, self.private);
        self.wait();
    }

    fn wait(&self) {
        until("the registry answers", || {
            TcpStream::connect(self.host()).is_ok()
        });
    }

    /// Pushes an image of a layout, as `repository:tag`.
    pub fn push(&self, layout: &str, name: &str) {
        let mut copy = skopeo();
        copy.arg("copy").arg("--dest-tls-verify=false").arg("-q");
        if self.private {
            copy.arg(format!("--dest-creds={USER}:{PASSWORD}"));
        }
        copy.arg(format!("oci:{layout}"))
            .arg(format!("docker://{}/{name}", self.host()));
        ran(&mut copy);
    }

    /// Where the registry keeps a blob.
    pub fn blob(&self, digest: &str) -> PathBuf {
        let hex = digest.trim_start_matches("sha256:");
        let blobs = "docker/registry/v2/blobs/sha256";
        let path = self.directory.join("data").join(blobs);
        path.join(&hex[..2]).join(hex).join("data")
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let mut log = String::new();
            let file = fs::File::open(self.directory.join("log"));
            let _ = file.map(|mut file| file.read_to_string(&mut log));
            eprintln!("registry said: {log}");
        }
    }
}

fn run(directory: &Path, port: u16, private: bool) -> Child {
    let auth = if private {
        let file = directory.join("htpasswd");
        fs::write(&file, HTPASSWD).unwrap();
        format!(
            "auth: {{htpasswd: {{realm: a test, path: {}}}}}\n",
            file.display()
        )
    } else {
        String::new()
    };
    let config = format!(
        "version: 0.1\nlog: {{level: warn}}\n{auth}\
         storage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '127.0.0.1:{port}'}}\n",
        directory.join("data").display()
    );
    fs::write(directory.join("config.yml"), config).unwrap();
    let log = fs::File::create(directory.join("log")).unwrap();
    Command::new("docker-registry")
        .arg("serve")
        .arg(directory.join("config.yml"))
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .expect("docker-registry is installed")
}

pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

pub fn until(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "waited for {what}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub fn skopeo() -> Command {
    let mut command = Command::new("skopeo");
    command.arg("--insecure-policy");
    command
}

pub fn ran(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

pub fn sh(script: &str, directory: &Path) -> String {
    ran(Command::new("sh")
        .arg("-euc")
        .arg(script)
        .current_dir(directory))
}

/// Makes `layout` in the directory with an image `demo` of three layers: files of all kinds, then changes to them, then
/// removals. Each layer is what a shell script does to the root of the one before.
pub fn demo(directory: &Path) -> String {
    let scripts = [
        "mkdir -p etc bin usr/lib var/cache/apt deep/a/b tmp empty
         echo root:x:0:0 > etc/passwd; echo 'some text' > etc/motd; chmod 640 etc/motd
         head -c 3000000 /dev/urandom > usr/lib/big; printf x > bin/tool
         chmod 4755 bin/tool; chown 1000:1001 etc/motd; chmod 1777 tmp
         ln bin/tool bin/same; ln -s ../usr/lib/big etc/big; ln -s /etc/passwd absolute; mkfifo var/fifo
         setcap cap_net_raw+ep bin/same || true
         touch -d '2001-02-03 04:05:06' etc/passwd; touch -d '1999-01-01' usr/lib
         echo 1 > var/cache/apt/a; echo 2 > var/cache/apt/b; echo gone > etc/gone; echo d > deep/a/b/c
         chown -h 5:6 absolute; chmod 2750 empty
         : > 'name with  spaces'; : > $(printf 'not-utf8-\\377'); mkdir $(printf 'n%.0s' $(seq 200))
         : > $(printf 'n%.0s' $(seq 200))/$(printf 'm%.0s' $(seq 200))",
        "rm -r var/cache/apt; mkdir var/cache/apt; echo new > var/cache/apt/c
         echo more >> etc/motd; rm etc/gone; chmod 700 deep/a; rm absolute; mkdir absolute; : > absolute/x",
        "rm -r deep; echo back > etc/gone; rm bin/same; chown 7 usr/lib",
    ];
    image(directory, "demo", &scripts)
}

pub fn image(directory: &Path, name: &str, scripts: &[&str]) -> String {
    let layout = directory.join("layout");
    if !layout.exists() {
        ran(Command::new("umoci")
            .arg("init")
            .arg("--layout")
            .arg(&layout));
    }
    let image = format!("{}:{name}", layout.display());
    let umoci = |verb: &str| {
        let mut command = Command::new("umoci");
        command.args([verb, "--image", &image]);
        command
    };
    ran(&mut umoci("new"));
    let bundle = directory.join(format!("bundle-{name}"));
    for script in scripts {
        ran(umoci("unpack").arg(&bundle));
        sh(script, &bundle.join("rootfs"));
        ran(umoci("repack").arg(&bundle));
        fs::remove_dir_all(&bundle).unwrap();
    }
    ran(umoci("config").args([
        "--config.env=PATH=/bin:/usr/bin",
        "--config.env=GREETING=hello=world",
        "--config.user=1000:1001",
        "--config.workingdir=/srv",
        "--config.entrypoint=/bin/tool",
        "--config.cmd=--serve",
        "--config.label=a=b",
        "--config.exposedports=8080/tcp",
        "--config.volume=/data",
        "--config.stopsignal=SIGINT",
    ]));
    image
}

pub fn images(directory: &Path) -> Images {
    images_with(directory, Limits::default())
}

pub fn images_with(directory: &Path, limits: Limits) -> Images {
    Images::open(&directory.join("layers"), Registries::default(), limits).unwrap()
}

/// Everything in the directory of layers that is no finished layer.
pub fn unfinished(directory: &Path) -> Vec<String> {
    fs::read_dir(directory.join("layers"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with('.') && !name.starts_with(".layer-"))
        .collect()
}

/// The layers of an image as one tree, as a machine sees it. Gone when dropped.
pub struct Merged {
    pub root: PathBuf,
}

impl Merged {
    pub fn of(lower: &[PathBuf], directory: &Path) -> Self {
        let root = directory.join("merged");
        for name in ["merged", "upper", "work"] {
            fs::create_dir(directory.join(name)).unwrap();
        }
        let lower: Vec<String> = lower.iter().map(|p| p.display().to_string()).collect();
        let options = format!(
            "lowerdir={},upperdir={},workdir={},redirect_dir=on",
            lower.join(":"),
            directory.join("upper").display(),
            directory.join("work").display()
        );
        ran(Command::new("mount")
            .args(["-t", "overlay", "overlay", "-o", &options])
            .arg(&root));
        Self { root }
    }
}

impl Drop for Merged {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.root).status();
    }
}

/// A line for each thing in a tree, with all that matters about it.
pub fn listing(root: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut first_names = std::collections::BTreeMap::new();
    let mut open = vec![PathBuf::new()];
    let mut all = Vec::new();
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(root.join(&directory)).unwrap() {
            let entry = entry.unwrap();
            let path = directory.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                open.push(path.clone());
            }
            all.push(path);
        }
    }
    all.sort();
    for path in all {
        let at = root.join(&path);
        let meta = fs::symlink_metadata(&at).unwrap();
        let kind = meta.file_type();
        let content = if kind.is_file() {
            format!("{:x?}", sha2_of(&fs::read(&at).unwrap()))
        } else if kind.is_symlink() {
            fs::read_link(&at).unwrap().display().to_string()
        } else {
            String::new()
        };
        let linked = if kind.is_dir() {
            String::new()
        } else {
            let first = first_names
                .entry((meta.dev(), meta.ino()))
                .or_insert_with(|| path.clone());
            format!("{first:?}")
        };
        lines.push(format!(
            "{path:?} mode={:o} owner={}:{} mtime={}.{} rdev={} first={linked} xattrs={:?} {content}",
            meta.mode(),
            meta.uid(),
            meta.gid(),
            meta.mtime(),
            meta.mtime_nsec(),
            meta.rdev(),
            xattrs(&at),
        ));
    }
    lines
}

fn sha2_of(bytes: &[u8]) -> Vec<u8> {
    use sha2::Digest;
    sha2::Sha256::digest(bytes)[..8].to_vec()
}

fn xattrs(path: &Path) -> Vec<String> {
    let mut names = vec![0; 4096];
    let length = rustix::fs::llistxattr(path, &mut names).unwrap_or(0);
    let mut all: Vec<String> = names[..length]
        .split(|b| *b == 0)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let name = String::from_utf8_lossy(name).into_owned();
            let mut value = vec![0; 4096];
            let length = rustix::fs::lgetxattr(path, &*name, &mut value).unwrap_or(0);
            format!("{name}={:x?}", &value[..length])
        })
        .collect();
    all.sort();
    all
}
