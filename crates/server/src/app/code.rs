//! Code in the kernels of a machine: contexts, and what they run.
//!
//! ```text
//!  request ──▶ context (record) ──▶ bridge in the machine ──▶ kernel
//!                                     └─ events ──▶ execution ──▶ caller, or the record of a run
//! ```
//! A context is a record here and a kernel there: the kernel is made when it is first used, outlives every connection and
//! this server, and when it is lost the next execution says so.

pub mod artifact;
pub(crate) mod bridge;
pub(crate) mod execution;
pub mod run;

use std::collections::BTreeMap;

use nullspace_api::{
    code::{
        CodeContext, CreateContextRequest, DEFAULT_LANGUAGE, DEFAULT_TIMEOUT_SECS,
        ExecuteCodeRequest,
    },
    error::code,
    id, time,
};
use nullspace_protocol::{FileKind, PathRequest};
use nullspace_store::code::{self as rows, ContextRow};

use self::{
    bridge::{Code, Conversation, Op, Wanted},
    execution::Running,
};
use super::{App, AppState, machine};
use crate::error::{Error, Kind, Result};

/// The longest code, in bytes.
const MAX_CODE: usize = 1 << 20;
/// The longest time limit, in seconds.
const MAX_TIMEOUT_SECS: u64 = 24 * 3600;
/// Contexts of one machine.
const MAX_CONTEXTS: usize = 32;
/// How a language may be called, and what it is called here.
const LANGUAGES: [(&str, &str); 9] = [
    ("python3", "python3"),
    ("python", "python3"),
    ("py", "python3"),
    ("javascript", "javascript"),
    ("js", "javascript"),
    ("deno", "javascript"),
    ("node", "javascript"),
    ("typescript", "typescript"),
    ("ts", "typescript"),
];

/// Runs code and streams what it gives. Who drops it interrupts the code.
///
/// # Errors
/// `invalid_request`, `not_found` (context), `capacity_exceeded` (queue), `not_implemented` (a machine without kernels),
/// `exec_failed`, and those of [`machine::guest`].
pub async fn execute(
    app: &AppState,
    machine_id: &str,
    request: ExecuteCodeRequest,
) -> Result<Running> {
    let code = checked(request.code, request.envs, request.timeout)?;
    let language = language(request.language.as_deref())?;
    running_machine(app, machine_id).await?;
    let context = match request.context_id.filter(|id| !id.is_empty()) {
        Some(id) => find(app, machine_id, &id).await?,
        None => default_context(app, machine_id, language).await?,
    };
    let (conversation, _) = ask(app, &context, |context| Op::Execute { context, code }).await?;
    Ok(Running::new(app.clone(), context, None, conversation))
}

/// Makes a context, with its kernel.
///
/// # Errors
/// As [`execute`]; `capacity_exceeded` when the machine has too many.
pub async fn create(
    app: &App,
    machine_id: &str,
    request: CreateContextRequest,
) -> Result<CodeContext> {
    let language = language(request.language.as_deref())?;
    let row = running_machine(app, machine_id).await?;
    let cwd = match request.cwd.filter(|cwd| !cwd.is_empty()) {
        Some(cwd) => directory(app, machine_id, machine::check_cwd(&cwd)?).await?,
        None => row.cwd.clone(),
    };
    let context = record(app, machine_id, language, cwd, false).await?;
    if let Err(error) = ask(app, &context, |context| Op::Open { context }).await {
        let (machine_id, id) = (context.machine_id, context.id);
        app.store
            .write(move |tx| rows::remove_context(tx, &machine_id, &id))
            .await?;
        return Err(error);
    }
    Ok(info(context))
}

/// The contexts of a machine, oldest first.
///
/// # Errors
/// `machine_not_found`, `machine_not_ready`.
pub async fn list(app: &App, machine_id: &str) -> Result<Vec<CodeContext>> {
    running_machine(app, machine_id).await?;
    let wanted = machine_id.to_owned();
    let rows = app
        .store
        .read(move |db| rows::contexts(db, &wanted))
        .await?;
    Ok(rows.into_iter().map(info).collect())
}

/// Removes a context and ends its kernel, whatever runs there.
///
/// # Errors
/// `not_found`, and those of [`machine::guest`].
pub async fn remove(app: &App, machine_id: &str, id: &str) -> Result<()> {
    running_machine(app, machine_id).await?;
    let context = find(app, machine_id, id).await?;
    let (machine_id, id) = (machine_id.to_owned(), id.to_owned());
    app.store
        .write(move |tx| rows::remove_context(tx, &machine_id, &id))
        .await?;
    // A machine in which nothing runs kernels has none to end.
    if let Some(mut bridge) = bridge::find(app, &context.machine_id).await? {
        bridge
            .ask(&Op::Close {
                context: wanted(&context),
            })
            .await?;
    }
    Ok(())
}

/// Ends a context's kernel and begins with a fresh one.
///
/// # Errors
/// `not_found`, `exec_failed`, and those of [`machine::guest`].
pub async fn restart(app: &App, machine_id: &str, id: &str) -> Result<()> {
    running_machine(app, machine_id).await?;
    let context = find(app, machine_id, id).await?;
    ask(app, &context, |context| Op::Restart { context })
        .await
        .map(drop)
}

/// Stops what runs in a context, as Ctrl-C does. One in which nothing runs is fine.
///
/// # Errors
/// `not_found`, and those of [`machine::guest`].
pub async fn interrupt(app: &App, machine_id: &str, id: &str) -> Result<()> {
    running_machine(app, machine_id).await?;
    let context = find(app, machine_id, id).await?;
    if let Some(mut bridge) = bridge::find(app, machine_id).await? {
        bridge
            .ask(&Op::Interrupt {
                context: wanted(&context),
            })
            .await?;
    }
    Ok(())
}

/// What is over its time goes; what belongs to machines that are gone, too. Called now and then.
///
/// # Errors
/// When the record cannot be written.
pub async fn sweep(app: &App) -> Result<()> {
    app.code.bridges.forget(|id| app.machines.get(id).is_none());
    app.store
        .write(|tx| {
            rows::forget_contexts(tx)?;
            rows::forget_runs(tx, time::now())
        })
        .await?;
    artifact::sweep(app).await
}

/// What goes on at start: artifacts that are not on record are removed, runs are followed again.
///
/// # Errors
/// When the record or the directory of artifacts cannot be read.
pub async fn start(app: &AppState) -> Result<()> {
    artifact::clean(app).await?;
    run::resume_all(app).await
}

/// The code side's own state.
#[derive(Debug, Default)]
pub struct State {
    pub(crate) bridges: bridge::Bridges,
}

/// Asks the bridge of a context's machine, and notes which one it was.
async fn ask(
    app: &App,
    context: &ContextRow,
    op: impl FnOnce(Wanted) -> Op,
) -> Result<(Conversation, bridge::Reply)> {
    let op = op(wanted(context));
    let (bridge, reply) = bridge::converse(app, &context.machine_id, &op).await?;
    if let Some(instance) = reply.instance.clone()
        && context.instance.as_ref() != Some(&instance)
    {
        let id = context.id.clone();
        app.store
            .write(move |tx| rows::set_instance(tx, &id, &instance))
            .await?;
    }
    Ok((bridge, reply))
}

fn wanted(context: &ContextRow) -> Wanted {
    Wanted {
        id: context.id.clone(),
        language: context.language.clone(),
        cwd: context.cwd.clone(),
        instance: context.instance.clone(),
    }
}

/// Checks what is to run.
fn checked(
    code: String,
    envs: Option<BTreeMap<String, String>>,
    timeout: Option<u64>,
) -> Result<Code> {
    if code.trim().is_empty() {
        return Err(Error::invalid("code: must not be empty"));
    }
    if code.len() > MAX_CODE {
        return Err(Error::invalid(format!("code: over {MAX_CODE} bytes"))
            .with_action("write it to a file of the machine and run that"));
    }
    let timeout = timeout.unwrap_or(DEFAULT_TIMEOUT_SECS);
    if timeout == 0 || timeout > MAX_TIMEOUT_SECS {
        return Err(Error::invalid(format!(
            "timeout: must be 1 to {MAX_TIMEOUT_SECS} seconds"
        )));
    }
    let envs = envs.unwrap_or_default();
    machine::check_envs(&envs)?;
    Ok(Code {
        code,
        envs,
        timeout,
    })
}

fn language(asked: Option<&str>) -> Result<&'static str> {
    let asked = asked
        .filter(|word| !word.is_empty())
        .unwrap_or(DEFAULT_LANGUAGE);
    LANGUAGES
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(asked))
        .map(|(_, language)| *language)
        .ok_or_else(|| {
            Error::invalid(format!("language: no kernel for {asked:?}"))
                .with_action("use python3, javascript or typescript")
        })
}

/// The machine's record, if it runs.
async fn running_machine(
    app: &App,
    id: &str,
) -> Result<std::sync::Arc<nullspace_store::machine::MachineRow>> {
    let row = machine::get(app, id).await?;
    match row.state == machine::RUNNING {
        true => Ok(row),
        false => Err(Error::not_ready(id, &row.state)),
    }
}

async fn directory(app: &App, machine_id: &str, cwd: String) -> Result<String> {
    let guest = machine::guest(app, machine_id).await?;
    let request = PathRequest {
        path: cwd.clone(),
        follow: true,
        ..PathRequest::default()
    };
    match guest.stat(&request).await {
        Ok(info) if info.kind == FileKind::Dir => Ok(cwd),
        Ok(_) => Err(Error::invalid(format!("cwd: {cwd} is not a directory"))),
        Err(error) if error.kind().is_some() => {
            Err(Error::invalid(format!("cwd: {error}")).with_action("make the directory first"))
        }
        Err(error) => Err(error.into()),
    }
}

async fn find(app: &App, machine_id: &str, id: &str) -> Result<ContextRow> {
    let (machine, wanted) = (machine_id.to_owned(), id.to_owned());
    app.store
        .read(move |db| rows::context(db, &machine, &wanted))
        .await?
        .ok_or_else(|| {
            Error::not_found(
                code::NOT_FOUND,
                format!("no code context {id:?} in this machine"),
            )
        })
}

/// The context that code without one runs in.
async fn default_context(
    app: &App,
    machine_id: &str,
    language: &'static str,
) -> Result<ContextRow> {
    let machine = machine::get(app, machine_id).await?;
    record(app, machine_id, language, machine.cwd.clone(), true).await
}

/// Records a context; a default one that is there already is taken.
async fn record(
    app: &App,
    machine_id: &str,
    language: &'static str,
    cwd: String,
    is_default: bool,
) -> Result<ContextRow> {
    let row = ContextRow {
        id: id::new(id::CODE_CONTEXT),
        machine_id: machine_id.to_owned(),
        language: language.to_owned(),
        cwd,
        is_default,
        instance: None,
        created_at: time::now(),
    };
    app.store
        .write(move |tx| {
            let known = rows::contexts(tx, &row.machine_id)?;
            let same =
                |old: &&ContextRow| is_default && old.is_default && old.language == row.language;
            if let Some(old) = known.iter().find(same) {
                return Ok(old.clone());
            }
            if known.len() >= MAX_CONTEXTS {
                return Err(Error::new(
                    Kind::Limit,
                    code::CAPACITY_EXCEEDED,
                    format!("the machine has {MAX_CONTEXTS} code contexts"),
                )
                .with_action("remove one that is not needed"));
            }
            rows::insert_context(tx, &row)?;
            Ok(row)
        })
        .await
}

fn info(row: ContextRow) -> CodeContext {
    CodeContext {
        id: row.id,
        language: row.language,
        cwd: row.cwd,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn languages_have_names() {
        assert_eq!(language(None).unwrap(), "python3");
        assert_eq!(language(Some("Python")).unwrap(), "python3");
        assert_eq!(language(Some("ts")).unwrap(), "typescript");
        assert!(
            language(Some("cobol"))
                .unwrap_err()
                .message
                .contains("cobol")
        );
    }

    #[test]
    fn code_is_checked() {
        let one = |code: &str, timeout| checked(code.into(), None, timeout);
        assert_eq!(one("1", None).unwrap().timeout, 300);
        assert!(one(" \n", None).is_err() && one("1", Some(0)).is_err());
        assert!(one(&"x".repeat(MAX_CODE + 1), None).is_err());
        let envs = BTreeMap::from([("A=B".to_owned(), String::new())]);
        assert!(checked("1".into(), Some(envs), None).is_err());
    }
}
