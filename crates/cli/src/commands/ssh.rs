//! `nullspace ssh` and `nullspace machine ssh-access`: logging in with OpenSSH's own client.

mod key;

use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;

use nullspace_api::machine::MachineStatus;
use nullspace_api::ssh::{SshAccess, SshAccessRequest};
use serde_json::json;

use crate::app::App;
use crate::error::{CliError, Outcome};
use key::Identity;

/// Who logs in, and for how long.
#[derive(Debug, clap::Args)]
struct Access {
    /// User of the machine [default: root].
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// How long the certificate is good for: 90s, 10m, 1h; bare minutes.
    #[arg(long, value_name = "TIME")]
    ttl: Option<String>,
    /// The key to certify: its line, @FILE, or - for standard input.
    #[arg(long, value_name = "KEY")]
    public_key: Option<String>,
    /// Private key to log in with [default: one made in ~/.nullspace/ssh].
    #[arg(long, value_name = "FILE")]
    identity_file: Option<PathBuf>,
    /// Print the ssh command instead of running it.
    #[arg(long)]
    print_command: bool,
}

/// Log in to a machine, or run a command there, with the system's ssh. Exits with ssh's code.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nullspace ssh mch_123
  nullspace ssh mch_123 -- make test
  $(nullspace ssh mch_123 --print-command) -L 8080:localhost:80

The command's words are joined by spaces and run by the user's shell, as ssh does. With --print-command
other programs can be told, too: scp, sftp, rsync -e, and editors that work over SSH.")]
pub(crate) struct Args {
    /// The machine's id.
    #[arg(value_name = "MACHINE", value_parser = crate::input::named)]
    machine: String,
    /// A command and its arguments.
    #[arg(
        value_name = "COMMAND",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    command: Vec<String>,
    #[command(flatten)]
    access: Access,
}

/// Let a key log in over SSH, and print the command that does it.
#[derive(Debug, clap::Args)]
pub(crate) struct AccessArgs {
    /// The machine's id.
    #[arg(value_name = "MACHINE", value_parser = crate::input::named)]
    machine: String,
    #[command(flatten)]
    access: Access,
}

pub(crate) async fn run(args: &Args, app: &App) -> Outcome {
    let granted = grant(app, &args.machine, &args.access).await?;
    if app.ui.json {
        return granted.show(app);
    }
    let words = granted.command(&args.command)?;
    if args.access.print_command {
        return print(app, &words);
    }
    let error = std::process::Command::new(&words[0])
        .args(&words[1..])
        .exec();
    Err(CliError::local("cannot run ssh", &error).hint("Install OpenSSH's client."))
}

pub(crate) async fn access(args: &AccessArgs, app: &App) -> Outcome {
    let granted = grant(app, &args.machine, &args.access).await?;
    if app.ui.json {
        return granted.show(app);
    }
    print(app, &granted.command(&[])?)
}

fn print(app: &App, words: &[String]) -> Outcome {
    let line = shlex::try_join(words.iter().map(String::as_str))
        .map_err(|error| CliError::usage(format!("the command cannot be quoted: {error}")))?;
    app.ui.line(line);
    Ok(0)
}

/// What lets somebody in.
struct Granted {
    access: SshAccess,
    /// The key's files, if it is on this host.
    identity: Option<Identity>,
}

async fn grant(app: &App, machine: &str, args: &Access) -> Result<Granted, CliError> {
    let ttl = args.ttl.as_deref().map(minutes).transpose();
    let ttl = ttl.map_err(|error| CliError::usage(format!("--ttl: {error}")))?;
    let client = app.client()?;
    // One that does not run is said so before a key is made.
    let info = client.get_machine(machine).await?;
    let wakes = info.status == MachineStatus::Paused && info.auto_resume;
    if info.status != MachineStatus::Running && !wakes {
        let state = info.status.as_str();
        return Err(CliError::new(
            "machine_not_ready",
            format!("machine {machine} is {state}, not running"),
        ));
    }
    let identity = match (&args.public_key, &args.identity_file) {
        (Some(_), None) => None,
        (_, Some(file)) => Some(Identity::at(file)),
        (None, None) => Some(Identity::own(app)?),
    };
    let public_key = match (&args.public_key, &identity) {
        (Some(text), _) => read(text)?,
        (None, Some(identity)) => identity.public_key()?,
        (None, None) => return Err(CliError::usage("a key is needed")),
    };
    let request = SshAccessRequest {
        public_key,
        user: args.user.clone(),
        expires_in_minutes: ttl,
        ttl_seconds: None,
    };
    let access = client.create_ssh_access(machine, &request).await?;
    if let Some(identity) = &identity {
        identity.keep(&access)?;
    }
    Ok(Granted { access, identity })
}

impl Granted {
    /// The whole command line of ssh.
    fn command(&self, remote: &[String]) -> Result<Vec<String>, CliError> {
        let mut words = match &self.identity {
            Some(identity) => {
                let option = |name: &str, value: &str| ["-o".to_owned(), format!("{name}={value}")];
                let mut words = vec!["ssh".to_owned(), "-i".to_owned(), identity.file()];
                words.extend(option("CertificateFile", &identity.certificate()));
                words.extend(option("StrictHostKeyChecking", "yes"));
                words.extend(option("UserKnownHostsFile", &identity.known_hosts()));
                words.extend(["-p".to_owned(), self.access.port.to_string()]);
                words.push(format!("{}@{}", self.access.user, self.access.host));
                words
            }
            None => shlex::split(&self.access.command)
                .filter(|words| !words.is_empty())
                .ok_or_else(|| {
                    CliError::usage("the server gives no command for a key that is elsewhere")
                        .hint("Name the private key with --identity-file.")
                })?,
        };
        if !remote.is_empty() {
            words.insert(1, "-T".to_owned());
            words.extend_from_slice(remote);
        }
        Ok(words)
    }

    fn show(&self, app: &App) -> Outcome {
        let identity = self.identity.as_ref();
        let access = &self.access;
        let command = shlex::try_join(self.command(&[])?.iter().map(String::as_str));
        app.ui.json(&json!({
            "host": access.host,
            "port": access.port,
            "user": access.user,
            "expires_at": access.expires_at,
            "access_id": access.access_id,
            "certificate": access.certificate,
            "identity_file": identity.map(Identity::file),
            "certificate_file": identity.map(Identity::certificate),
            "known_hosts_file": identity.map(Identity::known_hosts),
            "command": command.unwrap_or_default(),
            "host_key": access.host_key,
            "host_ca": null,
            "relay_host_key": null,
            "relay_host_ca": null,
        }))?;
        Ok(0)
    }
}

/// The text of a key, from where it was said to be.
fn read(text: &str) -> Result<String, CliError> {
    let read = match text.strip_prefix('@') {
        _ if text == "-" => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).map(|_| text)
        }
        Some(file) => std::fs::read_to_string(file),
        None => Ok(text.to_owned()),
    };
    read.map(|text| text.trim().to_owned())
        .map_err(|error| CliError::local("--public-key: cannot read the key", &error))
}

/// A time as whole minutes.
fn minutes(text: &str) -> Result<u64, String> {
    let text = text.trim().to_ascii_lowercase();
    let (number, unit) = match text.strip_suffix(['s', 'm', 'h']) {
        Some(number) => (number, text.chars().next_back()),
        None => (text.as_str(), None),
    };
    let number: u64 = number
        .parse()
        .map_err(|_| "must be a whole number such as 90s, 10m or 1h".to_owned())?;
    match (number, unit) {
        (0, _) => Err("must be above 0".to_owned()),
        (seconds, Some('s')) => Ok(seconds.div_ceil(60)),
        (hours, Some('h')) => Ok(hours.saturating_mul(60)),
        (minutes, _) => Ok(minutes),
    }
}

#[cfg(test)]
mod tests {
    use super::minutes;

    #[test]
    fn times_are_whole_minutes() {
        for (text, expected) in [("90s", 2), ("60s", 1), ("10m", 10), ("10", 10), ("2H", 120)] {
            assert_eq!(minutes(text), Ok(expected), "{text}");
        }
        for text in ["", "0", "0s", "-1", "1d", "h", "1.5h"] {
            assert!(minutes(text).is_err(), "{text}");
        }
    }
}
