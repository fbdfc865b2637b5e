//! What is done with machines, and what must be true of them.

use http::Method;
use rand::Rng;
use serde_json::json;

use super::{
    api::{Answer, Stop, wrong},
    client::{Client, until},
    model::{Inside, Machine, Process, State},
};

/// Two weeks: none ends by itself.
const TIME: u64 = 14 * 24 * 3600 * 1000;
/// Where files are that must stay.
pub(crate) const PLACE: &str = "/workspace/soak";

/// What a machine is made of.
#[derive(Clone, Debug)]
pub(crate) enum From {
    Base,
    Pool,
    Template(String),
    Snapshot(String),
    /// This machine, which goes on.
    Fork(String),
}

/// A machine that is asked for.
#[derive(Clone, Debug)]
pub(crate) struct New {
    pub(crate) tag: String,
    pub(crate) key: String,
    pub(crate) from: From,
    /// What it has from the beginning.
    pub(crate) inside: Inside,
}

impl Client {
    /// The machines with a tag that are alive on record.
    async fn tagged(&self, tag: &str) -> Result<Vec<String>, Stop> {
        let wanted = format!("%7B%22soak%22%3A%22{tag}%22%7D");
        let page = self
            .api
            .get(&format!("/v1/machines?limit=200&metadata={wanted}"))
            .await?
            .expect(&[200])?;
        let items = page.body["items"].as_array().cloned().unwrap_or_default();
        Ok(items
            .iter()
            .filter_map(|item| Some(item["id"].as_str()?.to_owned()))
            .collect())
    }

    /// Those with the tag that nobody was told of.
    async fn unknown(&self, tag: &str) -> Result<Vec<String>, Stop> {
        let mut found = self.tagged(tag).await?;
        found.retain(|id| !self.own.machines.contains_key(id));
        Ok(found)
    }

    pub(crate) async fn make(&mut self, new: &New, again: bool) -> Result<(), Stop> {
        let mut before = Vec::new();
        if again {
            before = self.unknown(&new.tag).await?;
            if before.len() > 1 {
                return wrong(format!("{} is there more than once: {before:?}", new.tag));
            }
            // One is there before it runs, while the server that died last made it.
            let source_is_gone =
                matches!(&new.from, From::Fork(id) if !self.own.machines.contains_key(id));
            if source_is_gone || self.rng.random() {
                // Whoever asked does not come back: it is there whole or not at all.
                if let Some(id) = before.pop() {
                    self.note(format!("finds {id} of {}", new.tag));
                    // Its environment was given to the engine, so it has it.
                    self.made(id, new);
                }
                return Ok(());
            }
        }
        let answer = until(&new.key, async || {
            let answer = self.ask_for(new).await?;
            Ok((answer.code() != "transition_in_progress").then_some(answer))
        })
        .await?;
        let answer = answer.expect(&[200, 201])?;
        let id = answer.text("id")?;
        self.note(format!("{} is {id}", new.key));
        if self.is_lossy && answer.body["status"] == "error" {
            // It ran, and was lost before anybody was told.
            return Ok(());
        }
        if let Some(found) = before.first()
            && *found != id
        {
            return wrong(format!(
                "{} was {found} and is {id} when it is asked for again",
                new.key
            ));
        }
        if self.own.machines.contains_key(&id) {
            return wrong(format!("{} is {id}, which was there before", new.key));
        }
        if self.rng.random_range(0..6) == 0 {
            let same = self.ask_for(new).await?.expect(&[200, 201])?.text("id")?;
            if same != id {
                return wrong(format!(
                    "{} was {id} and is {same} when it is asked for again",
                    new.key
                ));
            }
        }
        self.made(id, new);
        Ok(())
    }

    fn made(&mut self, id: String, new: &New) {
        let mut inside = new.inside.clone();
        if matches!(new.from, From::Base | From::Pool | From::Template(_)) {
            inside.env = Some(new.tag.clone());
        }
        let machine = Machine {
            tag: new.tag.clone(),
            state: State::Running,
            inside,
        };
        self.own.machines.insert(id, machine);
    }

    async fn ask_for(&self, new: &New) -> Result<Answer, Stop> {
        let mut body = json!({
            "metadata": {"soak": new.tag}, "envs": {"SOAK": new.tag}, "timeout_ms": TIME,
            "timeout_action": "hibernate", "auto_resume": true,
        });
        let path = match &new.from {
            From::Base => {
                body["template"] = "base".into();
                body["memory_mb"] = 256.into();
                "/v1/machines".to_owned()
            }
            From::Template(name) => {
                body["template"] = name.as_str().into();
                body["memory_mb"] = 256.into();
                "/v1/machines".to_owned()
            }
            From::Pool => {
                body["warm_pool"] = json!({"id": *self.shared.pool.borrow(), "mode": "prefer"});
                "/v1/machines".to_owned()
            }
            From::Snapshot(id) => {
                body["snapshot_id"] = id.as_str().into();
                if let Some(body) = body.as_object_mut() {
                    body.remove("envs");
                }
                "/v1/machines".to_owned()
            }
            From::Fork(id) => format!("/v1/machines/{id}/fork"),
        };
        let body = (!matches!(new.from, From::Fork(_))).then_some(body);
        self.api
            .ask(Method::POST, &path, Some(&new.key), body)
            .await
    }

    /// What a shell command prints that must succeed.
    pub(crate) async fn shell(&self, id: &str, line: &str) -> Result<String, Stop> {
        let body = json!({"command": line, "shell": true, "timeout_secs": 60});
        let path = format!("/v1/machines/{id}/exec");
        let done = self
            .api
            .ask(Method::POST, &path, None, Some(body))
            .await?
            .expect(&[200])?;
        if done.body["exit_code"] != 0 {
            if self.api.is_disturbed() {
                return Err(Stop::Cut);
            }
            return wrong(format!("{id}: {line}: {}", done.body));
        }
        Ok(done.text("stdout")?.trim_end().to_owned())
    }

    pub(crate) async fn furnish(&mut self, id: &str, number: u64) -> Result<(), Stop> {
        if !self.own.machines.contains_key(id) {
            return Ok(());
        }
        // Until it is `sleep` it is a copy of the shell.
        let line = format!(
            "mkdir -p {PLACE} && {{ sleep {number} > /dev/null 2>&1 & \
             until grep -q '^sleep' /proc/$!/cmdline; do sleep 0.01; done; echo $!; }}"
        );
        let pid = self.shell(id, &line).await?;
        if let Some(machine) = self.own.machines.get_mut(id) {
            machine.inside.process = Some(Process { pid, number });
        }
        Ok(())
    }

    /// A file appears whole, so one whose writing was cut off is there or is not.
    pub(crate) async fn write(&mut self, id: &str, file: &str) -> Result<(), Stop> {
        if !self.own.machines.contains_key(id) {
            return Ok(());
        }
        let content = format!("content-of-{file}");
        self.shell(id, &put(PLACE, file, &content)).await?;
        if let Some(machine) = self.own.machines.get_mut(id) {
            machine.inside.files.insert(file.to_owned(), content);
        }
        Ok(())
    }

    pub(crate) async fn hibernate(&mut self, id: &str, again: bool) -> Result<(), Stop> {
        if again {
            return self.see(id).await;
        }
        let path = format!("/v1/machines/{id}/hibernate");
        let kept = self
            .api
            .ask(Method::POST, &path, None, Some(json!({})))
            .await?
            .expect(&[200])?;
        let state = match kept.body["metadata"]["memory"].as_str() {
            Some("on_disk") => State::Kept,
            _ => State::Standing,
        };
        self.note(format!("{id} is kept as {}", kept.text("id")?));
        self.own.kept_as.insert(id.to_owned(), kept.text("id")?);
        self.is_now(id, state);
        Ok(())
    }

    pub(crate) async fn resume(&mut self, id: &str, again: bool) -> Result<(), Stop> {
        if again {
            return self.see(id).await;
        }
        let path = format!("/v1/machines/{id}/resume");
        let woken = self
            .api
            .ask(Method::POST, &path, None, Some(json!({})))
            .await?
            .expect(&[200])?;
        if woken.text("status")? != "running" {
            return wrong(format!("{id} was resumed: {}", woken.body));
        }
        self.is_now(id, State::Running);
        Ok(())
    }

    pub(crate) async fn wake(&mut self, id: &str) -> Result<(), Stop> {
        if !self.own.machines.contains_key(id) {
            return Ok(());
        }
        let said = self.shell(id, "echo awake").await?;
        if said != "awake" {
            return wrong(format!("{id}: {said}"));
        }
        self.is_now(id, State::Running);
        Ok(())
    }

    pub(crate) fn is_now(&mut self, id: &str, state: State) {
        if state == State::Running {
            self.own.kept_as.remove(id);
        }
        if let Some(machine) = self.own.machines.get_mut(id) {
            machine.state = state;
        }
    }

    /// Takes note of where a machine stands that was asked to sleep, or to wake, and did not answer.
    async fn see(&mut self, id: &str) -> Result<(), Stop> {
        if !self.own.machines.contains_key(id) {
            return Ok(());
        }
        let told = self
            .api
            .get(&format!("/v1/machines/{id}"))
            .await?
            .expect(&[200])?;
        match told.text("status")?.as_str() {
            "running" => self.is_now(id, State::Running),
            "paused" => {
                let snapshot = told.text("snapshot_id")?;
                let kept = self
                    .api
                    .get(&format!("/v1/snapshots/{snapshot}"))
                    .await?
                    .expect(&[200])?;
                let on_disk = kept.body["metadata"]["memory"] == "on_disk";
                self.own.kept_as.insert(id.to_owned(), snapshot);
                self.is_now(
                    id,
                    if on_disk {
                        State::Kept
                    } else {
                        State::Standing
                    },
                );
            }
            "error" if self.is_lossy => self.lost(id, &told)?,
            other => return wrong(format!("{id} is {other}: {}", told.body)),
        }
        Ok(())
    }

    pub(crate) async fn destroy(&mut self, id: &str, again: bool) -> Result<(), Stop> {
        let gone = self
            .api
            .ask(Method::DELETE, &format!("/v1/machines/{id}"), None, None)
            .await?;
        let gone = gone.expect(&[200])?;
        if gone.text("status")? != "destroyed" {
            return wrong(format!("{id} was deleted (again: {again}): {}", gone.body));
        }
        self.own.forget_machine(id);
        Ok(())
    }

    pub(crate) async fn snapshot(&mut self, id: &str, key: &str, again: bool) -> Result<(), Stop> {
        let Some(machine) = self.own.machines.get(id).cloned() else {
            return self.find_snapshot(id).await;
        };
        let path = format!("/v1/machines/{id}/snapshots");
        let answer = until(key, async || {
            let answer = self.api.ask(Method::POST, &path, Some(key), None).await?;
            Ok((answer.code() != "transition_in_progress").then_some(answer))
        })
        .await?;
        let snapshot = answer.expect(&[201])?.text("id")?;
        self.note(format!("{key} of {id} is {snapshot} (again: {again})"));
        if self.own.snapshots.contains_key(&snapshot) {
            return wrong(format!("{key} is {snapshot}, which was there before"));
        }
        self.own.snapshots.insert(snapshot, machine.inside);
        Ok(())
    }

    /// The machine was lost while its state was being kept: that may have been done.
    async fn find_snapshot(&mut self, machine: &str) -> Result<(), Stop> {
        let all = self
            .api
            .get(&format!("/v1/snapshots?machine_id={machine}"))
            .await?
            .expect(&[200])?;
        let ids = all.body.as_array().cloned().unwrap_or_default();
        let ids = ids.iter().filter_map(|one| one["id"].as_str());
        let new: Vec<&str> = ids
            .filter(|id| !self.own.snapshots.contains_key(*id))
            .collect();
        match new[..] {
            [] => Ok(()),
            // What is in it is not known any more.
            [id] => self.delete_snapshot(id, false).await,
            _ => wrong(format!(
                "{machine} has more than one snapshot that was not asked for: {new:?}"
            )),
        }
    }

    pub(crate) async fn delete_snapshot(&mut self, id: &str, again: bool) -> Result<(), Stop> {
        let path = format!("/v1/snapshots/{id}");
        let gone = self.api.ask(Method::DELETE, &path, None, None).await?;
        gone.expect(if again { &[204, 404] } else { &[204] })?;
        self.own.snapshots.remove(id);
        Ok(())
    }

    /// Machines that were lost with their launcher say so, and are no more.
    pub(crate) async fn bury(&mut self) -> Result<(), Stop> {
        for (id, machine) in self.own.machines.clone() {
            if machine.state == State::Kept {
                continue;
            }
            let told = until(&id, async || {
                let told = self
                    .api
                    .get(&format!("/v1/machines/{id}"))
                    .await?
                    .expect(&[200])?;
                // A server that was not killed has to find out first. One that was made after that lives.
                let is_found_out = match told.body["status"].as_str().unwrap_or_default() {
                    "running" => self.answers(&id).await,
                    "paused" => machine.state != State::Standing,
                    _ => true,
                };
                Ok(is_found_out.then_some(told))
            })
            .await?;
            if told.body["status"] == "error" {
                self.lost(&id, &told)?;
            }
        }
        Ok(())
    }

    pub(crate) fn lost(&mut self, id: &str, told: &Answer) -> Result<(), Stop> {
        let why = told.text("failure_reason")?;
        self.note(format!("{id} was lost: {why}"));
        self.own.forget_machine(id);
        Ok(())
    }

    async fn answers(&self, id: &str) -> bool {
        let body = json!({"command": "true", "timeout_secs": 20});
        let path = format!("/v1/machines/{id}/exec");
        let done = self.api.try_to(Method::POST, &path, body).await;
        done.is_some_and(|answer| answer.status == 200)
    }

    pub(crate) async fn look_at_machine(&mut self, id: &str) -> Result<(), Stop> {
        let Some(machine) = self.own.machines.get(id).cloned() else {
            return Ok(());
        };
        let told = self
            .api
            .get(&format!("/v1/machines/{id}"))
            .await?
            .expect(&[200])?;
        let expected = match machine.state {
            State::Running => "running",
            State::Standing | State::Kept => "paused",
        };
        if told.body["status"] != expected {
            return wrong(format!("{id} should be {expected}: {}", told.body));
        }
        if machine.state != State::Running {
            if told.body["snapshot_id"].as_str() != self.own.kept_as.get(id).map(String::as_str) {
                return wrong(format!(
                    "{id} should be kept as {:?}: {}",
                    self.own.kept_as.get(id),
                    told.body
                ));
            }
            return Ok(());
        }
        let mut line = format!(
            "echo \"env ${{SOAK-none}}\"; cd {PLACE} 2>/dev/null || exit 0; for f in *; do [ -f \"$f\" ] && echo \"$f $(cat $f)\"; done; true"
        );
        if let Some(process) = &machine.inside.process {
            line.push_str(&format!(
                "; echo process $(tr '\\0' ' ' < /proc/{}/cmdline)",
                process.pid
            ));
        }
        let said = self.shell(id, &line).await?;
        let mut lines: Vec<&str> = said.lines().collect();
        lines.sort_unstable();
        let inside = &machine.inside;
        let mut expected: Vec<String> = inside
            .files
            .iter()
            .map(|(name, content)| format!("{name} {content}"))
            .collect();
        expected.push(format!("env {}", inside.env.as_deref().unwrap_or("none")));
        if let Some(process) = &inside.process {
            expected.push(format!("process sleep {}", process.number));
        }
        expected.sort_unstable();
        // Files of commands that were cut off and came to their end all the same do not count.
        let missing: Vec<&String> = expected
            .iter()
            .filter(|line| !lines.contains(&line.as_str()))
            .collect();
        if !missing.is_empty() {
            return wrong(format!("{id} should have {missing:?}, and has {lines:?}"));
        }
        Ok(())
    }
}

/// A shell command that makes a file with this content appear.
pub(crate) fn put(place: &str, file: &str, content: &str) -> String {
    format!(
        "mkdir -p {place} && echo {content} > {place}/.{file} && mv {place}/.{file} {place}/{file}"
    )
}
