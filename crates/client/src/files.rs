//! Files of a machine.

use bytes::Bytes;
use futures_util::Stream;
use http::Method;
use nullspace_api::file::{FileInfo, PathRequest, PermissionsRequest};
use std::sync::Mutex;
use std::sync::PoisonError;

use crate::error::Error;
use crate::machines::machine_path;
use crate::transport::{Call, Client, Download, Retry, UPLOAD_TIMEOUT, body_from};

impl Client {
    /// The direct children of a directory.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn list_files(&self, id: &str, path: &str) -> Result<Vec<FileInfo>, Error> {
        self.fetch(
            Call::get(machine_path(id) + "/files")
                .query("path", Some(path))
                .query("depth", Some(1)),
        )
        .await
    }

    /// What is at a path.
    ///
    /// # Errors
    /// See [`Error`]; [`Error::is_not_found`] when nothing is.
    pub async fn file_info(&self, id: &str, path: &str) -> Result<FileInfo, Error> {
        self.fetch(Call::post(machine_path(id) + "/files/info").json(&path_request(path))?)
            .await
    }

    /// Makes a directory and its parents; one that is there already is fine.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn make_dir(&self, id: &str, path: &str) -> Result<(), Error> {
        self.discard(Call::post(machine_path(id) + "/files/mkdir").json(&path_request(path))?)
            .await
    }

    /// Sets the permission bits, `0o755` for instance.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn set_permissions(&self, id: &str, path: &str, mode: u32) -> Result<(), Error> {
        let request = PermissionsRequest {
            path: path.to_owned(),
            permissions: format!("{mode:04o}"),
            user: None,
        };
        self.discard(Call::post(machine_path(id) + "/files/permissions").json(&request)?)
            .await
    }

    /// Writes a file from a stream; its parents are made, a file that is there is replaced when the stream has ended.
    ///
    /// # Errors
    /// See [`Error`]; never retried, as the stream is gone.
    pub async fn upload_file<S>(
        &self,
        id: &str,
        path: &str,
        length: Option<u64>,
        content: S,
    ) -> Result<(), Error>
    where
        S: Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    {
        let content = Mutex::new(Some(content));
        let mut call = Call::new(Method::PUT, machine_path(id) + "/file")
            .query("path", Some(path))
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
        self.discard(call).await
    }

    /// Reads a file as a stream.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn download_file(&self, id: &str, path: &str) -> Result<Download, Error> {
        let call = Call::get(machine_path(id) + "/file")
            .query("path", Some(path))
            .limit(UPLOAD_TIMEOUT)
            .retry(Retry::Never);
        self.send(&call).await
    }
}

fn path_request(path: &str) -> PathRequest {
    PathRequest {
        path: path.to_owned(),
        user: None,
    }
}
