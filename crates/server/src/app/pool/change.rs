//! What is asked of a pool: each field is checked before anything is recorded.

use nullspace_api::pool::{PoolResources, UpdatePoolRequest, VersionPolicy};
use nullspace_store::pool::PoolRow;
use serde_json::{Map, Value};

use super::{MAX_NAME, keeper, word};
use crate::{
    app::{App, AppState, machine, template},
    error::{Error, Result},
};

/// The most machines that one pool has ready.
const MAX_READY: u32 = 1000;
/// The most labels, or metadata, as JSON.
const MAX_WORDS: usize = 64 << 10;
/// The longest time that a pool can be told, in seconds: a year.
const MAX_SECS: u64 = 366 * 24 * 3600;

/// Checks what is asked of a pool, and puts it in.
pub(super) async fn change(
    app: &AppState,
    row: &mut PoolRow,
    request: UpdatePoolRequest,
) -> Result<()> {
    if let Some(name) = request.name {
        let length = name.trim().chars().count();
        if length == 0 || length > MAX_NAME || name.chars().any(char::is_control) {
            return Err(Error::invalid(format!(
                "name: must have 1 to {MAX_NAME} characters"
            )));
        }
        name.trim().clone_into(&mut row.name);
    }
    row.min_ready = request.min_ready.unwrap_or(row.min_ready);
    row.max_ready = request.max_ready.unwrap_or(row.max_ready);
    let most = MAX_READY.min(u32::try_from(app.config.max_machines).unwrap_or(u32::MAX));
    if row.max_ready > most {
        return Err(Error::invalid(format!("max_ready: must be at most {most}")));
    }
    if row.max_ready < row.min_ready {
        return Err(Error::invalid(format!(
            "max_ready: {} is under min_ready, which is {}",
            row.max_ready, row.min_ready
        )));
    }
    if let Some(resources) = request.resources {
        size(app, row, &resources).map_err(|error| error.with_message_prefix("resources."))?;
    }
    for (name, value, into) in [
        (
            "idle_timeout_seconds",
            request.idle_timeout_seconds,
            &mut row.idle_timeout_secs,
        ),
        (
            "stale_after_seconds",
            request.stale_after_seconds,
            &mut row.stale_after_secs,
        ),
    ] {
        let Some(value) = value else { continue };
        if value == 0 || value > MAX_SECS {
            return Err(Error::invalid(format!("{name}: must be 1 to {MAX_SECS}")));
        }
        *into = value;
    }
    if let Some(policy) = request.checkout_policy {
        row.checkout_policy = word(&policy);
    }
    if let Some(labels) = request.labels {
        row.labels = words("labels", labels.into_iter().collect())?;
    }
    if let Some(metadata) = request.metadata {
        row.metadata = words("metadata", metadata)?;
    }
    let template = match (request.template_ref, request.template) {
        (Some(a), Some(b)) if a != b => {
            return Err(Error::invalid(
                "template: says another template than template_ref",
            ));
        }
        (a, b) => a.or(b),
    };
    let is_other =
        template.is_some() || request.version_policy.is_some() || request.track_tag.is_some();
    if let Some(template) = template {
        row.template_ref = template;
    }
    if let Some(policy) = request.version_policy {
        row.version_policy = word(&policy);
    }
    if is_other {
        versions(row, request.track_tag)?;
        // The keeper finds what it means; what means nothing is refused here.
        keeper::resolve_anew(app, row).await?;
    }
    Ok(())
}

fn size(app: &App, row: &mut PoolRow, resources: &PoolResources) -> Result<()> {
    machine::check_vcpus(app, resources.vcpus)?;
    machine::check_memory(app, resources.memory_mb)?;
    if let Some(disk_mb) = resources.disk_mb {
        machine::check_disk(app, disk_mb)?;
    }
    row.vcpus = resources.vcpus;
    row.memory_mb = resources.memory_mb;
    row.disk_mb = resources.disk_mb;
    Ok(())
}

/// Which builds it follows.
fn versions(row: &mut PoolRow, track_tag: Option<String>) -> Result<()> {
    if row.version_policy == word(&VersionPolicy::PinnedBuild) {
        if track_tag.is_some() {
            return Err(Error::invalid("track_tag: needs version_policy track_tag"));
        }
        row.track_tag = None;
        return Ok(());
    }
    let tag = match track_tag.filter(|tag| !tag.is_empty()) {
        Some(tag) => Some(tag),
        None => template::tag_of(&row.template_ref)?.or_else(|| row.track_tag.clone()),
    };
    let tag =
        tag.ok_or_else(|| Error::invalid("track_tag: is needed where template_ref names no tag"))?;
    if template::with_tag(&row.template_ref, &tag)?.is_none() {
        return Err(Error::invalid(format!(
            "track_tag: template_ref {:?} names another tag, or a build",
            row.template_ref
        )));
    }
    row.track_tag = Some(tag);
    Ok(())
}

fn words(field: &str, fields: Map<String, Value>) -> Result<String> {
    let text = Value::Object(fields).to_string();
    if text.len() > MAX_WORDS {
        return Err(Error::invalid(format!("{field}: over {MAX_WORDS} bytes")));
    }
    Ok(text)
}
