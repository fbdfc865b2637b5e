//! A data directory with a gVisor engine of its own.

#![allow(
    unused_imports,
    unreachable_pub,
    reason = "each test program uses its part of this"
)]

#[path = "../../../engine-native/tests/common/probes.rs"]
pub mod probes;
#[path = "../../../engine-native/tests/common/world.rs"]
mod world;

use nullspace_engine_gvisor::{GvisorEngine, Release};
use nullspace_engine_native::{Config, GvisorConfig, Host};

pub use world::{World, eventually};

/// A world on a host that has `runsc`; `None`, and a line that says so, on others.
pub fn world() -> Option<(World, Release)> {
    match Release::find() {
        Ok(release) => Some((World::new()?, release)),
        Err(reason) => {
            println!("skipped: {reason}");
            None
        }
    }
}

impl World {
    pub async fn engine(&self, release: &Release) -> GvisorEngine {
        let gvisor = GvisorConfig {
            runsc: release.path.clone(),
            guest: vec!["guest".to_owned()],
            spare: 1,
        };
        let host = Host::start(Config {
            gvisor: Some(gvisor),
            spare: 0,
            ..self.config(env!("CARGO_BIN_EXE_nullspace-gvisor-launcher"))
        });
        let host = host.await.expect("the launcher starts");
        let engine = GvisorEngine::over(host, release.clone(), self.path().to_owned());
        engine.await.expect("the engine starts")
    }
}
