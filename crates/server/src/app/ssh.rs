//! Who may log in to a machine over SSH.
//!
//! ```text
//!  ssh-access ──▶ record the grant ──▶ sign a certificate: its key id is the grant's, its principal the user
//!  connection ──▶ certificate of ours? ──▶ grant: which machine, until when, which key? ──▶ does the machine run?
//! ```
//! The certificate alone lets nobody in: the grant is looked up each time. What happens on a connection is in
//! [`crate::ssh`].

use std::{io, net::SocketAddr, path::Path};

use nullspace_api::{
    error::code,
    id,
    ssh::{SshAccess, SshAccessRequest},
    time,
};
use nullspace_protocol::{GuestClient, PathRequest};
use nullspace_store::ssh::{self as rows, SshGrantRow};
use rand::RngCore;
use russh::keys::{
    Algorithm, Certificate, HashAlg, PrivateKey, PublicKey,
    ssh_key::{
        Fingerprint, LineEnding,
        certificate::{Builder, CertType},
        private::Ed25519Keypair,
    },
};

use super::{App, Caller, machine, seal};
use crate::error::{Error, Kind, Result};

/// How long a certificate is good for when nobody says, in seconds.
const DEFAULT_TTL: u64 = 600;
/// The longest it can be.
const MAX_TTL: u64 = 24 * 3600;
/// How far a client's clock may be behind, in seconds.
const SKEW: u64 = 60;
/// Grants of one machine that are not over.
const MAX_GRANTS: u64 = 1000;
/// The longest line that can be a key.
const MAX_KEY: usize = 8 << 10;
/// The longest name of a user.
const MAX_USER: usize = 32;
const MICROSECONDS: i64 = 1_000_000;

/// What the SSH server is known by.
pub struct Ssh {
    /// Proves to clients that it is the one they were told of.
    pub(crate) host: PrivateKey,
    /// Signs certificates.
    authority: PrivateKey,
    authority_fingerprint: Fingerprint,
    /// Where it listens.
    pub(crate) address: SocketAddr,
    /// What clients are told to connect to, if that is something else.
    name: Option<String>,
}

impl std::fmt::Debug for Ssh {
    /// Without the keys.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ssh")
            .field("address", &self.address)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Ssh {
    /// Reads the keys of a data directory, or makes them.
    ///
    /// # Errors
    /// When they cannot be read, written, or are no keys.
    pub(crate) fn open(
        data_dir: &Path,
        address: SocketAddr,
        name: Option<String>,
    ) -> io::Result<Self> {
        let authority = key(data_dir, "ssh_user_ca")?;
        Ok(Self {
            host: key(data_dir, "ssh_host")?,
            authority_fingerprint: authority.public_key().fingerprint(HashAlg::Sha256),
            authority,
            address,
            name,
        })
    }

    /// What a caller that calls this server `host` is told to connect to.
    fn host_for(&self, host: &str) -> String {
        match &self.name {
            Some(name) => name.clone(),
            None if self.address.ip().is_unspecified() => host.trim_matches(['[', ']']).to_owned(),
            None => self.address.ip().to_string(),
        }
    }
}

/// One of the two keys, made at the first start.
fn key(data_dir: &Path, name: &str) -> io::Result<PrivateKey> {
    let text = seal::kept(data_dir, name, || {
        let mut seed = [0; 32];
        rand::rng().fill_bytes(&mut seed);
        let pair = Ed25519Keypair::from_seed(&seed);
        let key = PrivateKey::new(pair.into(), "nullspace").map_err(io::Error::other)?;
        let text = key.to_openssh(LineEnding::LF).map_err(io::Error::other)?;
        Ok(text.as_bytes().to_vec())
    })?;
    // What the parser says could quote the key.
    PrivateKey::from_openssh(&text)
        .map_err(|_| io::Error::other(format!("keys/{name} is not a private key of OpenSSH")))
}

/// Lets a key log in to a running machine for a while. `host` is what the caller calls this server.
///
/// # Errors
/// `invalid_request` (key, user, time), `machine_not_found`, `machine_not_ready`, `capacity_exceeded`.
pub async fn grant(
    app: &App,
    caller: &Caller,
    machine_id: &str,
    request: SshAccessRequest,
    host: &str,
) -> Result<SshAccess> {
    let ssh = app
        .ssh
        .as_ref()
        .ok_or_else(|| Error::not_implemented("ssh access, which is turned off here"))?;
    let key = public_key(&request.public_key)?;
    let ttl = ttl(&request)?;
    let user = match request.user.as_deref().map(str::trim) {
        None | Some("") => "root".to_owned(),
        Some(user) => check_user(user)?.to_owned(),
    };
    let guest = machine::guest(app, machine_id).await?;
    require_logins(&guest)?;
    // Also that there is such a user.
    let root = PathRequest {
        path: "/".into(),
        user: Some(user.clone()),
        ..PathRequest::default()
    };
    guest.stat(&root).await?;

    let now = time::now();
    let row = SshGrantRow {
        id: id::new(id::SSH_ACCESS),
        machine_id: machine_id.to_owned(),
        user,
        fingerprint: key.fingerprint(HashAlg::Sha256).to_string(),
        key_id: Some(caller.key_id.to_string()),
        created_at: now,
        expires_at: now.saturating_add(seconds(ttl)),
    };
    let certificate = ssh.certify(&key, &row)?;
    let recording = row.clone();
    app.store
        .write(move |tx| {
            if rows::open_of(tx, &recording.machine_id, recording.created_at)? >= MAX_GRANTS {
                return Err(Error::new(
                    Kind::Limit,
                    code::CAPACITY_EXCEEDED,
                    format!("the machine has {MAX_GRANTS} certificates that are not over"),
                )
                .with_action("use one of them, or ask for shorter ones"));
            }
            Ok::<_, Error>(rows::insert(tx, &recording)?)
        })
        .await?;
    let (host, port) = (ssh.host_for(host), ssh.address.port());
    Ok(SshAccess {
        command: format!("ssh -p {port} {}@{host}", row.user),
        host,
        port,
        certificate,
        host_key: one_line(ssh.host.public_key())?,
        expires_at: time::rfc3339(row.expires_at),
        access_id: row.id,
        user: row.user,
    })
}

/// Somebody who may come in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Admission {
    /// Where to.
    pub(crate) machine: String,
    /// As whom.
    pub(crate) user: String,
    /// Whose machine it is.
    pub(crate) tenant_id: String,
    /// The key that asked for the access.
    pub(crate) key_id: Option<String>,
}

/// Whom a certificate lets in as `user` now. The client has proved that the key is its own.
///
/// # Errors
/// Says why not, for the log.
pub(crate) async fn admit(
    app: &App,
    user: &str,
    certificate: &Certificate,
) -> Result<Admission, &'static str> {
    let ssh = app.ssh.as_ref().ok_or("ssh is turned off")?;
    let now = time::now();
    let seconds = u64::try_from(now / MICROSECONDS).unwrap_or_default();
    certificate
        .validate_at(seconds, [&ssh.authority_fingerprint])
        .map_err(|_| "the certificate is not ours, or over")?;
    if certificate.cert_type() != CertType::User {
        return Err("the certificate is not for a user");
    }
    // One without principals would be good for everybody, and critical options that nobody heeds are not to be
    // trusted. We sign neither.
    if !certificate
        .valid_principals()
        .iter()
        .any(|name| name == user)
    {
        return Err("the certificate is for another user");
    }
    if !certificate.critical_options().is_empty() {
        return Err("the certificate has options that are not known here");
    }
    let id = certificate.key_id().to_owned();
    let row = app.store.read(move |db| rows::get(db, &id)).await;
    let row = row
        .map_err(|_| "the record cannot be read")?
        .ok_or("the access is not known")?;
    let key = PublicKey::from(certificate.public_key().clone());
    if row.user != user || row.fingerprint != key.fingerprint(HashAlg::Sha256).to_string() {
        return Err("the access is for another user or key");
    }
    if row.expires_at <= now {
        return Err("the access is over");
    }
    if (row.key_id.as_ref()).is_some_and(|key| !app.keys.is_kept(key)) {
        return Err("the api key that asked for the access was revoked");
    }
    match machine::get(app, &row.machine_id).await {
        Ok(machine) if app.keys.is_suspended(&machine.tenant_id) => Err("the tenant is suspended"),
        // One that is paused is woken by the session.
        Ok(machine)
            if machine.state == machine::RUNNING
                || machine.auto_resume && machine::lives(&machine) =>
        {
            Ok(Admission {
                tenant_id: machine.tenant_id.clone(),
                machine: row.machine_id,
                user: row.user,
                key_id: row.key_id,
            })
        }
        _ => Err("the machine does not run"),
    }
}

/// Forgets grants that were over a while ago.
///
/// # Errors
/// When the record cannot be written.
pub(crate) async fn forget_old(app: &App) -> Result<usize> {
    let before = time::now() - seconds(MAX_TTL);
    Ok(app
        .store
        .write(move |tx| rows::forget_before(tx, before))
        .await?)
}

impl Ssh {
    fn certify(&self, key: &PublicKey, row: &SshGrantRow) -> Result<String> {
        let fail = |error: russh::keys::ssh_key::Error| {
            Error::internal(format!("a certificate could not be signed: {error}"))
        };
        let whole = |time: i64| u64::try_from(time.div_euclid(MICROSECONDS)).unwrap_or_default();
        let mut nonce = vec![0; Builder::RECOMMENDED_NONCE_SIZE];
        rand::rng().fill_bytes(&mut nonce);
        let after = whole(row.created_at).saturating_sub(SKEW);
        let before = whole(row.expires_at) + 1;
        let mut builder =
            Builder::new(nonce, key.key_data().clone(), after, before).map_err(fail)?;
        let built = (|| {
            builder
                .cert_type(CertType::User)?
                .key_id(row.id.as_str())?
                .valid_principal(row.user.as_str())?
                .extension("permit-port-forwarding", "")?
                .extension("permit-pty", "")?;
            builder.sign(&self.authority)
        })();
        built
            .and_then(|certificate| certificate.to_openssh())
            .map_err(fail)
    }
}

/// Refuses machines that an earlier version made, whose guests would run everything as root.
///
/// # Errors
/// `not_implemented`.
pub(crate) fn require_logins(guest: &GuestClient) -> Result<()> {
    /// The first version of the guest protocol that knows them.
    const LOGINS: u32 = 4;
    if guest.hello().protocol >= LOGINS {
        return Ok(());
    }
    let what = "logging in to a machine that an earlier version made";
    Err(Error::not_implemented(what).with_action("make a new machine"))
}

fn public_key(text: &str) -> Result<PublicKey> {
    let wrong = |what: &str| {
        Error::invalid(format!("public_key: {what}"))
            .with_action("send the line of a file such as ~/.ssh/id_ed25519.pub")
    };
    let text = text.trim();
    if text.len() > MAX_KEY || text.lines().count() != 1 {
        return Err(wrong("not one line of an OpenSSH public key"));
    }
    if text.contains("PRIVATE KEY") {
        return Err(wrong(
            "this is a private key; it is not to be sent to anybody",
        ));
    }
    let key = PublicKey::from_openssh(text).map_err(|_| wrong("not an OpenSSH public key"))?;
    match key.algorithm() {
        Algorithm::Ed25519
        | Algorithm::Ecdsa { .. }
        | Algorithm::SkEd25519
        | Algorithm::SkEcdsaSha2NistP256 => Ok(key),
        other => Err(wrong(&format!(
            "{other} keys cannot be used here, ed25519 and ecdsa can"
        ))),
    }
}

fn ttl(request: &SshAccessRequest) -> Result<u64> {
    let asked = match (request.ttl_seconds, request.expires_in_minutes) {
        (Some(_), Some(_)) => {
            return Err(Error::invalid(
                "ttl_seconds and expires_in_minutes: give one of them",
            ));
        }
        (Some(seconds), None) => seconds,
        (None, Some(minutes)) => minutes.saturating_mul(60),
        (None, None) => DEFAULT_TTL,
    };
    match asked {
        0 => Err(Error::invalid("the time of a certificate must be above 0")),
        asked => Ok(asked.min(MAX_TTL)),
    }
}

/// A name that can stand in a command line and in `/etc/passwd`.
fn check_user(user: &str) -> Result<&str> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    match user.len() <= MAX_USER && user.chars().all(plain) && !user.starts_with(['-', '.']) {
        true => Ok(user),
        false => Err(Error::invalid(format!(
            "user: not the name of a user of a machine: {user:?}"
        ))),
    }
}

fn one_line(key: &PublicKey) -> Result<String> {
    PublicKey::from(key.key_data().clone())
        .to_openssh()
        .map_err(|error| Error::internal(format!("a key could not be written: {error}")))
}

fn seconds(seconds: u64) -> i64 {
    i64::try_from(seconds)
        .unwrap_or(i64::MAX)
        .saturating_mul(MICROSECONDS)
}
