//! The gVisor engine against the contract. Needs root and `runsc`; has its own launcher, subnet and directory.

mod common;

use nullspace_engine::conformance;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keeps_the_contract() {
    let Some((world, release)) = common::world() else {
        return;
    };
    let engine = world.engine(&release).await;
    conformance::run(&engine, std::slice::from_ref(&world.layer)).await;
}
