//! Code in the kernels of a machine.

use bytes::{Buf, BytesMut};
use http::Method;
use nullspace_api::code::{
    CodeArtifact, CodeContext, CodeRun, CreateCodeRunRequest, CreateContextRequest,
    ExecuteCodeRequest, ExecutionEvent, ListArtifactsQuery, ListCodeRunsQuery,
};
use nullspace_api::page::CursorPage;

use crate::error::Error;
use crate::machines::machine_path;
use crate::transport::{Call, Client, Download, Retry, segment};

/// What comes while code runs. Dropping it interrupts the code.
#[derive(Debug)]
pub struct Events {
    download: Download,
    buffer: BytesMut,
}

impl Events {
    /// The next event; `None` at the end.
    ///
    /// # Errors
    /// [`Error::Transport`] when the connection broke or fell silent, [`Error::Decode`] for what is no event.
    pub async fn next(&mut self) -> Result<Option<ExecutionEvent>, Error> {
        loop {
            while let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(end);
                self.buffer.advance(1);
                // Everything else is a sign of life, or nothing.
                if let Some(event) = line.strip_prefix(b"data: ") {
                    let event = serde_json::from_slice(event);
                    return event
                        .map(Some)
                        .map_err(|error| self.download.decode_error(error.to_string()));
                }
            }
            match self.download.chunk().await? {
                Some(piece) => self.buffer.extend_from_slice(&piece),
                None => return Ok(None),
            }
        }
    }
}

impl Client {
    /// Runs code and follows what it gives.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn execute_code(
        &self,
        machine: &str,
        request: &ExecuteCodeRequest,
    ) -> Result<Events, Error> {
        let call = Call::post(code_path(machine, "execute"))
            .json(request)?
            .retry(Retry::Never);
        Ok(Events {
            download: self.send(&call).await?,
            buffer: BytesMut::new(),
        })
    }

    /// Makes a context.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn create_code_context(
        &self,
        machine: &str,
        request: &CreateContextRequest,
    ) -> Result<CodeContext, Error> {
        let path = code_path(machine, "contexts");
        self.fetch(Call::post(path).json(request)?).await
    }

    /// The contexts of a machine, oldest first.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn list_code_contexts(&self, machine: &str) -> Result<Vec<CodeContext>, Error> {
        self.fetch(Call::get(code_path(machine, "contexts"))).await
    }

    /// Removes a context and ends its kernel.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn remove_code_context(&self, machine: &str, context: &str) -> Result<(), Error> {
        let path = context_path(machine, context);
        self.discard(Call::new(Method::DELETE, path)).await
    }

    /// Ends a context's kernel and begins with a fresh one.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn restart_code_context(&self, machine: &str, context: &str) -> Result<(), Error> {
        let path = format!("{}/restart", context_path(machine, context));
        self.discard(Call::post(path)).await
    }

    /// Stops what runs in a context.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn interrupt_code_context(&self, machine: &str, context: &str) -> Result<(), Error> {
        let path = format!("{}/interrupt", context_path(machine, context));
        self.discard(Call::post(path)).await
    }

    /// Runs code without waiting for it.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn create_code_run(
        &self,
        machine: &str,
        request: &CreateCodeRunRequest,
    ) -> Result<CodeRun, Error> {
        let path = code_path(machine, "runs");
        self.fetch(Call::post(path).json(request)?).await
    }

    /// A run.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn get_code_run(&self, machine: &str, run: &str) -> Result<CodeRun, Error> {
        self.fetch(Call::get(run_path(machine, run))).await
    }

    /// A page of runs, newest first.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn list_code_runs(
        &self,
        machine: &str,
        query: &ListCodeRunsQuery,
    ) -> Result<CursorPage<CodeRun>, Error> {
        let call = Call::get(code_path(machine, "runs"))
            .query("status", query.status.as_ref())
            .query("context_id", query.context_id.as_ref())
            .query("limit", query.limit)
            .query("cursor", query.cursor.as_ref());
        self.fetch(call).await
    }

    /// Cancels a run.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn cancel_code_run(&self, machine: &str, run: &str) -> Result<CodeRun, Error> {
        let path = format!("{}/cancel", run_path(machine, run));
        self.fetch(Call::post(path)).await
    }

    /// A page of artifacts, newest first.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn list_code_artifacts(
        &self,
        machine: &str,
        query: &ListArtifactsQuery,
    ) -> Result<CursorPage<CodeArtifact>, Error> {
        let call = Call::get(code_path(machine, "artifacts"))
            .query("context_id", query.context_id.as_ref())
            .query("execution_count", query.execution_count)
            .query("kind", query.kind.as_ref())
            .query("limit", query.limit)
            .query("cursor", query.cursor.as_ref());
        self.fetch(call).await
    }

    /// An artifact.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn get_code_artifact(
        &self,
        machine: &str,
        artifact: &str,
    ) -> Result<CodeArtifact, Error> {
        self.fetch(Call::get(artifact_path(machine, artifact)))
            .await
    }

    /// The bytes of an artifact.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn download_code_artifact(
        &self,
        machine: &str,
        artifact: &str,
    ) -> Result<Download, Error> {
        let path = format!("{}/download", artifact_path(machine, artifact));
        self.send(&Call::get(path)).await
    }

    /// The bytes of an artifact, to look at.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn preview_code_artifact(
        &self,
        machine: &str,
        artifact: &str,
    ) -> Result<Download, Error> {
        let path = format!("{}/preview", artifact_path(machine, artifact));
        self.send(&Call::get(path)).await
    }

    /// Removes an artifact.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn delete_code_artifact(&self, machine: &str, artifact: &str) -> Result<(), Error> {
        let path = artifact_path(machine, artifact);
        self.discard(Call::new(Method::DELETE, path)).await
    }
}

fn code_path(machine: &str, rest: &str) -> String {
    format!("{}/code/{rest}", machine_path(machine))
}

fn context_path(machine: &str, context: &str) -> String {
    code_path(machine, &format!("contexts/{}", segment(context)))
}

fn run_path(machine: &str, run: &str) -> String {
    code_path(machine, &format!("runs/{}", segment(run)))
}

fn artifact_path(machine: &str, artifact: &str) -> String {
    code_path(machine, &format!("artifacts/{}", segment(artifact)))
}
