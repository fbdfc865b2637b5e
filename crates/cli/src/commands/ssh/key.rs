//! The key that logs in, and what lies beside it: its certificate and the servers that it knows.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nullspace_api::ssh::SshAccess;

use crate::app::App;
use crate::error::CliError;

/// The name of the key that is made when none is given. The published command line makes the same.
const NAME: &str = "nullspace_ssh_ed25519";

/// A private key of this host.
pub(super) struct Identity {
    file: PathBuf,
}

impl Identity {
    /// The one that is there, or is to be made, when none is given.
    pub(super) fn own(app: &App) -> Result<Self, CliError> {
        let home = app.var("HOME").filter(|home| !home.is_empty());
        let home = home.ok_or_else(|| {
            CliError::usage("HOME is not set").hint("Name a private key with --identity-file.")
        })?;
        let directory = Path::new(&home).join(".nullspace/ssh");
        let identity = Self {
            file: directory.join(NAME),
        };
        let fail = |error| CliError::local(format!("cannot use {}", directory.display()), &error);
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(&directory).map_err(fail)?;
        fs::set_permissions(&directory, Permissions::from_mode(0o700)).map_err(fail)?;
        if !identity.file.exists() {
            identity.make()?;
        }
        fs::set_permissions(&identity.file, Permissions::from_mode(0o600)).map_err(fail)?;
        Ok(identity)
    }

    pub(super) fn at(file: &Path) -> Self {
        Self {
            file: file.to_owned(),
        }
    }

    fn make(&self) -> Result<(), CliError> {
        let arguments = ["-q", "-t", "ed25519", "-N", "", "-C", "nullspace-sdk", "-f"];
        keygen(&arguments, &self.file).map(drop)
    }

    /// The public half: of its file, or from the key itself.
    pub(super) fn public_key(&self) -> Result<String, CliError> {
        let text = match fs::read_to_string(self.beside(".pub")) {
            Ok(text) => text,
            Err(_) => keygen(&["-y", "-P", "", "-f"], &self.file)?,
        };
        Ok(text.trim().to_owned())
    }

    pub(super) fn file(&self) -> String {
        self.file.display().to_string()
    }

    pub(super) fn certificate(&self) -> String {
        self.beside("-cert.pub").display().to_string()
    }

    pub(super) fn known_hosts(&self) -> String {
        self.known_hosts_file().display().to_string()
    }

    /// Keeps what the server gave for it.
    pub(super) fn keep(&self, access: &SshAccess) -> Result<(), CliError> {
        let fail = |error| CliError::local(format!("cannot write beside {}", self.file()), &error);
        let certificate = format!("{}\n", access.certificate);
        replace(&self.beside("-cert.pub"), &certificate).map_err(fail)?;
        let marker = match access.port {
            22 => access.host.clone(),
            port => format!("[{}]:{port}", access.host),
        };
        let hosts = self.known_hosts_file();
        let known = fs::read_to_string(&hosts).unwrap_or_default();
        let others = known
            .lines()
            .filter(|line| line.split_whitespace().next() != Some(&marker));
        let mut text: String = others.flat_map(|line| [line, "\n"]).collect();
        text.push_str(&format!("{marker} {}\n", access.host_key));
        replace(&hosts, &text).map_err(fail)
    }

    fn known_hosts_file(&self) -> PathBuf {
        self.file.with_file_name("known_hosts")
    }

    fn beside(&self, end: &str) -> PathBuf {
        let mut path = self.file.clone().into_os_string();
        path.push(end);
        path.into()
    }
}

/// Writes a file whole or not at all: another `ssh` may be reading it.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(format!(".{}", std::process::id()));
    let new = PathBuf::from(new);
    let write = || {
        let mut file = File::options()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(text.as_bytes())?;
        fs::rename(&new, path)
    };
    let written = write();
    if written.is_err() {
        let _ = fs::remove_file(&new);
    }
    written
}

fn keygen(arguments: &[&str], file: &Path) -> Result<String, CliError> {
    let run = Command::new("ssh-keygen")
        .args(arguments)
        .arg(file)
        .stdin(Stdio::null())
        .output();
    let output = run.map_err(|error| {
        CliError::local("cannot run ssh-keygen", &error).hint("Install OpenSSH's client.")
    })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(CliError::new(
        "local_error",
        format!("ssh-keygen refused {}: {}", file.display(), said.trim()),
    ))
}
