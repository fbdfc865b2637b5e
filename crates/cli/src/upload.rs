//! Uploads in parts: several parts at once, each checked, each sent again if the network fails. After a cut only what the
//! server does not have is sent.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use indicatif::ProgressBar;
use nullspace_api::upload::{
    ArchiveFormat, CompleteUploadResponse, Conflict, CreateUploadRequest, SourceKind, UploadKind,
};
use nullspace_client::{Client, uploads::Upload};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::error::CliError;

/// Files over this many bytes are sent in parts.
pub(crate) const IN_PARTS: u64 = 8 << 20;
/// Bytes that are read at once to hash a whole file.
const PIECE: usize = 1 << 20;

/// Something on this side that can be read at any place, again and again.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    pub(crate) file: Arc<File>,
    pub(crate) length: u64,
    pub(crate) kind: SourceKind,
}

impl Source {
    /// A file as it is now.
    pub(crate) fn new(file: File, kind: SourceKind) -> std::io::Result<Self> {
        let length = file.metadata()?.len();
        Ok(Self {
            file: Arc::new(file),
            length,
            kind,
        })
    }

    fn is_directory(&self) -> bool {
        self.kind == SourceKind::DirectoryArchive
    }

    /// What begins its upload.
    pub(crate) fn request(
        &self,
        target: &str,
        user: Option<&str>,
        conflict: Conflict,
        whole_sha256: Option<String>,
    ) -> CreateUploadRequest {
        CreateUploadRequest {
            kind: match self.is_directory() {
                true => UploadKind::DirectoryTar,
                false => UploadKind::File,
            },
            source_kind: self.kind,
            target_path: target.to_owned(),
            content_length: self.length,
            conflict: Some(conflict),
            archive_format: self.is_directory().then_some(ArchiveFormat::Tar),
            checksum_algorithm: None,
            whole_checksum_sha256: whole_sha256,
            metadata: None,
            user: user.map(str::to_owned),
        }
    }

    /// SHA-256 of all its bytes.
    pub(crate) async fn sha256(&self) -> Result<String, CliError> {
        let (file, length) = (self.file.clone(), self.length);
        let hash = move || {
            let (mut hash, mut buffer, mut at) = (Sha256::new(), vec![0; PIECE], 0);
            while at < length {
                let wanted = usize::try_from(length - at).unwrap_or(PIECE).min(PIECE);
                file.read_exact_at(&mut buffer[..wanted], at)?;
                hash.update(&buffer[..wanted]);
                at += wanted as u64;
            }
            Ok(hex(&hash.finalize()))
        };
        blocking(hash).await
    }

    async fn part(&self, at: u64, size: u64) -> Result<(Bytes, String), CliError> {
        let file = self.file.clone();
        let wanted = usize::try_from(size.min(self.length.saturating_sub(at)))
            .map_err(|_| CliError::new("invalid_response", "the parts are too large"))?;
        let read = move || {
            let mut part = vec![0; wanted];
            file.read_exact_at(&mut part, at)?;
            let sum = hex(&Sha256::digest(&part));
            Ok((Bytes::from(part), sum))
        };
        blocking(read).await
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, CliError> {
    let done = tokio::task::spawn_blocking(work).await;
    let done = done.map_err(|error| CliError::new("internal_error", error.to_string()))?;
    done.map_err(|error| CliError::local("cannot read what is uploaded; did it change?", &error))
}

/// Sends what is missing of an upload and puts it in its place. An error names the upload, which can be carried on.
pub(crate) async fn send(
    client: &Client,
    machine: &str,
    upload: &Upload,
    source: &Source,
    whole_sha256: Option<String>,
    concurrency: Option<u32>,
    bar: &ProgressBar,
) -> Result<CompleteUploadResponse, CliError> {
    let session = &upload.session;
    let id = &session.upload_id;
    let named = |mut error: CliError| {
        error.details.get_or_insert(json!({"upload_id": id}));
        error
    };
    bar.set_length(session.content_length);
    bar.set_position(session.accepted_bytes);
    let at_once = concurrency
        .unwrap_or(session.max_concurrency)
        .clamp(1, session.max_concurrency.max(1));
    let send = |number: u32| async move {
        let at = u64::from(number) * session.part_size;
        let (data, sum) = source.part(at, session.part_size).await?;
        let length = data.len() as u64;
        client.put_part(machine, id, number, sum, data).await?;
        bar.inc(length);
        Ok::<_, CliError>(())
    };
    stream::iter(upload.missing())
        .map(send)
        .buffer_unordered(at_once as usize)
        .try_collect::<()>()
        .await
        .map_err(named)?;
    let done = client.complete_upload(machine, id, whole_sha256).await;
    done.map_err(|error| named(error.into()))
}
