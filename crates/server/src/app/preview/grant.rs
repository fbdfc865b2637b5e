//! A grant in use: whether its tokens count, and what passed with them. Requests look here alone; the record follows
//! every few seconds.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed, Ordering::SeqCst},
};

use nullspace_api::time;
use nullspace_gateway::Account;
use nullspace_store::preview::{PreviewGrantRow, PreviewUse};
use tokio_util::sync::CancellationToken;

/// See the module.
pub(super) struct LiveGrant {
    pub(super) id: String,
    /// In microseconds since 1970.
    pub(super) expires_at: i64,
    /// Ends what is under way.
    pub(super) cut: CancellationToken,
    is_revoked: AtomicBool,
    http_count: AtomicU64,
    websocket_count: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    /// 0 for never.
    first_used_at: AtomicI64,
    last_used_at: AtomicI64,
    last_error: Mutex<Option<(String, i64)>>,
    /// The record does not have it all.
    is_ahead: AtomicBool,
    /// Some grant's record does not.
    any_ahead: Arc<AtomicBool>,
}

impl LiveGrant {
    /// As it is recorded. What passes ends with `ended`.
    pub(super) fn new(
        row: &PreviewGrantRow,
        ended: &CancellationToken,
        any_ahead: Arc<AtomicBool>,
    ) -> Self {
        let used = &row.used;
        let last_error = used.last_error_code.clone().zip(used.last_error_at);
        Self {
            id: row.id.clone(),
            expires_at: row.expires_at,
            cut: ended.child_token(),
            is_revoked: AtomicBool::new(row.revoked_at.is_some()),
            http_count: AtomicU64::new(used.http_count),
            websocket_count: AtomicU64::new(used.websocket_count),
            bytes_in: AtomicU64::new(used.bytes_in),
            bytes_out: AtomicU64::new(used.bytes_out),
            first_used_at: AtomicI64::new(used.first_used_at.unwrap_or(0)),
            last_used_at: AtomicI64::new(used.last_used_at.unwrap_or(0)),
            last_error: Mutex::new(last_error),
            is_ahead: AtomicBool::new(false),
            any_ahead,
        }
    }

    pub(super) fn is_revoked(&self) -> bool {
        self.is_revoked.load(SeqCst)
    }

    /// From now on nothing passes, and what is under way ends.
    pub(super) fn revoke(&self) {
        self.is_revoked.store(true, SeqCst);
        self.cut.cancel();
    }

    /// Somebody came in.
    pub(super) fn used(&self, websocket: bool, now: i64) {
        match websocket {
            true => self.websocket_count.fetch_add(1, Relaxed),
            false => self.http_count.fetch_add(1, Relaxed),
        };
        let _ = self
            .first_used_at
            .compare_exchange(0, now, Relaxed, Relaxed);
        self.last_used_at.store(now, Relaxed);
        self.changed();
    }

    fn changed(&self) {
        // In this order: whoever takes the second looks at the first.
        self.is_ahead.store(true, SeqCst);
        self.any_ahead.store(true, SeqCst);
    }

    /// What passed so far.
    pub(super) fn so_far(&self) -> PreviewUse {
        let at = |time: i64| (time != 0).then_some(time);
        let error = self
            .last_error
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let (last_error_code, last_error_at) = error.clone().unzip();
        PreviewUse {
            http_count: self.http_count.load(Relaxed),
            websocket_count: self.websocket_count.load(Relaxed),
            bytes_in: self.bytes_in.load(Relaxed),
            bytes_out: self.bytes_out.load(Relaxed),
            first_used_at: at(self.first_used_at.load(Relaxed)),
            last_used_at: at(self.last_used_at.load(Relaxed)),
            last_error_code,
            last_error_at,
        }
    }

    /// What the record lacks, once.
    pub(super) fn to_record(&self) -> Option<PreviewUse> {
        self.is_ahead.swap(false, SeqCst).then(|| self.so_far())
    }

    /// It could not be recorded.
    pub(super) fn not_recorded(&self) {
        self.changed();
    }
}

impl Account for LiveGrant {
    fn came_in(&self, bytes: u64) {
        self.bytes_in.fetch_add(bytes, Relaxed);
        self.changed();
    }

    fn went_out(&self, bytes: u64) {
        self.bytes_out.fetch_add(bytes, Relaxed);
        self.changed();
    }

    fn failed(&self, code: &'static str) {
        let mut error = self
            .last_error
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *error = Some((code.to_owned(), time::now()));
        drop(error);
        self.changed();
    }
}
