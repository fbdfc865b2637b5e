//! Registries of a test's own (Debian's docker-registry), what is pushed to them, and what stands between them and the
//! server.

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// Whom a private registry lets in.
pub const USER: &str = "robot";
pub const PASSWORD: &str = "open-sesame-4712";

/// A registry with data of its own. Ends when dropped.
pub struct Registry {
    child: Child,
    kind: Kind,
}

/// How a registry is run.
struct Kind {
    address: SocketAddr,
    directory: PathBuf,
    private: bool,
    /// Certificate and key.
    tls: Option<(PathBuf, PathBuf)>,
}

impl Registry {
    pub fn start(directory: PathBuf, private: bool) -> Self {
        Self::of(Kind {
            address: free(Ipv4Addr::LOCALHOST.into()),
            directory,
            private,
            tls: None,
        })
    }

    /// One that is spoken to over TLS, at this address of the host, with a certificate of [`Authority`].
    pub fn with_tls(directory: PathBuf, address: IpAddr, certificate: (PathBuf, PathBuf)) -> Self {
        Self::of(Kind {
            address: free(address),
            directory,
            private: false,
            tls: Some(certificate),
        })
    }

    fn of(kind: Kind) -> Self {
        fs::create_dir_all(&kind.directory).unwrap();
        let registry = Self {
            child: run(&kind),
            kind,
        };
        registry.until_answers();
        registry
    }

    pub fn host(&self) -> String {
        self.kind.address.to_string()
    }

    pub fn port(&self) -> u16 {
        self.kind.address.port()
    }

    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub fn start_again(&mut self) {
        self.child = run(&self.kind);
        self.until_answers();
    }

    fn until_answers(&self) {
        let end = Instant::now() + Duration::from_secs(30);
        while TcpStream::connect(self.host()).is_err() {
            assert!(Instant::now() < end, "the registry does not answer");
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Pushes an image of a layout, as `repository:tag`. Answers its digest.
    pub fn push(&self, layout: &Path, tag: &str, name: &str) -> String {
        let digest = self.kind.directory.join("digest");
        let mut copy = Command::new("skopeo");
        copy.args(["copy", "-q", "--insecure-policy", "--dest-tls-verify=false"]);
        copy.arg("--digestfile").arg(&digest);
        if self.kind.private {
            copy.arg(format!("--dest-creds={USER}:{PASSWORD}"));
        }
        copy.arg(format!("oci:{}:{tag}", layout.display()))
            .arg(format!("docker://{}/{name}", self.host()));
        let done = copy.output().unwrap();
        assert!(done.status.success(), "{done:?}");
        fs::read_to_string(digest).unwrap().trim().to_owned()
    }

    /// The files that the registry keeps blobs in, the largest first.
    pub fn blobs(&self) -> Vec<PathBuf> {
        let found = Command::new("find")
            .arg(self.kind.directory.join("data"))
            .args(["-path", "*/blobs/sha256/*", "-name", "data"])
            .output()
            .unwrap();
        let text = String::from_utf8(found.stdout).unwrap();
        let mut paths: Vec<PathBuf> = text.lines().map(PathBuf::from).collect();
        paths.sort_by_key(|path| std::cmp::Reverse(fs::metadata(path).unwrap().len()));
        paths
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            let log = fs::read_to_string(self.kind.directory.join("log"));
            eprintln!("the registry said: {}", tail(&log.unwrap_or_default()));
        }
    }
}

/// The last lines of a log.
fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

/// An address with a port that nobody has.
fn free(address: IpAddr) -> SocketAddr {
    let listener = TcpListener::bind((address, 0)).unwrap();
    listener.local_addr().unwrap()
}

fn run(kind: &Kind) -> Child {
    let directory = &kind.directory;
    let auth = match kind.private {
        true => {
            let file = directory.join("htpasswd");
            fs::write(&file, htpasswd()).unwrap();
            let path = file.display();
            format!("auth: {{htpasswd: {{realm: a test, path: {path}}}}}\n")
        }
        false => String::new(),
    };
    let tls = kind
        .tls
        .as_ref()
        .map_or(String::new(), |(certificate, key)| {
            let (certificate, key) = (certificate.display(), key.display());
            format!(", tls: {{certificate: {certificate}, key: {key}}}")
        });
    let config = directory.join("config.yml");
    let text = format!(
        "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n{auth}storage: {{filesystem: {{rootdirectory: {}}}}}\n\
         http: {{addr: '{}'{tls}}}\n",
        directory.join("data").display(),
        kind.address
    );
    fs::write(&config, text).unwrap();
    let log = File::create(directory.join("log")).unwrap();
    Command::new("docker-registry")
        .arg("serve")
        .arg(config)
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .expect("docker-registry is installed")
}

/// A certificate authority of a test's own, in a directory.
pub struct Authority {
    directory: PathBuf,
}

impl Authority {
    pub fn new(directory: PathBuf) -> Self {
        let name = directory.file_name().unwrap().to_str().unwrap();
        let script = format!(
            "openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj '/CN={name} of a test' \
                -keyout ca.key -out ca.pem 2> log"
        );
        make(&directory, &script);
        Self { directory }
    }

    /// Its own certificate.
    pub fn file(&self) -> PathBuf {
        self.directory.join("ca.pem")
    }

    /// A certificate for these names (`DNS:…,IP:…`), and its key.
    pub fn sign(&self, file: &str, names: &str) -> (PathBuf, PathBuf) {
        let script = format!(
            "openssl req -new -newkey rsa:2048 -nodes -subj /CN=registry -keyout {file}.key -out {file}.csr 2> log
             echo subjectAltName={names} > {file}.names
             openssl x509 -req -days 30 -in {file}.csr -CA ca.pem -CAkey ca.key -CAcreateserial \
                -extfile {file}.names -out {file}.pem 2> log"
        );
        make(&self.directory, &script);
        let at = |kind: &str| self.directory.join(format!("{file}.{kind}"));
        (at("pem"), at("key"))
    }
}

/// [`USER`] and [`PASSWORD`] as `htpasswd -nbB` writes them.
fn htpasswd() -> String {
    format!("{USER}:{HASH}\n")
}

/// Of [`PASSWORD`].
const HASH: &str = "$2y$05$ynN7acwmF/LfCydXsrimC.afUK2bJnK4wkEFKlfPcQvs.m1DBw3YC";

/// Runs a shell script that makes an image of a layout, in a directory.
pub fn make(directory: &Path, script: &str) {
    fs::create_dir_all(directory).unwrap();
    let made = Command::new("sh")
        .args(["-euc", script])
        .current_dir(directory)
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
}

/// A small image `oci:tiny`: a shell, a user, a file, and what it says about machines.
pub const TINY: &str = r#"
mkdir -p root/bin root/etc root/app root/tmp root/var/log; cd root; chmod 1777 tmp
cp /bin/busybox bin/busybox
for name in sh cat ls id pwd echo mkdir rm ln chown dirname tar stat wc sha256sum true find env sleep; do ln -s busybox bin/$name; done
printf 'root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/app:/bin/sh\n' > etc/passwd
printf 'root:x:0:\napp:x:1000:\n' > etc/group
echo from-image > app/file; chown -R 1000:1000 app
tar -cf ../tiny.tar .; cd ..
umoci init --layout oci; umoci new --image oci:tiny; umoci insert --image oci:tiny root /
umoci config --image oci:tiny --config.env FROM_IMAGE=yes --config.env PATH=/bin --config.user app --config.workingdir /app \
    --config.entrypoint /bin/echo --config.cmd never --config.label a=b --config.exposedports 80/tcp
"#;

/// `oci:big` over that, with 12 MB that cannot be compressed, in 300 files.
pub const BIG: &str = r#"
mkdir -p more/data
for n in $(seq 300); do head -c 40000 /dev/urandom > more/data/$n; done
cat $(seq -f 'more/data/%.0f' 300) | sha256sum | cut -c1-64 > sum
umoci tag --image oci:tiny big; umoci insert --image oci:big more /
"#;

/// Stands between the server and a registry: of each connection it lets so many bytes through, and the rest once it is
/// told to.
pub struct Gate {
    pub host: String,
    open: Arc<AtomicBool>,
    waits: Arc<AtomicBool>,
}

impl Gate {
    pub fn start(registry: String, after: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let (open, waits) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let gate = Self {
            host,
            open: Arc::clone(&open),
            waits: Arc::clone(&waits),
        };
        thread::spawn(move || {
            for client in listener.incoming() {
                let client = client.unwrap();
                let Ok(server) = TcpStream::connect(&registry) else {
                    continue;
                };
                let (open, waits) = (Arc::clone(&open), Arc::clone(&waits));
                let (from, to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                thread::spawn(move || pass(from, to, |_| {}));
                thread::spawn(move || {
                    pass(server, client, |sum| {
                        while sum >= after && !open.load(Ordering::SeqCst) {
                            waits.store(true, Ordering::SeqCst);
                            thread::sleep(Duration::from_millis(5));
                        }
                    });
                });
            }
        });
        gate
    }

    /// Whether something was held back.
    pub fn waits(&self) -> bool {
        self.waits.load(Ordering::SeqCst)
    }

    pub fn open(&self) {
        self.open.store(true, Ordering::SeqCst);
    }

    pub fn close(&self) {
        self.waits.store(false, Ordering::SeqCst);
        self.open.store(false, Ordering::SeqCst);
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, before_more: impl Fn(usize)) {
    let mut buffer = vec![0; 64 << 10];
    let mut sum = 0;
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        sum += read;
        before_more(sum);
        if to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
