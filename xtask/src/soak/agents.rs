//! What is done with deployments of agents, and what must be true of them.

use std::collections::BTreeSet;

use http::Method;
use nullspace_project::{AgentConfig, Bundle};
use serde_json::{Value, json};

use super::{
    api::{Stop, wrong},
    client::{Client, until},
    model::Deployment,
};

const BASE: &str = "/v1/agent-deployments";
const CONFIG: &str = "name = 'soak'\nentrypoint = 'sh main.sh'\ntemplate = 'base'\n\
                      [resources]\nmemory_mb = 256\n";
/// The longest page of a list.
const PAGE: usize = 200;

/// What is sent of a job that prints one line.
struct Project {
    request: Value,
    digest: String,
    archive: Vec<u8>,
}

impl Project {
    fn new(version: u64) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let script = format!("echo {}\n", line(version));
        std::fs::write(dir.path().join("main.sh"), script)?;
        let config = AgentConfig::from_toml(CONFIG)?;
        let bundle = Bundle::build(dir.path(), &config)?;
        let mut archive = Vec::new();
        bundle.write_archive(&mut archive)?;
        let manifest = bundle.manifest();
        Ok(Self {
            request: json!({
                "bundle_digest": manifest.bundle_digest, "bundle_manifest": manifest,
                "config": config.to_wire(), "cache_policy": "auto",
            }),
            digest: manifest.bundle_digest.clone(),
            archive,
        })
    }
}

/// What a run of a version prints.
fn line(version: u64) -> String {
    format!("content-of-{version}")
}

impl Client {
    /// Each step has a key: doing it again is doing all of it again.
    pub(crate) async fn deploy(&mut self, name: &str, version: u64) -> Result<(), Stop> {
        let project = Project::new(version)
            .or_else(|error| wrong(format!("{name}: its project was not made: {error:#}")))?;
        let body = json!({"name": name, "mode": "job"});
        let made = self.api.ask(Method::POST, BASE, Some(name), Some(body));
        let id = made.await?.expect(&[201])?.text("id")?;
        self.note(format!("{name} is {id}"));
        let known = self.own.deployments.get(name);
        if let Some(known) = known
            && known.id != id
        {
            return wrong(format!("{name} was {} and is {id}", known.id));
        }
        let runs = known.map(|known| known.runs.clone()).unwrap_or_default();

        let key = format!("{name}-{version}");
        let path = format!("{BASE}/{id}/versions");
        let made = self
            .api
            .ask(Method::POST, &path, Some(&key), Some(project.request));
        let version_id = made.await?.expect(&[201])?.text("id")?;
        self.note(format!("{key} is {version_id}"));
        let path = format!("{path}/{version_id}/bundle");
        let headers = [
            ("idempotency-key", key.as_str()),
            ("x-nullspace-bundle-digest", project.digest.as_str()),
            ("content-type", "application/x-tar"),
        ];
        let uploaded = self.api.upload(&path, &headers, project.archive).await?;
        uploaded.expect(&[200])?;

        let told = self.api.get(&format!("{BASE}/{name}")).await?;
        let told = told.expect(&[200])?;
        if told.text("active_version_id")? != version_id {
            return wrong(format!(
                "{name} should have {version_id}, which was deployed last: {}",
                told.body
            ));
        }
        let deployment = Deployment {
            id,
            version,
            version_id,
            runs,
        };
        self.own.deployments.insert(name.to_owned(), deployment);
        Ok(())
    }

    /// Waits for the end of a run, which prints what its version does, once.
    pub(crate) async fn run(&mut self, name: &str, key: &str) -> Result<(), Stop> {
        let Some(deployment) = self.own.deployments.get_mut(name) else {
            return Ok(());
        };
        let path = format!("{BASE}/{name}/runs");
        let body = json!({"input": {}});
        let made = self.api.ask(Method::POST, &path, Some(key), Some(body));
        let made = made.await?.expect(&[201])?;
        let id = made.text("id")?;
        let expected = line(deployment.version);
        if made.text("version_id")? != deployment.version_id {
            return wrong(format!(
                "{key} should be of {}: {}",
                deployment.version_id, made.body
            ));
        }
        let known = deployment.runs.insert(key.to_owned(), id.clone());
        self.note(format!("{key} is {id}, was {known:?}"));
        if known.is_some_and(|known| known != id) {
            return wrong(format!("{key} is {id}, and was another run before"));
        }

        let path = format!("{path}/{id}");
        let run = until(&id, async || {
            let told = self.api.get(&path).await?.expect(&[200])?;
            Ok((!told.body["completed_at"].is_null()).then_some(told.body))
        })
        .await?;
        let log = self.api.get(&format!("{path}/logs?limit=1000")).await?;
        let log = log.expect(&[200])?;
        let events = log.body["events"].as_array();
        let printed: Vec<&str> = events
            .into_iter()
            .flatten()
            .filter(|event| event["source"] == "stdout")
            .filter_map(|event| event["message"].as_str())
            .collect();
        let has_succeeded = run["status"] == "succeeded";
        if !has_succeeded && self.api.is_disturbed() {
            return Err(Stop::Cut);
        }
        if !has_succeeded && !self.is_lossy {
            return wrong(format!("{key}: {run}, which printed {printed:?}"));
        }
        // One whose machine was lost may not have come to it.
        if printed != [expected.as_str()] && (has_succeeded || !printed.is_empty()) {
            return wrong(format!(
                "{id} should have printed {expected:?}, once, and did {printed:?}: {run}"
            ));
        }
        Ok(())
    }

    pub(crate) async fn delete_deployment(&mut self, name: &str, again: bool) -> Result<(), Stop> {
        let path = format!("{BASE}/{name}");
        let gone = self.api.ask(Method::DELETE, &path, None, None).await?;
        gone.expect(if again { &[204, 404] } else { &[204] })?;
        self.own.deployments.remove(name);
        Ok(())
    }

    /// It has the version that it was given last, and the runs that were asked for, which have all ended.
    pub(crate) async fn look_at_deployment(&mut self, name: &str) -> Result<(), Stop> {
        let Some(deployment) = self.own.deployments.get(name).cloned() else {
            return Ok(());
        };
        let path = format!("{BASE}/{name}");
        let told = self.api.get(&path).await?.expect(&[200])?;
        if told.text("id")? != deployment.id
            || told.text("active_version_id")? != deployment.version_id
        {
            return wrong(format!("{name} should be {deployment:?}: {}", told.body));
        }
        if deployment.runs.len() >= PAGE {
            return Ok(());
        }
        let listed = self.api.get(&format!("{path}/runs?limit={PAGE}")).await?;
        let listed = listed.expect(&[200])?;
        let items = listed.body["items"].as_array();
        let there: BTreeSet<&str> = items
            .into_iter()
            .flatten()
            .filter(|run| !run["completed_at"].is_null())
            .filter_map(|run| run["id"].as_str())
            .collect();
        let expected: BTreeSet<&str> = deployment.runs.values().map(String::as_str).collect();
        if there != expected || items.is_none_or(|items| items.len() != expected.len()) {
            return wrong(format!(
                "{name} should have the runs {expected:?}, all over: {}",
                listed.body["items"]
            ));
        }
        Ok(())
    }
}
