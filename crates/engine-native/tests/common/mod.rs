//! A data directory with a native engine of its own.

#![allow(
    unused_imports,
    unreachable_pub,
    reason = "each test program uses its part of this"
)]

pub mod probes;
mod world;

use nullspace_engine_native::NativeEngine;

pub use world::{World, eventually};

impl World {
    pub async fn engine(&self) -> NativeEngine {
        NativeEngine::start(self.config(env!("CARGO_BIN_EXE_nullspace-launcher")))
            .await
            .expect("the engine starts")
    }
}
