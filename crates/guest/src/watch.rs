//! Watching files: inotify, one instance and one thread for each watch.
//!
//! ```text
//!  kernel queue ──▶ thread: Tree (watch descriptor → directory) ──▶ lines of JSON ──▶ host
//! ```
//! A directory that appears is watched first and listed then, so that nothing in it goes untold. A reader that is slow
//! fills the kernel's queue; when that overflows, the reader is told to look again ([`WatchKind::ResyncRequired`]).

mod tree;

use std::{
    io,
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use nullspace_protocol::{ErrorKind, WatchEvent, WatchKind, WatchRequest};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::inotify,
    io::Errno,
};
use tokio::sync::mpsc;

use self::tree::Tree;
use crate::{
    Guest,
    error::{Error, Result},
    files::{Chunks, Files},
};

/// The most watches of one machine at once.
const MAX_WATCHES: usize = 64;
/// Bytes read from the kernel's queue at once: some hundred events.
const BUFFER: usize = 32 << 10;
/// Batches of events that wait for the host.
const IN_FLIGHT: usize = 4;
/// How long the second half of a move may be in coming.
const HALF_MOVED: Duration = Duration::from_millis(10);

/// The watches of one guest.
#[derive(Clone, Default)]
pub(crate) struct Count(Arc<AtomicUsize>);

/// One of them.
struct Place(Count);

impl Count {
    fn take(&self) -> Result<Place> {
        let before = self.0.fetch_add(1, Ordering::Relaxed);
        let place = Place(self.clone());
        if before < MAX_WATCHES {
            return Ok(place);
        }
        Err(Error::new(
            ErrorKind::Exhausted,
            format!("the machine has {MAX_WATCHES} watches already"),
        ))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Starts a watch. It ends when nobody reads it any more, or with what it watches.
pub(crate) async fn start(guest: &Guest, request: WatchRequest) -> Result<Chunks> {
    let place = guest.inner.watches.take()?;
    let files = Files::new(guest, request.user.as_deref())?;
    let target = files.target(&request.path)?;
    let except = request
        .except
        .iter()
        .map(|path| guest.host_path(path))
        .collect();
    let recursive = request.recursive;
    let tree = files
        .run(move || Tree::new(target, recursive, except))
        .await?;
    let (sender, receiver) = mpsc::channel(IN_FLIGHT);
    let gone = |error: Errno| Error::io("starting a watch", &error.into());
    let (stop, stopped) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(gone)?;
    // The thread sleeps in the kernel: what wakes it is the end of this pipe.
    let reader = sender.clone();
    tokio::spawn(async move {
        reader.closed().await;
        drop(stopped);
    });
    let user = files.user.clone();
    let work = move || {
        let _place = place;
        run(tree, &stop, &sender);
    };
    std::thread::Builder::new()
        .name("watch".into())
        .spawn(move || match user {
            None => work(),
            Some(user) => {
                // Not being that user any more ends the watch; the reader sees the end of the stream.
                let _ = nullspace_sys::cred::as_user(user.uid, user.gid, user.groups, work);
            }
        })
        .map_err(|error| Error::io("starting a watch", &error))?;
    Ok(receiver)
}

/// Tells what happens until the reader or the tree is gone.
fn run(mut tree: Tree, stop: &OwnedFd, sender: &mpsc::Sender<io::Result<Bytes>>) {
    let mut lines = Lines(Vec::new());
    lines.push(WatchKind::Started, tree.path().to_owned(), None);
    let mut buffer = vec![std::mem::MaybeUninit::uninit(); BUFFER];
    loop {
        if !lines.0.is_empty() && sender.blocking_send(Ok(lines.take())).is_err() {
            return;
        }
        if tree.is_over() {
            return;
        }
        let half = Timespec::try_from(HALF_MOVED).ok();
        let timeout = if tree.is_half_moved() {
            half.as_ref()
        } else {
            None
        };
        let mut ready = [
            PollFd::new(tree.inotify(), PollFlags::IN),
            PollFd::new(stop, PollFlags::IN),
        ];
        match poll(&mut ready, timeout) {
            Ok(0) => tree.moved_away(),
            Ok(_) if !ready[1].revents().is_empty() => return,
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return,
        }
        // A duplicate shares the queue, and leaves the tree free to change its watches meanwhile.
        let Ok(queue) = rustix::io::dup(tree.inotify()) else {
            return;
        };
        let mut events = inotify::Reader::new(&queue, &mut buffer);
        loop {
            match events.next() {
                Ok(event) => tree.take(&event, &mut lines),
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => continue,
                Err(_) => return,
            }
            if events.is_buffer_empty() {
                break;
            }
        }
    }
}

/// Events as lines; one that says the same as the one before is left out.
struct Lines(Vec<WatchEvent>);

impl Lines {
    fn push(&mut self, event: WatchKind, path: String, message: Option<String>) {
        let event = WatchEvent {
            event,
            path,
            message,
        };
        if self.0.last() != Some(&event) {
            self.0.push(event);
        }
    }

    fn take(&mut self) -> Bytes {
        let mut out = Vec::new();
        for event in self.0.drain(..) {
            let _ = serde_json::to_writer(&mut out, &event);
            out.push(b'\n');
        }
        out.into()
    }
}
