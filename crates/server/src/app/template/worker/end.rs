//! How a build ends: why, and on record.

use std::{sync::Arc, time::Duration};

use nullspace_api::{
    error::code,
    template::{OciMetadata, TemplateInfo, Visibility},
    template_build::{BuildFailure, BuildLogEntry, BuildStatus, ResultMetadata},
    time,
};
use nullspace_store::{
    StoreError,
    template::{self as templates, TagRow},
};
use serde_json::{Value, json};

use super::Worker;
use crate::{
    app::template::{
        artifact::Artifact,
        build,
        named::{self, Found, Named},
    },
    error::{Error, Kind, Result},
};

/// Pause before the end of a build is tried to be recorded again.
const RETRY: Duration = Duration::from_secs(2);

/// How a build ends that is not ready.
#[derive(Debug)]
pub(super) enum End {
    /// For a reason.
    Failed(Box<BuildFailure>),
    /// Somebody stopped it.
    Cancelled,
    /// The server goes down.
    Interrupted,
}

impl End {
    /// It failed.
    pub(super) fn failed(
        phase: &str,
        reason: &str,
        message: impl Into<String>,
        action: &str,
    ) -> Self {
        Self::Failed(Box::new(BuildFailure {
            code: code::BUILD_ERROR.into(),
            message: message.into(),
            phase: phase.into(),
            suggested_action: action.into(),
            details: Some(json!({"reason": reason})),
            ..BuildFailure::default()
        }))
    }

    /// It failed over something that this server could not do.
    pub(super) fn of(phase: &str, error: &Error) -> Self {
        tracing::warn!(phase, code = error.code, error = error.message, context = ?error.context, "a build failed");
        let action = error.suggested_action.as_deref();
        let mut end = Self::failed(
            phase,
            error.code,
            error.message.clone(),
            action.unwrap_or("see the server's log, and retry the build"),
        );
        if let Self::Failed(failure) = &mut end {
            failure.retryable = error.kind.is_ours() || error.retry_after.is_some();
        }
        end
    }

    /// More facts about it.
    pub(super) fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        if let Self::Failed(failure) = &mut self
            && let Some(Value::Object(details)) = &mut failure.details
        {
            details.insert(key.to_owned(), value.into());
        }
        self
    }

    pub(super) fn retryable(mut self) -> Self {
        if let Self::Failed(failure) = &mut self {
            failure.retryable = true;
        }
        self
    }
}

/// How an error of a machine reads in a build.
pub(super) fn of_machine(phase: &str, error: &Error) -> End {
    match error.kind {
        Kind::Machine | Kind::NotFound | Kind::Conflict => End::failed(
            phase,
            "machine_lost",
            format!("the machine of the step was lost: {}", error.message),
            "see whether the step ran out of memory, give the build more, and retry it",
        )
        .retryable(),
        _ => End::of(phase, error),
    }
}

impl Worker {
    /// Records the end, however long that takes: the disk may be full now.
    pub(super) async fn finish(&mut self, end: Result<Artifact, End>) {
        let now = time::now();
        self.view.finished_at = Some(time::rfc3339(now));
        self.view.duration_ms = (self.view.started_at.as_deref())
            .and_then(time::parse)
            .and_then(|begun| u64::try_from((now - begun) / 1000).ok());
        loop {
            let recorded = self.record(&end).await;
            let Err(error) = recorded else { break };
            tracing::error!(build = self.view.build_id, context = ?error.context, "the end of a build could not be recorded; trying again");
            tokio::select! {
                () = tokio::time::sleep(RETRY) => {}
                // The next server does it.
                () = self.app.stopping.cancelled() => break,
            }
        }
        if let Err(error) = named::refresh(&self.app).await {
            tracing::error!(context = ?error.context, "templates could not be read again");
        }
    }

    async fn record(&mut self, end: &Result<Artifact, End>) -> Result<()> {
        // What is found ahead of the record is not lost to a look from before it.
        let app = self.app.clone();
        let _naming = app.templates.naming.lock().await;
        let row = &mut self.journal.row;
        let mut tags = Vec::new();
        let last = match end {
            Ok(artifact) => {
                row.status = BuildStatus::Ready.as_str().into();
                row.digest = Some(artifact.digest());
                row.artifact = Some(build::seal_artifact(&self.app, &row.id, artifact)?);
                row.layers = serde_json::to_string(&artifact.layers).unwrap_or_default();
                tags.clone_from(&self.view.tags);
                let defaults = artifact.defaults();
                let oci = (artifact.oci != OciMetadata::default()).then(|| artifact.oci.clone());
                self.view.runtime_defaults = Some(defaults.clone());
                self.view.oci_metadata.clone_from(&oci);
                self.view.artifact_ids = vec![format!("tart_{}", &artifact.digest()[..20])];
                let result = self.result(artifact).await?;
                BuildLogEntry {
                    kind: "end".into(),
                    level: "info".into(),
                    phase: Some("finalize".into()),
                    message: format!("template {} is ready", self.view.name),
                    result: Some(Box::new(result)),
                    result_metadata: Some(Box::new(ResultMetadata {
                        runtime_defaults: Some(defaults),
                        oci_metadata: oci,
                    })),
                    ..BuildLogEntry::default()
                }
            }
            Err(End::Cancelled) => {
                row.status = BuildStatus::Cancelled.as_str().into();
                BuildLogEntry {
                    kind: "cancelled".into(),
                    level: "warn".into(),
                    phase: Some("cleanup".into()),
                    message: "the build was cancelled".into(),
                    ..BuildLogEntry::default()
                }
            }
            Err(end) => {
                row.status = BuildStatus::Error.as_str().into();
                let mut failure = match end {
                    End::Failed(failure) => BuildFailure::clone(failure),
                    _ => build::interrupted(&row.id),
                };
                failure.message = self.journal.clean(&failure.message);
                failure.step_index = failure.step_index.or(self.journal.at.step);
                failure.build_id = Some(self.view.build_id.clone());
                self.view.error = Some(failure.message.clone());
                self.view.failure_phase = Some(failure.phase.clone());
                self.view.error_detail = Some(failure.clone());
                BuildLogEntry {
                    kind: "error".into(),
                    level: "error".into(),
                    phase: Some(failure.phase.clone()),
                    message: failure.message.clone(),
                    error_detail: Some(failure),
                    ..BuildLogEntry::default()
                }
            }
        };
        if end.is_err() {
            self.journal.row.layers = "[]".into();
        }
        self.note()?;
        self.journal.finish(last, tags).await
    }

    /// The template with this build, which is found from now on: whoever hears that it is ready may use it at once.
    async fn result(&self, artifact: &Artifact) -> Result<TemplateInfo> {
        let id = self.journal.row.template_id.clone();
        let found = (self.app.store)
            .read(move |db| {
                let template = templates::get(db, &id)?;
                let tags = templates::tags(db, &id)?;
                Ok::<_, StoreError>((template, tags))
            })
            .await?;
        let (Some(template), mut tags) = found else {
            return Err(Error::internal("the template of a build is gone"));
        };
        let named = Named {
            layer: Arc::new(artifact.layer(&self.app.data_dir, &template.name)),
            tenant_id: template.tenant_id.clone(),
            is_public: named::visibility(&template) == Visibility::Public,
        };
        let namespace = named::namespace_of(&self.app, &template.tenant_id);
        let names = std::iter::once(template.name.as_str());
        let places = named::places(&template, Some(&namespace), names);
        (self.app.templates).add_named(&places, &self.view.tags, &named);
        for tag in &self.view.tags {
            if !tags.iter().any(|known| known.tag == *tag) {
                tags.push(TagRow {
                    tag: tag.clone(),
                    build_id: self.view.build_id.clone(),
                    created_at: time::now(),
                });
            }
        }
        tags.sort_by(|a, b| a.tag.cmp(&b.tag));
        let found = Found {
            template,
            tags,
            build: None,
        };
        Ok(TemplateInfo {
            runtime_defaults: Some(artifact.defaults()),
            ..found.info(&self.app)
        })
    }
}
