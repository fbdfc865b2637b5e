//! Uploads in parts. The order of the calls is in [`crate::upload`].

use bytes::Bytes;
use futures_util::Stream;
use http::Method;

use super::{GuestClient, GuestError, accepted, json, query_string};
use crate::upload::{
    DiscardRequest, PartQuery, PublishOutcome, PublishRequest, StageRequest, Staged,
};

impl GuestClient {
    /// Makes the staged file of an upload and reserves its bytes. Asked again it is the same file.
    ///
    /// # Errors
    /// `Permission`; `NoSpace`; `Exists` when the target may not be replaced; `Invalid` for a target that cannot be one.
    pub async fn stage_upload(&self, request: &StageRequest) -> Result<Staged, GuestError> {
        json(
            self.post("/uploads/stage", request, "making room for an upload")
                .await?,
        )
        .await
    }

    /// Writes a part; it is there when this returns. The same part may be written again.
    ///
    /// # Errors
    /// `NotFound` without the staged file; `NoSpace`; `Invalid` for fewer or more bytes than announced; an error of
    /// `data` is [`GuestError::Lost`].
    pub async fn write_part<S>(&self, query: &PartQuery, data: S) -> Result<(), GuestError>
    where
        S: Stream<Item = Result<Bytes, std::io::Error>> + Send + 'static,
    {
        let path = format!("/uploads/part?{}", query_string(query));
        let response = (self.connection)
            .send_stream(Method::PUT, &path, data, "writing a part")
            .await?;
        accepted(&path, response).await.map(drop)
    }

    /// Checks a staged upload and puts it in its place at once. Asked again, also while the first is under way, it
    /// answers the same.
    ///
    /// # Errors
    /// `NotFound` without the staged file; `Permission`, `NoSpace`. What the upload itself is refused for is a
    /// [`PublishOutcome`].
    pub async fn publish_upload(
        &self,
        request: &PublishRequest,
    ) -> Result<PublishOutcome, GuestError> {
        json(
            self.post("/uploads/publish", request, "publishing an upload")
                .await?,
        )
        .await
    }

    /// Removes a staged upload; one that is not there is fine.
    ///
    /// # Errors
    /// [`GuestError::Lost`].
    pub async fn discard_upload(&self, request: &DiscardRequest) -> Result<(), GuestError> {
        self.post("/uploads/discard", request, "discarding an upload")
            .await
            .map(drop)
    }
}
