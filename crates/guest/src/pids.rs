//! Keeps a machine with a kernel of its own to a number of processes.
//!
//! Each costs that kernel up to 2 MB that no process is seen to have, so that a fork bomb would end the whole machine
//! at the host's limit. `RLIMIT_NPROC` is not kept there, and its control group for processes now and then lets one more in
//! (gVisor charges whichever group it finds first). So the guest counts, and ends the session with most processes: what one
//! command or login started.
//!
//! It shares the processors with what it looks for: a bomb whose every process forks may leave it no time, and then the
//! machine ends.

use std::{collections::BTreeMap, time::Duration};

use nullspace_sys::signal;
use rustix::process::{Pid, Signal, kill_process};

use crate::process::{self, kill_tree};

/// The least and the most time between two looks.
const SOON: Duration = Duration::from_millis(4);
const LATE: Duration = Duration::from_millis(500);
/// Processes per second that nothing is quicker to start.
const QUICKEST: u64 = 1_000;
/// How often everyone is told to stand still before that is given up.
const ROUNDS: u32 = 100;
/// A session with fewer is no bomb.
const FEW: usize = 16;

/// Begins to look, on a thread of its own that goes on as long as the guest does: nothing else may keep it.
///
/// # Errors
/// When there can be no thread.
pub(crate) fn keep_to(most: u32) -> std::io::Result<()> {
    std::thread::Builder::new()
        .name("pids".into())
        .spawn(move || {
            loop {
                let now = count();
                if now > most {
                    relieve(most as usize);
                }
                std::thread::sleep(pause(most.saturating_sub(now)));
            }
        })
        .map(drop)
}

/// Processes, and a few. One system call: whoever shares the processors with a bomb waits after each.
fn count() -> u32 {
    rustix::fs::stat("/proc").map_or(0, |stat| u32::try_from(stat.st_nlink).unwrap_or(u32::MAX))
}

/// How long so few more processes cannot be started.
fn pause(left: u32) -> Duration {
    Duration::from_millis(u64::from(left) * 1000 / QUICKEST).clamp(SOON, LATE)
}

/// Ends a session if there are too many processes, or, where each has one of its own, those that began last. Everyone stands
/// still meanwhile: a bomb is quicker than who looks for it.
fn relieve(most: usize) {
    // A fork under way goes on, and what it makes was not told.
    let mut there = 0;
    for _ in 0..ROUNDS {
        if signal::everyone_else(Signal::STOP.as_raw()).is_err() {
            return;
        }
        let now = count();
        if now == there {
            break;
        }
        there = now;
    }
    let own = std::process::id();
    if there as usize > most {
        let there = process::processes();
        if let Some(session) = largest(&there, own) {
            kill_tree(session);
        } else {
            let mut pids: Vec<u32> = there.into_iter().map(|(pid, ..)| pid).collect();
            pids.sort_unstable();
            let last = pids.into_iter().skip(most / 2).filter(|pid| *pid != own);
            for pid in last.filter_map(|pid| Pid::from_raw(pid as i32)) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }
    let _ = signal::everyone_else(Signal::CONT.as_raw());
}

/// The session that most of these processes (id, parent, session) come from, but not this process's own.
fn largest(there: &[(u32, u32, u32)], own: u32) -> Option<u32> {
    let by_pid: BTreeMap<u32, (u32, u32)> = there
        .iter()
        .map(|(pid, parent, session)| (*pid, (*parent, *session)))
        .collect();
    let mut sessions: BTreeMap<u32, usize> = BTreeMap::new();
    for pid in by_pid.keys() {
        *sessions.entry(origin(*pid, &by_pid, own)).or_default() += 1;
    }
    sessions
        .into_iter()
        .filter(|(session, _)| *session > 0 && *session != own)
        .max_by_key(|(_, processes)| *processes)
        .filter(|(_, processes)| *processes >= FEW)
        .map(|(session, _)| session)
}

/// The session of a process's first ancestor below `own`: what it started may have one of its own.
fn origin(pid: u32, by_pid: &BTreeMap<u32, (u32, u32)>, own: u32) -> u32 {
    let mut first = pid;
    // Read one by one, they may look like a circle.
    for _ in 0..by_pid.len() {
        match by_pid.get(&first) {
            Some((parent, _)) if *parent != own && by_pid.contains_key(parent) => first = *parent,
            _ => break,
        }
    }
    by_pid.get(&first).map_or(0, |(_, session)| *session)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_looks_oftener_the_fewer_are_left() {
        assert_eq!(pause(0), SOON);
        assert_eq!(pause(100), Duration::from_millis(100));
        assert_eq!(pause(u32::MAX), LATE);
    }

    #[test]
    fn the_session_with_most_processes_is_the_bomb() {
        let of = |session: u32, parent: u32, pids: std::ops::Range<u32>| {
            pids.map(move |pid| (pid, parent, session))
        };
        // Those of process 1, of nobody, of a session, and of a larger one; the last have a parent that is gone.
        let crowd = [
            of(1, 1, 2..90),
            of(0, 0, 130..190),
            of(100, 1, 100..120),
            of(200, 7000, 200..230),
        ];
        let there: Vec<_> = crowd.into_iter().flatten().collect();
        assert_eq!(largest(&there, 1), Some(200));
        // Each has its own, but one process started them.
        let mut there: Vec<_> = (300..330).map(|pid| (pid, 100, pid)).collect();
        there.push((100, 1, 100));
        assert_eq!(largest(&there, 1), Some(100));
        // Nobody has.
        let there: Vec<_> = (2..900).map(|pid| (pid, 1, pid)).collect();
        assert_eq!(largest(&there, 1), None);
        // A circle.
        assert_eq!(largest(&[(5, 6, 9), (6, 5, 9)], 1), None);
    }

    #[test]
    fn each_process_counts() {
        let (counted, there) = (count() as usize, process::processes().len());
        // Others begin and end meanwhile.
        assert!((there..there + 64).contains(&counted), "{counted}, {there}");
    }
}
