//! Garbage collection: bundles, outputs, artifacts and layers of templates that nothing points at any more. Only when somebody asks, and
//! with a look before.
//!
//! ```text
//!  look: what is on disk − what the record needs ──▶ sizes ──▶ report
//!                                                └─(not dry)─▶ set aside, in the writer's turn ──▶ remove
//! ```
//! A tree is set aside where new versions are recorded too, one after the other: so none can come to need it in
//! between.

use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
};

use nullspace_api::agent::{GcItem, GcReport};
use nullspace_store::{
    StoreError, agent_deployment as deployments, agent_version as versions, rusqlite::Connection,
};

use super::{App, agent, agent_artifact, agent_output, agent_version, bundle, template};
use crate::error::{Error, Result};

/// Trees of one kind, by the name of their directory.
struct Kind {
    name: &'static str,
    root: PathBuf,
    needed: fn(&Connection) -> Result<HashSet<String>, StoreError>,
    reason: &'static str,
}

fn kinds(app: &App) -> [Kind; 2] {
    [
        Kind {
            name: "bundle",
            root: bundle::root(&app.data_dir),
            needed: deployments::needed_bundles,
            reason: "no version that is left, and no machine, has it",
        },
        Kind {
            name: "output",
            root: agent_output::root(&app.data_dir),
            needed: deployments::needed_outputs,
            reason: "its deployment was deleted",
        },
    ]
}

/// Removes what nothing needs, or only says what that is.
///
/// # Errors
/// When the disk or the record cannot be read or written.
pub async fn collect(app: &App, dry_run: bool) -> Result<GcReport> {
    let mut report = GcReport {
        dry_run,
        ..GcReport::default()
    };
    for kind in kinds(app) {
        trees(app, kind, dry_run, &mut report).await?;
    }
    artifacts(app, dry_run, &mut report).await?;
    template::gc::collect(app, dry_run, &mut report).await?;
    report.freed_bytes = report.items.iter().map(|item| item.size_bytes).sum();
    if !dry_run {
        tracing::info!(
            items = report.items.len(),
            bytes = report.freed_bytes,
            "collected garbage"
        );
    }
    Ok(report)
}

async fn trees(app: &App, kind: Kind, dry_run: bool, report: &mut GcReport) -> Result<()> {
    let root = kind.root.clone();
    let on_disk = agent::blocking(move || {
        names(&root).map_err(|e| Error::internal(format!("reading {}: {e}", root.display())))
    })
    .await?;
    let needed = agent::kept(app.store.read(kind.needed).await)?;
    let unneeded: Vec<String> = on_disk
        .into_iter()
        .filter(|name| !needed.contains(name))
        .collect();
    let root = kind.root.clone();
    let mut sized = agent::blocking(move || {
        let sized = unneeded.into_iter().filter_map(|name| {
            match agent_artifact::size(&root.join(&name)) {
                Ok(size) => Some(Ok((name, size))),
                // Somebody else removes it at this moment.
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => Some(Err(error)),
            }
        });
        sized
            .collect::<io::Result<Vec<_>>>()
            .map_err(|e| Error::internal(format!("measuring {}: {e}", root.display())))
    })
    .await?;
    if !dry_run {
        let (root, find) = (kind.root, kind.needed);
        let candidates = std::mem::take(&mut sized);
        let (aside, gone) = app
            .store
            .write(move |tx| {
                let needed = find(tx)?;
                let mut aside = Vec::new();
                let mut gone = Vec::new();
                for (name, size) in candidates {
                    let hidden = root.join(format!("{}gc-{name}", bundle::INCOMING));
                    if !needed.contains(&name) && fs::rename(root.join(&name), &hidden).is_ok() {
                        aside.push(hidden);
                        gone.push((name, size));
                    }
                }
                Ok::<_, Error>((aside, gone))
            })
            .await?;
        sized = gone;
        agent::blocking(move || {
            for path in aside {
                bundle::remove_tree(&path)
                    .map_err(|e| Error::internal(format!("removing {}: {e}", path.display())))?;
            }
            Ok(())
        })
        .await?;
    }
    report
        .items
        .extend(sized.into_iter().map(|(name, size_bytes)| GcItem {
            kind: kind.name.into(),
            name,
            size_bytes,
            reason: kind.reason.into(),
        }));
    Ok(())
}

/// The directories in one, but for those that are being made or removed.
fn names(root: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(root)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

async fn artifacts(app: &App, dry_run: bool, report: &mut GcReport) -> Result<()> {
    let live = agent::kept(app.store.read(versions::live).await)?;
    let keys: HashSet<String> = live
        .iter()
        .filter_map(|row| agent_version::cache_key(app, row))
        .collect();
    for (row, is_needed) in agent_artifact::all(app).await? {
        if is_needed || keys.contains(&row.key) {
            continue;
        }
        if dry_run || agent_artifact::remove(app, &row.id).await? {
            report.items.push(GcItem {
                kind: "artifact".into(),
                name: row.id,
                size_bytes: row.size_bytes,
                reason: "no version that is left would use it".into(),
            });
        }
    }
    Ok(())
}
