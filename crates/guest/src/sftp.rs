//! SFTP, version 3 with the extensions that OpenSSH's programs use: what `scp`, `sftp`, `sshfs` and editors speak.
//!
//! A session is one thread with the user's own identity, so that what it may do is the kernel's business. It is here
//! and not a program in the machine, because a template need not have one. Names are bytes, as everywhere on Linux; the
//! libraries for this know only UTF-8.

mod listing;
mod session;
mod wire;

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use nullspace_protocol::ErrorKind;
use tokio::sync::mpsc;

use self::session::Session;
use crate::{
    Guest,
    error::{Error, Result},
    files::{Chunks, IN_FLIGHT},
    users::Names,
};

/// Sessions at once; each is a thread.
const MAX_SESSIONS: usize = 32;
/// Answers are sent once that many bytes of them are there, or there is no request left.
const PIECE: usize = 256 << 10;

/// How many sessions there are.
#[derive(Clone, Default)]
pub(crate) struct Count(Arc<AtomicUsize>);

/// A session, until it is dropped.
struct Place(Count);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Count {
    fn place(&self) -> Result<Place> {
        let before = self.0.fetch_add(1, Ordering::AcqRel);
        let place = Place(self.clone());
        match before < MAX_SESSIONS {
            true => Ok(place),
            false => Err(Error::new(
                ErrorKind::Exhausted,
                format!("{MAX_SESSIONS} sftp sessions are open already"),
            )),
        }
    }
}

/// Answers the requests in a body, as a user of the machine.
pub(crate) fn open(guest: &Guest, user: &str, mut body: Incoming) -> Result<Chunks> {
    let place = guest.inner.sftp.place()?;
    let user = Names::read(&guest.host_path("/etc")).find(user)?;
    let (requests, waiting) = mpsc::channel(IN_FLIGHT);
    let (answers, answer) = mpsc::channel(IN_FLIGHT);
    tokio::spawn(async move {
        while let Some(Ok(frame)) = body.frame().await {
            if let Ok(data) = frame.into_data()
                && requests.send(data).await.is_err()
            {
                return;
            }
        }
    });
    let session = Session::new(guest.inner.root.clone(), &user);
    let failed = answers.clone();
    let work = move || serve(session, waiting, &answers);
    let run = move || {
        let _place = place;
        let ran = match user.uid {
            0 => {
                work();
                Ok(())
            }
            _ => nullspace_sys::cred::as_user(user.uid, user.gid, user.groups, work),
        };
        if let Err(error) = ran {
            let _ = failed.blocking_send(Err(error));
        }
    };
    let started = thread::Builder::new().name("sftp".into()).spawn(run);
    started.map_err(|error| Error::io("a thread", &error))?;
    Ok(answer)
}

/// Answers until there are no more requests, or one is none.
fn serve(
    mut session: Session,
    mut requests: mpsc::Receiver<Bytes>,
    answers: &mpsc::Sender<io::Result<Bytes>>,
) {
    let mut buffer = BytesMut::new();
    let mut out = Vec::new();
    while let Some(data) = requests.blocking_recv() {
        buffer.extend_from_slice(&data);
        loop {
            let packet = match wire::packet(&mut buffer) {
                Ok(packet) => packet,
                Err(wire::Malformed) => return,
            };
            let is_last = packet.is_none();
            if let Some(packet) = packet {
                session.answer(&packet, &mut out);
            }
            if out.len() >= PIECE || is_last && !out.is_empty() {
                let piece = std::mem::take(&mut out);
                if answers.blocking_send(Ok(piece.into())).is_err() {
                    return;
                }
            }
            if is_last {
                break;
            }
        }
    }
}
