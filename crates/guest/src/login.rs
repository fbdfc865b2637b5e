//! Somebody who logs in: their shell, home directory and first variables.

use std::collections::BTreeMap;

use nullspace_protocol::ExecRequest;

use crate::{
    Guest,
    error::{Error, Result},
    users::{Names, User},
};

/// The shell of whoever has none in `/etc/passwd`, as login(1) has it.
const SHELL: &str = "/bin/sh";

/// A user of the machine who logs in.
pub(crate) struct Login {
    user: User,
    command: Option<String>,
    home: String,
}

impl Login {
    pub(crate) fn find(guest: &Guest, wanted: &nullspace_protocol::Login) -> Result<Self> {
        let mut user = Names::read(&guest.host_path("/etc")).find(&wanted.user)?;
        if user.shell.is_empty() {
            user.shell = SHELL.to_owned();
        }
        if !user.shell.starts_with('/') {
            return Err(Error::invalid(format!(
                "the shell of user {:?} has no absolute path",
                user.name
            )));
        }
        // Somebody without a home can still look around.
        let home = match guest.host_path(&user.home) {
            path if user.home.starts_with('/') && path.is_dir() => user.home.clone(),
            _ => "/".to_owned(),
        };
        Ok(Self {
            user,
            command: wanted.command.clone(),
            home,
        })
    }

    pub(crate) fn shell(&self) -> &str {
        &self.user.shell
    }

    /// Whom to become, if that is not who the guest is.
    pub(crate) fn other_than_root(&self) -> Option<&User> {
        (self.user.uid != 0).then_some(&self.user)
    }

    /// What is run, where, and with which variables besides those that were asked for.
    pub(crate) fn fill(&self, request: &mut ExecRequest) {
        let name = self.shell().rsplit('/').next().unwrap_or(SHELL);
        request.argv = match &self.command {
            Some(command) => vec![name.to_owned(), "-c".to_owned(), command.clone()],
            // The sign for a login shell.
            None => vec![format!("-{name}")],
        };
        let label = self.command.clone().unwrap_or_else(|| name.to_owned());
        request.label = Some(label);
        request.cwd = Some(self.home.clone());
        let own = BTreeMap::from([
            ("HOME".to_owned(), self.home.clone()),
            ("USER".to_owned(), self.user.name.clone()),
            ("LOGNAME".to_owned(), self.user.name.clone()),
            ("SHELL".to_owned(), self.user.shell.clone()),
        ]);
        request.env.extend(own);
    }
}
