//! Logging in to real machines: with the published command lines, with ours, and with OpenSSH's own programs.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    python::{next_python, published, python},
    world::World,
};

/// How long anything may take: far more than it ever does.
const LIMIT: Duration = Duration::from_secs(120);

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn fine(output: Output) -> String {
    assert!(output.status.success(), "{output:?}");
    text(&output.stdout)
}

/// A machine with a user that is not root.
async fn machine(world: &World) -> String {
    let id = world
        .machine(json!({"template": "host", "timeout_ms": 600_000}))
        .await;
    let user = "echo 'ann:x:1000:1000::/home/ann:/bin/sh' >> /etc/passwd; echo 'ann:x:1000:' >> /etc/group; \
                echo 'crew:x:1500:ann' >> /etc/group; mkdir -p /home/ann; chown 1000:1000 /home/ann; \
                echo secret > /root/secret; chmod 700 /root";
    world.out(&id, user).await;
    id
}

/// What `nullspace ssh --json` says.
fn access(world: &World, id: &str, arguments: &[&str]) -> Value {
    let json = [&["ssh", id, "--json"], arguments].concat();
    serde_json::from_str(&fine(world.nullspace(&json))).unwrap()
}

/// One of OpenSSH's programs, with what lets it in.
fn openssh(world: &World, program: &str, access: &Value) -> Command {
    let mut command = world.isolated(program);
    command.args([
        "-F",
        "none",
        "-o",
        "BatchMode=yes",
        "-o",
        "IdentitiesOnly=yes",
    ]);
    command.args(["-o", "StrictHostKeyChecking=yes"]);
    for (name, key) in [
        ("IdentityFile", "identity_file"),
        ("CertificateFile", "certificate_file"),
        ("UserKnownHostsFile", "known_hosts_file"),
    ] {
        let value = access[key].as_str().unwrap();
        command.arg("-o").arg(format!("{name}={value}"));
    }
    command.arg("-o").arg(format!("Port={}", access["port"]));
    command
}

fn destination(access: &Value) -> String {
    let word = |key: &str| access[key].as_str().unwrap().to_owned();
    format!("{}@{}", word("user"), word("host"))
}

fn ssh(world: &World, access: &Value, command: &str) -> Output {
    let mut ssh = openssh(world, "ssh", access);
    ssh.arg(destination(access)).arg(command).output().unwrap()
}

/// A program that is ended when the test is.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn bytes(count: usize) -> Vec<u8> {
    (0..count)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 11) as u8)
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_line_logs_in() {
    let world = World::start().await;
    let id = machine(&world).await;
    for mut program in [
        published(&world, &python()),
        published(&world, &next_python()),
        world.program(),
    ] {
        let name = format!("{program:?}");
        let script = "cat; echo $USER; pwd >&2; exit 7";
        program.args(["ssh", &id, "--ttl", "90s", "--", script]);
        program.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = program.stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(b"typed\n").unwrap();
        let done = child.wait_with_output().unwrap();
        assert_eq!(text(&done.stdout), "typed\nroot\n", "{name} {done:?}");
        assert_eq!(text(&done.stderr), "/root\n", "{name}");
        assert_eq!(done.status.code(), Some(7), "{name}");
    }
    // All three have made, or found, the same key.
    let key = world.home().join(".nullspace/ssh/nullspace_ssh_ed25519");
    let made: Value = access(&world, &id, &["--user", "ann"]);
    assert_eq!(made["identity_file"], key.to_str().unwrap());
    assert_eq!(made["user"], "ann");
    let line = fine(world.nullspace(&["ssh", &id, "--print-command", "uname", "-s"]));
    assert!(
        line.starts_with("ssh -T -i ") && line.ends_with(" uname -s\n"),
        "{line}"
    );
    let ran = Command::new("sh").args(["-c", &line]).output().unwrap();
    assert_eq!(fine(ran), "Linux\n");
    let public = format!("@{}.pub", key.display());
    let line = fine(world.nullspace(&["sandbox", "ssh-access", &id, "--public-key", &public]));
    assert_eq!(line, format!("ssh -p {} root@127.0.0.1\n", made["port"]));

    let gone = world.nullspace(&["ssh", "mch_nowhere", "true"]);
    assert_eq!(gone.status.code(), Some(3), "{gone:?}");
    let wrong = world.nullspace(&["ssh", &id, "--ttl", "soon", "true"]);
    assert_eq!(wrong.status.code(), Some(2), "{wrong:?}");
    world.delete(&format!("/v1/machines/{id}")).await;
    let ended = world.nullspace(&["ssh", &id, "true"]);
    assert_eq!(ended.status.code(), Some(7), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_has_the_rights_of_that_user() {
    let world = World::start().await;
    let id = machine(&world).await;
    let ann = access(&world, &id, &["--user", "ann"]);
    let who = ssh(
        &world,
        &ann,
        "id -u; id -g; id -G; pwd; echo $HOME $USER; cat /root/secret",
    );
    let said = text(&who.stdout);
    assert_eq!(
        said, "1000\n1000\n1000 1500\n/home/ann\n/home/ann ann\n",
        "{who:?}"
    );
    assert!(text(&who.stderr).contains("Permission denied"), "{who:?}");
    assert_eq!(who.status.code(), Some(1));
    // Nor through her files, her terminal, or her capabilities.
    let files = world.home().join("batch");
    std::fs::write(&files, "-get /root/secret\nput batch mine\nls -ln mine\n").unwrap();
    let mut sftp = openssh(&world, "sftp", &ann);
    let done = sftp
        .arg("-b")
        .arg(&files)
        .arg(destination(&ann))
        .output()
        .unwrap();
    // It cannot even be seen there.
    assert!(
        text(&done.stderr).contains("\"/root/secret\" not found"),
        "{done:?}"
    );
    assert!(fine(done).contains("ann      ann"));
    assert!(!world.home().join("secret").exists());
    let mut shell = openssh(&world, "ssh", &ann);
    shell.arg("-tt").arg(destination(&ann));
    let shown = shell
        .arg("stty size; : < $(tty) && grep CapEff /proc/self/status")
        .output();
    assert!(fine(shown.unwrap()).contains("CapEff:\t0000000000000000"));
    // Root has what a command of the API has.
    let root = access(&world, &id, &[]);
    assert_eq!(fine(ssh(&world, &root, "cat /root/secret")), "secret\n");
    let mut other = root.clone();
    other["user"] = "ann".into();
    assert_eq!(ssh(&world, &other, "true").status.code(), Some(255));
}

#[tokio::test(flavor = "multi_thread")]
async fn openssh_and_its_friends_work() {
    let world = World::start().await;
    let id = machine(&world).await;
    let access = access(&world, &id, &[]);
    let data = bytes(16 << 20);
    let file = world.home().join("data");
    std::fs::write(&file, &data).unwrap();

    // Bytes, both ways at once.
    let mut cat = openssh(&world, "ssh", &access);
    let stdin = std::fs::File::open(&file).unwrap();
    let back = cat
        .arg(destination(&access))
        .arg("cat")
        .stdin(stdin)
        .output()
        .unwrap();
    assert!(
        back.stdout == data,
        "{} {:?}",
        back.stdout.len(),
        back.status
    );

    let there = |name: &str| format!("{}:{name}", destination(&access));
    for flags in ["-q", "-qO"] {
        let mut up = openssh(&world, "scp", &access);
        fine(
            up.arg(flags)
                .arg(&file)
                .arg(there("/tmp/up"))
                .output()
                .unwrap(),
        );
        let mut down = openssh(&world, "scp", &access);
        fine(
            down.arg(flags)
                .arg(there("/tmp/up"))
                .arg("down")
                .output()
                .unwrap(),
        );
        assert!(std::fs::read(world.home().join("down")).unwrap() == data);
    }
    let options = openssh(&world, "ssh", &access);
    let words = options.get_args().map(|word| word.to_str().unwrap());
    let shell = format!("ssh {}", words.collect::<Vec<_>>().join(" "));
    let mut rsync = world.isolated("rsync");
    rsync
        .args(["-a", "-e", &shell, "data"])
        .arg(there("/tmp/synced"));
    fine(rsync.output().unwrap());
    let sums = fine(ssh(&world, &access, "cmp /tmp/up /tmp/synced && echo same"));
    assert_eq!(sums, "same\n");

    // Ports: the machine's from here, and ours from the machine.
    let path = format!("/v1/machines/{id}/exec");
    let serve = json!({"command": "cd /tmp && exec python3 -m http.server 8000 --bind 127.0.0.1",
        "shell": true, "background": true});
    world.post(&path, serve).await;
    let ours = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let our_port = ours.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in ours.incoming().flatten() {
            let mut stream = stream;
            let _ = stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nfrom outside");
        }
    });
    let local = TcpListener::bind(("127.0.0.1", 0))
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let mut forward = openssh(&world, "ssh", &access);
    forward.args(["-N", "-o", "ExitOnForwardFailure=yes"]);
    forward.args(["-L", &format!("{local}:localhost:8000")]);
    forward.args(["-R", &format!("9000:localhost:{our_port}")]);
    let _forward = Running(forward.arg(destination(&access)).spawn().unwrap());
    let deadline = Instant::now() + LIMIT;
    let fetched = loop {
        assert!(Instant::now() < deadline, "the port does not open");
        let mut answer = Vec::new();
        if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", local)) {
            let _ = stream.write_all(b"GET /up HTTP/1.0\r\n\r\n");
            let _ = stream.read_to_end(&mut answer);
        }
        if answer.len() > data.len() {
            break answer;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    assert!(fetched.ends_with(&data));
    let fetch =
        "import urllib.request as r; print(r.urlopen('http://127.0.0.1:9000').read().decode())";
    let from_inside = world.out(&id, &format!("python3 -c \"{fetch}\"")).await;
    assert_eq!(from_inside, "from outside");
}

#[tokio::test(flavor = "multi_thread")]
async fn access_ends_when_it_is_to() {
    let mut world = World::start().await;
    let (id, other) = (machine(&world).await, machine(&world).await);
    let mine = access(&world, &id, &[]);
    // The published files are one for all machines: the other machine's certificate is there now.
    let first = std::fs::read(mine["certificate_file"].as_str().unwrap()).unwrap();
    let theirs = access(&world, &other, &[]);
    assert_ne!(
        first,
        std::fs::read(theirs["certificate_file"].as_str().unwrap()).unwrap()
    );
    world.out(&other, "touch /tmp/is-other").await;
    assert_eq!(
        fine(ssh(&world, &mine, "ls /tmp/is-other")),
        "/tmp/is-other\n"
    );

    // It outlives the server.
    world.kill();
    world.serve().await;
    let again = access(&world, &id, &[]);
    assert_eq!(mine["host_key"], again["host_key"]);
    let certificate = PathBuf::from(again["certificate_file"].as_str().unwrap());
    std::fs::write(&certificate, &first).unwrap();
    fine(ssh(&world, &again, "true"));
    // Until its machine is gone.
    world.delete(&format!("/v1/machines/{id}")).await;
    let refused = ssh(&world, &again, "true");
    assert_eq!(refused.status.code(), Some(255));
    assert!(
        text(&refused.stderr).contains("Permission denied (publickey)"),
        "{refused:?}"
    );
    let log = world.serve_log();
    assert!(!log.contains(again["access_id"].as_str().unwrap()), "{log}");
}
