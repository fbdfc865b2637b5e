//! Images as the base of a build, or to copy from.

use std::time::Duration;

use nullspace_api::{
    template::{OciHealthcheck, OciMetadata},
    template_build::{BaseImage, RegistryAuth},
};
use nullspace_image::{Blame, Credentials, Image, ImageError, Progress};
use tokio::{
    sync::mpsc,
    time::{Instant, interval},
};

use super::{Worker, end::End, instruction::State};
use crate::{
    app::template::{archive, artifact::Artifact, definition, image, program::From},
    error::Result as AppResult,
};

/// Where commands start in an image that does not say.
const WORKDIR: &str = "/";
/// How often it is said how much has come.
const TELL_EVERY: Duration = Duration::from_secs(2);

impl Worker {
    /// Fetches an image, and makes what it says what machines have.
    pub(super) async fn image(&mut self, reference: &str) -> Result<State, End> {
        self.journal
            .message("preparing", format!("fetching the image {reference}"));
        self.flush().await?;
        let archive = archive::find(&self.app, reference, &self.job.context)
            .map_err(|error| End::of("prepare", &error))?
            .map_err(|why| {
                let action = "send the file with the build context, and see that it is not ignored";
                End::failed(
                    "prepare",
                    "image_not_found",
                    format!("image {reference}: {why}"),
                    action,
                )
            })?;
        let credentials = self.credentials(reference);
        let (sender, mut told) = mpsc::unbounded_channel();
        let (app, build) = (self.app.clone(), self.view.build_id.clone());
        let text = reference.to_owned();
        // A task of its own, so that what it borrows is nobody's matter; ended with what follows.
        let pull = tokio::spawn(async move {
            let listener = move |progress: Progress| {
                let _ = sender.send(progress);
            };
            match archive {
                Some(archive) => image::read(&app, &build, archive, listener).await,
                None => image::pull(&app, &build, &text, &credentials, &listener).await,
            }
        });
        let mut pull = tokio_util::task::AbortOnDropHandle::new(pull);
        let mut received = None;
        let mut tick = interval(TELL_EVERY);
        let (cancel, stopping) = (self.live.cancel.clone(), self.app.stopping.clone());
        let deadline: Instant = self.deadline;
        let pulled = loop {
            tokio::select! {
                biased;
                Some(progress) = told.recv() => match progress {
                    Progress::Received { bytes, of } => received = Some((bytes, of)),
                    progress => if let Some(line) = line(&progress) {
                        self.journal.message("preparing", line);
                        self.flush().await?;
                    },
                },
                pulled = &mut pull => break pulled,
                _ = tick.tick() => if let Some((bytes, of)) = received.take() {
                    let line = format!("{} of {} MiB", bytes >> 20, of >> 20);
                    self.journal.message("preparing", line);
                    self.flush().await?;
                },
                () = cancel.cancelled() => return Err(End::Cancelled),
                () = stopping.cancelled() => return Err(End::Interrupted),
                () = tokio::time::sleep_until(deadline) => return Err(self.too_long()),
            }
        };
        let pulled: AppResult<_> = pulled
            .map_err(|e| crate::error::Error::internal(format!("fetching an image: {e}")))
            .and_then(|pulled| pulled);
        let image = pulled
            .map_err(|error| End::of("prepare", &error))?
            .map_err(|error| failed(reference, &error))?;
        self.made_over(reference, &image)
    }

    /// Notes which image it was.
    fn made_over(&mut self, reference: &str, image: &Image) -> Result<State, End> {
        let base = BaseImage {
            reference: reference.to_owned(),
            digest: image.digest.clone(),
        };
        if !self.view.base_images.contains(&base) {
            self.view.base_images.push(base);
        }
        let shell = Some(image.config.shell.clone()).filter(|shell| !shell.is_empty());
        Ok(State::over(of(image), shell))
    }

    /// What the registry of an image is shown. Those of the base image are for its registry alone, whatever else is
    /// fetched.
    fn credentials(&self, reference: &str) -> Credentials {
        let secrets = &self.job.secrets;
        let registry = definition::registry_of(reference);
        let is_of_base = || self.base_registry().as_deref() == Some(registry.as_str());
        let named = (secrets.registries.iter())
            .find(|auth| definition::registry_name(&auth.registry) == registry);
        let auth = match named {
            Some(named) => Some(&named.auth),
            None => secrets.auth.as_ref().filter(|_| is_of_base()),
        };
        match auth {
            // Refused before the build began.
            None | Some(RegistryAuth::AwsEcr { .. }) => Credentials::anonymous(),
            Some(RegistryAuth::Basic { username, password }) => {
                Credentials::basic(username.0.clone(), password.0.clone())
            }
            Some(RegistryAuth::GcpArtifactRegistry {
                service_account_json,
            }) => {
                let key = match &service_account_json.0 {
                    serde_json::Value::String(text) => text.clone(),
                    object => object.to_string(),
                };
                Credentials::gcp_service_account(key)
            }
        }
    }

    /// The registry of the image that the whole build is made over.
    fn base_registry(&self) -> Option<String> {
        let stages = &self.job.program.stages;
        let mut stage = stages.last()?;
        loop {
            match &stage.from {
                From::Reference(text) => return Some(definition::registry_of(text)),
                // Always an earlier one.
                From::Stage(other) => stage = &stages[*other],
                From::Scratch => return None,
            }
        }
    }
}

/// What people are told while an image is fetched.
fn line(progress: &Progress) -> Option<String> {
    match progress {
        Progress::Resolved {
            digest,
            layers,
            bytes,
        } => Some(format!(
            "it is {digest}: layers: {layers}, {} KiB",
            bytes.div_ceil(1024)
        )),
        Progress::Layer {
            digest,
            done,
            of,
            kept,
        } => {
            let what = if *kept { "is there already" } else { "came" };
            let short = &digest[..12.min(digest.len())];
            Some(format!("layer {done} of {of} {what}: {short}"))
        }
        _ => None,
    }
}

/// How a build ends that an image was wanted for.
fn failed(reference: &str, error: &ImageError) -> End {
    let phase = match error.blame() {
        Blame::Credentials => "auth",
        Blame::Registry | Blame::Host | Blame::Image => "prepare",
    };
    let said = match error.blame() {
        // Paths of this server are nobody else's matter.
        Blame::Host => {
            let context = crate::error::chain(error);
            tracing::error!(reference, context, "an image could not be kept");
            "this server could not keep it".to_owned()
        }
        _ => crate::error::chain(error),
    };
    let message = format!("image {reference}: {said}");
    let end = End::failed(phase, error.reason(), message, &error.hint()).with("image", reference);
    match error.retryable() || error.blame() == Blame::Host {
        true => end.retryable(),
        false => end,
    }
}

/// What machines of an image have. What it would run is not run.
fn of(image: &Image) -> Artifact {
    let config = &image.config;
    let layers: Vec<String> = (image.layers.iter().rev())
        .map(|tree| tree.digest.clone())
        .collect();
    let workdir = config.workdir.clone().filter(|path| path.starts_with('/'));
    Artifact {
        base: image::files(&layers),
        layers,
        env: config.env.clone(),
        cwd: workdir.unwrap_or_else(|| WORKDIR.to_owned()),
        user: (config.user.clone()).filter(|user| !matches!(user.as_str(), "" | "root" | "0")),
        oci: OciMetadata {
            labels: config.labels.clone(),
            exposed_ports: config.exposed_ports.clone(),
            volumes: config.volumes.clone(),
            healthcheck: config.healthcheck.as_ref().map(|check| {
                let signed = |value: Option<u64>| value.and_then(|value| i64::try_from(value).ok());
                OciHealthcheck {
                    test: check.test.clone(),
                    interval_ns: signed(check.interval_ns),
                    timeout_ns: signed(check.timeout_ns),
                    start_period_ns: signed(check.start_period_ns),
                    retries: signed(check.retries),
                }
            }),
            entrypoint: config.entrypoint.clone(),
            cmd: config.cmd.clone(),
        },
        ..Artifact::default()
    }
}
