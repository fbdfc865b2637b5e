//! A process's output between its pipes and its readers.
//!
//! ```text
//!  pipe ──push──▶ [ retained records: base .. total ] ──next(from)──▶ reader
//!                   ▲ acknowledge / head limit moves base or stops keeping
//! ```
//! Offsets count the bytes of both streams together in the order in which they were read.
//!
//! Under [`Retain::Live`] there are two stretches: the head, which stays, and what is on its way to followers:
//!
//! ```text
//!  [ head: 0 .. 16 MiB ]   (gone)   [ live: from the slowest follower's place on .. total ]
//! ```

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Mutex,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use nullspace_protocol::{
    Retain,
    frame::{self, Frame},
};
use tokio::sync::Notify;

/// Kept of a process under [`Retain::Head`] and [`Retain::Live`], in bytes.
const HEAD_LIMIT: u64 = 16 << 20;
/// Not yet acknowledged output after which a process waits under [`Retain::UntilAcknowledged`].
const WINDOW: u64 = 8 << 20;
/// The same for a command whose output is streamed to its caller.
const ATTACHED_WINDOW: u64 = 1 << 20;
/// Kept of a process under [`Retain::Tail`], in bytes.
const TAIL: u64 = 256 << 10;
/// How long a process under [`Retain::Tail`] waits for a follower that takes nothing.
const PATIENCE: Duration = Duration::from_secs(2);

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
    Live,
    Tail,
    /// The caller went away: keep nothing.
    Discard,
}

struct Record {
    offset: u64,
    stderr: bool,
    data: Bytes,
    /// Header and data, where they lie side by side.
    framed: Option<Bytes>,
}

struct State {
    policy: Policy,
    records: VecDeque<Record>,
    /// What came after the head, until every follower has it.
    live: VecDeque<Record>,
    /// The next byte that each follower wants, by the follower's number.
    followers: BTreeMap<u64, u64>,
    /// Everything before is gone.
    base: u64,
    total: u64,
    exit: Option<Exit>,
}

impl State {
    /// The record that holds a byte, or the first after it.
    fn find(&self, from: u64, follow: bool) -> Option<&Record> {
        // They are in order of offset.
        let find = |records: &VecDeque<Record>| records.partition_point(|r| r.end() <= from);
        let head = self.records.get(find(&self.records));
        head.or_else(|| self.live.get(find(&self.live)).filter(|_| follow))
    }

    fn push(&mut self, stderr: bool, data: Bytes, framed: Option<Bytes>) {
        let mut record = Record {
            offset: self.total,
            stderr,
            data,
            framed,
        };
        self.total = record.end();
        match self.policy {
            Policy::Window(_) | Policy::Tail => {}
            Policy::Discard => {
                self.base = self.total;
                return;
            }
            Policy::Live if record.offset < HEAD_LIMIT => {}
            Policy::Live => {
                if !self.followers.is_empty() {
                    self.live.push_back(record);
                }
                return;
            }
            Policy::Head => {
                let left = HEAD_LIMIT.saturating_sub(record.offset) as usize;
                if left < record.data.len() {
                    record.data.truncate(left);
                    record.framed = None;
                }
            }
        }
        if !record.data.is_empty() {
            self.records.push_back(record);
        }
        if self.policy == Policy::Tail {
            self.trim();
        }
    }

    /// Drops what every follower has.
    fn trim(&mut self) {
        let slowest = self.followers.values().min().copied().unwrap_or(u64::MAX);
        if self.policy == Policy::Tail {
            let floor = slowest.min(self.total.saturating_sub(TAIL));
            while let Some(front) = self.records.front().filter(|front| front.end() <= floor) {
                self.base = front.end();
                self.records.pop_front();
            }
        }
        while let Some(front) = self.live.front() {
            if front.end() > slowest {
                break;
            }
            self.live.pop_front();
        }
    }
}

impl Record {
    fn end(&self) -> u64 {
        self.offset + self.data.len() as u64
    }
}

/// The follower that a process under [`Retain::Live`] has from its beginning.
pub(crate) const FIRST_FOLLOWER: u64 = 0;

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
            (_, Retain::Live) => Policy::Live,
            (_, Retain::Tail) => Policy::Tail,
            (true, _) => Policy::Window(ATTACHED_WINDOW),
            (false, Retain::UntilAcknowledged) => Policy::Window(WINDOW),
            (false, Retain::Head) => Policy::Head,
        };
        let first = attached && policy == Policy::Live;
        Self {
            state: Mutex::new(State {
                policy,
                records: VecDeque::new(),
                live: VecDeque::new(),
                followers: first.then_some((FIRST_FOLLOWER, 0)).into_iter().collect(),
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
            let patience = {
                let state = self.lock();
                let slowest = state.followers.values().min().copied();
                let lag = slowest.map_or(0, |slowest| state.total.saturating_sub(slowest));
                match state.policy {
                    Policy::Window(window) if state.total - state.base >= window => None,
                    Policy::Live if state.total >= HEAD_LIMIT && lag >= ATTACHED_WINDOW => None,
                    Policy::Tail if lag >= ATTACHED_WINDOW => Some(PATIENCE),
                    _ => return,
                }
            };
            match patience {
                None => room.await,
                Some(patience) => {
                    if tokio::time::timeout(patience, room).await.is_err() {
                        self.leave_behind();
                    }
                }
            }
        }
    }

    /// Who has taken nothing for too long is not waited for until it does.
    fn leave_behind(&self) {
        let mut state = self.lock();
        let total = state.total;
        for at in state.followers.values_mut() {
            if total.saturating_sub(*at) >= ATTACHED_WINDOW {
                *at = u64::MAX;
            }
        }
        state.trim();
    }

    /// Adds what was read from a pipe to behind [`frame::HEADER`] bytes that are free.
    pub(crate) fn push_framed(&self, stderr: bool, mut frame: BytesMut) {
        let mut state = self.lock();
        let header = frame::output_header(stderr, state.total, frame.len() - frame::HEADER);
        frame[..frame::HEADER].copy_from_slice(&header);
        let frame = frame.freeze();
        state.push(stderr, frame.slice(frame::HEADER..), Some(frame));
        drop(state);
        self.grown.notify_waiters();
    }

    /// Adds what was read from a pipe.
    pub(crate) fn push(&self, stderr: bool, data: Bytes) {
        self.lock().push(stderr, data, None);
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

    /// Somebody reads from this byte on; the number to [`Log::moved`] and [`Log::leave`] with. Nobody has to be known
    /// where nothing waits for readers.
    pub(crate) fn join(&self, from: u64) -> Option<u64> {
        let mut state = self.lock();
        if !matches!(state.policy, Policy::Live | Policy::Tail) {
            return None;
        }
        let from = from.max(state.base);
        let number = state
            .followers
            .keys()
            .next_back()
            .map_or(1, |last| last + 1);
        state.followers.insert(number, from);
        Some(number)
    }

    /// A follower has everything before this byte.
    pub(crate) fn moved(&self, follower: u64, to: u64) {
        let mut state = self.lock();
        state.followers.insert(follower, to);
        state.trim();
        drop(state);
        self.room.notify_waiters();
    }

    /// A follower is gone.
    pub(crate) fn leave(&self, follower: u64) {
        let mut state = self.lock();
        state.followers.remove(&follower);
        state.trim();
        drop(state);
        self.room.notify_waiters();
    }

    /// Whether a process with this log outlives whoever it was started for.
    pub(crate) fn is_live(&self) -> bool {
        self.lock().policy == Policy::Live
    }

    pub(crate) fn acknowledge(&self, offset: u64) {
        let mut state = self.lock();
        while let Some(front) = state.records.front() {
            let end = front.end();
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

    /// The frame that begins at `from`, as bytes, and the offset after it: where there is one that need not be copied.
    pub(crate) fn next_framed(&self, from: u64, follow: bool) -> Option<(Bytes, u64)> {
        let state = self.lock();
        let record = state.find(from, follow).filter(|r| r.offset == from)?;
        Some((record.framed.clone()?, record.end()))
    }

    /// The frame at `from`, or the first after it that is there, and the offset after that. Whoever does not `follow`
    /// sees the head alone: it only grows.
    pub(crate) fn next(&self, from: u64, follow: bool) -> (Next, u64) {
        let state = self.lock();
        if from < state.base && state.policy != Policy::Tail {
            return (Next::Gone(state.base), from);
        }
        if let Some(record) = state.find(from, follow) {
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
            // What a follower that came late has missed, it has missed.
            None if matches!(state.policy, Policy::Live | Policy::Tail) && follow => {
                (Next::Wait, from.max(state.total))
            }
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
        match log.next(from, true) {
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
    fn what_is_framed_goes_out_as_it_is_where_it_begins() {
        let log = Log::new(Retain::Head, false);
        log.push(true, Bytes::from_static(b"bad"));
        log.push_framed(
            false,
            BytesMut::from(&[&[0; frame::HEADER], &b"hello"[..]].concat()[..]),
        );
        let mut whole = BytesMut::new();
        Frame::Stdout(3, Bytes::from_static(b"hello")).encode(&mut whole);
        assert_eq!(log.next_framed(3, true), Some((whole.freeze(), 8)));
        // Neither from the middle of it, nor for what is in no frame.
        assert_eq!(log.next_framed(4, true), None);
        assert_eq!(log.next_framed(0, true), None);
        assert_eq!(
            frame(&log, 4),
            Some((Frame::Stdout(4, Bytes::from_static(b"ello")), 8))
        );
        // Of one that is cut at the limit the header would not be true.
        log.push(false, Bytes::from(vec![1; HEAD_LIMIT as usize - 10]));
        log.push_framed(false, BytesMut::from(&[7; frame::HEADER + 5][..]));
        assert_eq!(log.next_framed(HEAD_LIMIT - 2, true), None);
        assert_eq!(
            frame(&log, HEAD_LIMIT - 2),
            Some((
                Frame::Stdout(HEAD_LIMIT - 2, Bytes::from_static(&[7; 2])),
                HEAD_LIMIT
            ))
        );
    }

    #[test]
    fn acknowledged_bytes_are_gone_and_make_room() {
        let log = Log::new(Retain::UntilAcknowledged, false);
        log.push(false, Bytes::from_static(b"one"));
        log.push(false, Bytes::from_static(b"two"));
        log.acknowledge(4);
        assert!(matches!(log.next(0, true), (Next::Gone(3), 0)));
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

    #[tokio::test]
    async fn a_live_log_waits_for_its_slowest_follower_and_for_nobody_else() {
        let log = std::sync::Arc::new(Log::new(Retain::Live, true));
        let second = log.join(0).unwrap();
        // The head is kept for all that come, so nobody is waited for.
        log.push(false, Bytes::from(vec![0; HEAD_LIMIT as usize]));
        log.moved(second, HEAD_LIMIT);
        log.push(false, Bytes::from(vec![1; 10]));
        let waiter = tokio::spawn({
            let log = log.clone();
            async move { log.wait_for_room().await }
        });
        tokio::task::yield_now().await;
        assert!(!waiter.is_finished());
        log.moved(FIRST_FOLLOWER, HEAD_LIMIT + 4);
        waiter.await.unwrap();
        let (rest, end) = frame(&log, HEAD_LIMIT + 4).unwrap();
        assert_eq!(rest, Frame::Stdout(HEAD_LIMIT + 4, Bytes::from(vec![1; 6])));
        assert_eq!(end, HEAD_LIMIT + 10);
        // What all have is gone, and what comes while nobody follows.
        log.moved(FIRST_FOLLOWER, end);
        assert!(frame(&log, HEAD_LIMIT).is_some());
        log.moved(second, end);
        assert!(frame(&log, HEAD_LIMIT).is_none());
        log.leave(FIRST_FOLLOWER);
        log.leave(second);
        log.push(true, Bytes::from(vec![2; 2 << 20]));
        log.wait_for_room().await;
        // A later follower has the head and goes on with what comes then.
        let late = log.join(0).unwrap();
        let (_, head) = frame(&log, 0).unwrap();
        let (Next::Wait, now) = log.next(head, true) else {
            panic!("something was kept");
        };
        assert_eq!((head, now), (HEAD_LIMIT, HEAD_LIMIT + 10 + (2 << 20)));
        log.push(false, Bytes::from_static(b"x"));
        assert!(matches!(frame(&log, now), Some((Frame::Stdout(_, _), _))));
        assert!(matches!(log.next(head, false), (Next::Wait, HEAD_LIMIT)));
        log.leave(late);
    }

    #[tokio::test(start_paused = true)]
    async fn a_tail_waits_for_followers_that_take_something() {
        let log = Log::new(Retain::Tail, false);
        log.push(false, Bytes::from(vec![0; 2 * TAIL as usize]));
        log.push(false, Bytes::from(vec![1; TAIL as usize]));
        // The last bytes are there for whoever comes.
        let (tail, end) = frame(&log, 0).unwrap();
        assert_eq!(
            tail,
            Frame::Stdout(2 * TAIL, Bytes::from(vec![1; TAIL as usize]))
        );
        let (quick, stuck) = (log.join(end).unwrap(), log.join(end).unwrap());
        log.push(false, Bytes::from(vec![2; ATTACHED_WINDOW as usize]));
        log.moved(quick, end + ATTACHED_WINDOW);
        let begun = tokio::time::Instant::now();
        log.wait_for_room().await;
        assert!(begun.elapsed() >= PATIENCE);
        // It was left behind, and nobody waits for it until it goes on.
        log.push(false, Bytes::from(vec![3; 2 * ATTACHED_WINDOW as usize]));
        log.moved(quick, end + 3 * ATTACHED_WINDOW);
        let begun = tokio::time::Instant::now();
        log.wait_for_room().await;
        assert!(begun.elapsed() < PATIENCE);
        let (next, _) = frame(&log, end).unwrap();
        let Frame::Stdout(offset, _) = next else {
            panic!("{next:?}");
        };
        assert!(offset > end);
        log.leave(stuck);
        log.leave(quick);
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
