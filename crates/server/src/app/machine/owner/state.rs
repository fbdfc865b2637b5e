//! Keeping a machine's state: hibernating it, waking it, and a copy of it while it goes on.
//!
//! ```text
//!  hibernate: record `writing` ─▶ engine keeps it and ends it ─▶ record `paused`, `ready`
//!             (an engine that cannot: it stands still in place)
//!  resume:    record that it is asked for ─▶ engine restores it ─▶ record `running`, forget the snapshot
//! ```
//! Whatever dies in between, the next server finds a record of what was meant: see `adopt`.

use nullspace_api::time;
use nullspace_engine::{Capabilities, EngineError, MachineSpec, Purpose};
use nullspace_lifecycle::machine::{Input, State};
use nullspace_store::{
    event as event_rows, idempotency,
    snapshot::{self as snapshot_rows, SnapshotRow},
};

use super::{Change, Owner};
use crate::{
    app::{
        egress,
        machine::{key_used, salted},
        snapshot::{self, By, Kept, Kind, Shape, Wanted},
        tenant::{self, Adding},
        volume::mount::{self, Mount},
    },
    error::{Error, Result},
};

impl Owner {
    /// Stops it and keeps its memory.
    pub(super) async fn hibernate(&mut self, input: Input, by: By) -> Result<SnapshotRow> {
        let can = self.may_be_kept().await?;
        if !can.hibernate && !can.pause {
            return Err(snapshot::cannot(self.engine(), "hibernate machines"));
        }
        let mut snapshot = self.snapshot(Kind::Hibernate, &by, Vec::new())?;
        snapshot.in_place = !can.hibernate;
        snapshot.metadata = snapshot::lasting(snapshot.in_place).to_string();
        let put = Change::Put(Box::new(snapshot.clone()));
        self.step_with(input, by.key_id.as_deref(), None, put)
            .await?;
        match self.stop(&mut snapshot).await {
            Ok(()) => {
                snapshot.is_ready = true;
                let put = Change::Put(Box::new(snapshot.clone()));
                self.must_with(Input::Hibernated, None, put).await;
                if !snapshot.in_place {
                    *self.handle.guest.lock().await = None;
                }
                self.free_place(&snapshot);
                Ok(snapshot)
            }
            Err(error) => {
                tracing::warn!(machine = self.row.id, %error, "a machine could not be hibernated");
                if snapshot.in_place
                    && let Err(error) = self.app.engine.unpause(&self.row.id).await
                {
                    tracing::error!(machine = self.row.id, %error, "a machine that could not be paused stands still");
                }
                let forget = Change::Forget(snapshot.id.clone());
                self.must_with(Input::HibernateFailed, Some(error.to_string()), forget)
                    .await;
                Err(error.into())
            }
        }
    }

    async fn stop(&self, snapshot: &mut SnapshotRow) -> Result<(), EngineError> {
        let engine = &self.app.engine;
        if snapshot.in_place {
            engine.pause(&self.row.id).await?;
            snapshot.size_bytes = engine.usage(&self.row.id).await?.memory_bytes;
        } else {
            let target = snapshot::directory(&self.app, &snapshot.id);
            let kept = engine
                .checkpoint(&self.row.id, &target, Purpose::Hibernate)
                .await?;
            snapshot::describe(snapshot, &kept);
        }
        Ok(())
    }

    /// Lets it go on. One that runs does already.
    pub(super) async fn resume(&mut self, key_id: Option<&str>) -> Result<()> {
        let snapshot = match (self.state(), self.row.snapshot_id.clone()) {
            (State::Running, _) => return Ok(()),
            (State::Paused, Some(id)) => id,
            _ => return Err(Error::not_ready(&self.row.id, &self.row.state)),
        };
        let wanted = snapshot.clone();
        let snapshot = self
            .app
            .store
            .read(move |db| snapshot_rows::get(db, &wanted))
            .await?
            .ok_or_else(|| Error::internal(format!("the record has no snapshot {snapshot}")))?;
        tenant::may_resume(&self.app, &self.row).await?;
        if self.place.is_none() {
            self.place = Some(self.app.machines.reserve(self.app.config.max_machines)?);
        }
        let about = Change::About(snapshot.id.clone());
        let asked = self
            .step_with(Input::Resume, key_id, None, about.clone())
            .await;
        if asked.is_err() {
            self.free_place(&snapshot);
            return asked;
        }
        match self.go_on(&snapshot).await {
            Ok(()) => {
                self.must(Input::Resumed, None).await;
                Ok(())
            }
            Err(error) => {
                self.free_place(&snapshot);
                tracing::warn!(machine = self.row.id, code = error.code, context = ?error.context, "a machine could not be woken");
                self.must_with(Input::ResumeFailed, Some(error.message.clone()), about)
                    .await;
                Err(error)
            }
        }
    }

    /// One that sleeps on disk takes no place of those that are alive.
    fn free_place(&mut self, snapshot: &SnapshotRow) {
        if !snapshot.in_place {
            self.place = None;
        }
    }

    async fn go_on(&self, snapshot: &SnapshotRow) -> Result<()> {
        let engine = &self.app.engine;
        if snapshot.in_place {
            return Ok(engine.unpause(&self.row.id).await?);
        }
        let from = snapshot::whole(&self.app, snapshot)?;
        let mut spec = MachineSpec {
            egress: egress::recorded(&self.row),
            ..snapshot::shape(snapshot)?.spec
        };
        let volumes = self.row.volumes.iter();
        spec.binds
            .extend(volumes.map(|volume| mount::bind(&self.app, volume)));
        match engine.restore(&spec, &from).await {
            // A server that died had got that far.
            Err(EngineError::Exists(_)) => Ok(()),
            other => Ok(other?),
        }
    }

    /// Keeps its state while it goes on.
    pub(super) async fn checkpoint(&mut self, wanted: Wanted) -> Result<Kept> {
        if self.state() != State::Running {
            return Err(Error::not_ready(&self.row.id, &self.row.state)
                .with_action("resume the machine first"));
        }
        let can = self.may_be_kept().await?;
        let (able, purpose) = match wanted.kind {
            Kind::Fork => (can.fork, Purpose::Fork),
            Kind::Hibernate | Kind::Snapshot => (can.hibernate, Purpose::Snapshot),
        };
        if !able {
            return Err(snapshot::cannot(self.engine(), wanted.kind.verb()));
        }
        let volumes = mount::kept(&self.app, &self.row).await?;
        if wanted.kind == Kind::Fork {
            // What the other machine would be refused is refused before anything is done.
            mount::again(&self.app, &self.row.tenant_id, &volumes).await?;
        }
        let mut snapshot = self.snapshot(wanted.kind, &wanted.by, volumes)?;
        snapshot.child_id.clone_from(&wanted.child);
        let recorded = self.record_wanted(&wanted, &snapshot).await?;
        match recorded {
            idempotency::Outcome::New => {}
            idempotency::Outcome::Replay(subject) => return Ok(Kept::Replay(subject)),
            idempotency::Outcome::Conflict => return Err(key_used()),
        }
        let target = snapshot::directory(&self.app, &snapshot.id);
        let kept = self
            .app
            .engine
            .checkpoint(&self.row.id, &target, purpose)
            .await;
        match kept {
            Ok(kept) => {
                snapshot::describe(&mut snapshot, &kept);
                snapshot.is_ready = true;
                snapshot::record_ready(&self.app, &self.row, &wanted, &snapshot).await?;
                Ok(Kept::New(Box::new(snapshot)))
            }
            Err(error) => {
                tracing::warn!(machine = self.row.id, %error, "a machine's state could not be kept");
                let error = Error::from(error);
                snapshot::record_failed(&self.app, &self.row, &wanted, &snapshot, &error).await;
                Err(error)
            }
        }
    }

    async fn record_wanted(
        &self,
        wanted: &Wanted,
        snapshot: &SnapshotRow,
    ) -> Result<idempotency::Outcome> {
        let event = wanted.event(&self.row, &snapshot.id, "requested");
        let (claim, snapshot) = (wanted.claim.clone(), snapshot.clone());
        let is_extra = wanted.kind == Kind::Snapshot;
        let subject = wanted.child.clone().unwrap_or_else(|| snapshot.id.clone());
        let outcome = self
            .app
            .store
            .write(move |tx| {
                if let Some(claim) = &claim {
                    let outcome =
                        idempotency::claim(tx, claim, &subject, snapshot.created_at, salted)?;
                    if outcome != idempotency::Outcome::New {
                        return Ok(outcome);
                    }
                }
                // How much it is to be is not known yet. One that a machine goes on from is kept in any case.
                if is_extra {
                    tenant::within(tx, &snapshot.tenant_id, Adding::Disk)?;
                }
                snapshot_rows::put(tx, &snapshot)?;
                event_rows::append(tx, &event)?;
                Ok::<_, Error>(idempotency::Outcome::New)
            })
            .await?;
        Ok(outcome)
    }

    /// The name of its engine.
    fn engine(&self) -> &str {
        let recorded = self.row.isolation.as_deref();
        recorded.unwrap_or_else(|| self.app.engine.name())
    }

    /// Whether its state may be kept at all, and what its engine can do.
    async fn may_be_kept(&self) -> Result<Capabilities> {
        if self.row.owner.is_some() {
            return Err(Error::conflict(
                nullspace_api::error::code::CONFLICT,
                format!("machine {} backs a run or a service", self.row.id),
            )
            .with_action("use a machine of your own, or stop the run or service"));
        }
        Ok(self.app.engine.capabilities_of(&self.row.id).await?)
    }

    /// The record of a state that is going to be kept. `volumes` are for machines that are made of it.
    fn snapshot(&self, kind: Kind, by: &By, volumes: Vec<Mount>) -> Result<SnapshotRow> {
        let mut shape = Shape::of(&self.row, self.app.templates.user(&self.row.id))?;
        shape.volumes = volumes;
        Ok(SnapshotRow {
            id: nullspace_api::id::new(nullspace_api::id::SNAPSHOT),
            machine_id: self.row.id.clone(),
            tenant_id: self.row.tenant_id.clone(),
            kind: kind.as_str().to_owned(),
            shape: shape.to_json()?,
            metadata: snapshot::lasting(false).to_string(),
            key_id: by.key_id.clone(),
            noun: by.noun.word().to_owned(),
            created_at: time::now(),
            ..SnapshotRow::default()
        })
    }
}
