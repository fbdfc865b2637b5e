//! Uploads in parts, to a machine or a volume: see [`nullspace_api::upload`].

use std::ops::RangeInclusive;

use bytes::Bytes;
use http::Method;
use nullspace_api::upload::{
    CompleteUploadRequest, CompleteUploadResponse, CreateUploadRequest, CreateUploadResponse,
    PARTS_HEADER, UploadSession,
};

use crate::error::Error;
use crate::transport::{Call, Client, Retry, UPLOAD_TIMEOUT, segment};
use crate::volumes::owner_path;

/// An upload, and which of its parts are there already.
#[derive(Clone, Debug)]
pub struct Upload {
    /// Where it stands.
    pub session: UploadSession,
    /// Parts that the server has.
    pub accepted: Vec<RangeInclusive<u32>>,
}

impl Upload {
    /// The parts that are still to be sent.
    pub fn missing(&self) -> impl Iterator<Item = u32> + '_ {
        let first = self.session.next_part.unwrap_or(self.session.part_count);
        (first..self.session.part_count)
            .filter(|part| !self.accepted.iter().any(|range| range.contains(part)))
    }
}

impl Client {
    /// Begins an upload.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn create_upload(
        &self,
        owner: &str,
        request: &CreateUploadRequest,
    ) -> Result<Upload, Error> {
        let call = Call::post(owner_path(owner) + "/uploads")
            .idempotent(None)
            .json(request)?
            .limit(UPLOAD_TIMEOUT)
            .retry(Retry::Upload);
        let created: CreateUploadResponse = self.fetch(call).await?;
        Ok(Upload {
            session: created.session,
            accepted: Vec::new(),
        })
    }

    /// Where an upload stands.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn get_upload(&self, owner: &str, upload: &str) -> Result<Upload, Error> {
        let call = Call::get(upload_path(owner, upload)).retry(Retry::Upload);
        let answer = self.send(&call).await?;
        let accepted = answer.header(PARTS_HEADER).map(ranges).unwrap_or_default();
        Ok(Upload {
            session: answer.json(&call).await?,
            accepted,
        })
    }

    /// Sends a part; again if the network fails. It stays once this has returned.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn put_part(
        &self,
        owner: &str,
        upload: &str,
        part: u32,
        sha256: String,
        data: Bytes,
    ) -> Result<(), Error> {
        let path = format!("{}/parts/{part}", upload_path(owner, upload));
        let call = Call::new(Method::PUT, path)
            .header("content-type", "application/octet-stream")
            .header("x-nullspace-part-sha256", sha256)
            .limit(UPLOAD_TIMEOUT)
            .retry(Retry::Upload)
            .stream(move |_| data.clone().into());
        self.discard(call).await
    }

    /// Puts an upload in its place.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn complete_upload(
        &self,
        owner: &str,
        upload: &str,
        whole_sha256: Option<String>,
    ) -> Result<CompleteUploadResponse, Error> {
        let request = CompleteUploadRequest {
            whole_checksum_sha256: whole_sha256,
        };
        let call = Call::post(upload_path(owner, upload) + "/complete")
            .json(&request)?
            .limit(UPLOAD_TIMEOUT)
            .retry(Retry::Upload);
        self.fetch(call).await
    }
}

fn upload_path(owner: &str, upload: &str) -> String {
    format!("{}/uploads/{}", owner_path(owner), segment(upload))
}

/// `0-11,13`; what makes no sense counts as not there.
fn ranges(text: &str) -> Vec<RangeInclusive<u32>> {
    let range = |text: &str| {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        Some(first.parse().ok()?..=last.parse().ok()?)
    };
    text.split(',').filter_map(range).collect()
}
