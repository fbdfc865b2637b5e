//! One part of an upload.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use nullspace_api::{
    time,
    upload::{UploadFailureReason as Reason, UploadSession, UploadStatus as Status},
};
use nullspace_protocol::{ErrorKind, PartQuery};
use nullspace_store::upload as rows;
use ring::digest::{Context, SHA256};

use super::{check_open, digest, find, refusal, session, status};
use crate::{
    app::{
        App,
        file::{Files, file_error},
    },
    error::{Error, Result},
};

/// What a client says of a part.
#[derive(Clone, Debug)]
pub struct Part {
    /// Counted from 0.
    pub number: u32,
    /// Its SHA-256 in lower-case hex.
    pub sha256: String,
    /// Its bytes, if the request says how many.
    pub length: Option<u64>,
}

/// Takes a part. One that is there already is fine.
///
/// # Errors
/// `not_found`, those of [`Files::open`]; `file_upload_error` with `part_out_of_range`, `part_size_mismatch`,
/// `invalid_part_checksum`, `insufficient_staging_space`, or that the upload is over.
pub async fn put_part<S>(
    app: &App,
    machine_id: &str,
    id: &str,
    part: Part,
    data: S,
) -> Result<UploadSession>
where
    S: Stream<Item = io::Result<Bytes>> + Send + 'static,
{
    let announced = digest("x-nullspace-part-sha256", &part.sha256)?;
    let number = part.number;
    let gate = app.uploads.gate(id);
    let _shared = gate.read().await;
    // The same part at the same time: the second waits, and finds it there.
    let same = app.uploads.part(id, number);
    let _alone = same.lock().await;
    let row = find(app, machine_id, id).await?;
    check_open(&row)?;
    let refuse = |reason, message: String| refusal(reason, message, Some(id), None, Some(number));
    if number >= row.part_count {
        let message = format!(
            "there is no part {number}: the upload has {}",
            row.part_count
        );
        return Err(refuse(Reason::PartOutOfRange, message));
    }
    let offset = u64::from(number) * row.part_size;
    let length = row.part_size.min(row.content_length - offset);
    if part.length.is_some_and(|said| said != length) {
        let message = format!("part {number} has {length} bytes");
        return Err(refuse(Reason::PartSizeMismatch, message));
    }
    let there = {
        let id = row.id.clone();
        app.store
            .read(move |db| rows::part(db, &id, number))
            .await?
    };
    match there {
        Some(sha256) if sha256 == announced => return Ok(session(&row)),
        Some(_) => {
            let message = format!("part {number} is there already, with another checksum");
            return Err(refuse(Reason::InvalidPartChecksum, message));
        }
        None if status(&row) == Status::Completing => {
            return Err(refuse(
                Reason::UploadAlreadyCompleted,
                "it is being completed".into(),
            ));
        }
        None => {}
    }
    let Some(staging) = row.staging.clone() else {
        return Err(Error::invalid("the upload was not begun: create it again"));
    };
    let files = Files::open(app, machine_id, row.user.clone()).await?;
    files.touch();
    let query = PartQuery {
        staging,
        user: row.user.clone(),
        offset,
        length,
    };
    let hash = Arc::new(Mutex::new(Some(Context::new(&SHA256))));
    let hashed = hash.clone();
    let data = data.inspect(move |piece| {
        let mut hash = hashed.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some(hash), Ok(piece)) = (hash.as_mut(), piece) {
            hash.update(piece);
        }
    });
    let written = files.guest.write_part(&query, data).await;
    written.map_err(|error| match error.kind() {
        Some(ErrorKind::Invalid) => refuse(Reason::PartSizeMismatch, error.to_string()),
        Some(ErrorKind::NoSpace) => refuse(Reason::InsufficientStagingSpace, error.to_string()),
        Some(ErrorKind::NotFound) => refuse(
            Reason::UploadAborted,
            "the machine has lost the parts of this upload".into(),
        ),
        _ => file_error(error),
    })?;
    let hash = hash.lock().unwrap_or_else(PoisonError::into_inner).take();
    let found = hash
        .map(|hash| hex::encode(hash.finish()))
        .unwrap_or_default();
    if found != announced {
        let message = format!("part {number} has the SHA-256 {found}, not {announced}");
        return Err(refuse(Reason::InvalidPartChecksum, message));
    }
    app.store
        .write(move |tx| rows::accept(tx, &row, number, &announced, length, time::now()))
        .await?;
    super::get(app, machine_id, id).await
}
