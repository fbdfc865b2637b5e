//! Stopping all processes of a machine where they stand, and letting them go on: the kernel's freezer, on cgroup v1
//! and v2. Memory stays where it is.

use std::{fs, io, time::Duration};

use crate::wire::Counter;

/// How long processes may take until all of them stand still. Only one that waits in the kernel for a disk takes long.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks at it.
const STEP: Duration = Duration::from_micros(200);

/// Asks for it. With `false` nothing is left to wait for.
pub(crate) fn write(group: &Counter, frozen: bool) -> io::Result<()> {
    match group {
        Counter::V1(group) => {
            let word = if frozen { "FROZEN" } else { "THAWED" };
            fs::write(group.join("freezer.state"), word)
        }
        Counter::V2(group) => fs::write(group.join("cgroup.freeze"), u8::from(frozen).to_string()),
    }
}

/// Stops all of them; when this returns none runs. When that takes too long, all of them go on.
pub(crate) async fn freeze(group: &Counter) -> io::Result<()> {
    write(group, true)?;
    let stands = async {
        while !is_frozen(group)? {
            tokio::time::sleep(STEP).await;
        }
        Ok(())
    };
    match tokio::time::timeout(PATIENCE, stands).await {
        Ok(result) => result,
        Err(_) => {
            write(group, false)?;
            let text = "a process did not stop: it waits for a disk or a device";
            Err(io::Error::new(io::ErrorKind::TimedOut, text))
        }
    }
}

fn is_frozen(group: &Counter) -> io::Result<bool> {
    Ok(match group {
        Counter::V1(group) => fs::read_to_string(group.join("freezer.state"))?.trim() == "FROZEN",
        Counter::V2(group) => fs::read_to_string(group.join("cgroup.events"))?
            .lines()
            .any(|line| line == "frozen 1"),
    })
}
