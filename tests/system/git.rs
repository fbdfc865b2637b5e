//! Git in real machines, against real servers: git's own `http-backend` behind HTTP with passwords, and OpenSSH's sshd. Both
//! run in the machine; the HTTP one knows the password by its digest, so that the password itself is nowhere there.

use std::{
    os::fd::AsRawFd,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use nullspace_sys::image;
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::{
    python::{next_python, python, script},
    world::{World, answer, repository},
};

const LIMIT: Duration = Duration::from_secs(60);
const USER: &str = "alice";
/// With what shells, addresses and JSON have their own ways with.
const PASSWORD: &str = "pa ss/w0rd!'\"$(x)€";
const PRIVATE: &str = "http://127.0.0.1:8080/private/a.git";

/// A machine with a server for git in it, and two repositories that hold one commit: `private/a.git`, `open/a.git`.
struct Place {
    world: World,
    machine: String,
    /// The server's settings, read at each start.
    _settings: tempfile::NamedTempFile,
}

impl Place {
    async fn new() -> Self {
        let settings = tempfile::NamedTempFile::new().unwrap();
        // What may not be in a log may not be in any log.
        std::fs::write(settings.path(), "log = \"nullspace=trace\"\n").unwrap();
        let world = World::with(&["--config", settings.path().to_str().unwrap()]).await;
        let trace = json!({"GIT_TRACE_CURL": "/srv/trace", "GIT_TRACE": "/srv/trace", "GIT_TRACE_REDACT": "0"});
        let machine = world
            .machine(json!({"template": "host", "timeout_ms": 900_000, "envs": trace}))
            .await;
        let place = Self {
            world,
            machine,
            _settings: settings,
        };
        let server = std::fs::read(repository().join("tests/python/git_server.py")).unwrap();
        place.write("/srv/git_server.py", server).await;
        place
            .out(
                "set -e; cd /srv; for r in private open; do mkdir -p git/$r; git init -q --bare -b main git/$r/a.git; \
                 git -C git/$r/a.git config http.receivepack true; done; git init -q -b main seed; cd seed; \
                 echo one > file; git add .; git -c user.name=s -c user.email=s@x commit -qm first; \
                 for r in private open; do git push -q /srv/git/$r/a.git main; done",
            )
            .await;
        place.serve_http(8080).await;
        place
    }

    async fn serve_http(&self, port: u16) {
        use sha2::Digest as _;
        let digest = hex::encode(sha2::Sha256::digest(PASSWORD));
        let port = port.to_string();
        let request = json!({"command": "python3", "background": true,
            "args": ["/srv/git_server.py", "/srv/git", port, USER, digest]});
        let path = format!("/v1/machines/{}/exec", self.machine);
        assert_eq!(self.world.post(&path, request).await.0, StatusCode::OK);
        let up = format!(
            "python3 -c 'import socket; socket.create_connection((\"127.0.0.1\", {port}))'"
        );
        self.until(&up).await;
    }

    /// Waits until a command in the machine succeeds.
    async fn until(&self, line: &str) {
        let deadline = Instant::now() + LIMIT;
        while self.world.shell(&self.machine, line).await["exit_code"] != 0 {
            if Instant::now() > deadline {
                let there = self
                    .world
                    .shell(
                        &self.machine,
                        "ps -eo pid,ppid,stat,args; ls -lA /srv /dev/shm",
                    )
                    .await;
                panic!(
                    "never: {line}\n{}",
                    there["stdout"].as_str().unwrap_or_default()
                );
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn write(&self, path: &str, content: impl Into<reqwest::Body>) {
        let path = format!("/v1/machines/{}/file?path={path}", self.machine);
        let put = self.world.request(reqwest::Method::PUT, &path);
        assert_eq!(answer(put.body(content)).await.0, StatusCode::NO_CONTENT);
    }

    async fn out(&self, line: &str) -> String {
        self.world.out(&self.machine, line).await
    }

    fn path(&self, what: &str) -> String {
        format!("/v1/machines/{}/git/{what}", self.machine)
    }

    /// An answer that is a success.
    async fn git(&self, what: &str, body: Value) -> Value {
        let (status, answer) = self.world.post(&self.path(what), body.clone()).await;
        assert_eq!(status, StatusCode::OK, "{what} {body}: {answer}");
        answer
    }

    async fn look(&self, what: &str) -> Value {
        let (status, answer) = self.world.get(&self.path(what)).await;
        assert_eq!(status, StatusCode::OK, "{what}: {answer}");
        answer
    }

    /// How it is refused; says what was wrong and what to do.
    async fn refused(&self, what: &str, body: Value) -> String {
        let (status, answer) = match what.contains('?') {
            true => self.world.get(&self.path(what)).await,
            false => self.world.post(&self.path(what), body.clone()).await,
        };
        assert!(status.is_client_error(), "{what} {body}: {status} {answer}");
        let code = answer["code"].as_str().unwrap().to_owned();
        let helps = answer["suggested_action"].is_string()
            || code == "invalid_request"
            || code.ends_with("not_found");
        assert!(
            helps && answer["error"].is_string(),
            "{what} {body}: {answer}"
        );
        let text = answer.to_string();
        assert!(
            !text.contains("w0rd") && !text.contains(".nullspace-git"),
            "{text}"
        );
        code
    }

    /// An SSH server that lets the owner of `public_key` in; what `forced` says is put before its commands.
    async fn serve_ssh(&self, public_key: &str, forced: &str) {
        self.out("mkdir -p /run/sshd /etc/ssh; echo 'sshd:x:100:65534::/run/sshd:/bin/false' >> /etc/passwd")
            .await;
        let settings = "Port 2222\nListenAddress 127.0.0.1\nHostKey /etc/ssh/host\nAuthorizedKeysFile /etc/ssh/keys\n\
            UsePAM no\nPermitRootLogin yes\nStrictModes no\nPasswordAuthentication no\n";
        self.write("/etc/ssh/sshd_config", settings).await;
        self.write("/etc/ssh/keys", format!("{forced}{public_key}"))
            .await;
        self.out("ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/host && /usr/sbin/sshd -f /etc/ssh/sshd_config -E /srv/sshd.log")
            .await;
    }

    /// What of these is in a file of the server's (the machine's, the record, the logs) or in a process that it
    /// or its launcher started.
    fn traces(&self, secrets: &[String]) -> Vec<String> {
        let mut found = Vec::new();
        let mut look = |place: &str, bytes: &[u8]| {
            for secret in secrets {
                if memchr::memmem::find(bytes, secret.as_bytes()).is_some() {
                    found.push(format!("{place}: {secret}"));
                }
            }
        };
        let mut directories = vec![self.world.data()];
        let mut disks = Vec::new();
        while let Some(directory) = directories.pop() {
            for entry in std::fs::read_dir(&directory)
                .into_iter()
                .flatten()
                .flatten()
            {
                let kind = entry.file_type().unwrap();
                look("a name", entry.file_name().as_encoded_bytes());
                let path = entry.path();
                if path == self.world.data().join("run/empty") {
                    // Large, and nothing is in there.
                } else if kind.is_dir() {
                    directories.push(path);
                } else if path.extension().is_some_and(|kind| kind == "image") {
                    // What a machine wrote: a few files in a file system that may be large.
                    if let Some(disk) = image::mount(&path.with_extension("")).unwrap() {
                        directories.push(format!("/proc/self/fd/{}", disk.as_raw_fd()).into());
                        disks.push(disk);
                    }
                } else if kind.is_file() {
                    look(
                        &entry.path().display().to_string(),
                        &std::fs::read(entry.path()).unwrap_or_default(),
                    );
                }
            }
        }
        look("the log", self.world.serve_log().as_bytes());
        // Only what this server started: tests beside this one may tell their own clients the password.
        for pid in self.world.host.started_by(self.world.serve_pid()) {
            for what in ["cmdline", "environ"] {
                let path = format!("/proc/{pid}/{what}");
                look(&path, &std::fs::read(&path).unwrap_or_default());
            }
        }
        found
    }
}

fn https(password: &str) -> Value {
    json!({"kind": "https", "username": USER, "password": password})
}

/// The password in every spelling that could be written down.
fn spellings() -> Vec<String> {
    let percent: String = PASSWORD
        .bytes()
        .map(|b| match b.is_ascii_alphanumeric() {
            true => char::from(b).to_string(),
            false => format!("%{b:02X}"),
        })
        .collect();
    let basic = BASE64.encode(format!("{USER}:{PASSWORD}"));
    vec![PASSWORD.to_owned(), "w0rd!".to_owned(), percent, basic]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_repository_over_http_leaves_no_trace() {
    let place = Place::new().await;
    let clone = json!({"url": PRIVATE, "path": "/srv/work/a", "auth": https(PASSWORD)});
    assert_eq!(
        place.git("clone", clone.clone()).await,
        json!({"path": "/srv/work/a"})
    );
    assert_eq!(
        place.out("cat /srv/work/a/file; ls -A /srv/work").await,
        "one\na"
    );
    assert_eq!(
        place.out("git -C /srv/work/a remote get-url origin").await,
        PRIVATE
    );

    // Without, with another, and with one that the remote does not hear.
    let auth = |auth: Value| json!({"url": PRIVATE, "path": "/srv/work/b", "auth": auth});
    assert_eq!(
        place.refused("clone", auth(Value::Null)).await,
        "git_auth_failed"
    );
    assert_eq!(
        place.refused("clone", auth(https("pa ss/w0rd"))).await,
        "git_auth_failed"
    );
    place.serve_http(8081).await;
    let mut elsewhere = auth(https(PASSWORD));
    elsewhere["url"] = "http://127.0.0.1:8080/moved/127.0.0.1:8081/private/a.git".into();
    assert_eq!(
        place.refused("clone", elsewhere).await,
        "git_auth_failed",
        "a password is for the host that it was given for"
    );
    assert_eq!(place.out("ls -A /srv/work").await, "a");

    let work = "/srv/work/a";
    place
        .out("cd /srv/work/a; echo two > file; echo new > new")
        .await;
    let commit = json!({"path": work, "message": "second", "add_all": true});
    assert_eq!(
        place.refused("commit", commit.clone()).await,
        "git_identity_unknown"
    );
    let mut commit = commit;
    commit["author_name"] = "Zoë".into();
    commit["author_email"] = "z@x".into();
    let sha = place.git("commit", commit).await["sha"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_eq!(
        place.refused("push", json!({"path": work})).await,
        "git_auth_failed"
    );
    let sync = json!({"path": work, "set_upstream": true, "auth": https(PASSWORD)});
    let pushed = place.git("push", sync).await;
    assert!(
        pushed["summary"].as_str().unwrap().contains("-> main"),
        "{pushed}"
    );
    assert_eq!(
        place
            .out("git -C /srv/git/private/a.git rev-parse main")
            .await,
        sha
    );
    let sync = json!({"path": work, "auth": https(PASSWORD)});
    assert_eq!(
        place.git("pull", sync).await,
        json!({"summary": "Already up to date."})
    );

    // While it is used: nowhere but in git's own memory. The server does not answer before it is told to.
    place.out("touch /srv/slow").await;
    let slow = json!({"url": "http://127.0.0.1:8080/slow/a.git", "path": "/srv/work/slow", "auth": https(PASSWORD)});
    let path = place.path("clone");
    let under_way = place
        .world
        .request(reqwest::Method::POST, &path)
        .json(&slow)
        .send();
    let under_way = tokio::spawn(under_way);
    place.until("pgrep -f git-remote-htt[p]").await;
    assert_eq!(
        place.traces(&spellings()),
        Vec::<String>::new(),
        "while it is used"
    );
    let listed = place
        .world
        .get(&format!("/v1/machines/{}/processes", place.machine))
        .await
        .1;
    assert!(listed.to_string().contains("\"git clone\""), "{listed}");
    place.out("rm /srv/slow").await;
    assert_eq!(under_way.await.unwrap().unwrap().status(), StatusCode::OK);

    assert_eq!(
        place.traces(&spellings()),
        Vec::<String>::new(),
        "afterwards"
    );
    // The test finds one that is there.
    place.write("/srv/here", PASSWORD).await;
    assert_eq!(place.traces(&spellings()).len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_repository_over_ssh_leaves_no_trace() {
    let place = Place::new().await;
    let keys = tempfile::tempdir().unwrap();
    let made = |name: &str, passphrase: &str| {
        let file = keys.path().join(name);
        let mut keygen = Command::new("ssh-keygen");
        keygen
            .args(["-q", "-t", "ed25519", "-C", "", "-N", passphrase, "-f"])
            .arg(&file);
        assert!(keygen.status().unwrap().success());
        let read = |path: &Path| std::fs::read_to_string(path).unwrap();
        (read(&file), read(&file.with_extension("pub")))
    };
    let (key, public) = made("id", "open sesame");
    let (other, _) = made("other", "");
    let forced =
        "command=\"while [ -e /srv/slow ]; do sleep 0.05; done; eval $SSH_ORIGINAL_COMMAND\" ";
    place.serve_ssh(&public, forced).await;

    let url = "ssh://root@127.0.0.1:2222/srv/git/private/a.git";
    let ssh = |key: &str| json!({"kind": "ssh", "private_key": key, "passphrase": "open sesame"});
    let clone = |path: &str, auth: Value| json!({"url": url, "path": path, "auth": auth});
    assert_eq!(
        place
            .refused(
                "clone",
                clone("/srv/c", json!({"kind": "ssh", "private_key": key}))
            )
            .await,
        "invalid_request"
    );
    assert_eq!(
        place
            .refused("clone", clone("/srv/c", ssh("hunter2")))
            .await,
        "invalid_request"
    );
    let broken = format!(
        "-----BEGIN RSA PRIVATE KEY-----\n{}\n-----END RSA PRIVATE KEY-----",
        "A".repeat(64)
    );
    let broken = json!({"kind": "ssh", "private_key": broken});
    assert_eq!(
        place.refused("clone", clone("/srv/c", broken)).await,
        "invalid_request"
    );
    assert_eq!(
        place.refused("clone", clone("/srv/c", ssh(&other))).await,
        "git_auth_failed"
    );
    assert_eq!(
        place
            .refused("clone", clone("/srv/c", https(PASSWORD)))
            .await,
        "invalid_request"
    );

    place.git("clone", clone("/srv/c", ssh(&key))).await;
    place
        .out("cd /srv/c; echo two > file; git -c user.name=s -c user.email=s@x commit -qam second")
        .await;
    let sync = json!({"path": "/srv/c", "auth": ssh(&key)});
    let pushed = place.git("push", sync.clone()).await;
    assert!(
        pushed["summary"].as_str().unwrap().contains("-> main"),
        "{pushed}"
    );
    assert_eq!(
        place.git("pull", sync.clone()).await["summary"],
        "Already up to date."
    );
    assert_eq!(
        place.out("ls -A /dev/shm; pgrep ssh-agent || true").await,
        ""
    );

    // What is a secret: the whole key, decrypted or not, line by line, and the passphrase.
    let opened = {
        let file = keys.path().join("opened");
        std::fs::write(&file, &key).unwrap();
        let mut keygen = Command::new("ssh-keygen");
        std::os::unix::fs::PermissionsExt::set_mode(
            &mut std::fs::metadata(&file).unwrap().permissions(),
            0o600,
        );
        run("chmod", &["600", file.to_str().unwrap()]);
        keygen
            .args(["-q", "-p", "-P", "open sesame", "-N", "", "-f"])
            .arg(&file);
        assert!(keygen.status().unwrap().success());
        std::fs::read_to_string(file).unwrap()
    };
    let lines = key
        .lines()
        .chain(opened.lines())
        .filter(|line| !line.starts_with('-'));
    // The first lines of every key begin alike.
    let mut secrets: Vec<String> = lines.skip(1).map(str::to_owned).collect();
    secrets.push("open sesame".into());
    let common = "b3BlbnNzaC1rZXktdjE";
    secrets.retain(|secret| !secret.starts_with(common) && secret.len() > 8);
    assert!(secrets.len() > 4, "{secrets:?}");

    // A caller that goes away in the middle: the agent goes too, and what was cloned so far.
    place.out("touch /srv/slow").await;
    let path = place.path("clone");
    let under_way = place.world.posted(&path, &clone("/srv/d", ssh(&key)));
    place.until("pgrep ssh-agent && pgrep -f srv/slo[w]").await;
    assert_eq!(
        place.traces(&secrets),
        Vec::<String>::new(),
        "while it is used"
    );
    drop(under_way);
    place
        .until("! pgrep ssh-agent && ! pgrep -x ssh && [ -z \"$(ls -d /srv/d /srv/.nullspace-git* 2>/dev/null)\" ]")
        .await;
    place.out("rm /srv/slow").await;
    // The next one removes the socket that is left.
    place.git("pull", sync.clone()).await;
    assert_eq!(place.out("ls -A /dev/shm").await, "");
    assert_eq!(place.traces(&secrets), Vec::<String>::new(), "afterwards");

    // A host with another key than the one that was seen first.
    place
        .out("rm /etc/ssh/host*; ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/host; kill -HUP $(cat /run/sshd.pid)")
        .await;
    place
        .until("ssh-keyscan -p 2222 127.0.0.1 | grep -qF \"$(cut -d' ' -f2 /etc/ssh/host.pub)\"")
        .await;
    assert_eq!(place.refused("pull", sync).await, "git_host_key_conflict");
}

fn run(program: &str, arguments: &[&str]) {
    crate::host::run(program, arguments);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_repository_runs_does_not_see_what_opens_its_remote() {
    let place = Place::new().await;
    place
        .git(
            "clone",
            json!({"url": PRIVATE, "path": "/srv/a", "auth": https(PASSWORD)}),
        )
        .await;
    // A thief in every place that git runs for a repository, and in a server's way.
    place
        .out(
            "cd /srv/a; cat > /srv/thief <<'E'\n#!/bin/sh\n[ -z \"$THIEF\" ] || exit 1; export THIEF=1\n\
             printf 'protocol=http\\nhost=127.0.0.1:8080\\n\\n' | git credential fill > /srv/stolen\nread -r x <&3 && echo $x >> /srv/stolen\n\
             touch /srv/ran\nE\n\
             chmod +x /srv/thief; for h in pre-push post-merge post-checkout reference-transaction pre-commit; do cp /srv/thief .git/hooks/$h; done; \
             git config core.fsmonitor /srv/thief; git config credential.helper '!/srv/thief'; git config core.askPass /srv/thief; \
             git config user.name s; git config user.email s@x; rm -f /srv/ran /srv/stolen; \
             cd /srv/seed; echo theirs > theirs; git add .; git -c user.name=s -c user.email=s@x commit -qm theirs; git push -q /srv/git/private/a.git main",
        )
        .await;
    let sync = json!({"path": "/srv/a", "auth": https(PASSWORD)});
    place.git("pull", sync.clone()).await;
    place.git("push", sync.clone()).await;
    assert_eq!(
        place
            .out("ls /srv/ran /srv/stolen 2>/dev/null || true")
            .await,
        ""
    );
    // Without anything to steal, hooks run as always.
    place.out("echo x > /srv/a/x").await;
    place
        .git(
            "commit",
            json!({"path": "/srv/a", "message": "m", "add_all": true}),
        )
        .await;
    assert_eq!(place.out("ls /srv/ran; cat /srv/stolen").await, "/srv/ran");

    // A remote that is a program.
    place.out("cd /srv/a; git config remote.evil.url 'ext::touch /srv/evil'; git config protocol.ext.allow always").await;
    let evil = json!({"path": "/srv/a", "remote": "evil"});
    assert_eq!(place.refused("pull", evil.clone()).await, "invalid_request");
    assert_eq!(place.refused("push", evil.clone()).await, "invalid_request");
    let mut with_auth = evil;
    with_auth["auth"] = https(PASSWORD);
    assert_eq!(place.refused("pull", with_auth).await, "invalid_request");
    assert_eq!(place.out("ls /srv/evil 2>/dev/null || true").await, "");
    // One that turns into a program by the machine's own settings.
    place
        .out("git config --global url.ext::touch.insteadOf http:")
        .await;
    let clone = json!({"url": PRIVATE, "path": "/srv/z"});
    assert_eq!(place.refused("clone", clone).await, "invalid_request");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_git_would_not_do() {
    let place = Place::new().await;
    let open = "http://127.0.0.1:8080/open/a.git";
    place
        .out("git config --global user.name s; git config --global user.email s@x; mkdir -p /srv/full; touch /srv/full/x; touch /srv/plain")
        .await;
    place
        .git("clone", json!({"url": open, "path": "/workspace"}))
        .await;
    place
        .git(
            "clone",
            json!({"url": open, "path": "/srv/b", "depth": 1, "branch": "main"}),
        )
        .await;
    place.out("mkdir /srv/empty").await;
    place
        .git(
            "clone",
            json!({"url": "/srv/git/open/a.git", "path": "/srv/empty/"}),
        )
        .await;
    let table = [
        (
            "clone",
            json!({"url": open, "path": "/workspace"}),
            "git_exists_conflict",
        ),
        (
            "clone",
            json!({"url": open, "path": "/srv/full"}),
            "git_exists_conflict",
        ),
        (
            "clone",
            json!({"url": open, "path": "/srv/plain"}),
            "git_exists_conflict",
        ),
        (
            "clone",
            json!({"url": open, "path": "/srv/x", "branch": "none"}),
            "git_ref_not_found",
        ),
        (
            "clone",
            json!({"url": "http://127.0.0.1:8080/open/none.git", "path": "/srv/x"}),
            "git_remote_not_found",
        ),
        (
            "clone",
            json!({"url": "/srv/none", "path": "/srv/x"}),
            "git_remote_not_found",
        ),
        (
            "clone",
            json!({"url": "http://127.0.0.1:1/a", "path": "/srv/x"}),
            "git_remote_unreachable",
        ),
        (
            "clone",
            json!({"url": "ssh://127.0.0.1:1/a", "path": "/srv/x"}),
            "git_remote_unreachable",
        ),
        (
            "clone",
            json!({"url": open, "path": "relative"}),
            "invalid_request",
        ),
        (
            "clone",
            json!({"url": open, "path": "/srv/../x"}),
            "invalid_request",
        ),
        (
            "clone",
            json!({"url": open, "path": "/workspace/.nullspace/x"}),
            "invalid_request",
        ),
        (
            "clone",
            json!({"url": open, "path": "/srv/x", "depth": 0}),
            "invalid_request",
        ),
        (
            "clone",
            json!({"url": open, "path": "/srv/x", "branch": "--upload-pack=touch /srv/hit"}),
            "invalid_request",
        ),
        (
            "clone",
            json!({"url": "--upload-pack=touch /srv/hit", "path": "/srv/x"}),
            "invalid_request",
        ),
        (
            "clone",
            json!({"url": "ext::touch /srv/hit", "path": "/srv/x"}),
            "invalid_request",
        ),
        (
            "clone",
            json!({"url": "ssh://-oProxyCommand=touch%20%2Fsrv%2Fhit/x", "path": "/srv/x"}),
            "invalid_request",
        ),
        (
            "clone",
            json!({"url": "http://me:pa-w0rd@h/x", "path": "/srv/x"}),
            "invalid_request",
        ),
        (
            "clone",
            json!({"url": open, "path": "/srv/x", "auth": "pa-w0rd"}),
            "invalid_request",
        ),
        (
            "clone",
            json!({"url": open, "path": "/srv/x", "auth": {"kind": "https", "username": "u", "password": "a-w0rd\nb"}}),
            "invalid_request",
        ),
        ("status?path=/srv/full", json!({}), "git_not_a_repository"),
        ("status?path=/srv/none", json!({}), "not_found"),
        ("status?path=relative", json!({}), "invalid_request"),
        ("status?other=/srv", json!({}), "invalid_request"),
        ("log?path=/srv/full", json!({}), "git_not_a_repository"),
        ("log?path=/srv/b&limit=0", json!({}), "invalid_request"),
        ("branch?path=/srv/full", json!({}), "git_not_a_repository"),
        (
            "branch",
            json!({"path": "/srv/b", "name": "main"}),
            "git_exists_conflict",
        ),
        (
            "branch",
            json!({"path": "/srv/b", "name": "a..b"}),
            "invalid_request",
        ),
        (
            "branch",
            json!({"path": "/srv/b", "name": "-f"}),
            "invalid_request",
        ),
        (
            "branch",
            json!({"path": "/srv/b", "name": "x", "action": "rename"}),
            "invalid_request",
        ),
        (
            "branch",
            json!({"path": "/srv/b", "name": "none", "action": "delete"}),
            "git_ref_not_found",
        ),
        (
            "branch",
            json!({"path": "/srv/b", "name": "main", "action": "delete", "force": true}),
            "git_exists_conflict",
        ),
        (
            "checkout",
            json!({"path": "/srv/b", "ref": "none"}),
            "git_ref_not_found",
        ),
        // A file is no branch, and what is named so does not lose its changes.
        (
            "checkout",
            json!({"path": "/srv/b", "ref": "file"}),
            "git_ref_not_found",
        ),
        (
            "checkout",
            json!({"path": "/srv/b", "ref": "--orphan"}),
            "invalid_request",
        ),
        (
            "add",
            json!({"path": "/srv/b", "files": ["none"]}),
            "git_path_not_found",
        ),
        (
            "add",
            json!({"path": "/srv/b", "files": [""]}),
            "invalid_request",
        ),
        (
            "commit",
            json!({"path": "/srv/b", "message": "m"}),
            "git_nothing_to_commit",
        ),
        (
            "commit",
            json!({"path": "/srv/b", "message": "m", "add_all": true}),
            "git_nothing_to_commit",
        ),
        (
            "commit",
            json!({"path": "/srv/b", "message": " "}),
            "invalid_request",
        ),
        (
            "commit",
            json!({"path": "/srv/b", "message": "m", "author_name": "x"}),
            "invalid_request",
        ),
        (
            "pull",
            json!({"path": "/srv/b", "remote": "none"}),
            "git_remote_not_found",
        ),
        (
            "pull",
            json!({"path": "/srv/b", "remote": "none", "auth": https("some-w0rd")}),
            "git_remote_not_found",
        ),
        (
            "pull",
            json!({"path": "/srv/b", "branch": "none"}),
            "git_ref_not_found",
        ),
        (
            "pull",
            json!({"path": "/srv/b", "remote": "--upload-pack=touch /srv/hit"}),
            "invalid_request",
        ),
        (
            "push",
            json!({"path": "/srv/b", "branch": "none"}),
            "git_ref_not_found",
        ),
        (
            "push",
            json!({"path": "/srv/b", "branch": "--receive-pack=touch"}),
            "invalid_request",
        ),
        ("push", json!({"path": "/srv/full"}), "git_not_a_repository"),
    ];
    let mut wrong = Vec::new();
    for (what, body, code) in table {
        let got = place.refused(what, body.clone()).await;
        if got != code {
            wrong.push(format!("{what} {body}: {got}, not {code}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(
        place
            .out("ls -d /srv/hit /srv/x /srv/.nullspace-git* 2>/dev/null || true")
            .await,
        ""
    );

    // Two that went apart.
    place.out("cd /workspace; echo ours > file; git commit -qam ours; git push -q; cd /srv/b; echo other > file; git commit -qam other").await;
    let b = json!({"path": "/srv/b"});
    assert_eq!(place.refused("push", b.clone()).await, "git_push_conflict");
    assert_eq!(
        place.refused("pull", b.clone()).await,
        "git_diverged_conflict"
    );
    place.out("git config --global pull.rebase false").await;
    assert_eq!(place.refused("pull", b.clone()).await, "git_merge_conflict");
    let status = place.look("status?path=/srv/b").await;
    assert_eq!(status["changed"][0]["status"], "UU", "{status}");
    assert_eq!(
        (&status["ahead"], &status["behind"]),
        (&json!(1), &json!(1))
    );
    let commit = json!({"path": "/srv/b", "message": "m"});
    assert_eq!(place.refused("commit", commit).await, "git_merge_conflict");
    place
        .out("cd /srv/b; git merge --abort; git reset -q --hard origin/main~1; echo dirty > file")
        .await;
    assert_eq!(place.refused("pull", b.clone()).await, "git_dirty_conflict");
    place
        .out("cd /srv/b; git checkout -q -b topic; git commit -qam topic; echo dirtier > file")
        .await;
    assert_eq!(
        place
            .refused("checkout", json!({"path": "/srv/b", "ref": "main"}))
            .await,
        "git_dirty_conflict"
    );
    assert_eq!(place.refused("push", b.clone()).await, "git_no_upstream");
    place.out("cd /workspace; git checkout -q -b alone").await;
    let alone = json!({"path": "/workspace"});
    assert_eq!(place.refused("pull", alone).await, "git_no_upstream");
    place.out("cd /srv/b; git checkout -qf main").await;
    let delete = json!({"path": "/srv/b", "name": "topic", "action": "delete"});
    assert_eq!(
        place.refused("branch", delete).await,
        "git_unmerged_conflict"
    );
    place.out("touch /srv/b/.git/index.lock").await;
    assert_eq!(
        place.refused("add", json!({"path": "/srv/b"})).await,
        "git_locked_conflict"
    );
    // Who only looks does not mind.
    place.look("status?path=/srv/b").await;
    place.out("chown -R 7:7 /srv/b").await;
    assert_eq!(
        place.refused("status?path=/srv/b", json!({})).await,
        "git_not_trusted"
    );
    place.out("mkdir /srv/bin; ln -s /bin/sh /srv/bin/sh").await;
    let (status, bare) = place
        .world
        .post(
            "/v1/machines",
            json!({"template": "host", "envs": {"PATH": "/srv/bin"}}),
        )
        .await;
    assert_eq!(status, StatusCode::CREATED, "{bare}");
    let path = format!(
        "/v1/machines/{}/git/status?path=/srv",
        bare["id"].as_str().unwrap()
    );
    assert_eq!(place.world.get(&path).await.1["code"], "git_unavailable");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_repository_says_of_itself() {
    let place = Place::new().await;
    place
        .out("git config --global user.name s; git config --global user.email s@x; git init -q -b trunk /srv/r")
        .await;
    let (status, log, branches) = (
        "status?path=/srv/r",
        "log?path=/srv/r",
        "branch?path=/srv/r",
    );
    // Without a commit.
    assert_eq!(
        place.look(status).await,
        json!({"branch": "trunk", "detached": false, "clean": true, "changed": []})
    );
    assert_eq!(place.look(log).await, json!({"commits": []}));
    assert_eq!(
        place.look(branches).await,
        json!({"current": "trunk", "branches": []})
    );
    assert_eq!(
        place
            .git("branch", json!({"path": "/srv/r", "name": "main"}))
            .await,
        json!({"ok": true})
    );

    place
        .out("cd /srv/r; printf 1 > $(printf 'a\\nb'); printf 22222222 > old; printf 3 > '-x'; printf 4 > ' lead'; mkdir d; printf 5 > d/e; echo keep > kept")
        .await;
    place.git("add", json!({"path": "/srv/r"})).await;
    let message = "title €\n\nbody with \"quotes\"\n-- and dashes";
    place
        .git("commit", json!({"path": "/srv/r", "message": message}))
        .await;
    let commits = place.look(log).await;
    assert_eq!(commits["commits"][0]["message"], message);
    assert_eq!(commits["commits"][0]["author_email"], "s@x");
    assert_eq!(commits["commits"][0]["sha"].as_str().unwrap().len(), 40);

    place
        .out(
            "cd /srv/r; git mv old 'new name'; printf 1x > $(printf 'a\\nb'); printf 3x > ./-x; rm ' lead'; \
             printf y > $(printf 'bad\\377'); mkdir u; printf z > u/z; git add -- -x",
        )
        .await;
    let found = place.look(status).await;
    assert_eq!(found["branch"], "main");
    let mut seen: Vec<String> = found["changed"]
        .as_array()
        .unwrap()
        .iter()
        .map(|file| {
            let flag = |key: &'static str| if file[key] == true { key } else { "" };
            format!(
                "{} {:?} {} {} {}",
                file["status"].as_str().unwrap(),
                file["path"].as_str().unwrap(),
                flag("staged"),
                flag("unstaged"),
                file["original_path"].as_str().unwrap_or_default()
            )
        })
        .collect();
    seen.sort();
    assert_eq!(
        seen,
        [
            ".D \" lead\"  unstaged ",
            ".M \"a\\nb\"  unstaged ",
            "?? \"bad\u{fffd}\"  unstaged ",
            "?? \"u/\"  unstaged ",
            "M. \"-x\" staged  ",
            "R. \"new name\" staged  old",
        ]
    );
    // Only what is named, and a pattern of git's.
    place
        .git(
            "commit",
            json!({"path": "/srv/r", "message": "some", "files": ["a*", "u"]}),
        )
        .await;
    let limited = place.look("log?path=/srv/r&limit=1").await;
    assert_eq!(limited["commits"].as_array().unwrap().len(), 1);
    assert_eq!(limited["commits"][0]["message"], "some");

    place
        .git(
            "checkout",
            json!({"path": "/srv/r", "ref": "topic/x", "create": true}),
        )
        .await;
    assert_eq!(
        place.look(branches).await,
        json!({"current": "topic/x", "branches": ["main", "topic/x"]})
    );
    let sha = limited["commits"][0]["sha"].as_str().unwrap();
    place
        .git("checkout", json!({"path": "/srv/r/d", "ref": sha}))
        .await;
    let found = place.look(status).await;
    assert_eq!(
        (&found["detached"], &found["branch"]),
        (&json!(true), &Value::Null)
    );
    assert_eq!(place.look(branches).await["current"], Value::Null);
    place
        .git(
            "branch",
            json!({"path": "/srv/r", "name": "topic/x", "action": "delete"}),
        )
        .await;

    // A branch that only the remote has, and both nouns.
    place
        .out("git -C /srv/git/open/a.git branch far main")
        .await;
    place
        .git(
            "clone",
            json!({"url": "file:///srv/git/open/a.git", "path": "/srv/far"}),
        )
        .await;
    place
        .git("checkout", json!({"path": "/srv/far", "ref": "far"}))
        .await;
    let path = format!("/v1/sandboxes/{}/git/status?path=/srv/far", place.machine);
    let found = place.world.get(&path).await.1;
    assert_eq!(
        (&found["branch"], &found["ahead"]),
        (&json!("far"), &json!(0)),
        "{found}"
    );
    // The platform's own folder is not the repository's.
    place
        .git(
            "clone",
            json!({"url": "/srv/git/open/a.git", "path": "/workspace"}),
        )
        .await;
    place.out("touch /workspace/.nullspace/x").await;
    assert_eq!(place.look("status?path=/workspace").await["clean"], true);
    place.out("git init -q /srv/evil; cd /srv/evil; mkdir .nullspace; touch .nullspace/x; git add .; git commit -qm x; rm -rf /workspace/.git /workspace/file").await;
    assert_eq!(
        place
            .refused("clone", json!({"url": "/srv/evil", "path": "/workspace"}))
            .await,
        "git_exists_conflict"
    );
    assert_eq!(
        place
            .out("ls -A /workspace; ls -A /workspace/.nullspace")
            .await,
        ".nullspace\nx"
    );
}

/// More changes than an answer holds: said, and the machine lives on.
#[tokio::test(flavor = "multi_thread")]
async fn a_status_that_is_too_long() {
    let place = Place::new().await;
    place
        .out("git init -q /srv/r; cd /srv/r; python3 -c 'for n in range(90000): open(\"%0200d\" % n, \"w\")'")
        .await;
    assert_eq!(
        place.refused("status?path=/srv/r", json!({})).await,
        "body_too_large"
    );
    assert_eq!(place.out("echo well").await, "well");
}

/// The server is killed in the middle of a clone: there is a whole one or none, and nothing stays behind.
#[tokio::test(flavor = "multi_thread")]
async fn a_clone_that_is_cut_off_is_not_there() {
    let mut place = Place::new().await;
    place.out("touch /srv/slow").await;
    let clone = json!({"url": "http://127.0.0.1:8080/slow/a.git", "path": "/srv/w/a", "auth": https(PASSWORD)});
    let request = place
        .world
        .request(reqwest::Method::POST, &place.path("clone"))
        .json(&clone);
    let under_way = tokio::spawn(request.send());
    place.until("ls -d /srv/w/.nullspace-git*").await;
    place.world.kill();
    assert!(under_way.await.unwrap().is_err());
    place.world.serve().await;
    place.world.until_answers(&place.machine).await;
    place
        .until("! pgrep -x git && ! pgrep -f git-remote-htt[p]")
        .await;
    place.out("rm /srv/slow; ! [ -e /srv/w/a ]").await;
    place.git("clone", clone).await;
    assert_eq!(place.out("ls -A /srv/w").await, "a");
    assert_eq!(place.traces(&spellings()), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_published_sdk() {
    let place = Place::new().await;
    let arguments = [
        Path::new(&place.machine),
        Path::new(USER),
        Path::new(PASSWORD),
    ];
    script(&place.world, &python(), "git.py", &arguments);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_newer_sdk() {
    let place = Place::new().await;
    let arguments = [
        Path::new(&place.machine),
        Path::new(USER),
        Path::new(PASSWORD),
    ];
    script(&place.world, &next_python(), "git_next.py", &arguments);
    assert_eq!(place.traces(&spellings()), Vec::<String>::new());
}
