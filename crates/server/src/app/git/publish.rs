//! A clone appears whole: it is made beside its place and moved there.

use std::sync::OnceLock;

use bytes::Bytes;
use futures_util::StreamExt;
use nullspace_api::error::code;
use nullspace_protocol::{
    ErrorKind, FileKind, GuestClient, GuestError, PathRequest, ReadQuery, RenameRequest, WriteQuery,
};
use rand::RngCore;

use crate::{
    app::{App, AppState, machine::RESERVED},
    error::{Error, Kind, Result},
};

/// The directory that may hold the platform's own folder.
const WORKSPACE: &str = "/workspace";
/// The platform's own folder, as an entry of it.
const OWN_FOLDER: &str = ".nullspace";
/// How clones that are under way begin.
const PREFIX: &str = ".nullspace-git-";
/// Git's own list of what a fresh clone leaves out is some lines long.
const MAX_EXCLUDES: u64 = 64 << 10;

/// A clone that is being made. Dropped before it is published it is removed.
pub(super) struct Clone {
    app: AppState,
    guest: GuestClient,
    target: String,
    /// Whether the target is there, and empty.
    is_there: bool,
    parent: String,
    name: String,
    is_done: bool,
}

impl Clone {
    /// Looks at the target and removes what an earlier server left.
    ///
    /// # Errors
    /// `git_exists_conflict`, `invalid_request`, and those of files.
    pub(super) async fn prepare(
        app: &AppState,
        guest: &GuestClient,
        target: String,
    ) -> Result<Self> {
        let is_there = is_empty(guest, &target).await?;
        let parent = match target.rsplit_once('/') {
            _ if target == WORKSPACE => RESERVED,
            Some(("", _)) => "/",
            Some((parent, _)) => parent,
            None => return Err(Error::invalid("path: must be absolute")),
        };
        guest.mkdir(&at(parent)).await?;
        for entry in guest.list(&at(parent)).await? {
            if is_abandoned(&entry.name) {
                let _ = guest.remove(&at(&entry.path)).await;
            }
        }
        let mut nonce = [0; 8];
        rand::rng().fill_bytes(&mut nonce);
        Ok(Self {
            app: app.clone(),
            guest: guest.clone(),
            is_there,
            parent: parent.to_owned(),
            name: format!("{}{}", own_prefix(), hex::encode(nonce)),
            target,
            is_done: false,
        })
    }

    /// Where git is run.
    pub(super) fn parent(&self) -> &str {
        &self.parent
    }

    /// What git is to make there.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    fn path(&self) -> String {
        beneath(&self.parent, &self.name)
    }

    /// An error of the git that makes it, as if it had made it where it belongs.
    pub(super) fn in_its_place(&self, mut error: Error) -> Error {
        error.message = error.message.replace(&self.name, &self.target);
        if let Some(output) = error.details.as_mut().and_then(|d| d.get_mut("output"))
            && let Some(text) = output.as_str()
        {
            *output = text.replace(&self.name, &self.target).into();
        }
        error
    }

    /// Moves it to its place, which it answers with. What cannot go there is removed.
    ///
    /// # Errors
    /// `git_exists_conflict` when something came there meanwhile, and those of files.
    pub(super) async fn publish(mut self) -> Result<String> {
        let moved = self.moved().await;
        if !self.is_done {
            let _ = self.guest.remove(&at(&self.path())).await;
            self.is_done = true;
        }
        moved.map(|()| self.target.clone())
    }

    async fn moved(&mut self) -> Result<()> {
        let from = self.path();
        let rename = |old_path: String, new_path: String| {
            let request = RenameRequest {
                old_path,
                new_path,
                user: None,
            };
            let guest = self.guest.clone();
            async move { guest.rename(&request).await }
        };
        if self.target != WORKSPACE {
            match rename(from.clone(), self.target.clone()).await {
                Ok(_) => {
                    self.is_done = true;
                    return Ok(());
                }
                // A place that something is mounted on takes entries only.
                Err(error) if self.is_there && error.kind().is_some() => {}
                Err(error) => return Err(in_the_way(&self.target, error)),
            }
        }
        let entries = self.guest.list(&at(&from)).await?;
        if self.target == WORKSPACE && entries.iter().any(|entry| entry.name == OWN_FOLDER) {
            return Err(Error::conflict(
                code::GIT_EXISTS_CONFLICT,
                format!(
                    "the repository holds {OWN_FOLDER}, which is the platform's own in {WORKSPACE}"
                ),
            )
            .with_action("clone it into another directory"));
        }
        if self.target == WORKSPACE {
            self.leave_out(&from).await;
        }
        // The folder that makes it a repository comes last.
        let (git, others): (Vec<_>, Vec<_>) = entries.into_iter().partition(|e| e.name == ".git");
        for entry in others.into_iter().chain(git) {
            let to = beneath(&self.target, &entry.name);
            let moved = rename(entry.path, to).await;
            moved.map_err(|error| in_the_way(&self.target, error))?;
        }
        // Only the empty directory is left.
        Ok(())
    }
}

impl Clone {
    /// Keeps git from committing the platform's own folder. Without it the clone is as good.
    async fn leave_out(&self, clone: &str) {
        let path = beneath(clone, ".git/info/exclude");
        let query = ReadQuery {
            path: path.clone(),
            length: Some(MAX_EXCLUDES),
            ..ReadQuery::default()
        };
        let mut text = Vec::new();
        if let Ok((_, mut pieces)) = self.guest.read(&query).await {
            while let Some(Ok(piece)) = pieces.next().await {
                text.extend_from_slice(&piece);
            }
        }
        text.extend_from_slice(format!("/{OWN_FOLDER}/\n").as_bytes());
        let query = WriteQuery {
            path,
            ..WriteQuery::default()
        };
        let text = futures_util::stream::iter([Ok(Bytes::from(text))]);
        let _ = self.guest.write(&query, text).await;
    }
}

impl Drop for Clone {
    fn drop(&mut self) {
        if self.is_done {
            return;
        }
        let (guest, path) = (self.guest.clone(), self.path());
        let app: &App = &self.app;
        app.tasks
            .spawn(async move { guest.remove(&at(&path)).await });
    }
}

/// Whether a directory is there that has nothing in it.
async fn is_empty(guest: &GuestClient, target: &str) -> Result<bool> {
    let request = PathRequest {
        follow: true,
        ..at(target)
    };
    let found = match guest.stat(&request).await {
        Err(error) if error.kind() == Some(ErrorKind::NotFound) => return Ok(false),
        found => found?,
    };
    let entries = match found.kind {
        FileKind::Dir => guest.list(&at(target)).await?,
        _ => return Err(exists(target, "is no directory")),
    };
    let is_own = |name: &str| target == WORKSPACE && name == OWN_FOLDER;
    match entries.iter().all(|entry| is_own(&entry.name)) {
        true => Ok(true),
        false => Err(exists(target, "is not empty")),
    }
}

fn exists(target: &str, what: &str) -> Error {
    Error::conflict(code::GIT_EXISTS_CONFLICT, format!("path: {target} {what}"))
        .with_action("clone into a directory that does not exist or is empty")
}

fn in_the_way(target: &str, error: GuestError) -> Error {
    match error.kind() {
        Some(ErrorKind::Exists | ErrorKind::Invalid) => exists(target, "is not empty any more"),
        // rename(2) onto a directory with something in it is said so.
        Some(ErrorKind::Io) => {
            exists(target, "cannot take the clone").with_context(error.to_string())
        }
        _ => {
            let error = Error::from(error);
            match error.kind {
                Kind::Internal => exists(target, "cannot take the clone"),
                _ => error,
            }
        }
    }
}

fn at(path: &str) -> PathRequest {
    PathRequest {
        path: path.to_owned(),
        ..PathRequest::default()
    }
}

fn beneath(parent: &str, name: &str) -> String {
    format!("{}/{name}", parent.trim_end_matches('/'))
}

/// How the clones of this server begin. There is one server at a time for a machine: whatever begins otherwise was left
/// by one that is gone, whose git went with it.
fn own_prefix() -> &'static str {
    static PREFIX_OF_SERVER: OnceLock<String> = OnceLock::new();
    PREFIX_OF_SERVER.get_or_init(|| {
        let mut nonce = [0; 4];
        rand::rng().fill_bytes(&mut nonce);
        format!("{PREFIX}{}-", hex::encode(nonce))
    })
}

fn is_abandoned(name: &str) -> bool {
    name.starts_with(PREFIX) && !name.starts_with(own_prefix())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_clones_of_servers_that_are_gone_are_removed() {
        assert!(is_abandoned(".nullspace-git-00000000-0011223344556677"));
        assert!(!is_abandoned(&format!("{}0011223344556677", own_prefix())));
        assert!(!is_abandoned(".nullspace"));
        assert!(!is_abandoned("src"));
    }
}
