//! How much of busy processors a machine gets beside others.

use std::{fs, io};

use crate::wire::Counter;

/// What a machine has that nothing was said of, as the kernel counts it in groups of v1; of v2 it is 100.
const USUAL_V1: u64 = 1024;
/// The least and the most that the kernel takes in groups of v2. Those of v1 take as much.
const RANGE: std::ops::RangeInclusive<u64> = 1..=10_000;

/// Sets it: 100 is the usual. What is out of the range is brought into it.
pub(crate) fn set(group: &Counter, share: u32) -> io::Result<()> {
    let share = u64::from(share).clamp(*RANGE.start(), *RANGE.end());
    match group {
        // The kernel takes 2 and up.
        Counter::V1(group) => {
            let shares = (share * USUAL_V1 / 100).max(2);
            fs::write(group.join("cpu.shares"), shares.to_string())
        }
        Counter::V2(group) => fs::write(group.join("cpu.weight"), share.to_string()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn both_generations_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let read = |file: &str| fs::read_to_string(dir.path().join(file)).unwrap();
        for (share, v1, v2) in [(100, "1024", "100"), (0, "10", "1"), (25, "256", "25")] {
            set(&Counter::V1(dir.path().to_owned()), share).unwrap();
            set(&Counter::V2(dir.path().to_owned()), share).unwrap();
            assert_eq!(
                (read("cpu.shares"), read("cpu.weight")),
                (v1.into(), v2.into())
            );
        }
    }
}
