//! What becomes of machines, of the host and of the engine when the launcher is killed.

mod common;

use std::{fs::File, time::Duration};

use nullspace_engine::{Engine, ExitReason, conformance};
use nullspace_engine_native::{NativeEngine, shutdown};
use nullspace_protocol::GuestClient;

use common::World;

async fn create(engine: &NativeEngine, world: &World, id: &str) {
    let spec = conformance::spec(id, std::slice::from_ref(&world.layer));
    engine.create(&spec).await.expect("create");
    let guest = GuestClient::connect(engine.dial(id).await.expect("dial")).await;
    let (code, ..) = conformance::sh(&guest.expect("the guest answers"), "exit 3").await;
    assert_eq!(code, 3);
}

/// A directory whose launcher was killed while it had a machine, with nobody to notice. The kernel takes a
/// dead machine's network apart when it finds time; the file says when.
async fn abandoned() -> Option<(World, String, File)> {
    let world = World::new()?;
    let engine = world.engine().await;
    create(&engine, &world, "one").await;
    let gateway = world.gateway().expect("a gateway");
    drop(engine);
    let network = world.a_network();
    world.kill_launcher();
    let remains = world.remains(&gateway).join("\n");
    for what in [
        "nullspace-",
        "packet filter",
        "address",
        "interface",
        "machines/one",
    ] {
        assert!(remains.contains(what), "{what} in {remains}");
    }
    Some((world, gateway, network))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_launcher_clears_what_a_killed_one_left() {
    let Some((world, gateway, _network)) = abandoned().await else {
        return;
    };
    let engine = world.engine().await;
    assert!(engine.list().await.expect("list").is_empty());
    common::eventually("files of the lost machine are removed", || {
        !world.path().join("machines/one").exists()
    });
    create(&engine, &world, "two").await;
    shutdown(world.path()).expect("shutdown");
    assert_eq!(world.remains(&gateway), Vec::<String>::new());
}

/// One that stands still cannot even die before it is let go.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_launcher_clears_what_stood_still() {
    let Some(world) = World::new() else {
        return;
    };
    let engine = world.engine().await;
    // The next launcher's groups are not to have the name of this one's.
    for n in 0..6 {
        let id = format!("before-{n}");
        create(&engine, &world, &id).await;
        engine.destroy(&id).await.expect("destroy");
    }
    create(&engine, &world, "one").await;
    let gateway = world.gateway().expect("a gateway");
    if !engine
        .capabilities_of("one")
        .await
        .expect("capabilities")
        .pause
    {
        eprintln!("skipped: this host has no freezer");
        return;
    }
    engine.pause("one").await.expect("pause");
    let before = world.processes();
    let mut exits = engine.exits();
    let launcher = world.launcher().expect("a launcher");
    rustix::process::kill_process(launcher, rustix::process::Signal::KILL).expect("kill");
    let exit = tokio::time::timeout(Duration::from_secs(30), exits.recv()).await;
    assert_eq!(exit.expect("the loss is told").expect("news").id, "one");
    create(&engine, &world, "two").await;
    let after = world.processes();
    assert!(after.is_disjoint(&before), "{before:?} {after:?}");
    shutdown(world.path()).expect("shutdown");
    assert_eq!(world.remains(&gateway), Vec::<String>::new());
}

/// Somebody removed the data directory, and begins again in the same place: the old packet filter must not stand in
/// front of the new one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_that_was_removed_leaves_no_rules() {
    let Some((world, gateway, _network)) = abandoned().await else {
        return;
    };
    std::fs::remove_dir_all(world.path().join("run")).expect("remove");
    let engine = world.engine().await;
    create(&engine, &world, "two").await;
    let new = world.gateway().expect("a gateway");
    let rules = std::process::Command::new("nft")
        .args(["list", "ruleset"])
        .output()
        .expect("nft");
    let rules = String::from_utf8_lossy(&rules.stdout).into_owned();
    // One rule for machines with rules of their own, one for the others.
    assert_eq!(
        rules.matches(&format!("ip daddr {new} ")).count(),
        2,
        "{rules}"
    );
    assert!(
        new == gateway || !rules.contains(&format!("{gateway} ")),
        "{rules}"
    );
    shutdown(world.path()).expect("shutdown");
    assert_eq!(world.remains(&gateway), Vec::<String>::new());
    assert_eq!(world.remains(&new), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutdown_needs_no_launcher() {
    let Some((world, gateway, _network)) = abandoned().await else {
        return;
    };
    shutdown(world.path()).expect("shutdown");
    assert_eq!(world.remains(&gateway), Vec::<String>::new());
    shutdown(world.path()).expect("twice is fine");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_machines_are_told_and_another_launcher_is_started() {
    let Some(world) = World::new() else {
        return;
    };
    let engine = world.engine().await;
    let mut exits = engine.exits();
    create(&engine, &world, "one").await;
    create(&engine, &world, "two").await;
    create(&engine, &world, "three").await;
    engine.destroy("two").await.expect("destroy");
    let old = world.launcher();
    world.kill_launcher();
    let mut lost = Vec::new();
    for _ in 0..2 {
        let exit = tokio::time::timeout(Duration::from_secs(30), exits.recv()).await;
        let exit = exit.expect("the loss is told").expect("news");
        assert_eq!(exit.reason, ExitReason::EngineLost);
        lost.push(exit.id);
    }
    lost.sort();
    assert_eq!(lost, ["one", "three"], "those that lived and no others");
    create(&engine, &world, "four").await;
    let new = world.launcher();
    assert!(new.is_some() && new != old);
    let live = engine.list().await.expect("list");
    assert_eq!(live.iter().map(|m| &m.id).collect::<Vec<_>>(), ["four"]);
    assert!(exits.try_recv().is_err(), "nothing is told twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_launcher_that_is_of_no_use_goes_and_leaves_nothing() {
    let Some(world) = World::new() else {
        return;
    };
    let engine = world.engine().await;
    create(&engine, &world, "one").await;
    engine.destroy("one").await.expect("destroy");
    let gateway = world.gateway().expect("a gateway");
    drop(engine);
    common::eventually("everything is removed", || {
        world.remains(&gateway).is_empty()
    });
}
