//! `nullspace machine sync`

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use nullspace_api::exec::ExecRequest;
use nullspace_api::file::FileInfo;
use nullspace_api::upload::{Conflict, SourceKind};
use nullspace_client::Client;
use serde::Serialize;

use crate::app::App;
use crate::error::{CliError, Outcome};
use crate::tree::{Entry, Kind, Tree};
use crate::upload::{self, Source};

/// Levels of the machine's directory that are looked at.
const MAX_DEPTH: u32 = 128;
/// Files whose checksums one command of the machine is asked for.
const BATCH: usize = 500;

/// Make a directory of a machine like a local one. What is the same already is not sent.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nullspace machine sync ./site mch_123:/srv/site
  nullspace machine sync ./site mch_123:/srv/site --delete --exclude node_modules/
  nullspace machine sync ./site mch_123:/srv/site --delete --dry-run

All that changes is put in its place at once, before anything is deleted. The directory's
.nullspaceignore says what stays here; what it names is not deleted there either.")]
pub(super) struct Args {
    /// The local directory.
    #[arg(value_name = "DIRECTORY")]
    from: PathBuf,
    /// The machine and its directory, as MACHINE:PATH.
    #[arg(value_name = "TO")]
    to: String,
    /// Delete what is there and not here.
    #[arg(long)]
    delete: bool,
    /// Leave out what matches, in the syntax of .gitignore; may be repeated.
    #[arg(long, value_name = "PATTERN")]
    exclude: Vec<String>,
    /// Act as this user of the machine.
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// Say what would be done.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    target_path: String,
    sent: Vec<String>,
    deleted: Vec<String>,
    unchanged: usize,
    bytes: u64,
    dry_run: bool,
}

pub(super) async fn run(args: &Args, app: &App) -> Outcome {
    let Some((machine, path)) = args.to.split_once(':').filter(|(_, path)| !path.is_empty()) else {
        return Err(CliError::usage("TO must be MACHINE:PATH")
            .hint("For example: nullspace machine sync ./site mch_123:/srv/site"));
    };
    if !args.from.is_dir() {
        let message = format!("no such directory: {}", args.from.display());
        return Err(CliError::usage(message));
    }
    let client = app.client()?;
    let files = client.files(machine).as_user(args.user.as_deref());
    let tree = Tree::read(&args.from, &args.exclude)?;
    let there = match files.list(path, Some(MAX_DEPTH)).await {
        Ok(entries) => entries,
        Err(error) if error.is_not_found() && error.code() == "not_found" => Vec::new(),
        Err(error) => return Err(error.into()),
    };
    // The path as the machine calls it, which a relative one needs.
    let root = match there.is_empty() {
        true => path.to_owned(),
        false => files.info(path).await?.path,
    };
    let there = below(&root, &there);
    let changed = changed(&client, machine, &tree, &root, &there).await?;
    let mine: HashSet<&str> = tree.entries.iter().map(|entry| &*entry.path).collect();
    let is_ignored = |path: &str| {
        let is_dir = there.get(path).is_none_or(|info| info.is_dir);
        tree.is_ignored(path, is_dir)
    };
    let mut gone: Vec<&str> = match args.delete {
        true => there
            .keys()
            .copied()
            .filter(|path| is_gone(path, &mine, is_ignored))
            .collect(),
        false => Vec::new(),
    };
    gone.sort_unstable();
    let files_here = |entry: &&Entry| entry.kind != Kind::Dir;
    let sent: Vec<String> = tree
        .included()
        .filter(files_here)
        .filter(|entry| changed.contains(&*entry.path))
        .map(|entry| entry.path.clone())
        .collect();
    let report = Report {
        unchanged: tree.included().filter(files_here).count() - sent.len(),
        bytes: tree
            .included()
            .filter(|entry| changed.contains(&*entry.path))
            .map(|entry| entry.size)
            .sum(),
        target_path: root.clone(),
        sent,
        deleted: gone.iter().map(|path| (*path).to_owned()).collect(),
        dry_run: args.dry_run,
    };
    if !args.dry_run {
        if !changed.is_empty() || there.is_empty() {
            // Directories come along with what is in them: they have permissions of their own.
            let needed: HashSet<&str> = changed.iter().flat_map(|path| ancestors(path)).collect();
            let archive = tree.archive(|entry| needed.contains(&*entry.path))?;
            let source = Source::new(archive, SourceKind::DirectoryArchive)
                .map_err(|error| CliError::local("cannot read the archive", &error))?;
            let whole = Some(source.sha256().await?);
            let user = args.user.as_deref();
            let request = source.request(&root, user, Conflict::Merge, whole.clone());
            let begun = client.create_upload(machine, &request).await?;
            let bar = app.ui.byte_bar(&args.to, Some(source.length));
            let sent = upload::send(&client, machine, &begun, &source, whole, None, &bar).await;
            bar.finish_and_clear();
            sent?;
        }
        for path in &gone {
            match files.remove(&format!("{root}/{path}")).await {
                Err(error) if !error.is_not_found() => return Err(error.into()),
                _ => {}
            }
        }
    }
    if app.ui.json {
        app.ui.json(&report)?;
        return Ok(0);
    }
    let would = if args.dry_run { "Would send" } else { "Sent" };
    for path in &report.sent {
        app.ui.line(format!("+ {path}"));
    }
    for path in &report.deleted {
        app.ui.line(format!("- {}", crate::ui::tame(path)));
    }
    app.ui.line(format!(
        "{would} {} files ({} bytes), deleted {}, {} unchanged",
        report.sent.len(),
        report.bytes,
        report.deleted.len(),
        report.unchanged
    ));
    Ok(0)
}

/// The machine's entries by their path below the root.
fn below<'a>(root: &str, entries: &'a [FileInfo]) -> HashMap<&'a str, &'a FileInfo> {
    let prefix = format!("{}/", root.trim_end_matches('/'));
    entries
        .iter()
        .filter_map(|entry| Some((entry.path.strip_prefix(&prefix)?, entry)))
        .collect()
}

/// Paths of files and links that the machine does not have as they are here, and of directories that it does not have.
async fn changed<'a>(
    client: &Client,
    machine: &str,
    tree: &'a Tree,
    root: &str,
    there: &HashMap<&str, &FileInfo>,
) -> Result<HashSet<&'a str>, CliError> {
    let (mut changed, mut doubtful) = (HashSet::new(), Vec::new());
    for entry in tree.included() {
        let is_same = match there.get(&*entry.path) {
            None => false,
            Some(info) => match entry.kind {
                Kind::Dir => info.is_dir,
                Kind::Link => {
                    info.symlink_target.as_deref().map(Path::new) == entry.target.as_deref()
                }
                Kind::File => {
                    let is_alike = info.kind == "file"
                        && info.size == entry.size
                        && u32::from_str_radix(&info.mode, 8).ok() == Some(entry.mode);
                    if is_alike && entry.size > 0 {
                        doubtful.push(entry);
                    }
                    is_alike
                }
            },
        };
        if !is_same {
            changed.insert(&*entry.path);
        }
    }
    for batch in doubtful.chunks(BATCH) {
        let sums = checksums(client, machine, root, batch).await?;
        for (entry, theirs) in batch.iter().zip(sums) {
            let file = std::fs::File::open(tree.local(entry))
                .and_then(|file| Source::new(file, SourceKind::RestartableFile))
                .map_err(|error| {
                    CliError::local(
                        format!("cannot read {}", tree.local(entry).display()),
                        &error,
                    )
                })?;
            if theirs.as_deref() != Some(&*file.sha256().await?) {
                changed.insert(&*entry.path);
            }
        }
    }
    Ok(changed)
}

/// SHA-256 of files of the machine, in order; nothing for one that it does not tell.
async fn checksums(
    client: &Client,
    machine: &str,
    root: &str,
    entries: &[&Entry],
) -> Result<Vec<Option<String>>, CliError> {
    // With --zero a name cannot pass for another line.
    let mut args = vec!["--zero".to_owned(), "--".to_owned()];
    args.extend(entries.iter().map(|entry| format!("{root}/{}", entry.path)));
    let request = ExecRequest {
        command: "sha256sum".to_owned(),
        args: Some(args),
        timeout_secs: Some(600),
        ..ExecRequest::default()
    };
    let done = client.exec(machine, &request).await?;
    let told: HashMap<&str, &str> = done
        .stdout
        .split('\0')
        .filter_map(|line| line.split_once("  ").map(|(sum, path)| (path, sum)))
        .collect();
    let sum = |entry: &&Entry| {
        told.get(&*format!("{root}/{}", entry.path))
            .map(|sum| (*sum).to_owned())
    };
    Ok(entries.iter().map(sum).collect())
}

/// A path and the directories that lead to it, without the root.
fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(path), |path| Some(path.rsplit_once('/')?.0))
}

/// Whether the machine has a path that is neither here nor below something that is gone with it or ignored.
fn is_gone(path: &str, mine: &HashSet<&str>, is_ignored: impl Fn(&str) -> bool) -> bool {
    if mine.contains(path) || ancestors(path).any(is_ignored) {
        return false;
    }
    // Its directory's going takes it along.
    path.rsplit_once('/')
        .is_none_or(|(parent, _)| mine.contains(parent))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_gone_is_deleted_once_and_what_is_ignored_never() {
        let mine = HashSet::from(["a", "d", "d/b", "logs"]);
        for (path, gone) in [
            ("a", false),
            ("d/b", false),
            ("d/c", true),
            ("e", true),
            ("e/f", false),
            ("logs", false),
            ("logs/x", false),
        ] {
            assert_eq!(is_gone(path, &mine, |path| path == "logs"), gone, "{path}");
        }
    }
}
