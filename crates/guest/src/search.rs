//! Searching contents and names, and replacing, on behalf of one user of the machine.
//!
//! Contents are searched by ripgrep's own crates, a file on each of a few threads. Expressions run in time linear in
//! what they read, so that none of them can hold a thread for long; a caller that goes away stops the walk.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use grep_regex::{RegexMatcher, RegexMatcherBuilder};
use grep_searcher::{BinaryDetection, Searcher, SearcherBuilder, Sink, SinkMatch};
use ignore::{DirEntry, WalkBuilder, WalkState};
use nullspace_protocol::{ReplaceRequest, Replaced, SearchMatch, SearchRequest};

use crate::{
    Guest,
    error::{Error, Result},
    files::{Files, Target, Upload},
};

/// The most lines that one search answers with.
const MAX_MATCHES: usize = 100_000;
/// The most bytes of lines that one search answers with.
const MAX_CONTENT: usize = 32 << 20;
/// The most names that one search answers with.
const MAX_NAMES: usize = 200_000;
/// Where a long line is cut, in bytes.
const MAX_LINE: usize = 8 << 10;
/// The longest line that is searched, in bytes; a file with a longer one is passed over from there on.
const MAX_HEAP: usize = 64 << 20;
/// The most memory that an expression takes once it is compiled.
const MAX_PROGRAM: usize = 8 << 20;
/// The most threads of one search.
const MAX_THREADS: usize = 4;
/// The most files of one replace.
const MAX_FILES: usize = 10_000;
/// The largest file that is replaced in.
const MAX_REPLACE: u64 = 64 << 20;
/// The machine's views of its kernel: no files, and some never end.
const PSEUDO: [&str; 3] = ["/proc", "/sys", "/dev"];

/// Tells the threads of a search that nobody waits for it any more.
struct Cancel(Arc<AtomicBool>);

impl Drop for Cancel {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What the threads of one walk share.
struct Walk {
    target: Target,
    left_out: HashSet<PathBuf>,
    stop: Arc<AtomicBool>,
    too_many: AtomicBool,
}

impl Walk {
    fn new(guest: &Guest, target: Target, except: &[String], stop: Arc<AtomicBool>) -> Self {
        let pseudo = PSEUDO.iter().filter(|path| {
            // Who asks for one of them gets it.
            !Path::new(&target.shown).starts_with(path)
        });
        let left_out = pseudo
            .copied()
            .chain(except.iter().map(String::as_str))
            .map(|path| guest.host_path(path))
            .collect();
        Self {
            target,
            left_out,
            stop,
            too_many: AtomicBool::new(false),
        }
    }

    /// As the machine sees it.
    fn shown(&self, real: &Path) -> String {
        let inside = real.strip_prefix(&self.target.real).unwrap_or(real);
        if inside.as_os_str().is_empty() {
            return self.target.shown.clone();
        }
        let base = self.target.shown.trim_end_matches('/');
        format!("{base}/{}", inside.to_string_lossy())
    }

    /// Walks everything beneath the target on a few threads. `visitor` makes one visitor for each.
    fn run<V>(self: &Arc<Self>, visitor: impl Fn() -> V)
    where
        V: FnMut(&DirEntry) + Send,
    {
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let this = self.clone();
        WalkBuilder::new(&self.target.real)
            .standard_filters(false)
            .follow_links(false)
            .threads(threads.min(MAX_THREADS))
            .filter_entry(move |entry| !this.left_out.contains(entry.path()))
            .build_parallel()
            .run(|| {
                let mut visit = visitor();
                Box::new(move |entry| {
                    if self.stop.load(Ordering::Relaxed) || self.too_many.load(Ordering::Relaxed) {
                        return WalkState::Quit;
                    }
                    // What may not be read, or is gone by now, is passed over.
                    if let Ok(entry) = entry {
                        visit(&entry);
                    }
                    WalkState::Continue
                })
            });
    }
}

/// Lines that match a regular expression.
pub(crate) async fn find(guest: &Guest, request: SearchRequest) -> Result<Vec<SearchMatch>> {
    let matcher = RegexMatcherBuilder::new()
        .line_terminator(Some(b'\n'))
        .size_limit(MAX_PROGRAM)
        .dfa_size_limit(MAX_PROGRAM)
        .build(&request.pattern)
        .map_err(|error| Error::invalid(format!("pattern: {error}")))?;
    let files = Files::new(guest, request.user.as_deref())?;
    let target = files.target(&request.path)?;
    let cancel = Cancel(Arc::default());
    let walk = Walk::new(guest, target, &request.except, cancel.0.clone());
    files
        .run(move || {
            exists(&walk.target)?;
            let (walk, found) = (Arc::new(walk), Arc::new(Found::default()));
            walk.run(|| {
                let (walk, found, matcher) = (walk.clone(), found.clone(), matcher.clone());
                let mut searcher = SearcherBuilder::new()
                    .binary_detection(BinaryDetection::quit(0))
                    .heap_limit(Some(MAX_HEAP))
                    .build();
                move |entry: &DirEntry| {
                    if entry.file_type().is_some_and(|kind| kind.is_file()) {
                        search_file(&walk, &found, &matcher, &mut searcher, entry.path());
                    }
                }
            });
            if walk.too_many.load(Ordering::Relaxed) {
                return Err(Error::invalid(format!(
                    "over {MAX_MATCHES} lines or {MAX_CONTENT} bytes match: narrow the pattern or the path"
                )));
            }
            let mut lines = found.lines.lock().unwrap_or_else(PoisonError::into_inner);
            let mut lines = std::mem::take(&mut *lines);
            lines.sort_unstable_by(|a, b| (&a.file, a.line).cmp(&(&b.file, b.line)));
            Ok(lines)
        })
        .await
}

#[derive(Default)]
struct Found {
    lines: Mutex<Vec<SearchMatch>>,
    count: AtomicUsize,
    bytes: AtomicUsize,
}

fn search_file(
    walk: &Walk,
    found: &Found,
    matcher: &RegexMatcher,
    searcher: &mut Searcher,
    path: &Path,
) {
    let mut lines = Lines {
        walk,
        found,
        file: String::new(),
        path,
        lines: Vec::new(),
    };
    // A file that cannot be read counts as one without a match, as does one that turns out to be binary.
    if searcher.search_path(matcher, path, &mut lines).is_err() {
        return;
    }
    let mut all = found.lines.lock().unwrap_or_else(PoisonError::into_inner);
    all.append(&mut lines.lines);
}

/// The matches of one file.
struct Lines<'a> {
    walk: &'a Walk,
    found: &'a Found,
    path: &'a Path,
    file: String,
    lines: Vec<SearchMatch>,
}

impl Sink for Lines<'_> {
    type Error = std::io::Error;

    fn matched(&mut self, _: &Searcher, found: &SinkMatch<'_>) -> std::io::Result<bool> {
        if self.file.is_empty() {
            self.file = self.walk.shown(self.path);
        }
        let line = found.bytes();
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let content = String::from_utf8_lossy(&line[..line.len().min(MAX_LINE)]).into_owned();
        let size = content.len() + self.file.len();
        let count = self.found.count.fetch_add(1, Ordering::Relaxed);
        let bytes = self.found.bytes.fetch_add(size, Ordering::Relaxed);
        if count >= MAX_MATCHES || bytes + size > MAX_CONTENT {
            self.walk.too_many.store(true, Ordering::Relaxed);
            return Ok(false);
        }
        self.lines.push(SearchMatch {
            file: self.file.clone(),
            line: found.line_number().unwrap_or(0),
            content,
        });
        Ok(!self.walk.stop.load(Ordering::Relaxed))
    }

    fn binary_data(&mut self, _: &Searcher, _: u64) -> std::io::Result<bool> {
        self.lines.clear();
        Ok(false)
    }
}

/// Paths whose names match a glob.
pub(crate) async fn search(guest: &Guest, request: SearchRequest) -> Result<Vec<String>> {
    let whole = request.pattern.contains('/');
    let glob = globset::GlobBuilder::new(&request.pattern)
        .literal_separator(true)
        .backslash_escape(true)
        .build()
        .map_err(|error| Error::invalid(format!("pattern: {error}")))?
        .compile_matcher();
    let from_root = request.pattern.starts_with('/');
    let files = Files::new(guest, request.user.as_deref())?;
    let target = files.target(&request.path)?;
    let cancel = Cancel(Arc::default());
    let walk = Walk::new(guest, target, &request.except, cancel.0.clone());
    files
        .run(move || {
            exists(&walk.target)?;
            let (walk, found) = (Arc::new(walk), Arc::new(Mutex::new(Vec::new())));
            walk.run(|| {
                let (walk, found, glob) = (walk.clone(), found.clone(), glob.clone());
                move |entry: &DirEntry| {
                    if entry.depth() == 0 {
                        return;
                    }
                    let path = entry.path();
                    let is_match = if from_root {
                        glob.is_match(walk.shown(path))
                    } else if whole {
                        let inside = path.strip_prefix(&walk.target.real).unwrap_or(path);
                        glob.is_match(inside)
                    } else {
                        glob.is_match(entry.file_name())
                    };
                    if !is_match {
                        return;
                    }
                    let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
                    if found.len() >= MAX_NAMES {
                        walk.too_many.store(true, Ordering::Relaxed);
                        return;
                    }
                    found.push(walk.shown(path));
                }
            });
            if walk.too_many.load(Ordering::Relaxed) {
                return Err(Error::invalid(format!(
                    "over {MAX_NAMES} names match: narrow the pattern or the path"
                )));
            }
            let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
            let mut found = std::mem::take(&mut *found);
            found.sort_unstable();
            Ok(found)
        })
        .await
}

fn exists(target: &Target) -> Result<()> {
    std::fs::metadata(&target.real)
        .map(drop)
        .map_err(|error| Error::io(&target.shown, &error))
}

/// Replaces matches in files. Everything is read before anything is written.
pub(crate) async fn replace(guest: &Guest, request: ReplaceRequest) -> Result<Replaced> {
    if request.files.len() > MAX_FILES {
        return Err(Error::invalid(format!("files: over {MAX_FILES}")));
    }
    let pattern = regex::bytes::RegexBuilder::new(&request.pattern)
        .multi_line(true)
        .size_limit(MAX_PROGRAM)
        .dfa_size_limit(MAX_PROGRAM)
        .build()
        .map_err(|error| Error::invalid(format!("pattern: {error}")))?;
    let files = Files::new(guest, request.user.as_deref())?;
    let mut seen = HashSet::new();
    let mut targets = Vec::new();
    for path in &request.files {
        let target = files.target(path)?;
        if seen.insert(target.real.clone()) {
            targets.push(target);
        }
    }
    let etc = guest.host_path("/etc");
    let cancel = Cancel(Arc::default());
    let stop = cancel.0.clone();
    files
        .run(move || {
            for target in &targets {
                check(target)?;
            }
            let mut done = Replaced::default();
            for target in targets {
                // Whoever asked is gone: the rest is left as it is, each file whole.
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let text = std::fs::read(&target.real).map_err(|e| Error::io(&target.shown, &e))?;
                if text.contains(&0) {
                    done.binary_files_skipped += 1;
                    continue;
                }
                let mut count = 0;
                let replacement = request.replacement.as_bytes();
                let new = pattern.replace_all(&text, |found: &regex::bytes::Captures<'_>| {
                    count += 1;
                    let mut new = Vec::new();
                    found.expand(replacement, &mut new);
                    new
                });
                if count == 0 {
                    done.files_skipped += 1;
                    continue;
                }
                done.files_modified += 1;
                done.replacements += count;
                if !request.dry_run {
                    let mut file = Upload::create(target, None)?;
                    file.append(&new)?;
                    file.publish(&etc)?;
                }
            }
            Ok(done)
        })
        .await
}

/// Whether a file can be replaced in.
fn check(target: &Target) -> Result<()> {
    let meta = std::fs::metadata(&target.real).map_err(|e| Error::io(&target.shown, &e))?;
    if !meta.is_file() {
        return Err(Error::invalid(format!(
            "{}: not a regular file",
            target.shown
        )));
    }
    if meta.len() > MAX_REPLACE {
        return Err(Error::invalid(format!(
            "{}: over {MAX_REPLACE} bytes",
            target.shown
        )));
    }
    Ok(())
}
