//! A filter of system calls, built from data.
//!
//! The filter is written straight as classic BPF: refuse other architectures, then the rules, then what is allowed, in ranges. Calls
//! that are allowed without a rule cost nothing, because the kernel keeps a bitmap of them.

use std::io;

use crate::check;

/// What happens to a call that a rule matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Test {
    /// Always refused.
    Always,
    /// Refused when one of these bits of argument N is set.
    AnyBit(u8, u32),
    /// Refused unless argument N (its low half) is one of these.
    NoneOf(u8, &'static [u32]),
}

/// One rule; the table with the reasons is the caller's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The call's number on this architecture.
    pub call: i64,
    /// When it is refused.
    pub test: Test,
    /// The error the caller gets.
    pub errno: i32,
}

/// A filter ready to be installed. Building it allocates; installing does not.
#[derive(Clone)]
pub struct Filter(Vec<libc::sock_filter>);

impl std::fmt::Debug for Filter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Filter({} instructions)", self.0.len())
    }
}

#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xC000_003E;
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xC000_00B7;

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const JUMP_EQ: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const JUMP_GE: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const JUMP_GT: u16 = (libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K) as u16;
const JUMP_SET: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
const OFFSET_NR: u32 = 0;
const OFFSET_ARCH: u32 = 4;
const OFFSET_ARGS: u32 = 16;

/// Numbers that follow on each other as the first and the last of them.
fn ranges(numbers: &[i64]) -> Vec<(u32, u32)> {
    let mut numbers: Vec<u32> = numbers
        .iter()
        .filter_map(|n| (*n).try_into().ok())
        .collect();
    numbers.sort_unstable();
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for number in numbers {
        match ranges.last_mut() {
            Some((_, last)) if number <= *last + 1 => *last = number,
            _ => ranges.push((number, number)),
        }
    }
    ranges
}

impl Filter {
    /// Builds a filter. Calls that no rule refuses and that are not allowed answer `ENOSYS`, so that programs fall back
    /// as they would on an older kernel.
    #[must_use]
    pub fn new(rules: &[Rule], allowed: &[i64]) -> Self {
        let step = |code: u16, jt: u8, jf: u8, k: u32| libc::sock_filter { code, jt, jf, k };
        let refuse = |errno: i32| libc::SECCOMP_RET_ERRNO | (errno as u32 & 0xFFFF);
        let mut code = vec![
            step(LOAD, 0, 0, OFFSET_ARCH),
            step(JUMP_EQ, 1, 0, ARCH),
            step(RETURN, 0, 0, libc::SECCOMP_RET_KILL_PROCESS),
            step(LOAD, 0, 0, OFFSET_NR),
        ];
        for rule in rules {
            // Each rule is: skip it whole unless the number matches; look at the argument; refuse, or
            // reload the number for the rules after it.
            let mut body = Vec::new();
            let argument = |n: u8| OFFSET_ARGS + u32::from(n) * 8;
            match rule.test {
                Test::Always => body.push(step(RETURN, 0, 0, refuse(rule.errno))),
                Test::AnyBit(n, bits) => {
                    body.push(step(LOAD, 0, 0, argument(n)));
                    body.push(step(JUMP_SET, 0, 1, bits));
                    body.push(step(RETURN, 0, 0, refuse(rule.errno)));
                    body.push(step(LOAD, 0, 0, OFFSET_NR));
                }
                Test::NoneOf(n, allowed) => {
                    body.push(step(LOAD, 0, 0, argument(n)));
                    for (at, value) in allowed.iter().enumerate() {
                        let over_refusal = (allowed.len() - at) as u8;
                        body.push(step(JUMP_EQ, over_refusal, 0, *value));
                    }
                    body.push(step(RETURN, 0, 0, refuse(rule.errno)));
                    body.push(step(LOAD, 0, 0, OFFSET_NR));
                }
            }
            code.push(step(JUMP_EQ, 0, body.len() as u8, rule.call as u32));
            code.append(&mut body);
        }
        for (first, last) in ranges(allowed) {
            code.push(step(JUMP_GE, 0, 2, first));
            code.push(step(JUMP_GT, 1, 0, last));
            code.push(step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW));
        }
        // The x32 calls of x86-64 carry bit 30 and are past every number here as well.
        code.push(step(RETURN, 0, 0, refuse(libc::ENOSYS)));
        Self(code)
    }

    /// Installs the filter on this thread and all that it starts. It cannot be taken off again.
    ///
    /// # Errors
    /// `EACCES` without no-new-privileges or the capability; seccomp(2)'s.
    pub fn install(&self) -> io::Result<()> {
        let program = libc::sock_fprog {
            len: self.0.len() as u16,
            filter: self.0.as_ptr().cast_mut(),
        };
        // SAFETY: the program points at `len` instructions that outlive the call; the kernel copies and
        // checks them and does not write.
        check(unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                0,
                &raw const program,
            )
        })
        .map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_become_ranges() {
        assert_eq!(ranges(&[5, 1, 2, 3, 9, 8, 8]), [(1, 3), (5, 5), (8, 9)]);
        assert_eq!(ranges(&[]), []);
    }
}
