//! What a piece of code gives, as it comes: from what the machine says to what callers are told.

use std::collections::VecDeque;

use nullspace_api::{
    code::{CodeError, CodeResult, ExecutionEvent},
    id,
};
use nullspace_store::code::ContextRow;

use super::{
    artifact::{self, Origin},
    bridge::{Conversation, Outcome, Said},
};
use crate::{app::AppState, error::Result};

/// An execution that is followed.
#[derive(Debug)]
pub struct Running {
    app: AppState,
    context: ContextRow,
    /// The run that it is of.
    run: Option<String>,
    conversation: Conversation,
    count: Option<u64>,
    /// Told next.
    pending: VecDeque<Step>,
    /// Artifacts so far.
    artifacts: u32,
    ended: bool,
}

/// What happens in an execution.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Step {
    /// Its turn has come.
    Started,
    /// Something for the caller.
    Event(ExecutionEvent),
    /// It ended. Nothing comes after it.
    Ended(End),
}

/// How.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// As the machine says.
    Told(Outcome),
    /// The machine, or what runs its kernels, went away.
    Lost,
}

impl Running {
    pub(super) fn new(
        app: AppState,
        context: ContextRow,
        run: Option<String>,
        conversation: Conversation,
    ) -> Self {
        Self {
            app,
            context,
            run,
            conversation,
            count: None,
            pending: VecDeque::new(),
            artifacts: 0,
            ended: false,
        }
    }

    /// The next event for the caller; `None` at the end. When the machine goes away the last event is an error.
    pub async fn next_event(&mut self) -> Option<ExecutionEvent> {
        loop {
            match self.next().await {
                Step::Event(event) => return Some(event),
                Step::Started => {}
                Step::Ended(End::Told(_)) => return None,
                Step::Ended(End::Lost) if std::mem::replace(&mut self.ended, true) => return None,
                Step::Ended(End::Lost) => return Some(ExecutionEvent::Error(lost())),
            }
        }
    }

    /// The next step. After the last it is that again.
    pub(crate) async fn next(&mut self) -> Step {
        loop {
            if let Some(step) = self.pending.pop_front() {
                return step;
            }
            match self.conversation.next().await {
                Ok(Some(said)) => self.take(said).await,
                Ok(None) => return Step::Ended(End::Lost),
                Err(error) => {
                    tracing::debug!(machine = self.context.machine_id, context = ?error.context, "an execution was lost");
                    return Step::Ended(End::Lost);
                }
            }
        }
    }

    async fn take(&mut self, said: Said) {
        let event = match said {
            Said::Started => return self.pending.push_back(Step::Started),
            Said::End { outcome } => {
                return self.pending.push_back(Step::Ended(End::Told(outcome)));
            }
            Said::File {
                path,
                size,
                mime_type,
            } => {
                let origin = self.origin();
                let kept = artifact::take_file(&self.app, &origin, path, size, mime_type).await;
                return self.tell_of(kept);
            }
            Said::Stdout { text, timestamp } => ExecutionEvent::Stdout { text, timestamp },
            Said::Stderr { text, timestamp } => ExecutionEvent::Stderr { text, timestamp },
            Said::Error {
                name,
                value,
                traceback,
            } => ExecutionEvent::Error(CodeError {
                name,
                value,
                traceback,
            }),
            Said::Count { execution_count } => {
                self.count = Some(execution_count);
                ExecutionEvent::NumberOfExecutions { execution_count }
            }
            Said::Result { data, chart, main } => {
                let files = artifact::files_of(&data);
                let result = CodeResult::new(data, chart, main);
                self.pending
                    .push_back(Step::Event(ExecutionEvent::Result(Box::new(result))));
                for (mime_type, bytes) in files {
                    let origin = self.origin();
                    let kept = artifact::keep(&self.app, &origin, mime_type, None, bytes).await;
                    self.tell_of(kept.map(Some));
                }
                return;
            }
        };
        self.pending.push_back(Step::Event(event));
    }

    /// Where the next artifact comes from. Those of a run have the same id when the run is followed again.
    fn origin(&mut self) -> Origin {
        self.artifacts += 1;
        Origin {
            id: match &self.run {
                Some(run) => artifact::id_in_run(run, self.artifacts),
                None => id::new(id::CODE_ARTIFACT),
            },
            machine_id: self.context.machine_id.clone(),
            context_id: self.context.id.clone(),
            execution_count: self.count,
            run: self.run.clone(),
        }
    }

    /// One that could not be kept is no reason to end the execution: its caller is told.
    fn tell_of(&mut self, kept: Result<Option<nullspace_api::code::CodeArtifact>>) {
        let event = match kept {
            Ok(None) => return,
            Ok(Some(artifact)) => ExecutionEvent::Artifact {
                artifact: Box::new(artifact),
            },
            Err(error) => ExecutionEvent::Stderr {
                text: format!(
                    "\n[nullspace: an artifact was not kept: {}]\n",
                    error.message
                ),
                timestamp: nullspace_api::time::now() / 1000,
            },
        };
        self.pending.push_back(Step::Event(event));
    }
}

/// What is said when an execution was lost.
fn lost() -> CodeError {
    let value = "the machine, or what runs its kernels, went away while the code ran";
    CodeError {
        name: "KernelLost".into(),
        value: value.into(),
        traceback: format!("KernelLost: {value}"),
    }
}
