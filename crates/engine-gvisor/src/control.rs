//! The control socket of a machine's kernel: JSON objects one after the other, with descriptors beside them.
//!
//! A request is `{"method", "arg"}`, its answer `{"success", "err", "result"}`. Requests on one connection are answered
//! one at a time; each here has a connection of its own. Calls block: they are made on threads that may.

use std::{
    io::{self, IoSlice, Read},
    mem::MaybeUninit,
    os::{fd::BorrowedFd, unix::net::UnixStream},
    path::Path,
    time::Duration,
};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde::{Deserialize, Serialize};
use serde_json::json;

/// The most descriptors one request carries.
const DESCRIPTORS: usize = 3;
/// The most bytes of an answer. Errors may hold a kernel's whole stack.
const MAX_ANSWER: usize = 4 << 20;
/// How long a kernel may take for what it does at once.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why a request failed.
#[derive(Debug)]
pub(crate) enum Error {
    /// There is no kernel.
    Gone,
    /// It refused; the first line of what it said.
    Refused(String),
    /// The connection broke, or the kernel did not answer.
    Lost(io::Error),
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Gone => f.write_str("the machine's kernel is gone"),
            Self::Refused(text) => f.write_str(text),
            Self::Lost(error) => write!(f, "the machine's kernel does not answer: {error}"),
        }
    }
}

#[derive(Serialize)]
struct Request<'a> {
    method: &'a str,
    arg: serde_json::Value,
}

#[derive(Deserialize)]
struct Answer {
    success: bool,
    #[serde(default)]
    err: String,
}

/// Stops every process of the machine. Calls count: each needs a [`resume`].
pub(crate) fn pause(socket: &Path) -> Result<(), Error> {
    call(
        socket,
        "containerManager.Pause",
        json!(null),
        &[],
        Some(PATIENCE),
    )
}

/// Undoes one [`pause`]. One too many ends the machine.
pub(crate) fn resume(socket: &Path) -> Result<(), Error> {
    call(
        socket,
        "containerManager.Resume",
        json!(null),
        &[],
        Some(PATIENCE),
    )
}

/// Writes the machine's processes and memory: the kernel's state, the table of pages and the pages. Whatever comes of
/// it, the machine then goes on as before.
pub(crate) fn save(socket: &Path, files: [BorrowedFd<'_>; 3]) -> Result<(), Error> {
    let arg = json!({
        "key": null,
        "metadata": {"compression": "none", "resume": "true"},
        "MemoryFileSaveOpts": {"ExcludeCommittedZeroPages": true},
        "have_pages_file": true,
        "Resume": true,
    });
    // As long as writing the memory takes.
    call(socket, "containerManager.Checkpoint", arg, &files, None)
}

fn call(
    socket: &Path,
    method: &str,
    arg: serde_json::Value,
    descriptors: &[BorrowedFd<'_>],
    patience: Option<Duration>,
) -> Result<(), Error> {
    let mut stream = UnixStream::connect(socket).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Error::Gone,
        _ => Error::Lost(error),
    })?;
    stream
        .set_read_timeout(patience)
        .and_then(|()| stream.set_write_timeout(Some(PATIENCE)))
        .map_err(Error::Lost)?;
    let request =
        serde_json::to_vec(&Request { method, arg }).map_err(|e| Error::Lost(e.into()))?;
    send(&stream, &request, descriptors).map_err(Error::Lost)?;
    let answer = receive(&mut stream).map_err(Error::Lost)?;
    match answer.success {
        true => Ok(()),
        false => {
            let first = answer.err.lines().next().unwrap_or("it gave no reason");
            Err(Error::Refused(first.to_owned()))
        }
    }
}

fn send(stream: &UnixStream, request: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    let sent = sendmsg(
        stream,
        &[IoSlice::new(request)],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )?;
    // They go with the first byte.
    io::Write::write_all(&mut &*stream, &request[sent..])
}

fn receive(stream: &mut UnixStream) -> io::Result<Answer> {
    let mut text = Vec::new();
    let mut chunk = [0; 16 << 10];
    loop {
        match stream.read(&mut chunk) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(length) => text.extend_from_slice(&chunk[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        }
        match serde_json::from_slice(&text) {
            Ok(answer) => return Ok(answer),
            Err(error) if error.is_eof() && text.len() < MAX_ANSWER => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    fn answered(parts: &'static [&'static str]) -> Result<(), Error> {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 4096]).unwrap();
            for part in parts {
                io::Write::write_all(&mut stream, part.as_bytes()).unwrap();
                std::thread::yield_now();
            }
        });
        let result = pause(&path);
        server.join().unwrap();
        result
    }

    #[test]
    fn answers_come_in_pieces() {
        answered(&["{\"success\":tr", "ue,\"err\":\"\",\"result\":{}}"]).unwrap();
        let refused = answered(&["{\"success\":false,\"err\":\"no:\\nstack\",\"result\":null}"]);
        assert!(matches!(refused, Err(Error::Refused(text)) if text == "no:"));
        assert!(matches!(answered(&["{\"succ"]), Err(Error::Lost(_))));
        assert!(matches!(answered(&["nonsense"]), Err(Error::Lost(_))));
    }

    #[test]
    fn nobody_there_is_told_apart() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("s");
        assert!(matches!(pause(&path), Err(Error::Gone)));
        drop(UnixListener::bind(&path).unwrap());
        assert!(matches!(resume(&path), Err(Error::Gone)));
    }
}
