//! What a machine uses, as the kernel counts it: its cgroups and its link. What it has on disk is in [`crate::disk`].

use std::{fs, io, path::Path, time::Instant};

use crate::wire::{Counter, Meters};

/// Where the kernel shows interfaces.
const INTERFACES: &str = "/sys/class/net";

/// What is read at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Counted {
    pub(crate) at: Instant,
    pub(crate) cpu_micros: u64,
    pub(crate) memory_bytes: u64,
    pub(crate) memory_limit_bytes: u64,
    pub(crate) network_rx_bytes: u64,
    pub(crate) network_tx_bytes: u64,
}

/// Reads a machine's meters: six short files of the kernel.
pub(crate) fn read(meters: &Meters) -> io::Result<Counted> {
    let cpu = meters.cpu.as_ref().ok_or_else(|| {
        let text = "this host counts processor time for no group: it has no cpuacct controller";
        io::Error::new(io::ErrorKind::Unsupported, text)
    })?;
    let at = Instant::now();
    let cpu_micros = cpu_micros(cpu)?;
    let (memory_bytes, memory_limit_bytes) = memory(&meters.memory)?;
    let (network_rx_bytes, network_tx_bytes) = network(Path::new(INTERFACES), &meters.interface)?;
    Ok(Counted {
        at,
        cpu_micros,
        memory_bytes,
        memory_limit_bytes,
        network_rx_bytes,
        network_tx_bytes,
    })
}

fn cpu_micros(counter: &Counter) -> io::Result<u64> {
    match counter {
        Counter::V1(group) => Ok(number(&group.join("cpuacct.usage"))? / 1000),
        Counter::V2(group) => {
            let file = group.join("cpu.stat");
            let text = fs::read_to_string(&file)?;
            field(&text, "usage_usec").ok_or_else(|| strange(&file))
        }
    }
}

/// What is used, without what the kernel would give up for others: files that it keeps in memory, on both of its
/// lists. And the limit.
fn memory(counter: &Counter) -> io::Result<(u64, u64)> {
    let (group, used, limit, prefix) = match counter {
        Counter::V1(group) => (
            group,
            "memory.usage_in_bytes",
            "memory.limit_in_bytes",
            "total_",
        ),
        Counter::V2(group) => (group, "memory.current", "memory.max", ""),
    };
    let statistics = fs::read_to_string(group.join("memory.stat"))?;
    let files = ["inactive_file", "active_file"]
        .map(|name| field(&statistics, &format!("{prefix}{name}")).unwrap_or(0));
    // Read a moment later, and counted in steps: it may be less.
    let used = number(&group.join(used))?.saturating_sub(files.iter().sum());
    Ok((used, number(&group.join(limit))?))
}

/// What came and went, as the machine sees it: the host's end of the link has it the other way round.
fn network(interfaces: &Path, name: &str) -> io::Result<(u64, u64)> {
    let counters = interfaces.join(name).join("statistics");
    Ok((
        number(&counters.join("tx_bytes"))?,
        number(&counters.join("rx_bytes"))?,
    ))
}

fn number(file: &Path) -> io::Result<u64> {
    let text = fs::read_to_string(file)?;
    text.trim().parse().map_err(|_| strange(file))
}

/// The number after a name, in a file of one to a line.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

fn strange(file: &Path) -> io::Error {
    io::Error::other(format!("{} is not as expected", file.display()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn files(files: &[(&str, &str)]) -> tempfile::TempDir {
        let at = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = at.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        at
    }

    #[test]
    fn both_generations_of_cgroups_are_read() {
        let v1 = files(&[
            ("cpuacct.usage", "1234567890\n"),
            ("memory.usage_in_bytes", "1000000\n"),
            ("memory.limit_in_bytes", "536870912\n"),
            (
                "memory.stat",
                "cache 700000\ninactive_file 1\nactive_file 2\ntotal_inactive_file 400000\ntotal_active_file 100000\n",
            ),
        ]);
        let group = Counter::V1(v1.path().to_owned());
        assert_eq!(cpu_micros(&group).unwrap(), 1_234_567);
        assert_eq!(memory(&group).unwrap(), (500_000, 536_870_912));

        let v2 = files(&[
            (
                "cpu.stat",
                "usage_usec 4200\nuser_usec 4000\nsystem_usec 200\n",
            ),
            ("memory.current", "1000000\n"),
            ("memory.max", "536870912\n"),
            (
                "memory.stat",
                "anon 3\ninactive_file 900000\nactive_file 200000\n",
            ),
        ]);
        let group = Counter::V2(v2.path().to_owned());
        assert_eq!(cpu_micros(&group).unwrap(), 4200);
        assert_eq!(
            memory(&group).unwrap(),
            (0, 536_870_912),
            "never below zero"
        );
    }

    #[test]
    fn the_link_is_seen_from_the_machine() {
        let at = files(&[
            ("nv0/statistics/rx_bytes", "7\n"),
            ("nv0/statistics/tx_bytes", "11\n"),
        ]);
        assert_eq!(network(at.path(), "nv0").unwrap(), (11, 7));
        assert!(network(at.path(), "nv1").is_err());
    }
}
