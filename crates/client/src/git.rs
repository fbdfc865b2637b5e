//! Git repositories of a machine.

use nullspace_api::git::{
    GitAddRequest, GitBranchRequest, GitBranches, GitCheckoutRequest, GitCloneRequest,
    GitCloneResponse, GitCommitRequest, GitCommitResponse, GitLog, GitOk, GitStatus,
    GitSyncRequest, GitSyncResponse,
};
use serde::{Serialize, de::DeserializeOwned};

use crate::error::Error;
use crate::machines::machine_path;
use crate::transport::{Call, Client};

/// The repositories of one machine.
#[derive(Clone, Copy, Debug)]
pub struct Git<'a> {
    client: &'a Client,
    machine: &'a str,
}

impl Client {
    /// The repositories of a machine.
    #[must_use]
    pub fn git<'a>(&'a self, machine: &'a str) -> Git<'a> {
        Git {
            client: self,
            machine,
        }
    }
}

impl Git<'_> {
    /// Clones a repository.
    ///
    /// # Errors
    /// See [`Error`]; codes that begin with `git_` say what git would not do. The same goes for all calls here.
    pub async fn clone_from(&self, request: &GitCloneRequest) -> Result<GitCloneResponse, Error> {
        self.ask("clone", request).await
    }

    /// What changed since the last commit.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn status(&self, path: &str) -> Result<GitStatus, Error> {
        self.look("status", path, None).await
    }

    /// The newest commits; 50 of them when `limit` says nothing.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn log(&self, path: &str, limit: Option<u32>) -> Result<GitLog, Error> {
        self.look("log", path, limit).await
    }

    /// The local branches.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn branches(&self, path: &str) -> Result<GitBranches, Error> {
        self.look("branch", path, None).await
    }

    /// Makes a branch and checks it out, or deletes one.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn branch(&self, request: &GitBranchRequest) -> Result<(), Error> {
        self.ask("branch", request).await.map(|GitOk { .. }| ())
    }

    /// Checks out a branch, a tag or a commit.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn checkout(&self, request: &GitCheckoutRequest) -> Result<(), Error> {
        self.ask("checkout", request).await.map(|GitOk { .. }| ())
    }

    /// Stages files for the next commit.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn add(&self, request: &GitAddRequest) -> Result<(), Error> {
        self.ask("add", request).await.map(|GitOk { .. }| ())
    }

    /// Commits what is staged.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn commit(&self, request: &GitCommitRequest) -> Result<GitCommitResponse, Error> {
        self.ask("commit", request).await
    }

    /// Fetches, and brings the current branch up to it.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn pull(&self, request: &GitSyncRequest) -> Result<GitSyncResponse, Error> {
        self.ask("pull", request).await
    }

    /// Pushes.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn push(&self, request: &GitSyncRequest) -> Result<GitSyncResponse, Error> {
        self.ask("push", request).await
    }

    fn path(&self, what: &str) -> String {
        format!("{}/git/{what}", machine_path(self.machine))
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        what: &str,
        request: &impl Serialize,
    ) -> Result<T, Error> {
        let call = Call::post(self.path(what)).json(request)?;
        self.client.fetch_late(call).await
    }

    async fn look<T: DeserializeOwned>(
        &self,
        what: &str,
        path: &str,
        limit: Option<u32>,
    ) -> Result<T, Error> {
        let call = Call::get(self.path(what))
            .query("path", Some(path))
            .query("limit", limit);
        self.client.fetch_late(call).await
    }
}
