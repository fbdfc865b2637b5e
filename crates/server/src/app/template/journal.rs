//! What a build says: kept first, then told to whoever follows. Secrets are taken out of every line.

use nullspace_api::{template_build::BuildLogEntry, time};
use nullspace_store::{
    StoreError, template as templates,
    template_build::{self as rows, BuildRow},
};
use tokio::sync::watch;

use crate::{app::AppState, error::Result};

/// The most entries of one log; the last thing a build says is kept all the same.
const MAX_ENTRIES: u64 = 100_000;
/// The most characters of a line.
const MAX_LINE: usize = 8 << 10;
/// Secrets shorter than this cannot be told from other words.
const MIN_SECRET: usize = 4;

/// Where a step of the build stands, put into each entry.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct At {
    pub(super) step: Option<u32>,
    pub(super) total: u32,
}

/// The log of one build and the record of it.
pub(super) struct Journal {
    app: AppState,
    pub(super) row: BuildRow,
    pub(super) at: At,
    /// How many entries there are.
    told: watch::Sender<u64>,
    secrets: Vec<String>,
    waiting: Vec<rows::Entry>,
    is_full: bool,
}

impl Journal {
    pub(super) fn new(
        app: &AppState,
        row: BuildRow,
        told: watch::Sender<u64>,
        secrets: &[&str],
    ) -> Self {
        let mut hidden: Vec<String> = secrets
            .iter()
            .flat_map(|value| std::iter::once(*value).chain(value.lines()).map(str::trim))
            .filter(|text| text.len() >= MIN_SECRET)
            .map(str::to_owned)
            .collect();
        // The longest first: one may be a part of another.
        hidden.sort_by_key(|text| std::cmp::Reverse(text.len()));
        hidden.dedup();
        Self {
            app: app.clone(),
            row,
            at: At::default(),
            told,
            secrets: hidden,
            waiting: Vec::new(),
            is_full: false,
        }
    }

    /// A line without secrets, and not too long.
    pub(super) fn clean(&self, text: &str) -> String {
        let mut text = text.replace('\0', "\u{fffd}");
        for secret in &self.secrets {
            if text.contains(secret.as_str()) {
                text = text.replace(secret.as_str(), "***");
            }
        }
        match text.char_indices().nth(MAX_LINE) {
            Some((end, _)) => format!("{} …", &text[..end]),
            None => text,
        }
    }

    /// Says something; it is kept with [`Journal::flush`].
    pub(super) fn say(&mut self, entry: BuildLogEntry) {
        let number = self.row.entries + self.waiting.len() as u64;
        if number >= MAX_ENTRIES {
            if self.is_full {
                return;
            }
            self.is_full = true;
            let entry = BuildLogEntry {
                kind: "warning".into(),
                level: "warn".into(),
                message: format!("the log has {MAX_ENTRIES} entries; what comes now is left out"),
                ..BuildLogEntry::default()
            };
            return self.push(entry);
        }
        self.push(entry);
    }

    fn push(&mut self, mut entry: BuildLogEntry) {
        entry.message = self.clean(&entry.message);
        entry.step_index = entry.step_index.or(self.at.step);
        if entry.step_index.is_some() {
            entry.total_steps = Some(self.at.total);
        }
        let text = serde_json::to_string(&entry).unwrap_or_default();
        self.waiting.push((time::now(), text));
    }

    /// Says something for people.
    pub(super) fn message(&mut self, phase: &str, message: impl Into<String>) {
        self.say(BuildLogEntry {
            kind: "message".into(),
            level: "info".into(),
            phase: Some(phase.into()),
            message: message.into(),
            ..BuildLogEntry::default()
        });
    }

    /// Says that something may not be as it was meant.
    pub(super) fn warn(&mut self, phase: &str, message: impl Into<String>) {
        self.say(BuildLogEntry {
            kind: "warning".into(),
            level: "warn".into(),
            phase: Some(phase.into()),
            message: message.into(),
            ..BuildLogEntry::default()
        });
    }

    /// Keeps what was said, and the record as it is now.
    ///
    /// # Errors
    /// When the record cannot be written; nothing was kept then.
    pub(super) async fn flush(&mut self) -> Result<()> {
        self.keep(Vec::new()).await
    }

    /// Keeps the end: the last entry, the record, and with a build that is ready the tags that mean it from now on.
    ///
    /// # Errors
    /// As [`Journal::flush`].
    pub(super) async fn finish(&mut self, last: BuildLogEntry, tags: Vec<String>) -> Result<()> {
        let begun = self.waiting.len();
        self.push(last);
        let kept = self.keep(tags).await;
        if kept.is_err() {
            self.waiting.truncate(begun);
        }
        kept
    }

    async fn keep(&mut self, tags: Vec<String>) -> Result<()> {
        let mut row = self.row.clone();
        let from = row.entries;
        row.entries += self.waiting.len() as u64;
        row.updated_at = time::now();
        let (recording, entries) = (row.clone(), self.waiting.clone());
        self.app
            .store
            .write(move |tx| {
                rows::append(tx, recording.seq, from, &entries)?;
                rows::update(tx, &recording)?;
                for tag in &tags {
                    templates::set_tag(
                        tx,
                        &recording.template_id,
                        tag,
                        &recording.id,
                        recording.updated_at,
                    )?;
                }
                if !tags.is_empty() {
                    let built = (&*recording.tenant_id, &*recording.name);
                    templates::forget_claims(tx, recording.updated_at, Some(built))?;
                }
                Ok::<_, StoreError>(())
            })
            .await?;
        self.waiting.clear();
        self.row = row;
        self.told.send_replace(self.row.entries);
        Ok(())
    }
}
