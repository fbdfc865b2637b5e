//! Files of a machine, or of a volume.

use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use futures_util::Stream;
use http::Method;
use nullspace_api::file::{
    DownloadUrlRequest, ExistsResponse, FileInfo, PathRequest, PermissionsRequest,
    RenameFileRequest, SignedUrlResponse,
};
use nullspace_api::search::{ReplaceRequest, ReplaceResponse, SearchMatch, SearchRequest};
use nullspace_api::upload::ArchiveFormat;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::Error;
use crate::transport::{Call, Client, Download, Retry, UPLOAD_TIMEOUT, body_from};
use crate::volumes::owner_path;

/// The files of one machine, on behalf of one of its users, or those of a volume.
#[derive(Clone, Copy, Debug)]
pub struct Files<'a> {
    client: &'a Client,
    owner: &'a str,
    user: Option<&'a str>,
}

impl Client {
    /// The files of a machine, on behalf of root, or of a volume: its id says which.
    #[must_use]
    pub fn files<'a>(&'a self, owner: &'a str) -> Files<'a> {
        Files {
            client: self,
            owner,
            user: None,
        }
    }
}

impl<'a> Files<'a> {
    /// On behalf of another user, if one is given.
    #[must_use]
    pub fn as_user(self, user: Option<&'a str>) -> Self {
        Self { user, ..self }
    }

    /// What is in a directory, `depth` levels of it.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn list(&self, path: &str, depth: Option<u32>) -> Result<Vec<FileInfo>, Error> {
        let call = Call::get(owner_path(self.owner) + "/files")
            .query("path", Some(path))
            .query("depth", depth)
            .query("user", self.user);
        self.client.fetch(call).await
    }

    /// What is at a path.
    ///
    /// # Errors
    /// See [`Error`]; [`Error::is_not_found`] when nothing is.
    pub async fn info(&self, path: &str) -> Result<FileInfo, Error> {
        self.ask("info", &self.at(path)).await
    }

    /// Whether anything is at a path.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn exists(&self, path: &str) -> Result<bool, Error> {
        let answer: ExistsResponse = self.ask("exists", &self.at(path)).await?;
        Ok(answer.exists)
    }

    /// Makes a directory and its parents; one that is there already is fine.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn make_dir(&self, path: &str) -> Result<(), Error> {
        self.tell("mkdir", &self.at(path)).await
    }

    /// Removes a file, or a directory with everything in it.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn remove(&self, path: &str) -> Result<(), Error> {
        self.tell("remove", &self.at(path)).await
    }

    /// Gives a file or directory another name.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn rename(&self, from: &str, to: &str) -> Result<FileInfo, Error> {
        let request = RenameFileRequest {
            old_path: from.to_owned(),
            new_path: to.to_owned(),
            user: self.user.map(str::to_owned),
        };
        self.ask("rename", &request).await
    }

    /// Sets the permission bits, written as octal digits: `0755`.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn set_permissions(&self, path: &str, permissions: &str) -> Result<(), Error> {
        let request = PermissionsRequest {
            path: path.to_owned(),
            permissions: permissions.to_owned(),
            user: self.user.map(str::to_owned),
        };
        self.tell("permissions", &request).await
    }

    /// Lines that match a regular expression, in all files below a path.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn find(&self, path: &str, pattern: &str) -> Result<Vec<SearchMatch>, Error> {
        self.look("find", path, pattern).await
    }

    /// Paths whose names match a glob, below a path.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn search(&self, path: &str, pattern: &str) -> Result<Vec<String>, Error> {
        self.look("search", path, pattern).await
    }

    async fn look<T: DeserializeOwned>(
        &self,
        what: &str,
        path: &str,
        pattern: &str,
    ) -> Result<T, Error> {
        let request = SearchRequest {
            path: path.to_owned(),
            pattern: pattern.to_owned(),
            user: self.user.map(str::to_owned),
        };
        let call = Call::post(self.path(what))
            .json(&request)?
            .limit(UPLOAD_TIMEOUT);
        self.client.fetch(call).await
    }

    /// Replaces what a regular expression matches, or only counts it.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn replace(
        &self,
        files: Vec<String>,
        pattern: &str,
        replacement: &str,
        dry_run: bool,
    ) -> Result<ReplaceResponse, Error> {
        let request = ReplaceRequest {
            files,
            pattern: pattern.to_owned(),
            replacement: replacement.to_owned(),
            dry_run,
            user: self.user.map(str::to_owned),
        };
        let call = Call::post(self.path("replace"))
            .json(&request)?
            .limit(UPLOAD_TIMEOUT);
        self.client.fetch(call).await
    }

    /// A URL from which a file, or a directory as a tar, can be had without a key.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn download_url(
        &self,
        path: &str,
        archive: Option<ArchiveFormat>,
    ) -> Result<SignedUrlResponse, Error> {
        let request = DownloadUrlRequest {
            path: path.to_owned(),
            archive_format: archive,
            user: self.user.map(str::to_owned),
        };
        self.ask("download-url", &request).await
    }

    /// A URL to which a file can be written without a key.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn upload_url(&self, path: &str) -> Result<SignedUrlResponse, Error> {
        self.ask("upload-url", &self.at(path)).await
    }

    /// Writes a file from a stream; its parents are made, a file that is there is replaced when the stream has ended.
    ///
    /// # Errors
    /// See [`Error`]; never retried, as the stream is gone.
    pub async fn upload<S>(&self, path: &str, length: Option<u64>, content: S) -> Result<(), Error>
    where
        S: Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    {
        let content = Mutex::new(Some(content));
        let mut call = Call::new(Method::PUT, owner_path(self.owner) + "/file")
            .query("path", Some(path))
            .query("user", self.user)
            .limit(UPLOAD_TIMEOUT)
            .retry(Retry::Never)
            .stream(move |pulse| {
                match content
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .take()
                {
                    Some(content) => body_from(content, pulse),
                    None => reqwest::Body::default(),
                }
            });
        if let Some(length) = length {
            call = call.header("content-length", length.to_string());
        }
        self.client.discard(call).await
    }

    /// Reads a file as a stream.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn download(&self, path: &str) -> Result<Download, Error> {
        let call = Call::get(owner_path(self.owner) + "/file")
            .query("path", Some(path))
            .query("user", self.user)
            .limit(UPLOAD_TIMEOUT)
            .retry(Retry::Never);
        self.client.send(&call).await
    }

    /// Reads a directory as a tar.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn download_archive(&self, path: &str) -> Result<Download, Error> {
        let call = Call::get(owner_path(self.owner) + "/file")
            .query("path", Some(path))
            .query("archive_format", Some("tar"))
            .query("user", self.user)
            .limit(UPLOAD_TIMEOUT)
            .retry(Retry::Never);
        self.client.send(&call).await
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        what: &str,
        request: &impl Serialize,
    ) -> Result<T, Error> {
        let call = Call::post(self.path(what)).json(request)?;
        self.client.fetch(call).await
    }

    async fn tell(&self, what: &str, request: &impl Serialize) -> Result<(), Error> {
        let call = Call::post(self.path(what)).json(request)?;
        self.client.discard(call).await
    }

    fn path(&self, what: &str) -> String {
        format!("{}/files/{what}", owner_path(self.owner))
    }

    fn at(&self, path: &str) -> PathRequest {
        PathRequest {
            path: path.to_owned(),
            user: self.user.map(str::to_owned),
        }
    }
}
