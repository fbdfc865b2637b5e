//! The engines of this host: which there are, and which is for machines that name none.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use nullspace_engine::{Engine, EngineError, MachineSpec, egress::Rules, several::Several};
use nullspace_engine_gvisor::{GvisorEngine, Release};
use nullspace_engine_native::{Config, GvisorConfig, Host, NativeEngine};

use super::{GUEST, LAUNCHER, RESOLVER, settings::Settings};
use crate::ui::Ui;

/// The machine that gVisor is tested with at start. Ids that callers see begin otherwise.
const TRIAL: &str = "trial-gvisor";

/// What machines are made of that ask for nothing else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Isolation {
    /// Namespaces of this host's kernel.
    Native,
    /// A kernel of their own.
    Gvisor,
    /// The strongest that works here.
    #[default]
    Auto,
}

impl FromStr for Isolation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "native" => Ok(Self::Native),
            "gvisor" => Ok(Self::Gvisor),
            "auto" => Ok(Self::Auto),
            "microvm" => Err("there is no engine for microvm yet: use gvisor".into()),
            _ => Err("is none of native, gvisor and auto".into()),
        }
    }
}

/// Starts the launcher and what works here over it. Machines of another kind than the usual one are found again, and
/// can be asked for by name.
pub(super) async fn start(
    settings: &Settings,
    program: &str,
    ca_bundle: Option<PathBuf>,
    ui: Ui,
) -> Result<Arc<dyn Engine>, EngineError> {
    let release = Release::find();
    let gvisor = release.as_ref().ok().map(|release| GvisorConfig {
        runsc: release.path.clone(),
        guest: vec![GUEST.to_owned()],
        spare: settings.spare_gvisor,
    });
    let host = Host::start(Config {
        data_dir: settings.data_dir.clone(),
        launcher: vec![program.to_owned(), LAUNCHER.to_owned()],
        resolver: vec![program.to_owned(), RESOLVER.to_owned()],
        ca_bundle,
        spare: settings.spare_machines,
        gvisor,
    })
    .await?;
    let native: Arc<dyn Engine> = Arc::new(NativeEngine::over(host.clone()));
    let gvisor = match release {
        Ok(release) => {
            let data_dir = settings.data_dir.clone();
            Ok(Arc::new(GvisorEngine::over(host, release, data_dir).await?) as Arc<dyn Engine>)
        }
        Err(reason) => Err(EngineError::Unavailable(reason)),
    };
    let engines = match (settings.isolation, gvisor) {
        (Isolation::Native, Err(_)) => return Ok(native),
        (Isolation::Native, Ok(gvisor)) => vec![native, gvisor],
        (Isolation::Gvisor, gvisor) => {
            let gvisor = gvisor?;
            try_out(&*gvisor, settings).await?;
            vec![gvisor, native]
        }
        (Isolation::Auto, gvisor) => {
            let tested = match gvisor {
                Ok(gvisor) => try_out(&*gvisor, settings).await.map(|()| gvisor),
                Err(error) => Err(error),
            };
            match tested {
                Ok(gvisor) => vec![gvisor, native],
                Err(error) => {
                    ui.warn(format!(
                        "machines share this host's kernel, and are not forked: {error}"
                    ));
                    return Ok(native);
                }
            }
        }
    };
    Ok(Arc::new(Several::new(engines)?))
}

/// Makes a machine, has its guest answer, and ends it.
async fn try_out(engine: &dyn Engine, settings: &Settings) -> Result<(), EngineError> {
    // What a server that died here left.
    engine.destroy(TRIAL).await?;
    let layer = settings.data_dir.join("run/trial");
    std::fs::create_dir_all(&layer)
        .map_err(|error| EngineError::Unavailable(format!("{}: {error}", layer.display())))?;
    let spec = MachineSpec {
        id: TRIAL.to_owned(),
        hostname: "trial".to_owned(),
        lower: vec![layer],
        binds: Vec::new(),
        env: Default::default(),
        cwd: "/".to_owned(),
        cpu_millis: 1000,
        memory_bytes: 64 << 20,
        pids_max: 64,
        disk_bytes: None,
        egress: Rules::deny_all(),
        engine: None,
    };
    engine.create(&spec).await?;
    // Its guest said that it listens; this proves that it can be reached.
    let reached = engine.dial(TRIAL).await.map(drop);
    engine.destroy(TRIAL).await?;
    reached
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_read_and_others_refused_with_what_to_do() {
        assert_eq!("auto".parse(), Ok(Isolation::default()));
        assert_eq!("gvisor".parse(), Ok(Isolation::Gvisor));
        assert_eq!("native".parse(), Ok(Isolation::Native));
        for (wrong, hint) in [("microvm", "gvisor"), ("docker", "native")] {
            let refused = wrong.parse::<Isolation>();
            assert!(refused.is_err_and(|error| error.contains(hint)), "{wrong}");
        }
    }
}
