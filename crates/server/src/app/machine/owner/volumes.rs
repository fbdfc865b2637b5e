//! Volumes of a machine that runs: recorded, done by the engine, recorded as done. The engine does each again without harm,
//! so what was begun when the server died is finished by the next one.

use nullspace_api::{error::code, time};
use nullspace_engine::EngineError;
use nullspace_lifecycle::machine::State;
use nullspace_store::{
    StoreError,
    volume::{self as rows, AttachmentRow},
};

use super::Owner;
use crate::{
    app::volume::mount::{self, Change, FAILED, MOUNTED, MOUNTING, Mount, RELEASING, REMOUNTING},
    error::{Error, Result},
};

impl Owner {
    pub(super) async fn change_volume(&mut self, change: Change) -> Result<AttachmentRow> {
        if self.state() != State::Running {
            return Err(Error::not_ready(&self.row.id, &self.row.state));
        }
        match change {
            Change::Attach(mount) => self.attach(&mount).await,
            Change::Detach(id) => self.detach(&id).await,
            Change::Check(id) => self.check(&id).await,
            Change::Remount(id) => self.remount(&id).await,
        }
    }

    async fn attach(&mut self, mount: &Mount) -> Result<AttachmentRow> {
        // Later than the machine, by which those that it was made with are told from others.
        let now = time::now().max(self.row.created_at + 1);
        let row = mount::row(mount, &self.row.id, now);
        let there = self.row.volumes.iter().map(|one| one.mount_path.as_str());
        mount::fits(there, &row.mount_path)?;
        let recording = row.clone();
        self.app
            .store
            .write(move |tx| match rows::attach(tx, &recording)? {
                true => Ok(()),
                false => Err(Error::not_found(
                    code::NOT_FOUND,
                    format!("no volume {}", recording.volume_id),
                )),
            })
            .await?;
        self.row.volumes.push(row.clone());
        self.publish_row();
        let bind = mount::bind(&self.app, &row);
        let Err(error) = self.app.engine.attach(&self.row.id, &bind).await else {
            return self.settle(row, MOUNTED, None).await;
        };
        let is_sure = matches!(
            error,
            EngineError::InvalidSpec(_)
                | EngineError::NotFound(_)
                | EngineError::Unsupported { .. }
        );
        if !is_sure {
            // Whether it is there is not known.
            let _ = self.app.engine.detach(&self.row.id, &bind.target).await;
        }
        self.drop_attachment(&row.id).await?;
        Err(mount::refusal(error, &self.row.id))
    }

    async fn detach(&mut self, id: &str) -> Result<AttachmentRow> {
        let row = self.settle(self.attachment(id)?, RELEASING, None).await?;
        let bind = mount::bind(&self.app, &row);
        if let Err(error) = self.app.engine.detach(&self.row.id, &bind.target).await {
            let is_there = matches!(error, EngineError::Unsupported { .. });
            let state = if is_there { MOUNTED } else { FAILED };
            let error = mount::refusal(error, &self.row.id);
            self.settle(row, state, Some(&error)).await?;
            return Err(error);
        }
        self.drop_attachment(id).await?;
        Ok(AttachmentRow {
            state: "released".to_owned(),
            updated_at: time::now(),
            ..row
        })
    }

    async fn check(&mut self, id: &str) -> Result<AttachmentRow> {
        let row = self.attachment(id)?;
        let bind = mount::bind(&self.app, &row);
        let gone = |message: &str| {
            Error::new(
                crate::error::Kind::Unavailable,
                code::VOLUME_BACKEND_UNAVAILABLE,
                message,
            )
        };
        let error = if !bind.source.is_dir() {
            Some(gone("the volume's files are gone"))
        } else {
            match self.app.engine.attached(&self.row.id).await {
                Ok(binds) if binds.contains(&bind) => None,
                Ok(_) => Some(gone("the volume is not in the machine")),
                // Then nothing changes while the machine runs.
                Err(EngineError::Unsupported { .. }) => return Ok(row),
                Err(error) => return Err(mount::refusal(error, &self.row.id)),
            }
        };
        let state = if error.is_some() { FAILED } else { MOUNTED };
        match row.state == state {
            true => Ok(row),
            false => self.settle(row, state, error.as_ref()).await,
        }
    }

    async fn remount(&mut self, id: &str) -> Result<AttachmentRow> {
        let before = self.attachment(id)?;
        let row = self.settle(before, REMOUNTING, None).await?;
        let bind = mount::bind(&self.app, &row);
        let taken = self.app.engine.detach(&self.row.id, &bind.target).await;
        if let Err(error @ EngineError::Unsupported { .. }) = taken {
            self.settle(row, MOUNTED, None).await?;
            return Err(mount::refusal(error, &self.row.id));
        }
        self.mount(row).await
    }

    /// Mounts what is recorded already.
    async fn mount(&mut self, row: AttachmentRow) -> Result<AttachmentRow> {
        let bind = mount::bind(&self.app, &row);
        match self.app.engine.attach(&self.row.id, &bind).await {
            Ok(()) => self.settle(row, MOUNTED, None).await,
            Err(error) => {
                tracing::warn!(machine = self.row.id, attachment = row.id, %error, "a volume could not be mounted");
                let error = mount::refusal(error, &self.row.id);
                self.settle(row, FAILED, Some(&error)).await
            }
        }
    }

    /// What was begun is finished.
    pub(super) async fn replay_volumes(&mut self) {
        for row in self.row.volumes.clone() {
            let done = match row.state.as_str() {
                MOUNTING | REMOUNTING | FAILED => self.mount(row).await.map(drop),
                RELEASING => self.detach(&row.id).await.map(drop),
                _ => Ok(()),
            };
            if let Err(error) = done {
                tracing::error!(machine = self.row.id, %error, context = ?error.context, "a recorded volume is not in its place");
            }
        }
    }

    fn attachment(&self, id: &str) -> Result<AttachmentRow> {
        let found = self.row.volumes.iter().find(|one| one.id == id);
        found.cloned().ok_or_else(|| {
            Error::not_found(
                code::NOT_FOUND,
                format!("no attachment {id} in machine {}", self.row.id),
            )
        })
    }

    /// Records where a mount stands.
    async fn settle(
        &mut self,
        mut row: AttachmentRow,
        state: &str,
        error: Option<&Error>,
    ) -> Result<AttachmentRow> {
        row.state = state.to_owned();
        row.error_code = error.map(|error| error.code.to_owned());
        row.error_message = error.map(|error| error.message.clone());
        row.updated_at = time::now();
        let recording = row.clone();
        self.app
            .store
            .write(move |tx| rows::update_attachment(tx, &recording))
            .await?;
        if let Some(one) = self.row.volumes.iter_mut().find(|one| one.id == row.id) {
            one.clone_from(&row);
        }
        self.publish_row();
        Ok(row)
    }

    async fn drop_attachment(&mut self, id: &str) -> Result<()> {
        let wanted = id.to_owned();
        self.app
            .store
            .write(move |tx| rows::detach(tx, &wanted))
            .await
            .map_err(|error: StoreError| Error::from(error))?;
        self.row.volumes.retain(|one| one.id != id);
        self.publish_row();
        Ok(())
    }

    fn publish_row(&self) {
        self.publish
            .send_replace(std::sync::Arc::new(self.row.clone()));
    }
}
