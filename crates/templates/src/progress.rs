//! What a build tells while it runs: the phase, how far it is, and the last line printed.

use std::fmt;

/// What a build is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Another process is making the same template; this one waits and then uses its result.
    Waiting,
    /// Package lists are read and the set of packages is worked out.
    Preparing,
    /// Packages are fetched.
    Downloading,
    /// Packages are unpacked.
    Unpacking,
    /// Packages are configured, and what does not come from a package is added.
    Configuring,
    /// Documentation, caches and what belongs to the build alone are removed.
    Trimming,
    /// The tree is hashed.
    Hashing,
    /// The tree is written to disk and put in its place.
    Keeping,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Waiting => "waiting",
            Self::Preparing => "preparing",
            Self::Downloading => "downloading",
            Self::Unpacking => "unpacking",
            Self::Configuring => "configuring",
            Self::Trimming => "trimming",
            Self::Hashing => "hashing",
            Self::Keeping => "keeping",
        })
    }
}

/// One report of a build.
#[derive(Clone, Debug, PartialEq)]
pub struct Progress {
    /// What is being done.
    pub phase: Phase,
    /// How far the phase is, 0.0 to 1.0, where that is known. It may start again when a phase comes
    /// back: essential packages go through all phases before the others.
    pub fraction: Option<f32>,
    /// The last line of output, credentials removed; at most 500 characters, may be empty.
    pub line: String,
}

impl Progress {
    pub(crate) fn new(phase: Phase, line: impl Into<String>) -> Self {
        Self {
            phase,
            fraction: None,
            line: line.into(),
        }
    }
}

/// Follows the output of `mmdebstrap --verbose`, which forwards apt's and dpkg's.
///
/// Their text is meant for people, so nothing but the progress display may depend on it.
#[derive(Debug)]
pub(crate) struct Follow {
    phase: Phase,
    /// Packages in the current run of apt, where it said so.
    total: Option<u32>,
    fetched: u32,
    unpacked: u32,
    configured: u32,
    /// The last that was said, and the phase it was said about.
    fraction: Option<(Phase, f32)>,
}

impl Follow {
    pub(crate) fn new() -> Self {
        Self {
            phase: Phase::Preparing,
            total: None,
            fetched: 0,
            unpacked: 0,
            configured: 0,
            fraction: None,
        }
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase
    }

    pub(crate) fn line(&mut self, raw: &str) -> Progress {
        let line = redact(raw.trim());
        let mut done = None;
        if let Some(step) = line.strip_prefix("I: ") {
            match step {
                s if s.starts_with("running apt-get update") => self.phase = Phase::Preparing,
                s if s.starts_with("downloading packages") => self.start(Phase::Downloading),
                s if s.starts_with("extracting") => self.start(Phase::Unpacking),
                s if s.starts_with("installing") => self.start(Phase::Unpacking),
                s if s.starts_with("running --customize-hook") => self.start(Phase::Configuring),
                s if s.starts_with("cleaning") => self.start(Phase::Trimming),
                _ => {}
            }
        } else if let Some(count) = newly_installed(&line) {
            self.total = Some(count);
            (self.fetched, self.unpacked, self.configured) = (0, 0, 0);
        } else if line.starts_with("Get:") && self.phase != Phase::Preparing {
            self.phase = Phase::Downloading;
            self.fetched += 1;
            done = Some(self.fetched);
        } else if line.starts_with("Unpacking ") {
            self.phase = Phase::Unpacking;
            self.unpacked += 1;
            done = Some(self.unpacked);
        } else if line.starts_with("Setting up ") {
            self.phase = Phase::Configuring;
            self.configured += 1;
            done = Some(self.configured);
        }
        if let (Some(done), Some(total @ 1..)) = (done, self.total) {
            self.fraction = Some((self.phase, (done as f32 / total as f32).min(1.0)));
        }
        // Lines between two packages say nothing new about how far the phase is.
        let fraction = self
            .fraction
            .and_then(|(phase, f)| (phase == self.phase).then_some(f));
        Progress {
            phase: self.phase,
            fraction,
            line,
        }
    }

    fn start(&mut self, phase: Phase) {
        self.phase = phase;
        self.fraction = None;
        (self.fetched, self.unpacked, self.configured) = (0, 0, 0);
    }
}

/// The 12 of `0 upgraded, 12 newly installed, 0 to remove and 0 not upgraded.`
fn newly_installed(line: &str) -> Option<u32> {
    let (before, _) = line.split_once(" newly installed")?;
    before.rsplit(' ').next()?.parse().ok()
}

/// Cuts credentials out of URLs, control characters out of the text, and the line to 500 characters:
/// progress is shown and logged.
pub(crate) fn redact(line: &str) -> String {
    without_credentials(line)
        .chars()
        .filter(|c| !c.is_control())
        .take(500)
        .collect()
}

/// The text with `user:password@` cut out of every URL in it.
#[must_use]
pub fn without_credentials(line: &str) -> String {
    let mut out = String::new();
    let mut rest = line;
    while let Some(at) = rest.find("://") {
        let (head, tail) = rest.split_at(at + 3);
        out.push_str(head);
        let end = tail.find(['/', ' ', '"', '\'', '?']).unwrap_or(tail.len());
        rest = match tail[..end].rfind('@') {
            Some(at) => &tail[at + 1..],
            None => tail,
        };
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn phases_follow_the_output() {
        let mut follow = Follow::new();
        let seen: Vec<_> = [
            "I: running apt-get update...",
            "Get:1 http://mirror.example/debian bookworm InRelease [151 kB]",
            "I: installing remaining packages inside the chroot...",
            "0 upgraded, 4 newly installed, 0 to remove and 0 not upgraded.",
            "Get:1 http://mirror.example/debian bookworm/main amd64 less amd64 590-2 [131 kB]",
            "Selecting previously unselected package less.",
            "Unpacking less (590-2) ...",
            "Unpacking git (2.39) ...",
            "Setting up less (590-2) ...",
            "I: cleaning package lists and apt cache...",
        ]
        .iter()
        .map(|line| {
            let p = follow.line(line);
            (p.phase, p.fraction)
        })
        .collect();
        assert_eq!(
            seen,
            [
                (Phase::Preparing, None),
                (Phase::Preparing, None),
                (Phase::Unpacking, None),
                (Phase::Unpacking, None),
                (Phase::Downloading, Some(0.25)),
                (Phase::Downloading, Some(0.25)),
                (Phase::Unpacking, Some(0.25)),
                (Phase::Unpacking, Some(0.5)),
                (Phase::Configuring, Some(0.25)),
                (Phase::Trimming, None),
            ]
        );
    }

    #[test]
    fn credentials_are_cut_out() {
        assert_eq!(
            redact("Get:1 https://me:p@ss@mirror.example/debian x, http://b.example/?u=a@b"),
            "Get:1 https://mirror.example/debian x, http://b.example/?u=a@b"
        );
        assert_eq!(redact("\u{1b}[31mred"), "[31mred");
    }

    proptest! {
        #[test]
        fn any_line_is_followed(lines in proptest::collection::vec(".*", 0..20)) {
            let mut follow = Follow::new();
            for line in lines {
                let p = follow.line(&line);
                prop_assert!(p.line.chars().count() <= 500);
                prop_assert!(p.fraction.is_none_or(|f| (0.0..=1.0).contains(&f)));
            }
        }
    }
}
