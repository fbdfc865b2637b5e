//! Git repositories in a machine.
//!
//! ```text
//!  check the request ──▶ what opens the remote ──▶ git in the machine, as exec runs it ──▶ read what it printed
//! ```
//! Git itself runs in the machine, as root, with the settings that the machine has: a repository's hooks and filters run
//! there as they would from a shell. With `auth` its hooks do not run. Nothing is recorded.

mod access;
mod parse;
mod publish;
mod refused;
mod remote;
mod run;

use nullspace_api::{
    error::code,
    git::{
        GitAddRequest, GitBranchAction, GitBranchRequest, GitBranches, GitCheckoutRequest,
        GitCloneRequest, GitCloneResponse, GitCommit, GitCommitRequest, GitStatus, GitSyncRequest,
    },
};
use nullspace_protocol::GuestClient;

use self::{
    access::{Access, NETWORK},
    parse::Garbled,
    publish::Clone,
    remote::Remote,
    run::{Ended, Git},
};
use super::{AppState, exec::lossy, machine};
use crate::error::{Error, Kind, Result};

/// Commits of a log when nobody says how many.
const DEFAULT_LOG: u32 = 50;
/// The most commits of a log.
const MAX_LOG: u32 = 1000;
/// The longest name of a branch, remote, tag.
const MAX_NAME: usize = 1024;
/// Longer messages are files.
const MAX_MESSAGE: usize = 64 << 10;
/// The most patterns in one request.
const MAX_FILES: usize = 10_000;
/// The most bytes in all patterns of one request: what Linux gives a program in its arguments.
const MAX_FILES_BYTES: usize = 512 << 10;
/// The longest summary of a pull or push.
const MAX_SUMMARY: usize = 8 << 10;

/// Clones into a directory, which has the whole repository or is as it was.
///
/// # Errors
/// `invalid_request`, `git_exists_conflict`, what git would not do (`git_…`), and those of [`machine::guest`]. All are
/// told without what was given to open the remote.
pub async fn clone(
    app: AppState,
    id: String,
    request: GitCloneRequest,
) -> Result<GitCloneResponse> {
    let path = repository(&request.path)?;
    let remote = Remote::parse(&request.url)?;
    let branch = request
        .branch
        .as_deref()
        .filter(|branch| !branch.is_empty());
    let branch = branch.map(|branch| name("branch", branch)).transpose()?;
    if request.depth == Some(0) {
        return Err(Error::invalid("depth: must be at least 1"));
    }
    let access = Access::new(request.auth, &remote).await?;
    let guest = machine::guest(&app, &id).await?;
    let clone = Clone::prepare(&app, &guest, path).await?;
    let mut arguments = vec!["clone".to_owned()];
    arguments.extend(branch.map(|branch| format!("--branch={branch}")));
    arguments.extend(request.depth.map(|depth| format!("--depth={depth}")));
    arguments.extend(["--".to_owned(), remote.url, clone.name().to_owned()]);
    let git = Git::new(&guest, "git clone", clone.parent(), arguments).reaches(&access, NETWORK);
    // Where it is made is nobody's business.
    git.run().await.map_err(|error| clone.in_its_place(error))?;
    Ok(GitCloneResponse {
        path: clone.publish().await?,
    })
}

/// What changed.
///
/// # Errors
/// `git_not_a_repository` and those of [`clone`].
pub async fn status(app: AppState, id: String, path: String) -> Result<GitStatus> {
    let path = repository(&path)?;
    let guest = machine::guest(&app, &id).await?;
    let arguments = [
        "status",
        "--porcelain=v2",
        "--branch",
        "--ahead-behind",
        "-z",
    ];
    let git = Git::new(&guest, "git status", path, arguments).reads();
    parse::status(&git.run().await?.stdout).map_err(|_| garbled("git status"))
}

/// The newest commits.
///
/// # Errors
/// As [`status`].
pub async fn log(
    app: AppState,
    id: String,
    path: String,
    limit: Option<u32>,
) -> Result<Vec<GitCommit>> {
    let path = repository(&path)?;
    let limit = limit.unwrap_or(DEFAULT_LOG);
    if limit == 0 || limit > MAX_LOG {
        return Err(Error::invalid(format!("limit: must be 1 to {MAX_LOG}")));
    }
    let guest = machine::guest(&app, &id).await?;
    let count = format!("--max-count={limit}");
    let arguments = [
        "-c",
        "i18n.logOutputEncoding=UTF-8",
        "log",
        "-z",
        parse::COMMIT_FORMAT,
        &count,
        "--no-show-signature",
        "--no-color",
        "--no-patch",
    ];
    let git = Git::new(&guest, "git log", path, arguments).reads();
    let ended = match git.run().await {
        // A repository without a commit has none.
        Err(error) if error.message.contains("does not have any commits yet") => {
            return Ok(Vec::new());
        }
        ended => ended?,
    };
    parse::log(&ended.stdout).map_err(|Garbled| garbled("git log"))
}

/// The local branches.
///
/// # Errors
/// As [`status`].
pub async fn branches(app: AppState, id: String, path: String) -> Result<GitBranches> {
    let path = repository(&path)?;
    let guest = machine::guest(&app, &id).await?;
    let arguments = ["for-each-ref", "--format=%(refname:lstrip=2)", "refs/heads"];
    let listed = Git::new(&guest, "git branch", &*path, arguments).reads();
    let listed = lossy(listed.run().await?.stdout);
    Ok(GitBranches {
        current: current(&guest, &path).await?,
        branches: listed.lines().map(str::to_owned).collect(),
    })
}

/// The branch that is checked out.
async fn current(guest: &GuestClient, path: &str) -> Result<Option<String>> {
    let arguments = ["symbolic-ref", "--quiet", "--short", "HEAD"];
    let ended = Git::new(guest, "git branch", path, arguments)
        .reads()
        .ended()
        .await?;
    Ok((ended.code == 0).then(|| lossy(ended.stdout).trim_end().to_owned()))
}

/// Makes a branch and checks it out, or deletes one.
///
/// # Errors
/// `git_exists_conflict`, `git_ref_not_found`, `git_unmerged_conflict`, and as [`status`].
pub async fn branch(app: AppState, id: String, request: GitBranchRequest) -> Result<()> {
    let path = repository(&request.path)?;
    let name = name("name", &request.name)?;
    let guest = machine::guest(&app, &id).await?;
    match request.action {
        GitBranchAction::Create => {
            let git = Git::new(&guest, "git branch", path, ["checkout", "-b", name]);
            git.run().await.map(drop)
        }
        GitBranchAction::Delete => {
            let how = if request.force { "-D" } else { "-d" };
            let git = Git::new(&guest, "git branch", path, ["branch", how, "--", name]);
            git.run().await.map(drop)
        }
    }
}

/// Checks out a branch, a tag or a commit.
///
/// # Errors
/// `git_ref_not_found`, `git_dirty_conflict`, and as [`status`].
pub async fn checkout(app: AppState, id: String, request: GitCheckoutRequest) -> Result<()> {
    let path = repository(&request.path)?;
    let to = name("ref", &request.r#ref)?;
    let guest = machine::guest(&app, &id).await?;
    let arguments = match request.create {
        true => ["checkout", "-b", to],
        // What stands before the dashes is never a file.
        false => ["checkout", to, "--"],
    };
    let git = Git::new(&guest, "git checkout", path, arguments);
    git.run().await.map(drop)
}

/// Stages files, or everything.
///
/// # Errors
/// `git_path_not_found`, and as [`status`].
pub async fn add(app: AppState, id: String, request: GitAddRequest) -> Result<()> {
    let path = repository(&request.path)?;
    check_files(&request.files)?;
    let guest = machine::guest(&app, &id).await?;
    stage(&guest, "git add", &path, Some(request.files)).await
}

/// `None` and an empty list are everything.
async fn stage(
    guest: &GuestClient,
    what: &'static str,
    path: &str,
    files: Option<Vec<String>>,
) -> Result<()> {
    let files = files.filter(|files| !files.is_empty());
    let head = match files {
        Some(_) => ["add", "--"],
        None => ["add", "--all"],
    };
    let arguments = head
        .map(str::to_owned)
        .into_iter()
        .chain(files.into_iter().flatten());
    let git = Git::new(guest, what, path, arguments);
    git.run().await.map(drop)
}

/// Commits what is staged, after staging what is asked for. Answers with the commit's name.
///
/// # Errors
/// `git_nothing_to_commit`, `git_identity_unknown`, `git_merge_conflict`, and as [`add`].
pub async fn commit(app: AppState, id: String, request: GitCommitRequest) -> Result<String> {
    let path = repository(&request.path)?;
    let message = request.message;
    if message.trim().is_empty() || message.len() > MAX_MESSAGE || message.contains('\0') {
        return Err(Error::invalid(format!(
            "message: must be text of 1 to {MAX_MESSAGE} bytes"
        )));
    }
    let mut arguments = Vec::new();
    match (request.author_name, request.author_email) {
        (None, None) => {}
        (Some(name), Some(email)) => {
            for (key, value) in [("name", name), ("email", email)] {
                if value.trim().is_empty()
                    || value.len() > MAX_NAME
                    || value.chars().any(char::is_control)
                {
                    return Err(Error::invalid(format!(
                        "author_{key}: must be one line of text"
                    )));
                }
                arguments.extend(["-c".to_owned(), format!("user.{key}={value}")]);
            }
        }
        _ => {
            return Err(Error::invalid(
                "author_name, author_email: give both or neither",
            ));
        }
    }
    arguments.extend(["commit".to_owned(), format!("--message={message}")]);
    let files = request.files.filter(|files| !files.is_empty());
    check_files(files.as_deref().unwrap_or_default())?;
    let guest = machine::guest(&app, &id).await?;
    if files.is_some() || request.add_all {
        // Everything has what is named in it.
        let files = files.filter(|_| !request.add_all);
        stage(&guest, "git commit", &path, files).await?;
    }
    Git::new(&guest, "git commit", &*path, arguments)
        .run()
        .await?;
    let head = Git::new(&guest, "git commit", path, ["rev-parse", "HEAD"]).reads();
    Ok(lossy(head.run().await?.stdout).trim_end().to_owned())
}

/// Fetches, and brings the current branch up to it, as the machine's git is configured to.
///
/// # Errors
/// `git_auth_failed`, `git_remote_not_found`, `git_remote_unreachable`, `git_ref_not_found`, `git_merge_conflict`,
/// `git_diverged_conflict`, `git_dirty_conflict`, `git_no_upstream`, and as [`status`].
pub async fn pull(app: AppState, id: String, request: GitSyncRequest) -> Result<String> {
    let sync = Sync::new(&app, &id, request, "git pull", false).await?;
    let mut arguments = vec!["pull".to_owned(), "--".to_owned(), sync.remote.clone()];
    arguments.extend(sync.branch.clone());
    sync.run(arguments).await
}

/// Pushes.
///
/// # Errors
/// `git_push_conflict`, and those of [`pull`] for a remote.
pub async fn push(app: AppState, id: String, request: GitSyncRequest) -> Result<String> {
    let set_upstream = request.set_upstream;
    let sync = Sync::new(&app, &id, request, "git push", true).await?;
    let mut arguments = vec!["push".to_owned()];
    arguments.extend(set_upstream.then(|| "--set-upstream".to_owned()));
    arguments.extend(["--".to_owned(), sync.remote.clone()]);
    // An upstream is one of a branch: without a name, of the current one.
    let current = set_upstream.then(|| "HEAD".to_owned());
    arguments.extend(sync.branch.clone().or(current));
    sync.run(arguments).await
}

/// A pull or a push.
struct Sync {
    guest: GuestClient,
    what: &'static str,
    push: bool,
    path: String,
    remote: String,
    branch: Option<String>,
    access: Access,
}

impl Sync {
    async fn new(
        app: &AppState,
        id: &str,
        request: GitSyncRequest,
        what: &'static str,
        push: bool,
    ) -> Result<Self> {
        let path = repository(&request.path)?;
        let remote = name("remote", &request.remote)?.to_owned();
        let branch = request.branch.filter(|branch| !branch.is_empty());
        if let Some(branch) = &branch {
            name("branch", branch)?;
        }
        let guest = machine::guest(app, id).await?;
        let access = match request.auth {
            None => Access::Own,
            // Where it leads to is the repository's to say, and the credential is for that alone.
            Some(auth) => {
                let push = push.then_some("--push");
                let arguments = ["remote", "get-url"]
                    .into_iter()
                    .chain(push)
                    .chain(["--", &remote]);
                let url = Git::new(&guest, what, &*path, arguments)
                    .reads()
                    .run()
                    .await?;
                let url = lossy(url.stdout);
                Access::new(Some(auth), &Remote::of_repository(url.trim_end())?).await?
            }
        };
        Ok(Self {
            guest,
            what,
            push,
            path,
            remote,
            branch,
            access,
        })
    }

    async fn run(self, arguments: Vec<String>) -> Result<String> {
        let git = Git::new(&self.guest, self.what, &*self.path, arguments);
        let Ended { stdout, stderr, .. } = git.reaches(&self.access, NETWORK).run().await?;
        let stdout = self.access.scrub(&lossy(stdout));
        let (stdout, stderr) = (stdout.trim(), stderr.trim());
        // A push says what it did among its messages; those of a pull are about its fetch.
        let mut text = match (self.push, stdout) {
            (true, _) => format!("{stderr}\n{stdout}").trim().to_owned(),
            (false, "") => stderr.to_owned(),
            (false, _) => stdout.to_owned(),
        };
        let mut end = text.len().min(MAX_SUMMARY);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        Ok(text)
    }
}

/// A directory that git is run in.
fn repository(path: &str) -> Result<String> {
    machine::check_cwd(path).map_err(|error| {
        let message = error.message.replacen("cwd: ", "path: ", 1);
        error.with_message(message)
    })
}

/// A name that git does not take for an option. Whether there is one, git says.
fn name<'a>(field: &str, value: &'a str) -> Result<&'a str> {
    if value.is_empty()
        || value.len() > MAX_NAME
        || value.starts_with('-')
        || value.chars().any(|c| c.is_control() || c == ' ')
    {
        return Err(Error::invalid(format!(
            "{field}: must be a name without spaces that does not begin with -"
        )));
    }
    Ok(value)
}

fn check_files(files: &[String]) -> Result<()> {
    if files
        .iter()
        .any(|file| file.is_empty() || file.contains('\0'))
    {
        return Err(Error::invalid(
            "files: none may be empty or hold a NUL byte",
        ));
    }
    if files.len() > MAX_FILES || files.iter().map(|f| f.len() + 1).sum::<usize>() > MAX_FILES_BYTES
    {
        return Err(Error::invalid("files: these are too many for one request")
            .with_action("name their directory, or stage everything with an empty list"));
    }
    Ok(())
}

fn garbled(what: &str) -> Error {
    Error::new(
        Kind::Machine,
        code::EXEC_FAILED,
        format!("{what}: the machine's git printed something else than git does"),
    )
}
