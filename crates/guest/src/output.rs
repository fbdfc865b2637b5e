//! A process's output between its pipes and its readers.
//!
//! ```text
//!  pipe ──push──▶ [ retained records: base .. total ] ──next(from)──▶ reader
//!                   ▲ acknowledge / head limit moves base or stops keeping
//! ```
//! Offsets count the bytes of both streams together in the order in which they were read.

use std::{collections::VecDeque, sync::Mutex};

use bytes::Bytes;
use nullspace_protocol::{Retain, frame::Frame};
use tokio::sync::Notify;

/// Kept of a process under [`Retain::Head`], in bytes.
const HEAD_LIMIT: u64 = 16 << 20;
/// Not yet acknowledged output after which a process waits under [`Retain::UntilAcknowledged`].
const WINDOW: u64 = 8 << 20;
/// The same for a command whose output is streamed to its caller.
const ATTACHED_WINDOW: u64 = 1 << 20;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exit {
    pub(crate) code: i32,
    pub(crate) timed_out: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Policy {
    Head,
    Window(u64),
    /// The caller went away: keep nothing.
    Discard,
}

struct Record {
    offset: u64,
    stderr: bool,
    data: Bytes,
}

struct State {
    policy: Policy,
    records: VecDeque<Record>,
    /// Everything before is gone.
    base: u64,
    total: u64,
    exit: Option<Exit>,
}

/// One process's output; shared by the reader of its pipes and any number of followers.
pub(crate) struct Log {
    state: Mutex<State>,
    /// Something was pushed or the process ended.
    grown: Notify,
    /// Room was made.
    room: Notify,
}

/// What a follower gets.
pub(crate) enum Next {
    Frame(Frame),
    /// Nothing now; ask again after `grown`.
    Wait,
    /// The bytes asked for were acknowledged away.
    Gone(u64),
}

impl Log {
    pub(crate) fn new(retain: Retain, attached: bool) -> Self {
        let policy = match (attached, retain) {
            (true, _) => Policy::Window(ATTACHED_WINDOW),
            (false, Retain::UntilAcknowledged) => Policy::Window(WINDOW),
            (false, Retain::Head) => Policy::Head,
        };
        Self {
            state: Mutex::new(State {
                policy,
                records: VecDeque::new(),
                base: 0,
                total: 0,
                exit: None,
            }),
            grown: Notify::new(),
            room: Notify::new(),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Waits until output may be read from the pipes: always under `Head`.
    pub(crate) async fn wait_for_room(&self) {
        loop {
            let room = self.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            {
                let state = self.lock();
                match state.policy {
                    Policy::Window(window) if state.total - state.base >= window => {}
                    _ => return,
                }
            }
            room.await;
        }
    }

    /// Adds what was read from a pipe.
    pub(crate) fn push(&self, stderr: bool, data: Bytes) {
        let mut state = self.lock();
        let offset = state.total;
        state.total += data.len() as u64;
        let keep = match state.policy {
            Policy::Window(_) => data,
            Policy::Discard => {
                state.base = state.total;
                Bytes::new()
            }
            Policy::Head => {
                let left = HEAD_LIMIT.saturating_sub(offset) as usize;
                data.slice(..left.min(data.len()))
            }
        };
        if !keep.is_empty() {
            state.records.push_back(Record {
                offset,
                stderr,
                data: keep,
            });
        }
        drop(state);
        self.grown.notify_waiters();
    }

    /// No more output: the process ended and its pipes were drained.
    pub(crate) fn finish(&self, exit: Exit) {
        self.lock().exit.get_or_insert(exit);
        self.grown.notify_waiters();
    }

    pub(crate) fn exit(&self) -> Option<Exit> {
        self.lock().exit
    }

    pub(crate) fn acknowledge(&self, offset: u64) {
        let mut state = self.lock();
        while let Some(front) = state.records.front() {
            let end = front.offset + front.data.len() as u64;
            if end > offset {
                break;
            }
            state.base = end;
            state.records.pop_front();
        }
        drop(state);
        self.room.notify_waiters();
    }

    /// From now on nobody reads: keep nothing and never let the process wait.
    pub(crate) fn abandon(&self) {
        let mut state = self.lock();
        state.records.clear();
        state.policy = Policy::Discard;
        state.base = state.total;
        drop(state);
        self.room.notify_waiters();
    }

    /// The frame at `from`, and the offset after it.
    pub(crate) fn next(&self, from: u64) -> (Next, u64) {
        let state = self.lock();
        if from < state.base {
            return (Next::Gone(state.base), from);
        }
        // Records are in order of offset: find the one that holds `from`.
        let at = state
            .records
            .partition_point(|r| r.offset + r.data.len() as u64 <= from);
        if let Some(record) = state.records.get(at) {
            let skip = from.saturating_sub(record.offset) as usize;
            let start = record.offset + skip as u64;
            let data = record.data.slice(skip..);
            let end = start + data.len() as u64;
            let frame = if record.stderr {
                Frame::Stderr(start, data)
            } else {
                Frame::Stdout(start, data)
            };
            return (Next::Frame(frame), end);
        }
        match state.exit {
            Some(Exit { code, timed_out }) => (
                Next::Frame(Frame::Exit {
                    code,
                    timed_out,
                    total: state.total,
                }),
                from,
            ),
            None => (Next::Wait, from),
        }
    }

    /// Resolves once something was pushed, or the process ended, after this call.
    pub(crate) fn grown(&self) -> tokio::sync::futures::Notified<'_> {
        self.grown.notified()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn frame(log: &Log, from: u64) -> Option<(Frame, u64)> {
        match log.next(from) {
            (Next::Frame(frame), next) => Some((frame, next)),
            _ => None,
        }
    }

    #[test]
    fn a_reader_goes_on_inside_a_record() {
        let log = Log::new(Retain::Head, false);
        log.push(false, Bytes::from_static(b"hello"));
        log.push(true, Bytes::from_static(b"bad"));
        assert_eq!(
            frame(&log, 2),
            Some((Frame::Stdout(2, Bytes::from_static(b"llo")), 5))
        );
        assert_eq!(
            frame(&log, 5),
            Some((Frame::Stderr(5, Bytes::from_static(b"bad")), 8))
        );
        assert!(frame(&log, 8).is_none());
        log.finish(Exit {
            code: 3,
            timed_out: false,
        });
        assert_eq!(
            frame(&log, 8).unwrap().0,
            Frame::Exit {
                code: 3,
                timed_out: false,
                total: 8
            }
        );
    }

    #[test]
    fn acknowledged_bytes_are_gone_and_make_room() {
        let log = Log::new(Retain::UntilAcknowledged, false);
        log.push(false, Bytes::from_static(b"one"));
        log.push(false, Bytes::from_static(b"two"));
        log.acknowledge(4);
        assert!(matches!(log.next(0), (Next::Gone(3), 0)));
        assert_eq!(
            frame(&log, 4),
            Some((Frame::Stdout(4, Bytes::from_static(b"wo")), 6))
        );
    }

    #[tokio::test]
    async fn a_full_window_waits_for_the_acknowledgement() {
        let log = std::sync::Arc::new(Log::new(Retain::UntilAcknowledged, false));
        log.push(false, Bytes::from(vec![0; WINDOW as usize]));
        let waiter = tokio::spawn({
            let log = log.clone();
            async move { log.wait_for_room().await }
        });
        tokio::task::yield_now().await;
        assert!(!waiter.is_finished());
        log.acknowledge(WINDOW);
        waiter.await.unwrap();
    }

    #[test]
    fn the_head_is_kept_and_the_rest_counted() {
        let log = Log::new(Retain::Head, false);
        log.push(false, Bytes::from(vec![1; HEAD_LIMIT as usize - 1]));
        log.push(false, Bytes::from_static(b"abc"));
        log.finish(Exit {
            code: 0,
            timed_out: false,
        });
        let (last, end) = frame(&log, HEAD_LIMIT - 1).unwrap();
        assert_eq!(
            last,
            Frame::Stdout(HEAD_LIMIT - 1, Bytes::from_static(b"a"))
        );
        assert_eq!(
            frame(&log, end).unwrap().0,
            Frame::Exit {
                code: 0,
                timed_out: false,
                total: HEAD_LIMIT + 2
            }
        );
    }
}
