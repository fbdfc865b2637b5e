//! What is done with templates, and what must be true of them.

use http::Method;
use serde_json::{Value, json};

use super::{
    api::{Stop, wrong},
    client::{Client, until},
    model::{Files, Template},
};

impl Client {
    /// A build of two steps, of which the second is always another.
    pub(crate) async fn build(
        &mut self,
        name: &str,
        version: u64,
        again: bool,
    ) -> Result<(), Stop> {
        let step = |command: String| json!({"action": "run", "command": command});
        let body = json!({"name": name, "base_image": "base", "steps": [
            step("mkdir -p /workspace/soak && echo content-of-first > /workspace/soak/first".into()),
            step(format!("head -c 3000000 /dev/urandom > /opt/filler && echo content-of-{version} > /workspace/soak/second")),
        ]});
        let mut files = Files::new();
        files.insert("first".into(), "content-of-first".into());
        files.insert("second".into(), format!("content-of-{version}"));
        self.build_as(name, body, files, again).await
    }

    /// One over an image of the registry that was not there before.
    pub(crate) async fn pull(&mut self, name: &str, version: u64, again: bool) -> Result<(), Stop> {
        let Some(registry) = &self.shared.registry else {
            return Ok(());
        };
        let body = json!({"name": name, "base_image": registry.reference(version)});
        let mut files = Files::new();
        files.insert("image".into(), format!("content-of-{version}"));
        self.build_as(name, body, files, again).await
    }

    async fn build_as(
        &mut self,
        name: &str,
        body: Value,
        files: Files,
        again: bool,
    ) -> Result<(), Stop> {
        let mut build = None;
        if again {
            // Of a build that was cut off there is a record or there is none; what it says is final.
            let listed = self
                .api
                .get(&format!("/v1/templates/refs/{name}/builds?limit=1"))
                .await?
                .expect(&[200, 404])?;
            if let Some(last) = listed.body["builds"]
                .as_array()
                .and_then(|builds| builds.first())
            {
                let (id, status) = (&last["build_id"], &last["status"]);
                self.note(format!("{name}: the last build {id} is {status}"));
                match status.as_str().unwrap_or_default() {
                    "ready" => {}
                    "error" => {
                        let phase = last["failure_phase"].as_str().unwrap_or_default();
                        if phase != "interrupted" && !self.is_lossy {
                            return wrong(format!("{name}: {last}"));
                        }
                        let path = format!(
                            "/v1/templates/builds/{}/retry",
                            id.as_str().unwrap_or_default()
                        );
                        let retried = self
                            .api
                            .ask(Method::POST, &path, None, Some(json!({})))
                            .await?;
                        build = Some(retried.expect(&[202])?.text("build_id")?);
                    }
                    _ if self.is_lossy => build = id.as_str().map(str::to_owned),
                    other => {
                        return wrong(format!(
                            "{name}: its build is {other} after a start: {last}"
                        ));
                    }
                }
            }
        }
        // The last one may be of before: a build with nothing to do is done at once.
        let id = match build {
            Some(id) => id,
            None => {
                let begun = self
                    .api
                    .ask(
                        Method::POST,
                        "/v1/templates/builds",
                        None,
                        Some(body.clone()),
                    )
                    .await?;
                begun.expect(&[202])?.text("build_id")?
            }
        };
        let over = self.until_over(&id).await?;
        if over["status"] != "ready" {
            // Its machine was lost with the launcher.
            if self.api.is_disturbed() {
                return Err(Stop::Cut);
            }
            if !(again && self.is_lossy) {
                return wrong(format!("{name}: {id} is {over}"));
            }
            let begun = self
                .api
                .ask(Method::POST, "/v1/templates/builds", None, Some(body))
                .await?;
            let id = begun.expect(&[202])?.text("build_id")?;
            let over = self.until_over(&id).await?;
            if over["status"] != "ready" {
                return wrong(format!("{name}: {id} is {over}"));
            }
        }
        self.own
            .templates
            .insert(name.to_owned(), Template { files });
        Ok(())
    }

    async fn until_over(&self, id: &str) -> Result<Value, Stop> {
        let over = until(id, async || {
            let told = self
                .api
                .get(&format!("/v1/templates/builds/{id}"))
                .await?
                .expect(&[200])?;
            let status = told.body["build"]["status"]
                .as_str()
                .unwrap_or_default()
                .to_owned();
            Ok(["ready", "error", "cancelled"]
                .contains(&status.as_str())
                .then_some(told.body))
        })
        .await?;
        Ok(over["build"].clone())
    }

    pub(crate) async fn delete_template(&mut self, name: &str, again: bool) -> Result<(), Stop> {
        let path = format!("/v1/templates/refs/{name}");
        let gone = self.api.ask(Method::DELETE, &path, None, None).await?;
        gone.expect(if again { &[204, 404] } else { &[204] })?;
        self.own.templates.remove(name);
        Ok(())
    }

    /// Which is for the operator alone.
    pub(crate) async fn collect(&mut self) -> Result<(), Stop> {
        let body = json!({"dry_run": false});
        self.shared
            .api
            .ask(Method::POST, "/v1/agent-gc", None, Some(body))
            .await?
            .expect(&[200])?;
        Ok(())
    }
}
