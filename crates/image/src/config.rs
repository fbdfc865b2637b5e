//! What an image says about how its programs are run.

use std::collections::BTreeMap;

use oci_spec::image::{Arch, ImageConfiguration, Os};
use serde::{Deserialize, Serialize};

use crate::{
    error::{ImageError, shown},
    store::is_digest,
};

/// The configuration of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// Variables, in the order given. What has no `=` in it is left out.
    pub env: Vec<(String, String)>,
    /// `USER[:GROUP]`, names or numbers; root if none.
    pub user: Option<String>,
    /// Where programs start; `/` if none.
    pub workdir: Option<String>,
    /// The first part of the command.
    pub entrypoint: Vec<String>,
    /// The rest of the command, or all of it.
    pub cmd: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// `PORT[/PROTOCOL]`, sorted.
    pub exposed_ports: Vec<String>,
    /// Paths of volumes, sorted.
    pub volumes: Vec<String>,
    /// How it is told whether the program is well.
    pub healthcheck: Option<Healthcheck>,
    /// The signal that ends the program.
    pub stop_signal: Option<String>,
    /// What runs commands in shell form, if not `/bin/sh -c`.
    pub shell: Vec<String>,
}

/// How it is told whether an image's program is well.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Healthcheck {
    /// `["CMD", …]`, `["CMD-SHELL", …]`, `["NONE"]`, or nothing to have that of the image below.
    pub test: Vec<String>,
    /// Nanoseconds between two checks.
    pub interval_ns: Option<u64>,
    /// Nanoseconds that one may take.
    pub timeout_ns: Option<u64>,
    /// Nanoseconds at the start in which failures do not count.
    pub start_period_ns: Option<u64>,
    /// Failures in a row that make it unwell.
    pub retries: Option<u64>,
}

/// A configuration that was read.
#[derive(Debug)]
pub(crate) struct Parsed {
    pub(crate) config: ImageConfig,
    /// Of the layers, base first, as hex digits.
    pub(crate) diff_ids: Vec<String>,
    pub(crate) os: Os,
    pub(crate) arch: Arch,
}

/// Docker's own part, which the standard has not.
#[derive(Default, Deserialize)]
struct Docker {
    config: Option<DockerConfig>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerConfig {
    healthcheck: Option<DockerHealthcheck>,
    shell: Option<Vec<String>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct DockerHealthcheck {
    test: Option<Vec<String>>,
    interval: Option<i64>,
    timeout: Option<i64>,
    start_period: Option<i64>,
    retries: Option<i64>,
}

/// Reads a configuration.
pub(crate) fn parse(bytes: &[u8]) -> Result<Parsed, ImageError> {
    let bad = |why: String| ImageError::Malformed {
        what: "the image's configuration".into(),
        why,
    };
    let image: ImageConfiguration =
        serde_json::from_slice(bytes).map_err(|e| bad(shown(e.to_string())))?;
    let docker: Docker = serde_json::from_slice(bytes).map_err(|e| bad(shown(e.to_string())))?;
    let docker = docker.config.unwrap_or_default();
    let diff_ids = image
        .rootfs()
        .diff_ids()
        .iter()
        .map(|id| {
            id.strip_prefix("sha256:")
                .filter(|hex| is_digest(hex))
                .map(str::to_owned)
                .ok_or_else(|| bad(format!("{:?} is no digest of a layer", shown(id))))
        })
        .collect::<Result<_, _>>()?;
    let said = image.config().clone().unwrap_or_default();
    let some = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let sorted = |list: &Option<Vec<String>>| {
        let mut list = list.clone().unwrap_or_default();
        list.sort();
        list
    };
    let config = ImageConfig {
        env: (said.env().iter().flatten())
            .filter_map(|line| line.split_once('='))
            .filter(|(name, _)| !name.is_empty())
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
        user: some(said.user()),
        workdir: some(said.working_dir()),
        entrypoint: said.entrypoint().clone().unwrap_or_default(),
        cmd: said.cmd().clone().unwrap_or_default(),
        labels: (said.labels().clone().unwrap_or_default())
            .into_iter()
            .collect(),
        exposed_ports: sorted(said.exposed_ports()),
        volumes: sorted(said.volumes()),
        healthcheck: docker.healthcheck.map(healthcheck),
        stop_signal: some(said.stop_signal()),
        shell: docker.shell.unwrap_or_default(),
    };
    Ok(Parsed {
        config,
        diff_ids,
        os: image.os().clone(),
        arch: image.architecture().clone(),
    })
}

fn healthcheck(said: DockerHealthcheck) -> Healthcheck {
    // Zero is how docker writes that nothing was said.
    let some = |n: Option<i64>| n.and_then(|n| u64::try_from(n).ok()).filter(|n| *n > 0);
    Healthcheck {
        test: said.test.unwrap_or_default(),
        interval_ns: some(said.interval),
        timeout_ns: some(said.timeout),
        start_period_ns: some(said.start_period),
        retries: some(said.retries),
    }
}
