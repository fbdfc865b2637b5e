//! Code interpreter: code that runs in the kernels of a machine.
//!
//! A context is a kernel with its variables. `POST …/code/execute` streams what a piece of code gives as server-sent
//! events, each a line `data: {json}` of an [`ExecutionEvent`]; the stream ends without a last event of its own. A run is
//! the same without anybody waiting. An artifact is a file that came out of a piece of code.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::{IntoParams, ToSchema};

/// The language of a context that names none.
pub const DEFAULT_LANGUAGE: &str = "python3";
/// The time limit of code that names none, in seconds.
pub const DEFAULT_TIMEOUT_SECS: u64 = 300;

/// `POST …/code/execute`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecuteCodeRequest {
    /// At most 1 MiB.
    pub code: String,
    /// `python3` (default), `javascript` or `typescript`: the default context of that language.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub language: Option<String>,
    /// The context; `language` does not count then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context_id: Option<String>,
    /// Variables of the environment, for this execution alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub envs: Option<BTreeMap<String, String>>,
    /// Time limit in seconds, 1 to 86400; 300 when absent. Counted from when the code begins to run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u64>,
}

/// `POST …/code/contexts`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateContextRequest {
    /// Absolute directory that exists; the machine's own when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// `python3` (default), `javascript` or `typescript`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub language: Option<String>,
}

/// A kernel with its variables.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CodeContext {
    /// Its id.
    pub id: String,
    /// `python3`, `javascript` or `typescript`.
    pub language: String,
    /// Where its code starts.
    pub cwd: String,
}

/// Answer of restart and interrupt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ContextStatus {
    /// `restarted` or `interrupted`.
    pub status: String,
}

/// `POST …/code/runs`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateCodeRunRequest {
    /// At most 1 MiB.
    pub code: String,
    /// Where it runs.
    pub context_id: String,
    /// Variables of the environment, for this run alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub envs: Option<BTreeMap<String, String>>,
    /// Time limit in seconds, 1 to 86400; 300 when absent. Counted from when the code begins to run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u64>,
}

/// What becomes of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CodeRunStatus {
    /// Its context is busy.
    Queued,
    /// It runs.
    Running,
    /// It ran to its end.
    Succeeded,
    /// The code raised an error, or could not run to its end.
    Failed,
    /// It was cancelled.
    Cancelled,
}

impl CodeRunStatus {
    /// As it is recorded.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// From the record.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [
            Self::Queued,
            Self::Running,
            Self::Succeeded,
            Self::Failed,
            Self::Cancelled,
        ]
        .into_iter()
        .find(|status| status.as_str() == text)
    }

    /// Whether nothing changes any more.
    #[must_use]
    pub fn has_ended(self) -> bool {
        !matches!(self, Self::Queued | Self::Running)
    }
}

/// An execution that nobody has to wait for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CodeRun {
    /// Its id.
    pub id: String,
    /// The machine.
    pub machine_id: String,
    /// The same, as 0.1.9 calls it.
    pub sandbox_id: String,
    /// The context.
    pub context_id: String,
    /// Where it stands.
    pub status: CodeRunStatus,
    /// Its time limit.
    pub timeout_secs: u64,
    /// When it was asked for.
    pub created_at: String,
    /// When it began to run.
    pub started_at: Option<String>,
    /// When it ended.
    pub completed_at: Option<String>,
    /// When somebody asked to cancel it.
    pub cancel_requested_at: Option<String>,
    /// When it is forgotten.
    pub expires_at: String,
    /// What it gave, once it ended.
    pub execution: Option<Execution>,
    /// Why it failed for another reason than an error of the code.
    pub failure_reason: Option<String>,
}

/// `GET …/code/runs`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct ListCodeRunsQuery {
    /// Only these: one of the words of a run's status.
    pub status: Option<String>,
    /// Only those of this context.
    pub context_id: Option<String>,
    /// Items of a page, 1 to 200; 50 when absent.
    pub limit: Option<u32>,
    /// From the page before.
    pub cursor: Option<String>,
}

/// What a piece of code gave.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Execution {
    /// Its value and what it displayed.
    pub results: Vec<CodeResult>,
    /// Files that came out of it.
    pub artifacts: Vec<CodeArtifact>,
    /// What it printed.
    pub logs: Logs,
    /// The error that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<CodeError>,
    /// Which execution of its kernel it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub execution_count: Option<u64>,
}

/// What a piece of code printed, as it came.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Logs {
    /// Standard output.
    pub stdout: Vec<String>,
    /// Standard error.
    pub stderr: Vec<String>,
}

/// An error of a piece of code.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CodeError {
    /// Its type: `ValueError`; `TimeoutError`, `KernelDied`, `KernelLost`, `KernelRestarted`, `ContextRemoved`,
    /// `Interrupted` and `Cancelled` are the platform's.
    pub name: String,
    /// What it says.
    pub value: String,
    /// Where it came from, as text.
    pub traceback: String,
}

/// A value that a piece of code gave, in every form that it has.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct CodeResult {
    /// `text/plain`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// `text/html`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub html: Option<String>,
    /// `text/markdown`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub markdown: Option<String>,
    /// `image/svg+xml`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub svg: Option<String>,
    /// `image/png`, base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub png: Option<String>,
    /// `image/jpeg`, base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jpeg: Option<String>,
    /// `application/pdf`, base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pdf: Option<String>,
    /// `text/latex`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latex: Option<String>,
    /// `application/json`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub json: Option<Value>,
    /// `application/javascript`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub javascript: Option<String>,
    /// All of these and whatever else there is, by MIME type.
    pub data: Map<String, Value>,
    /// What a figure of matplotlib shows, as data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chart: Option<Value>,
    /// Whether it is the value of the code itself, not something that it displayed.
    pub is_main_result: bool,
}

impl CodeResult {
    /// From the forms by MIME type.
    #[must_use]
    pub fn new(data: Map<String, Value>, chart: Option<Value>, is_main_result: bool) -> Self {
        let text = |kind: &str| Some(data.get(kind)?.as_str()?.to_owned());
        Self {
            text: text("text/plain"),
            html: text("text/html"),
            markdown: text("text/markdown"),
            svg: text("image/svg+xml"),
            png: text("image/png"),
            jpeg: text("image/jpeg"),
            pdf: text("application/pdf"),
            latex: text("text/latex"),
            json: data.get("application/json").cloned(),
            javascript: text("application/javascript"),
            chart,
            is_main_result,
            data,
        }
    }
}

/// What an artifact is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ArtifactKind {
    /// A picture.
    Image,
    /// A page.
    Html,
    /// A PDF, Markdown or LaTeX text.
    Document,
    /// Anything else.
    File,
}

impl ArtifactKind {
    /// As it is recorded.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Html => "html",
            Self::Document => "document",
            Self::File => "file",
        }
    }

    /// From the record or a query.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Image, Self::Html, Self::Document, Self::File]
            .into_iter()
            .find(|kind| kind.as_str() == text)
    }

    /// What something of this MIME type is.
    #[must_use]
    pub fn of(mime_type: &str) -> Self {
        match mime_type {
            "text/html" | "application/xhtml+xml" => Self::Html,
            "application/pdf" | "text/markdown" | "text/latex" => Self::Document,
            image if image.starts_with("image/") => Self::Image,
            _ => Self::File,
        }
    }
}

/// A file that came out of a piece of code: a picture, page or document among its results, or a file that it wrote into
/// `/workspace/artifacts`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CodeArtifact {
    /// Its id.
    pub id: String,
    /// The context that it came from.
    pub context_id: String,
    /// Which execution of its kernel it came from.
    pub execution_count: Option<u64>,
    /// What it is.
    pub kind: ArtifactKind,
    /// Its MIME type.
    pub mime_type: String,
    /// A name for it.
    pub name: String,
    /// Its size.
    pub size_bytes: u64,
    /// SHA-256 of its bytes, in lower-case hex.
    pub sha256: String,
    /// When it came.
    pub created_at: String,
    /// When it is removed.
    pub expires_at: Option<String>,
    /// Path on this server where it is shown.
    pub preview_url: Option<String>,
    /// Path on this server where its bytes are.
    pub download_url: Option<String>,
    /// The run that it came from and the path that it had, where there are such.
    pub metadata: Option<Map<String, Value>>,
}

/// `GET …/code/artifacts`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct ListArtifactsQuery {
    /// Only those of this context.
    pub context_id: Option<String>,
    /// Only those of this execution.
    pub execution_count: Option<u64>,
    /// Only these: `image`, `html`, `document` or `file`.
    pub kind: Option<String>,
    /// Items of a page, 1 to 200; 50 when absent.
    pub limit: Option<u32>,
    /// From the page before.
    pub cursor: Option<String>,
}

/// What comes while code runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ExecutionEvent {
    /// Standard output.
    Stdout {
        /// As it was printed.
        text: String,
        /// Milliseconds since 1970.
        timestamp: i64,
    },
    /// Standard error.
    Stderr {
        /// As it was printed.
        text: String,
        /// Milliseconds since 1970.
        timestamp: i64,
    },
    /// The value of the code, or something that it displayed.
    Result(Box<CodeResult>),
    /// A file that came out of it.
    Artifact {
        /// Which.
        artifact: Box<CodeArtifact>,
    },
    /// The error that ended it.
    Error(CodeError),
    /// Which execution of its kernel it is.
    NumberOfExecutions {
        /// Counted from 1.
        execution_count: u64,
    },
}

impl Execution {
    /// Adds what came.
    pub fn add(&mut self, event: ExecutionEvent) {
        match event {
            ExecutionEvent::Stdout { text, .. } => self.logs.stdout.push(text),
            ExecutionEvent::Stderr { text, .. } => self.logs.stderr.push(text),
            ExecutionEvent::Result(result) => self.results.push(*result),
            ExecutionEvent::Artifact { artifact } => self.artifacts.push(*artifact),
            ExecutionEvent::Error(error) => self.error = Some(error),
            ExecutionEvent::NumberOfExecutions { execution_count } => {
                self.execution_count = Some(execution_count);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    #[allow(clippy::unwrap_used)]
    fn events_are_spelled_as_clients_read_them() {
        let data = json!({"text/plain": "2", "image/png": "aGk="});
        let result = CodeResult::new(data.as_object().unwrap().clone(), None, true);
        let event = ExecutionEvent::Result(Box::new(result));
        let text = serde_json::to_value(&event).unwrap();
        assert_eq!(
            text,
            json!({"type": "result", "text": "2", "png": "aGk=", "data": data, "is_main_result": true})
        );
        assert_eq!(
            serde_json::from_value::<ExecutionEvent>(text).unwrap(),
            event
        );
        let event = ExecutionEvent::NumberOfExecutions { execution_count: 3 };
        assert_eq!(
            serde_json::to_value(event).unwrap(),
            json!({"type": "number_of_executions", "execution_count": 3})
        );
    }
}
