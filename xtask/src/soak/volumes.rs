//! What is done with volumes, and what must be true of them.

use http::Method;
use serde_json::json;

use super::{
    api::{Stop, wrong},
    client::Client,
    machines::put,
    model::{State, Volume},
};

/// A file that is written from a machine to a volume.
#[derive(Clone, Debug)]
pub(crate) struct Mounted {
    pub(crate) volume: String,
    pub(crate) machine: String,
    pub(crate) file: String,
}

impl Client {
    pub(crate) async fn create_volume(&mut self, name: &str, again: bool) -> Result<(), Stop> {
        let made = self
            .api
            .ask(
                Method::POST,
                "/v1/volumes",
                None,
                Some(json!({"name": name})),
            )
            .await?;
        let made = match made.status {
            409 if again => self.api.get(&format!("/v1/volumes/by-name/{name}")).await?,
            _ => made,
        };
        let id = made.expect(&[200])?.text("id")?;
        self.note(format!("{name} is {id}"));
        let volume = Volume {
            name: name.to_owned(),
            files: Default::default(),
            mount: None,
        };
        self.own.volumes.insert(id, volume);
        Ok(())
    }

    pub(crate) async fn write_volume(&mut self, id: &str, file: &str) -> Result<(), Stop> {
        let content = format!("content-of-{file}");
        let body = json!({"path": format!("/{file}"), "content": format!("{content}\n")});
        let path = format!("/v1/volumes/{id}/files/write");
        self.api
            .ask(Method::POST, &path, None, Some(body))
            .await?
            .expect(&[200, 201])?;
        self.written(id, file, content);
        Ok(())
    }

    fn written(&mut self, id: &str, file: &str, content: String) {
        if let Some(volume) = self.own.volumes.get_mut(id) {
            volume.files.insert(file.to_owned(), content);
        }
    }

    pub(crate) async fn attach(
        &mut self,
        id: &str,
        machine: &str,
        again: bool,
    ) -> Result<(), Stop> {
        let alive = self.own.machines.contains_key(machine);
        if again {
            let mounts = self.mounts(id).await?;
            if let Some((on, mount, state)) = mounts.first() {
                if on != machine || state != "mounted" || mounts.len() > 1 {
                    return wrong(format!(
                        "{id} should be in {machine} or nowhere, and is in {mounts:?}"
                    ));
                }
                self.mounted(id, Some((on.clone(), mount.clone())));
                return Ok(());
            }
            if !alive {
                return Ok(());
            }
        }
        let body = json!({"ref": id, "mount_path": format!("/mnt/{id}"), "read_only": false});
        let path = format!("/v1/machines/{machine}/volumes");
        let made = self
            .api
            .ask(Method::POST, &path, None, Some(body))
            .await?
            .expect(&[201])?;
        self.mounted(id, Some((machine.to_owned(), made.text("id")?)));
        Ok(())
    }

    fn mounted(&mut self, id: &str, mount: Option<(String, String)>) {
        if let Some(volume) = self.own.volumes.get_mut(id) {
            volume.mount = mount;
        }
    }

    /// Where a volume is mounted: machine, mount, state.
    async fn mounts(&self, id: &str) -> Result<Vec<(String, String, String)>, Stop> {
        let all = self
            .api
            .get(&format!("/v1/volumes/{id}/attachments"))
            .await?
            .expect(&[200])?;
        let all = all.body.as_array().cloned().unwrap_or_default();
        let text = |one: &serde_json::Value, field: &str| {
            one[field].as_str().unwrap_or_default().to_owned()
        };
        let mounts = all
            .iter()
            .map(|one| (text(one, "machine_id"), text(one, "id"), text(one, "state")));
        Ok(mounts.filter(|(_, _, state)| state != "released").collect())
    }

    pub(crate) async fn write_mounted(&mut self, mounted: &Mounted) -> Result<(), Stop> {
        let Mounted {
            volume,
            machine,
            file,
        } = mounted;
        if !self.own.machines.contains_key(machine) {
            return Ok(());
        }
        let content = format!("content-of-{file}");
        let line = put(&format!("/mnt/{volume}"), file, &content);
        self.shell(machine, &line).await?;
        self.written(volume, file, content);
        Ok(())
    }

    pub(crate) async fn detach(&mut self, id: &str, again: bool) -> Result<(), Stop> {
        let Some((machine, mount)) = self
            .own
            .volumes
            .get(id)
            .and_then(|volume| volume.mount.clone())
        else {
            return Ok(());
        };
        let path = format!("/v1/machines/{machine}/volumes/{mount}");
        let gone = self.api.ask(Method::DELETE, &path, None, None).await?;
        gone.expect(if again { &[200, 404] } else { &[200] })?;
        self.mounted(id, None);
        Ok(())
    }

    /// Empties it and deletes it.
    pub(crate) async fn delete_volume(&mut self, id: &str, again: bool) -> Result<(), Stop> {
        let Some(volume) = self.own.volumes.get(id).cloned() else {
            return Ok(());
        };
        let allowed: &[u16] = if again { &[200, 204, 404] } else { &[200, 204] };
        for file in volume.files.keys() {
            let path = format!("/v1/volumes/{id}/files/remove");
            let body = json!({"path": format!("/{file}")});
            self.api
                .ask(Method::POST, &path, None, Some(body))
                .await?
                .expect(allowed)?;
        }
        let mut gone = self
            .api
            .ask(Method::DELETE, &format!("/v1/volumes/{id}"), None, None)
            .await?;
        if gone.status == 400 && gone.body.to_string().contains("not empty") {
            // What writers that were cut off left behind, under names that say so.
            self.remove_unfinished(id).await?;
            gone = self
                .api
                .ask(Method::DELETE, &format!("/v1/volumes/{id}"), None, None)
                .await?;
        }
        gone.expect(allowed)?;
        self.own.volumes.remove(id);
        Ok(())
    }

    async fn remove_unfinished(&mut self, id: &str) -> Result<(), Stop> {
        let listed = self
            .api
            .get(&format!("/v1/volumes/{id}/files?path=/"))
            .await?
            .expect(&[200])?;
        let entries = listed
            .body
            .as_array()
            .or(listed.body["entries"].as_array())
            .cloned()
            .unwrap_or_default();
        for entry in &entries {
            let name = entry["name"].as_str().unwrap_or_default();
            // A shell's `.f123`, or a whole one whose writer was not answered.
            if !name.trim_start_matches('.').starts_with('f') {
                return wrong(format!("{id} has {name}, which nobody put there"));
            }
            let path = format!("/v1/volumes/{id}/files/remove");
            let body = json!({"path": format!("/{name}")});
            self.api
                .ask(Method::POST, &path, None, Some(body))
                .await?
                .expect(&[200, 204])?;
        }
        Ok(())
    }

    pub(crate) async fn look_at_volume(&mut self, id: &str) -> Result<(), Stop> {
        let Some(volume) = self.own.volumes.get(id).cloned() else {
            return Ok(());
        };
        let found = self
            .api
            .get(&format!("/v1/volumes/by-name/{}", volume.name))
            .await?
            .expect(&[200])?;
        if found.text("id")? != id {
            return wrong(format!("{} is not {id}: {}", volume.name, found.body));
        }
        let mounts = self.mounts(id).await?;
        let is_as_told = match (&volume.mount, &mounts[..]) {
            (None, []) => true,
            (Some((machine, mount)), [(on, at, state)]) => {
                let sleeps = self
                    .own
                    .machines
                    .get(machine)
                    .is_some_and(|m| m.state != State::Running);
                machine == on && mount == at && state == if sleeps { "paused" } else { "mounted" }
            }
            _ => false,
        };
        if !is_as_told {
            return wrong(format!(
                "{id} should be mounted as {:?}, and is {mounts:?}",
                volume.mount
            ));
        }
        for (file, content) in &volume.files {
            let path = format!("/v1/volumes/{id}/files/read");
            let read = self
                .api
                .ask(
                    Method::POST,
                    &path,
                    None,
                    Some(json!({"path": format!("/{file}")})),
                )
                .await?;
            let read = read.expect(&[200])?;
            if read.body["content"].as_str().map(str::trim_end) != Some(content.as_str()) {
                return wrong(format!("{id}: {file} should hold {content}: {}", read.body));
            }
        }
        let Some((machine, _)) = &volume.mount else {
            return Ok(());
        };
        if self
            .own
            .machines
            .get(machine)
            .is_none_or(|machine| machine.state != State::Running)
        {
            return Ok(());
        }
        let said = self.shell(machine, &format!("cd /mnt/{id} && for f in *; do [ -f \"$f\" ] && echo \"$f $(cat $f)\"; done; true")).await?;
        let lines: Vec<&str> = said.lines().collect();
        for (file, content) in &volume.files {
            if !lines.contains(&format!("{file} {content}").as_str()) {
                return wrong(format!("{id} in {machine}: no {file} in {lines:?}"));
            }
        }
        Ok(())
    }
}
