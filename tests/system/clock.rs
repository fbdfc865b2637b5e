//! The host's clock jumps. The server is shown another one by libfaketime; what time has passed (CLOCK_MONOTONIC) it is not.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use serde_json::json;

use crate::world::World;

/// Where Debian has it.
const LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";

/// A clock that is moved by writing to a file.
struct Clock(tempfile::NamedTempFile);

impl Clock {
    fn new() -> Self {
        let clock = Self(tempfile::NamedTempFile::new().unwrap());
        clock.jump("+0d");
        clock
    }

    fn jump(&self, by: &str) {
        std::fs::write(self.0.path(), by).unwrap();
    }

    fn variables(&self) -> Vec<(&'static str, String)> {
        let file = self.0.path().to_str().unwrap();
        [
            ("LD_PRELOAD", LIBRARY),
            ("FAKETIME_TIMESTAMP_FILE", file),
            ("FAKETIME_NO_CACHE", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
            ("DONT_FAKE_MONOTONIC", "1"),
            ("FAKETIME_DISABLE_SHM", "1"),
            ("NO_FAKE_STAT", "1"),
        ]
        .map(|(name, value)| (name, value.to_owned()))
        .into()
    }
}

async fn machine(world: &World, limit: Duration) -> String {
    let limit = u64::try_from(limit.as_millis()).unwrap();
    world
        .machine(json!({"template": "host", "timeout_ms": limit}))
        .await
}

async fn status(world: &World, id: &str) -> String {
    let (_, body) = world.get(&format!("/v1/machines/{id}")).await;
    body["status"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn machines_live_as_long_as_they_were_to_whatever_the_clock_says() {
    if !Path::new(LIBRARY).exists() {
        println!("skipped: no libfaketime on this host");
        return;
    }
    let clock = Clock::new();
    let mut world = World::in_surroundings(clock.variables()).await;
    let day = Duration::from_secs(24 * 3600);
    let long = machine(&world, 2 * day).await;
    let short = machine(&world, Duration::from_secs(20)).await;
    let begun = Instant::now();
    let (_, before) = world.get(&format!("/v1/machines/{long}")).await;

    // Forward: nobody's time is over for that.
    clock.jump("+10d");
    let (_, after) = world.get("/v1/machines?limit=5").await;
    assert_eq!(after["items"].as_array().unwrap().len(), 2, "{after}");
    assert_eq!(world.out(&long, "echo well").await, "well");
    // The server believes the other clock: what it makes now is of another day.
    let made = machine(&world, day).await;
    let (_, made) = world.get(&format!("/v1/machines/{made}")).await;
    assert_ne!(
        made["created_at"].as_str().unwrap()[..10],
        before["created_at"].as_str().unwrap()[..10]
    );

    // And back, further than it was: a limit is not longer for that.
    clock.jump("-10d");
    world
        .until(&short, |machine| machine["status"] == "destroyed")
        .await;
    assert!(
        begun.elapsed() >= Duration::from_secs(19),
        "it ended early: {:?}",
        begun.elapsed()
    );
    assert_eq!(status(&world, &long).await, "running");

    // A server that starts again has only the record to go by. It says that there are days to go; the limit says seconds.
    let short = machine(&world, Duration::from_secs(15)).await;
    world.kill();
    clock.jump("-40d");
    world.serve().await;
    world
        .until(&short, |machine| machine["status"] == "destroyed")
        .await;
    assert_eq!(world.out(&long, "echo well").await, "well");

    // Streams, commands and their limits do not look at the clock.
    let limited = json!({"command": "sleep 86393", "shell": true, "timeout_secs": 2});
    let path = format!("/v1/machines/{long}/exec");
    let jumping = async {
        for by in ["+300d", "-300d", "+0d"] {
            clock.jump(by);
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    };
    let ((_, body), ()) = tokio::join!(world.post(&path, limited), jumping);
    assert_eq!(body["code"], "exec_timeout", "{body}");
}
