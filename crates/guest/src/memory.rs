//! Keeps a machine within its memory where the host sees one process for all of it, the machine's own kernel: the host's
//! limit would end the whole machine.
//!
//! So the guest looks at what is left, the oftener the less that is, and ends the largest process when it is nothing, as
//! a kernel does; where only small ones are and more is used all the same, which files in memory are, the youngest. The
//! host's limit is a margin higher, for what is taken between two looks.

use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// The least and the most time between two looks.
const SOON: Duration = Duration::from_millis(4);
const LATE: Duration = Duration::from_millis(500);
/// Bytes per second that nothing is quicker to take.
const QUICKEST: u64 = 4 << 30;
/// How long an ended process has to give back what it had before another one is ended.
const RELEASE: Duration = Duration::from_millis(500);
/// What may come on top of what cannot be given back, in bytes: enough for a shell that removes it.
const GROWTH: u64 = 32 << 20;
/// Processes with less, or with less than a 32nd of the machine's memory, are left alone while there is a chance that what is
/// used is about to be given back by one that was ended.
const SMALL: u64 = 16 << 20;
/// Bytes of a page.
const PAGE: u64 = 4096;

/// Begins to look, on a thread of its own that goes on as long as the guest does.
///
/// # Errors
/// When there can be no thread.
pub(crate) fn keep_within(bytes: u64) -> std::io::Result<()> {
    std::thread::Builder::new()
        .name("memory".into())
        .spawn(move || {
            let mut allowed = bytes;
            loop {
                let now = used().unwrap_or(0);
                if now <= allowed {
                    allowed = if now <= bytes { bytes } else { allowed };
                    std::thread::sleep(pause(allowed - now));
                    continue;
                }
                relieve(bytes, allowed);
                // What no process holds, files in memory, is not given back by ending more of them; only what grows
                // goes on being ended.
                allowed = bytes.max(used().unwrap_or(0).saturating_add(GROWTH));
            }
        })
        .map(drop)
}

/// How long nothing can have been used up when so many bytes are left.
fn pause(left: u64) -> Duration {
    let nanos = left.saturating_mul(1_000_000_000) / QUICKEST;
    Duration::from_nanos(nanos).clamp(SOON, LATE)
}

/// Ends a process, and waits until that shows. `bytes` is the machine's memory, `allowed` what is borne now.
fn relieve(bytes: u64, allowed: u64) {
    let least = SMALL.min(bytes / 32);
    let Some(pid) = largest(least).or_else(|| is_growing().then(youngest).flatten()) else {
        return;
    };
    let begun = Instant::now();
    let _ = kill_process(pid, Signal::KILL);
    while begun.elapsed() < RELEASE && used().is_some_and(|used| used > allowed) {
        std::thread::sleep(SOON);
    }
}

/// Whether more and more is used, which files in memory are: small programs write them.
fn is_growing() -> bool {
    let before = used();
    std::thread::sleep(SOON);
    used() > before
}

/// Memory of processes and of file systems in memory, in bytes.
fn used() -> Option<u64> {
    anonymous(&std::fs::read_to_string("/proc/meminfo").ok()?)
}

fn anonymous(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("AnonPages:"))?;
    let kilobytes: u64 = line.split_ascii_whitespace().next()?.parse().ok()?;
    Some(kilobytes.saturating_mul(1024))
}

/// The process with most memory of its own, and at least so much.
fn largest(least: u64) -> Option<Pid> {
    let (_, pid) = processes().max().filter(|(bytes, _)| *bytes >= least)?;
    Pid::from_raw(pid)
}

/// The one that began last: among small ones what they have says nothing.
fn youngest() -> Option<Pid> {
    Pid::from_raw(processes().map(|(_, pid)| pid).max()?)
}

/// Bytes and id of each process but this one.
fn processes() -> impl Iterator<Item = (u64, i32)> {
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(move |entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let statm = std::fs::read_to_string(entry.path().join("statm")).ok()?;
            (pid != own).then_some((resident(&statm)?, pid))
        })
}

fn resident(statm: &str) -> Option<u64> {
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    Some(pages.saturating_mul(PAGE))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn it_looks_oftener_the_less_is_left() {
        assert_eq!(pause(0), SOON);
        assert_eq!(pause(400 << 20), Duration::from_nanos(97_656_250));
        assert_eq!(pause(u64::MAX), LATE);
    }

    #[test]
    fn what_the_kernel_says_is_read() {
        let meminfo = "MemTotal:       24684092 kB\nAnonPages:         35344 kB\nMapped:            89668 kB\n";
        assert_eq!(anonymous(meminfo), Some(35344 * 1024));
        assert_eq!(anonymous("MemTotal: 1 kB\n"), None);
        assert_eq!(resident("2780 954 0 0 0 0 0\n"), Some(954 * PAGE));
    }

    #[test]
    fn the_largest_process_is_found() {
        let script = "x = bytearray(256 << 20); print(1, flush=True); input()";
        let mut child = std::process::Command::new("python3")
            .args(["-c", script])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0; 1]).unwrap();
        let of = |pid: u32| {
            resident(&std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap()).unwrap()
        };
        let found = u32::try_from(largest(SMALL).unwrap().as_raw_pid()).unwrap();
        assert!(of(found) >= of(child.id()), "{found}");
        assert_eq!(largest(u64::MAX), None);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
