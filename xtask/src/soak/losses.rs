//! What may be lost in a round besides what was not answered, and what a client makes of that.

use http::Method;
use serde_json::json;

use super::{
    api::{Stop, wrong},
    client::{Client, Op, until},
    machines::PLACE,
    model::State,
};

/// What was hit may have taken this with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Loss {
    Nothing,
    /// Every machine that does not sleep on the disk.
    Machines,
    /// This machine, which must be lost, and no other.
    Machine(String),
    /// What was written in machines, whose file systems have had no room on the disk.
    Writes,
}

impl Client {
    /// The machine whose processes were killed says so, if it is this client's, and is no more.
    pub(crate) async fn mourn(&mut self, id: &str) -> Result<(), Stop> {
        if !self.own.machines.contains_key(id) {
            return Ok(());
        }
        let told = until(id, async || {
            let told = self.api.get(&format!("/v1/machines/{id}")).await?;
            let told = told.expect(&[200])?;
            Ok((told.body["status"] == "error").then_some(told))
        })
        .await?;
        self.lost(id, &told)
    }

    /// After the disk was full. What was written in machines may be lost, and one whose file system could not write what it
    /// had taken has a read-only one from then on, or none: whoever has such a machine ends it. Those that sleep are woken, since
    /// only then it shows.
    pub(crate) async fn sift(&mut self) -> Result<(), Stop> {
        for machine in self.own.machines.values_mut() {
            machine.inside.files.clear();
        }
        for inside in self.own.snapshots.values_mut() {
            inside.files.clear();
        }
        for (id, machine) in self.own.machines.clone() {
            // A server that was not killed may still be about something that failed.
            let told = until(&id, async || {
                let told = self.api.get(&format!("/v1/machines/{id}")).await?;
                let told = told.expect(&[200])?;
                let status = told.body["status"].as_str().unwrap_or_default();
                let stays = ["running", "paused", "error", "destroyed"].contains(&status);
                Ok(stays.then_some(told))
            })
            .await?;
            let status = told.text("status")?;
            if status == "error" {
                self.lost(&id, &told)?;
                continue;
            }
            if status == "destroyed" {
                // Right if that was under way: it is done again. Otherwise it is missed when it is looked at.
                continue;
            }
            let should_run = machine.state == State::Running;
            if should_run != (status == "running") && !self.may_have_moved(&id) {
                return wrong(format!("{id} should be {:?}: {}", machine.state, told.body));
            }
            let runs = status == "running" || self.wakes(&id).await;
            if runs && self.is_well(&id).await {
                self.is_now(&id, State::Running);
            } else {
                self.note(format!("{id} did not live through a full disk"));
                self.destroy(&id, false).await?;
            }
        }
        Ok(())
    }

    /// Snapshots of this round may be of such a file system: what is made of them would have it too.
    pub(crate) async fn drop_young_snapshots(&mut self) -> Result<(), Stop> {
        let all = self.own.snapshots.keys();
        let young = all.filter(|id| !self.had.contains(*id));
        for id in young.cloned().collect::<Vec<_>>() {
            self.delete_snapshot(&id, false).await?;
        }
        Ok(())
    }

    /// Whether it was asked to sleep, or to wake, and there was no answer.
    fn may_have_moved(&self, id: &str) -> bool {
        match &self.cut {
            Some(Op::Hibernate(of) | Op::Resume(of) | Op::Wake(of)) => of == id,
            _ => false,
        }
    }

    async fn wakes(&self, id: &str) -> bool {
        let path = format!("/v1/machines/{id}/resume");
        let woken = self.api.try_to(Method::POST, &path, json!({})).await;
        woken.is_some_and(|answer| answer.status == 200)
    }

    /// Whether commands run in it and can write.
    async fn is_well(&self, id: &str) -> bool {
        let line = format!("mkdir -p {PLACE} && echo well > {PLACE}/.well");
        let body = json!({"command": line, "shell": true, "timeout_secs": 20});
        let path = format!("/v1/machines/{id}/exec");
        let done = self.api.try_to(Method::POST, &path, body).await;
        done.is_some_and(|answer| answer.status == 200 && answer.body["exit_code"] == 0)
    }
}
