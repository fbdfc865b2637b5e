//! The task of a run.

use std::sync::Arc;

use nullspace_store::agent_run::RunRow;

use super::{AppState, agent_version::Prepared};

pub(super) fn resume(_app: &AppState, _row: RunRow, _version: Arc<Prepared>) {}

pub(super) async fn release(_app: &AppState, _machine_id: &str, _until: Option<i64>) {}
