//! How an operation opens a remote: with what its caller gave, or with what the machine has.
//!
//! A credential goes to git through one pipe of one process tree, when git asks, and is nowhere else: not in arguments,
//! variables, files, or the address of the remote. The scripts below are constants; what they run is in their arguments.

use std::{fmt, time::Duration};

use nullspace_api::git::GitAuth;
use rand::RngCore;
use russh::keys::{
    PrivateKey,
    ssh_key::{Kdf, LineEnding},
};

use super::remote::{Remote, Transport};
use crate::error::{Error, Result};

/// The longest name, password or key.
const MAX_SECRET: usize = 32 << 10;
/// The most rounds of a key's encryption that are worth it: ssh-keygen makes 16 or 24, and each takes some milliseconds.
const MAX_ROUNDS: u32 = 256;
/// How often a remote may ask for a password in one operation.
pub(super) const MAX_ASKED: u32 = 16;
/// All transports that an operation may use when the machine's own settings decide: none that runs a program.
const ANY: &str = "file:git:http:https:ssh";

/// Keeps standard input, which the credential comes by, from git itself. What the machine's variables would have git
/// write down about its connections is not for an operation with a secret.
const WITH_PASSWORD: &str = r#"exec 3<&0 </dev/null
unset GIT_TRACE GIT_TRACE_CURL GIT_TRACE_PACKET GIT_TRACE_CURL_NO_DATA GIT_CURL_VERBOSE GIT_TRACE_REDACT GIT_TRACE2 GIT_TRACE2_EVENT GIT_TRACE2_PERF
exec "$@""#;

/// An agent for one operation, in this session, so that whatever ends the operation ends it too. Its socket is in memory;
/// the next operation removes what one that was killed left. 125 is said by no git.
const WITH_KEY: &str = r#"exec 3<&0 </dev/null
unset GIT_TRACE GIT_TRACE_CURL GIT_TRACE_PACKET GIT_TRACE_SETUP GIT_TRACE2 GIT_TRACE2_EVENT GIT_TRACE2_PERF
for tool in ssh ssh-agent ssh-add; do
    command -v "$tool" >/dev/null || { echo "nullspace: no $tool" >&2; exit 125; }
done
own=/dev/shm/nullspace-git.$$
rm -rf "$own"
for old in /dev/shm/nullspace-git.*; do
    [ -d "/proc/${old##*.}" ] || rm -rf "$old"
done
mkdir -m 700 "$own" || exit 125
agent=
trap '[ -z "$agent" ] || kill "$agent" 2>/dev/null; rm -rf "$own"' EXIT
trap 'exit 143' HUP INT TERM
ssh-agent -D -a "$own/agent" >/dev/null 3<&- &
agent=$!
tries=0
until [ -S "$own/agent" ]; do
    tries=$((tries + 1))
    if [ "$tries" -gt 500 ] || ! kill -0 "$agent"; then echo "nullspace: no ssh-agent" >&2; exit 125; fi
    sleep 0.02
done
SSH_AUTH_SOCK=$own/agent
export SSH_AUTH_SOCK
ssh-add -q - <&3 >/dev/null 2>&1 || { echo "nullspace: key refused" >&2; exit 125; }
exec 3<&-
"$@""#;

/// A host key is believed the first time, and has to stay. The key is the agent's; what the machine is configured with
/// comes after it.
const SSH_COMMAND: &str = "ssh -o BatchMode=yes -o StrictHostKeyChecking=accept-new -o IdentityFile=none \
     -o IdentitiesOnly=no -o ForwardAgent=no -o ControlPath=none -o ConnectTimeout=20 \
     -o ServerAliveInterval=15 -o ServerAliveCountMax=4";

/// Exit code of [`WITH_KEY`] when nothing was tried.
pub(super) const UNTRIED: i32 = 125;

/// What opens a remote.
pub(super) enum Access {
    /// What the machine has.
    Own,
    /// A name and a password.
    Password(Password),
    /// A private key, ready for `ssh-add`.
    Key(Secret),
}

/// For `git credential`.
pub(super) struct Password {
    username: String,
    password: Secret,
    /// `https://host:port`: nobody else is told.
    origin: String,
    /// What git says when it asks.
    pub(super) marker: String,
}

/// A text that is not shown.
pub(super) struct Secret(String);

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Own => "Own",
            Self::Password(_) => "Password(…)",
            Self::Key(_) => "Key(…)",
        })
    }
}

impl Access {
    /// Checks what was given against the remote that it is for.
    ///
    /// # Errors
    /// `invalid_request`; it does not quote what was given.
    pub(super) async fn new(auth: Option<GitAuth>, remote: &Remote) -> Result<Self> {
        match auth {
            None => Ok(Self::Own),
            Some(GitAuth::Https { username, password }) => {
                let Transport::Http { origin } = &remote.transport else {
                    return Err(unfit("https", remote));
                };
                for (name, value) in [("username", &username), ("password", &password)] {
                    one_line(name, value)?;
                }
                let mut nonce = [0; 16];
                rand::rng().fill_bytes(&mut nonce);
                Ok(Self::Password(Password {
                    username,
                    password: Secret(password),
                    origin: origin.clone(),
                    marker: format!("nullspace-credential-{}\n", hex::encode(nonce)),
                }))
            }
            Some(GitAuth::Ssh {
                private_key,
                passphrase,
            }) => {
                if !matches!(remote.transport, Transport::Ssh) {
                    return Err(unfit("ssh", remote));
                }
                let key = tokio::task::spawn_blocking(move || opened(&private_key, passphrase));
                let key = key.await.map_err(|e| Error::internal(e.to_string()))??;
                Ok(Self::Key(Secret(key)))
            }
        }
    }

    /// `git` with these arguments, so that it finds what opens the remote.
    pub(super) fn argv(&self, arguments: Vec<String>) -> Vec<String> {
        let shell = |script: &str, settings: &[&str]| {
            let settings = settings.iter().flat_map(|s| ["-c", s]);
            ["/bin/sh", "-c", script, "sh", "git"]
                .into_iter()
                .chain(settings)
                .map(str::to_owned)
                .collect()
        };
        // What a repository names as its hooks and watchers would run beside the secret; what goes on in the background
        // would keep it.
        const ALONE: [&str; 4] = [
            "core.hooksPath=/dev/null",
            "core.fsmonitor=false",
            "gc.auto=0",
            "maintenance.auto=false",
        ];
        let mut argv: Vec<String> = match self {
            Self::Own => vec!["git".into()],
            Self::Password(password) => {
                let helper = format!("credential.helper={}", password.helper());
                let [a, b, c, d] = ALONE;
                let settings = [a, b, c, d, "core.askPass=", "credential.helper=", &helper];
                shell(WITH_PASSWORD, &settings)
            }
            Self::Key(_) => shell(WITH_KEY, &ALONE),
        };
        argv.extend(arguments);
        argv
    }

    /// Variables of that process.
    pub(super) fn env(&self) -> Vec<(&'static str, &'static str)> {
        match self {
            Self::Own => vec![("GIT_ALLOW_PROTOCOL", ANY)],
            Self::Password(_) => vec![("GIT_ALLOW_PROTOCOL", "http:https")],
            Self::Key(_) => vec![
                ("GIT_ALLOW_PROTOCOL", "ssh"),
                ("GIT_SSH_COMMAND", SSH_COMMAND),
                ("GIT_SSH_VARIANT", "ssh"),
            ],
        }
    }

    /// Takes what was given, in any spelling, out of a text.
    pub(super) fn scrub(&self, text: &str) -> String {
        let text = without_userinfo(text);
        match self {
            Self::Own => text,
            Self::Password(password) => [&password.password.0, &password.username]
                .into_iter()
                // Short ones are words of any text, and no secrets.
                .filter(|secret| secret.len() > 3)
                .fold(text, |text, secret| {
                    text.replace(secret, "…")
                        .replace(&percent_encoded(secret), "…")
                }),
            Self::Key(key) => key
                .0
                .lines()
                .filter(|line| !line.starts_with("-----") && line.len() > 15)
                .fold(text, |text, line| text.replace(line, "…")),
        }
    }
}

impl Password {
    /// A credential helper of git: a line of shell that asks for the credential by [`Password::marker`] and reads it from
    /// the pipe. It answers for one origin, and forgets.
    fn helper(&self) -> String {
        let (scheme, host) = self.origin.split_once("://").unwrap_or_default();
        format!(
            "!f() {{ p=; h=; while IFS= read -r l && [ -n \"$l\" ]; do case \"$l\" in \
             protocol=*) p=${{l#*=}};; host=*) h=${{l#*=}};; esac; done; \
             [ \"$1 $p $h\" = {} ] || return 0; printf '%s\\n' {} >&2; \
             IFS= read -r u <&3 && IFS= read -r w <&3 && printf 'username=%s\\npassword=%s\\n' \"$u\" \"$w\"; }}; f",
            quoted(&format!("get {scheme} {host}")),
            self.marker.trim_end()
        )
    }

    /// What is written to the pipe when git asks.
    pub(super) fn answer(&self) -> String {
        format!("{}\n{}\n", self.username, self.password.0)
    }
}

impl Secret {
    /// What is written to the pipe at the start.
    pub(super) fn expose(&self) -> &str {
        &self.0
    }
}

/// How long git's part of an operation that uses the network may take.
pub(super) const NETWORK: Duration = Duration::from_secs(30 * 60);

fn unfit(kind: &str, remote: &Remote) -> Error {
    Error::invalid(format!(
        "auth: one of kind {kind} does not open a remote that is reached by {}",
        remote.transport.name()
    ))
    .with_action("give auth.kind \"https\" for http(s) addresses and \"ssh\" for ssh ones")
}

fn one_line(name: &str, value: &str) -> Result<()> {
    let what = if value.is_empty() {
        "must not be empty"
    } else if value.len() > MAX_SECRET {
        "is too long"
    } else if value.contains(['\n', '\r', '\0']) {
        "must be one line"
    } else {
        return Ok(());
    };
    Err(Error::invalid(format!("auth.{name}: {what}")))
}

/// A key that needs no passphrase any more. The machine never sees the passphrase.
fn opened(text: &str, passphrase: Option<String>) -> Result<String> {
    let refuse = |what: &str| Error::invalid(format!("auth.private_key: {what}"));
    let text = text.replace("\r\n", "\n");
    let text = text.trim();
    if text.len() > MAX_SECRET || text.contains('\0') || !text.starts_with("-----BEGIN ") {
        return Err(refuse("is not a private key"));
    }
    if !text.starts_with("-----BEGIN OPENSSH PRIVATE KEY-----") {
        // An older form: the machine's own OpenSSH reads it, and only it knows whether it is one.
        if passphrase.is_some() || text.contains("ENCRYPTED") {
            return Err(refuse("an encrypted key must have OpenSSH's own form")
                .with_action("convert it: ssh-keygen -p -f KEY"));
        }
        return Ok(format!("{text}\n"));
    }
    let key = PrivateKey::from_openssh(text).map_err(|_| refuse("is not a private key"))?;
    if !key.is_encrypted() {
        return Ok(format!("{text}\n"));
    }
    let Some(passphrase) = passphrase else {
        return Err(refuse("is encrypted, and auth.passphrase is missing"));
    };
    match key.kdf() {
        Kdf::Bcrypt { rounds, .. } if *rounds <= MAX_ROUNDS => {}
        _ => {
            return Err(refuse("its encryption takes too long to open")
                .with_action("encrypt it with fewer rounds: ssh-keygen -p -a 24 -f KEY"));
        }
    }
    let key = key
        .decrypt(passphrase)
        .map_err(|_| Error::invalid("auth.passphrase: does not open the key"))?;
    let text = key
        .to_openssh(LineEnding::LF)
        .map_err(|_| refuse("is of a kind that cannot be used"))?;
    Ok(text.as_str().to_owned())
}

/// Takes `user:password@` out of every address.
fn without_userinfo(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        out.push_str(before);
        let end = after
            .find(|c: char| c.is_whitespace() || matches!(c, '/' | '\'' | '"' | '?' | '#'))
            .unwrap_or(after.len());
        let (authority, next) = after.split_at(end);
        out.push_str(authority.rsplit('@').next().unwrap_or_default());
        rest = next;
    }
    out.push_str(rest);
    out
}

fn percent_encoded(text: &str) -> String {
    text.bytes()
        .map(|b| {
            if b.is_ascii_alphanumeric() || b"-._~".contains(&b) {
                char::from(b).to_string()
            } else {
                format!("%{b:02X}")
            }
        })
        .collect()
}

/// A word of a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// ssh-keygen's own, with the passphrase `open sesame`.
    fn key(kind: &[&str]) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let made = std::process::Command::new("ssh-keygen")
            .args(["-q", "-C", "", "-f"])
            .arg(&path)
            .args(kind)
            .status();
        assert!(made.unwrap().success());
        std::fs::read_to_string(path).unwrap()
    }

    #[test]
    fn keys_are_opened() {
        for kind in [["-t", "ed25519"], ["-t", "ecdsa"], ["-t", "rsa"]] {
            let locked = key(&[&kind[..], &["-N", "open sesame"]].concat());
            let open = opened(&locked, Some("open sesame".into())).unwrap();
            assert!(!PrivateKey::from_openssh(&open).unwrap().is_encrypted());
            let wrong = opened(&locked, Some("close".into())).unwrap_err();
            assert_eq!(wrong.message, "auth.passphrase: does not open the key");
            let none = opened(&locked, None).unwrap_err();
            assert_eq!(
                none.message,
                "auth.private_key: is encrypted, and auth.passphrase is missing"
            );
        }
        let plain = key(&["-t", "ed25519", "-N", ""]);
        assert_eq!(opened(&plain.replace('\n', "\r\n"), None).unwrap(), plain);
        // One that is open already needs no passphrase, and does not mind one.
        assert_eq!(opened(&plain, Some("x".into())).unwrap(), plain);
    }

    #[test]
    fn what_is_no_key_is_not_quoted() {
        let expensive = key(&["-t", "ed25519", "-N", "p", "-a", "300"]);
        let pem = key(&["-t", "rsa", "-m", "PEM", "-N", "open sesame"]);
        for bad in [
            "",
            "hunter2",
            "-----BEGIN OPENSSH PRIVATE KEY-----\nhunter2",
            &expensive,
            &pem,
        ] {
            let error = opened(bad, Some("p".into())).unwrap_err();
            assert!(!error.message.contains("hunter2"), "{}", error.message);
        }
        assert!(opened(&key(&["-t", "rsa", "-m", "PEM", "-N", ""]), None).is_ok());
    }

    #[tokio::test]
    async fn texts_are_scrubbed() {
        let remote = Remote::parse("https://h/x").unwrap();
        let auth = GitAuth::Https {
            username: "alice".into(),
            password: "p@ss/word".into(),
        };
        let access = Access::new(Some(auth), &remote).await.unwrap();
        let text = "fatal: 'https://alice:p%40ss%2Fword@h/x' and p@ss/word, for alice";
        assert_eq!(access.scrub(text), "fatal: 'https://h/x' and …, for …");
        assert_eq!(access.scrub("p%40ss%2Fword"), "…");
        let own = Access::Own.scrub("to http://u:p@a.b:80/c and ssh://git@d://e");
        assert_eq!(own, "to http://a.b:80/c and ssh://d://e");
        let shown = format!("{access:?} {:?}", access.argv(vec!["fetch".into()]));
        assert!(
            !shown.contains("alice") && !shown.contains("ss/word"),
            "{shown}"
        );
    }

    #[tokio::test]
    async fn what_was_given_fits_the_remote() {
        let https = || GitAuth::Https {
            username: "u".into(),
            password: "p".into(),
        };
        for remote in ["ssh://h/x", "git@h:x", "/srv/x", "git://h/x"] {
            let remote = Remote::parse(remote).unwrap();
            let error = Access::new(Some(https()), &remote).await.unwrap_err();
            assert!(error.message.starts_with("auth: "), "{}", error.message);
        }
        let remote = Remote::parse("https://h/x").unwrap();
        for (username, password) in [("", "p"), ("u", ""), ("u\nv", "p"), ("u", "p\0")] {
            let auth = GitAuth::Https {
                username: username.into(),
                password: password.into(),
            };
            assert!(Access::new(Some(auth), &remote).await.is_err());
        }
    }
}
