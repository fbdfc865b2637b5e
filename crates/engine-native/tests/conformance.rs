//! The native engine against the contract. Needs root; has its own launcher, subnet and directory.

mod common;

use nullspace_engine::conformance;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keeps_the_contract() {
    let Some(world) = common::World::new() else {
        return;
    };
    let engine = world.engine().await;
    conformance::run(&engine, std::slice::from_ref(&world.layer)).await;
}
