//! The audit log: who asked for what, and what came of it. Every request that changes something or opens a way in, and every one
//! that was refused for want of a key.
//!
//! ```text
//!  answer ──▶ one line, written before the answer is sent ──▶ audit/<n>.jsonl ──▶ full: <n+1>.jsonl; the oldest beyond the limit go
//! ```
//! Lines of a file and not rows of the record: one is in the kernel's hands when the answer goes out, so that a killed server loses none
//! of them, and it costs a request one `write`. There are no queries and no bodies in it, which may hold secrets. What is collected
//! elsewhere is read from the files as they are; see `docs/tenants.md`.

use std::{
    fs::{self, File},
    io::{self, Write},
    num::NonZeroU32,
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use governor::{DefaultDirectRateLimiter, Quota};
use nullspace_api::{
    audit::{AuditEntry, AuditPage, ListAuditQuery},
    error::code,
    page,
};

use super::{AppState, Caller};
use crate::error::{Error, Kind, Result};

/// Bytes of one file, about.
const FILE: u64 = 16 << 20;
/// The longest path that is noted, in bytes.
const MAX_PATH: usize = 1024;
/// Bytes that are read at once.
const BLOCK: u64 = 256 << 10;
/// Bytes that one page looks through.
const SCAN: u64 = 8 << 20;
/// Refusals a second that are noted: somebody without a key must not push out what others did.
const REFUSALS: NonZeroU32 = NonZeroU32::new(20).unwrap();

/// The log.
pub(crate) struct Log {
    dir: PathBuf,
    most: u64,
    current: Mutex<Option<Current>>,
    refusals: DefaultDirectRateLimiter,
}

struct Current {
    number: u64,
    file: File,
    size: u64,
    /// The last line has no end: the disk was full, or the power went.
    is_torn: bool,
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Log")
            .field("dir", &self.dir)
            .finish_non_exhaustive()
    }
}

fn path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:08}.jsonl"))
}

/// The numbers of the files, the oldest first.
fn numbers(dir: &Path) -> io::Result<Vec<u64>> {
    let mut numbers: Vec<u64> = fs::read_dir(dir)?
        .filter_map(|entry| {
            let name = entry.ok()?.file_name();
            name.to_str()?.strip_suffix(".jsonl")?.parse().ok()
        })
        .collect();
    numbers.sort_unstable();
    Ok(numbers)
}

impl Log {
    /// Opens the log beneath a data directory; at most about so many MiB are kept.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn open(data_dir: &Path, most_mb: u64) -> io::Result<Self> {
        let dir = data_dir.join("audit");
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)?;
        let log = Self {
            most: most_mb.saturating_mul(1 << 20),
            current: Mutex::new(None),
            refusals: DefaultDirectRateLimiter::direct(Quota::per_second(REFUSALS)),
            dir,
        };
        let newest = numbers(&log.dir)?.pop().unwrap_or(1);
        *log.current.lock().unwrap_or_else(PoisonError::into_inner) = Some(log.file(newest)?);
        Ok(log)
    }

    fn file(&self, number: u64) -> io::Result<Current> {
        let file = File::options()
            .create(true)
            .append(true)
            .read(true)
            .mode(0o600)
            .open(path(&self.dir, number))?;
        let size = file.metadata()?.len();
        let mut last = [0];
        let is_torn = size > 0 && file.read_exact_at(&mut last, size - 1).is_ok() && last != *b"\n";
        Ok(Current {
            number,
            file,
            size,
            is_torn,
        })
    }

    /// Notes what was done. It is not lost with this process once this returns.
    pub(crate) fn note(&self, mut entry: AuditEntry) {
        if matches!(entry.status, 401 | 403) && self.refusals.check().is_err() {
            return;
        }
        truncate(&mut entry.path);
        let mut line = match serde_json::to_vec(&entry) {
            Ok(line) => line,
            Err(error) => return tracing::error!(%error, "an entry of the audit log is no JSON"),
        };
        line.push(b'\n');
        if let Err(error) = self.append(line) {
            tracing::error!(%error, request_id = entry.request_id, "the audit log cannot be written");
        }
    }

    fn append(&self, mut line: Vec<u8>) -> io::Result<()> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.as_ref().is_none_or(|current| current.size >= FILE) {
            let next = current.as_ref().map_or(1, |current| current.number + 1);
            *current = Some(self.file(next)?);
            self.forget(next);
        }
        let Some(current) = current.as_mut() else {
            return Ok(());
        };
        if current.is_torn {
            line.insert(0, b'\n');
        }
        current.is_torn = true;
        current.file.write_all(&line)?;
        current.is_torn = false;
        current.size += line.len() as u64;
        Ok(())
    }

    /// Removes what is beyond the limit; the newest file stays.
    fn forget(&self, newest: u64) {
        let files = (self.most / FILE).max(1);
        for number in numbers(&self.dir).unwrap_or_default() {
            if number + files <= newest
                && let Err(error) = fs::remove_file(path(&self.dir, number))
            {
                tracing::warn!(%error, number, "an old file of the audit log cannot be removed");
            }
        }
    }
}

/// Cuts a text where a character ends.
fn truncate(text: &mut String) {
    if text.len() > MAX_PATH {
        let mut end = MAX_PATH;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
    }
}

/// A place in the log: what is before it was not looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    number: u64,
    offset: u64,
}

impl Place {
    fn parse(text: &str) -> Result<Self> {
        let place = text.split_once('-').and_then(|(number, offset)| {
            Some(Self {
                number: u64::from_str_radix(number, 16).ok()?,
                offset: u64::from_str_radix(offset, 16).ok()?,
            })
        });
        place.ok_or_else(|| Error::invalid("cursor: not a cursor of this server"))
    }

    fn word(self) -> String {
        format!("{:x}-{:x}", self.number, self.offset)
    }
}

/// A page of the log, newest first.
///
/// # Errors
/// `invalid_request`; `permission_denied` for another tenant's, unless the operator asks.
pub async fn list(app: &AppState, caller: &Caller, query: ListAuditQuery) -> Result<AuditPage> {
    let limit = query.limit.unwrap_or(page::DEFAULT_LIMIT);
    if limit == 0 || limit > page::MAX_LIMIT {
        return Err(Error::invalid(format!(
            "limit: must be 1 to {}",
            page::MAX_LIMIT
        )));
    }
    let cursor = query.cursor.filter(|text| !text.is_empty());
    let from = cursor.as_deref().map(Place::parse).transpose()?;
    let own = caller.tenant_id();
    let wanted = Wanted {
        // What belongs to nobody is the operator's.
        tenant_id: match query.tenant_id.filter(|id| !id.is_empty()) {
            asked if caller.is_operator() => asked,
            Some(other) if other != own => {
                return Err(Error::new(
                    Kind::Forbidden,
                    code::PERMISSION_DENIED,
                    "tenant_id: this api key is of another tenant",
                ));
            }
            _ => Some(own),
        },
        key_id: query.key_id,
        about: query.about,
    };
    let app = app.clone();
    let read = move || search(&app.audit.dir, &wanted, from, limit as usize);
    tokio::task::spawn_blocking(read)
        .await
        .unwrap_or_else(|error| Err(io::Error::other(error)))
        .map_err(|error| Error::internal(format!("reading the audit log: {error}")))
}

struct Wanted {
    tenant_id: Option<String>,
    key_id: Option<String>,
    about: Option<String>,
}

impl Wanted {
    fn matches(&self, entry: &AuditEntry) -> bool {
        let is =
            |wanted: &Option<String>, there: &Option<String>| wanted.is_none() || wanted == there;
        is(&self.tenant_id, &entry.tenant_id)
            && is(&self.key_id, &entry.key_id)
            && self
                .about
                .as_ref()
                .is_none_or(|about| entry.path.contains(about.as_str()))
    }
}

fn search(dir: &Path, wanted: &Wanted, from: Option<Place>, limit: usize) -> io::Result<AuditPage> {
    let mut page = AuditPage::default();
    let mut left = SCAN;
    let mut files = numbers(dir)?;
    files.retain(|number| from.is_none_or(|from| *number <= from.number));
    for number in files.into_iter().rev() {
        let file = match File::open(path(dir, number)) {
            // It was the oldest, and is gone by now.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            opened => opened?,
        };
        let size = file.metadata()?.len();
        let mut end = match from {
            Some(from) if from.number == number => from.offset.min(size),
            _ => size,
        };
        while end > 0 {
            if left == 0 || page.items.len() >= limit {
                let offset = end;
                page.next_cursor = Some(Place { number, offset }.word());
                return Ok(page);
            }
            let start = end.saturating_sub(BLOCK.min(left));
            let mut block = vec![0; usize::try_from(end - start).unwrap_or(usize::MAX)];
            file.read_exact_at(&mut block, start)?;
            left -= end - start;
            end = take_lines(&block, start, wanted, limit, &mut page.items);
        }
    }
    Ok(page)
}

/// Takes lines from the end of a block that begins at `start`; answers where the part begins that was not looked at.
fn take_lines(
    block: &[u8],
    start: u64,
    wanted: &Wanted,
    limit: usize,
    items: &mut Vec<AuditEntry>,
) -> u64 {
    let mut end = block.len();
    while end > 0 {
        if items.len() >= limit {
            return start + end as u64;
        }
        let body = &block[..end - usize::from(block[end - 1] == b'\n')];
        let begins = memchr::memrchr(b'\n', body).map(|at| at + 1);
        let begins = match begins {
            Some(begins) => begins,
            None if start == 0 => 0,
            // The rest of the line is in the block before. A line as long as a block is none of ours.
            None if end < block.len() => return start + end as u64,
            None => return start,
        };
        // What is no entry was torn.
        if let Ok(entry) = serde_json::from_slice::<AuditEntry>(&body[begins..])
            && wanted.matches(&entry)
        {
            items.push(entry);
        }
        end = begins;
    }
    start
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn entry(number: usize) -> AuditEntry {
        AuditEntry {
            at: "2026-01-01T00:00:00Z".into(),
            tenant_id: Some(format!("tnt_{}", number % 2)),
            key_id: Some("key_1".into()),
            method: "POST".into(),
            path: format!("/v1/machines/mch_{number}"),
            status: 201,
            request_id: "req_1".into(),
            ..AuditEntry::default()
        }
    }

    fn all(dir: &Path, wanted: &Wanted, limit: usize) -> Vec<String> {
        let (mut from, mut found) = (None, Vec::new());
        loop {
            let page = search(dir, wanted, from, limit).unwrap();
            assert!(page.items.len() <= limit);
            found.extend(page.items.into_iter().map(|entry| entry.path));
            match page.next_cursor {
                Some(cursor) => from = Some(Place::parse(&cursor).unwrap()),
                None => return found,
            }
        }
    }

    fn any() -> Wanted {
        Wanted {
            tenant_id: None,
            key_id: None,
            about: None,
        }
    }

    #[test]
    fn pages_go_back_through_all_files() {
        let data = tempfile::tempdir().unwrap();
        // Several files: each entry is about 150 bytes.
        let log = Log::open(data.path(), 1 << 20).unwrap();
        let count = 250_000;
        for number in 0..count {
            log.note(entry(number));
        }
        assert!(numbers(&log.dir).unwrap().len() > 1);
        let found = all(&log.dir, &any(), 200);
        assert_eq!(found.len(), count);
        assert!(
            (found.iter().rev().enumerate())
                .all(|(number, path)| *path == format!("/v1/machines/mch_{number}"))
        );
        let one = Wanted {
            tenant_id: Some("tnt_1".into()),
            about: Some("mch_7".into()),
            ..any()
        };
        let first = all(&log.dir, &one, 50).pop().unwrap();
        assert_eq!(first, "/v1/machines/mch_7");
        let none = Wanted {
            key_id: Some("key_2".into()),
            ..any()
        };
        assert!(all(&log.dir, &none, 50).is_empty());
    }

    #[test]
    fn a_torn_line_is_passed_over_and_old_files_go() {
        let data = tempfile::tempdir().unwrap();
        let log = Log::open(data.path(), 1).unwrap();
        log.note(entry(1));
        drop(log);
        let first = path(&data.path().join("audit"), 1);
        let mut bytes = fs::read(&first).unwrap();
        let whole = bytes.clone();
        bytes.extend(&whole[..20]);
        fs::write(&first, &bytes).unwrap();
        let log = Log::open(data.path(), 1).unwrap();
        log.note(entry(2));
        log.note(entry(3));
        let found = all(&log.dir, &any(), 2);
        assert_eq!(found, [3, 2, 1].map(|n| format!("/v1/machines/mch_{n}")));
        log.current.lock().unwrap().as_mut().unwrap().size = FILE;
        log.note(entry(4));
        assert_eq!(numbers(&log.dir).unwrap(), [2]);
        assert_eq!(all(&log.dir, &any(), 2), ["/v1/machines/mch_4"]);
    }

    #[test]
    fn refusals_do_not_push_out_the_rest() {
        let data = tempfile::tempdir().unwrap();
        let log = Log::open(data.path(), 1).unwrap();
        for number in 0..10_000 {
            log.note(AuditEntry {
                status: 401,
                ..entry(number)
            });
        }
        log.note(entry(1));
        let found = all(&log.dir, &any(), 200);
        assert!(found.len() < 1000, "{}", found.len());
        assert_eq!(found[0], "/v1/machines/mch_1");
    }

    #[test]
    fn long_paths_are_cut_where_a_character_ends() {
        let mut text = "ä".repeat(MAX_PATH);
        text.insert(0, 'a');
        truncate(&mut text);
        assert_eq!(text.len(), MAX_PATH - 1);
    }
}
