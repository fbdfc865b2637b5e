//! Searching and replacing in files.

use super::{GuestClient, GuestError, json};
use crate::search::{ReplaceRequest, Replaced, SearchMatch, SearchRequest};

impl GuestClient {
    /// The lines beneath a path that match a regular expression, sorted by file and line. Binary files and what may not
    /// be read are passed over; links are not followed.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` for an expression that is none, or over 100,000 matches.
    pub async fn find(&self, request: &SearchRequest) -> Result<Vec<SearchMatch>, GuestError> {
        json(self.post("/files/find", request, "searching files").await?).await
    }

    /// The paths beneath a directory whose names match a glob, sorted. A glob with a `/` is held against the path
    /// relative to the directory.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` for a glob that is none, or over 200,000 matches.
    pub async fn search(&self, request: &SearchRequest) -> Result<Vec<String>, GuestError> {
        json(
            self.post("/files/search", request, "searching names")
                .await?,
        )
        .await
    }

    /// Replaces matches of a regular expression in files, each whole or not at all.
    ///
    /// # Errors
    /// `NotFound`, `Permission`; `Invalid` for an expression that is none, a path that is no file, or a file over 64 MiB.
    /// Nothing is changed then.
    pub async fn replace(&self, request: &ReplaceRequest) -> Result<Replaced, GuestError> {
        json(
            self.post("/files/replace", request, "replacing in files")
                .await?,
        )
        .await
    }
}
