//! Watching files of a machine.

use std::time::Duration;

use nullspace_api::{error::code, socket::ServerMessage};
use nullspace_protocol::{WatchKind, WatchStream};

use super::Answers;
use crate::{
    app::file::Files,
    error::{Error, Kind, Result},
};

/// The longest time limit of a watch.
const MAX_SECS: f64 = 366.0 * 86_400.0;

impl Answers {
    /// Tells what happens to files until the watch ends or the connection is gone.
    pub(super) async fn watch(
        self,
        path: String,
        user: Option<String>,
        recursive: bool,
        timeout_secs: Option<f64>,
    ) {
        let told = async {
            let limit = timeout_secs.map(limit).transpose()?;
            let files = Files::open(&self.app, &self.machine, user).await?;
            let events = files.watch(path, recursive).await?;
            match limit {
                Some(limit) => tokio::time::timeout(limit, self.tell(events))
                    .await
                    .unwrap_or(Ok(())),
                None => self.tell(events).await,
            }
        };
        if let Err(error) = told.await {
            self.refuse(&error).await;
        }
    }

    async fn tell(&self, mut events: WatchStream) -> Result<()> {
        let lost = |context: String| {
            Error::new(
                Kind::Machine,
                code::FILE_ERROR,
                "the machine went away while files were watched",
            )
            .with_context(context)
        };
        loop {
            let event = match events.next().await {
                Ok(Some(event)) => event,
                Ok(None) => return Err(lost(String::new())),
                Err(error) => return Err(lost(error.to_string())),
            };
            let id = &self.id;
            let word = match event.event {
                WatchKind::Started => {
                    self.say(&ServerMessage::FileWatchStarted { id: id.into() })
                        .await;
                    continue;
                }
                WatchKind::Ended => {
                    let why = event.message.unwrap_or_else(|| "the watch ended".into());
                    return Err(Error::not_found(code::NOT_FOUND, why));
                }
                WatchKind::Create => "create",
                WatchKind::Write => "write",
                WatchKind::Remove => "remove",
                WatchKind::Rename => "rename",
                WatchKind::Chmod => "chmod",
                WatchKind::ResyncRequired => "resync_required",
            };
            let name = event.path.rsplit('/').next().unwrap_or_default();
            let told = ServerMessage::FileEvent {
                id: id.into(),
                event: word.into(),
                name: name.into(),
                path: (&event.path).into(),
            };
            self.say(&told).await;
        }
    }
}

fn limit(secs: f64) -> Result<Duration> {
    if secs > 0.0 && secs <= MAX_SECS {
        return Ok(Duration::from_secs_f64(secs));
    }
    Err(Error::invalid(format!(
        "timeout_secs: must be over 0 and at most {MAX_SECS}"
    )))
}
