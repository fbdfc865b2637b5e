//! Templates that are made at first demand, in a machine of another template.
//!
//! ```text
//!  ensure ──▶ ready
//!         └─▶ make (one at a time): a machine of `base` runs the recipe ──keep──▶ a layer ──▶ ready
//! ```
//! Whoever asks meanwhile waits a little, and then is told to come again. A server that ends meanwhile leaves a machine,
//! which the next one ends ([`clean`]), and nothing that counts as made.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use nullspace_api::error::code;
use nullspace_protocol::{ExecRequest as GuestExec, frame::Frame};
use nullspace_templates::{
    Layer, Templates,
    derived::{Begun, Build, CODE_INTERPRETER, Recipe},
    without_credentials,
};
use tokio::sync::watch;

use crate::{
    app::{
        AppState, exec,
        machine::{self, NewMachine},
        tenant,
    },
    error::{Error, Kind, Result},
};

/// How long a request waits for a template that is being made. Clients give up after 30 s of silence.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long the making may take.
const LIMIT: Duration = Duration::from_secs(1800);
/// Memory and CPUs of the machine that makes one.
const MEMORY_MB: u64 = 2048;
const VCPUS: u32 = 2;
/// Said of the machines that make templates.
pub(super) const OWNER: &str = "template:";
/// Lines of output that are told when it fails.
const LINES: usize = 12;

/// How it ended, once it did.
type Outcome = watch::Receiver<Option<Result<()>>>;

/// The template that is being made, if one is.
#[derive(Debug, Default)]
pub(super) struct Making(Mutex<Option<Outcome>>);

/// How a template of that name is made.
pub(super) fn recipe(name: &str) -> Option<&'static Recipe> {
    (name == CODE_INTERPRETER.name).then_some(&CODE_INTERPRETER)
}

/// Sees to it that a template is there that is made at first demand; others are left as they are.
///
/// # Errors
/// `transition_in_progress` while it is being made, `template_not_ready` with the reason when it could not be, and those
/// of the template below.
pub(super) async fn ensure(app: &AppState, name: &str) -> Result<()> {
    let (Some(recipe), Some(templates)) = (recipe(name), app.templates.builtin.get()) else {
        return Ok(());
    };
    if app.templates.is_ready(name) {
        return Ok(());
    }
    let base = app.templates.find_builtin("base")?;
    let mut outcome = begin(app, templates, recipe, &base);
    let ended = tokio::time::timeout(PATIENCE, outcome.wait_for(Option::is_some)).await;
    match ended {
        Ok(Ok(outcome)) => outcome.clone().unwrap_or(Ok(())),
        Ok(Err(_)) => Err(Error::internal("the making of a template was dropped")),
        Err(_) => Err(Error::conflict(
            code::TRANSITION_IN_PROGRESS,
            format!("template {name} is being made, which takes a minute or two the first time"),
        )
        .with_action("repeat the request with the same idempotency key")
        .with_retry_after(2)),
    }
}

/// Begins to make it, unless somebody does.
fn begin(app: &AppState, templates: &Templates, recipe: &'static Recipe, base: &Layer) -> Outcome {
    let mut making = (app.templates.making.0)
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    if let Some(outcome) = making.as_ref().filter(|outcome| outcome.borrow().is_none()) {
        return outcome.clone();
    }
    let (ended, outcome) = watch::channel(None);
    *making = Some(outcome.clone());
    let (app, templates, base) = (app.clone(), templates.clone(), base.clone());
    tokio::spawn(async move {
        let result = make(&app, templates, recipe, base).await;
        match &result {
            Ok(layer) => {
                tracing::info!(
                    template = recipe.name,
                    digest = layer.digest,
                    "a template is ready"
                );
                app.templates.add(layer.clone());
            }
            Err(error) => {
                tracing::error!(template = recipe.name, error = error.message, context = ?error.context, "a template could not be made");
            }
        }
        ended.send_replace(Some(result.map(drop)));
    });
    outcome
}

async fn make(
    app: &AppState,
    templates: Templates,
    recipe: &'static Recipe,
    base: Layer,
) -> Result<Layer> {
    let environment = templates.build_env();
    let below = base.clone();
    let begun = blocking(recipe, move || templates.begin_derived(recipe, &below)).await?;
    let build = match begun {
        Begun::Ready(layer) => return Ok(layer),
        Begun::Build(build) => build,
    };
    tracing::info!(template = recipe.name, "making a template");
    let new = NewMachine {
        vcpus: VCPUS,
        memory_mb: MEMORY_MB.min(app.config.max_memory_mb),
        becomes_layer: true,
        owner: Some(format!("{OWNER}{}", recipe.name)),
        // It is everybody's, and nobody's quota.
        ..NewMachine::from_template(app, tenant::DEFAULT, std::sync::Arc::new(base))
    };
    let created = machine::create(app, new, None).await?;
    let (machine::Created::New(row) | machine::Created::Replayed(row)) = created;
    let made = tokio::select! {
        made = run(app, &row.id, recipe, environment) => made,
        () = app.stopping.cancelled() => Err(failed(recipe, "the server was stopped meanwhile")),
    };
    match made {
        Ok(()) => keep(app, &row.id, recipe, build).await,
        Err(error) => {
            machine::destroy(app, &row.id, None).await?;
            Err(error)
        }
    }
}

/// Runs the recipe.
async fn run(
    app: &AppState,
    machine_id: &str,
    recipe: &Recipe,
    env: std::collections::BTreeMap<String, String>,
) -> Result<()> {
    let request = GuestExec {
        argv: ["/bin/sh", "-ec", recipe.script].map(str::to_owned).into(),
        env,
        cwd: Some("/root".into()),
        timeout_ms: u64::try_from(LIMIT.as_millis()).ok(),
        label: Some(format!("make template {}", recipe.name)),
        ..GuestExec::default()
    };
    let mut output = machine::own_guest(app, machine_id)
        .await?
        .exec(&request)
        .await?;
    let mut tail = VecDeque::new();
    loop {
        let lost = |error: nullspace_protocol::GuestError| exec::went_away(error.to_string());
        match output.next().await.map_err(lost)? {
            Some(Frame::Stdout(_, data) | Frame::Stderr(_, data)) => {
                let text = String::from_utf8_lossy(&data);
                for line in text.lines().filter(|line| !line.trim().is_empty()) {
                    if tail.len() == LINES {
                        tail.pop_front();
                    }
                    tail.push_back(
                        without_credentials(line)
                            .chars()
                            .take(300)
                            .collect::<String>(),
                    );
                }
            }
            Some(Frame::Exit { code: 0, .. }) => return Ok(()),
            Some(Frame::Exit {
                code, timed_out, ..
            }) => {
                let how = match timed_out {
                    true => format!("it took over {} s", LIMIT.as_secs()),
                    false => format!("exit code {code}"),
                };
                let tail = Vec::from(tail).join("\n");
                return Err(failed(recipe, &format!("{how}; its last lines:\n{tail}")));
            }
            Some(Frame::Started(_)) => {}
            None => return Err(exec::went_away("the output ended first".into())),
        }
    }
}

/// Makes what the machine wrote the template.
async fn keep(
    app: &AppState,
    machine_id: &str,
    recipe: &'static Recipe,
    build: Build,
) -> Result<Layer> {
    machine::keep(app, machine_id, build.target()).await?;
    blocking(recipe, move || build.finish()).await
}

async fn blocking<T: Send + 'static>(
    recipe: &Recipe,
    work: impl FnOnce() -> Result<T, nullspace_templates::TemplateError> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|e| Error::internal(format!("making a template: {e}")))?
        .map_err(|e| failed(recipe, &crate::error::chain(&e)))
}

fn failed(recipe: &Recipe, why: &str) -> Error {
    Error::new(
        Kind::Unavailable,
        code::TEMPLATE_NOT_READY,
        format!("template {} could not be made: {why}", recipe.name),
    )
    .with_action("see that machines of this host reach a Python package index, and ask again")
}

/// Ends machines that a server before this one began to make templates in. Called once, before any request.
///
/// # Errors
/// When the record cannot be written.
pub(super) async fn clean(app: &AppState) -> Result<()> {
    for handle in app.machines.all() {
        let row = handle.row();
        if row
            .owner
            .as_deref()
            .is_some_and(|owner| owner.starts_with(OWNER))
        {
            machine::destroy(app, &row.id, None).await?;
        }
    }
    Ok(())
}
