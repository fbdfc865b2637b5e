//! Which `runsc` this host has.

use std::{
    io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// The program's name, looked for in `PATH`.
pub const RUNSC: &str = "runsc";
/// The first release with all that is used here.
const OLDEST: u32 = 2024_0729;

/// The last release that is known to write the pages of a checkpoint from front to end: those after it may write several
/// pieces at once.
const IN_ORDER: u32 = 2024_0729;
/// The first release whose idle kernels sleep (upstream 13470).
const QUIET: u32 = 2026_0701;

/// An installed `runsc`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Release {
    /// Where it is.
    pub path: PathBuf,
    /// What it calls itself, such as `0.0~20240729.0`. A checkpoint is read by the release that wrote it alone.
    pub version: String,
}

impl Release {
    /// Whether the pages of a checkpoint can be read behind the kernel while it writes them. Otherwise they are read when it
    /// is done.
    pub(crate) fn writes_in_order(&self) -> bool {
        date(&self.version).is_some_and(|date| date <= IN_ORDER)
    }

    /// Whether an idle machine takes processor time all the same: some 5 % of one.
    #[must_use]
    pub fn is_restless(&self) -> bool {
        date(&self.version).is_some_and(|date| date < QUIET)
    }

    /// Looks for the program in `PATH` and asks it.
    ///
    /// # Errors
    /// What is missing, for people.
    pub fn find() -> Result<Self, String> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let places = std::env::split_paths(&path).map(|directory| directory.join(RUNSC));
        let program = places
            .into_iter()
            .find(|place| place.is_file())
            .ok_or("runsc is not installed")?;
        Self::of(&program)
    }

    /// Asks a program.
    ///
    /// # Errors
    /// As [`Release::find`].
    pub fn of(program: &Path) -> Result<Self, String> {
        let said = ask(program).map_err(|e| format!("{} cannot be run: {e}", program.display()))?;
        let version = version(&said)
            .ok_or_else(|| format!("{} does not say its version", program.display()))?;
        match date(version) {
            Some(date) if date < OLDEST => Err(format!(
                "runsc {version} is too old: {OLDEST} or newer is needed"
            )),
            _ => Ok(Self {
                path: program.to_owned(),
                version: version.to_owned(),
            }),
        }
    }
}

fn ask(program: &Path) -> io::Result<String> {
    let output = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn version(said: &str) -> Option<&str> {
    said.lines()
        .find_map(|line| line.strip_prefix("runsc version "))
        .map(str::trim)
        .filter(|version| !version.is_empty())
}

/// The day in a version, if it has one: `release-20240729.0`, `0.0~20240729.0`.
fn date(version: &str) -> Option<u32> {
    let words = version.split(|c: char| !c.is_ascii_digit());
    words
        .filter(|word| word.len() == 8)
        .find_map(|word| word.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read_as_each_distribution_writes_it() {
        let said = "runsc version 0.0~20240729.0\nspec: 1.0.2-dev\n";
        assert_eq!(version(said), Some("0.0~20240729.0"));
        assert_eq!(date("0.0~20221219.0"), Some(2022_1219));
        assert_eq!(date("release-20250319.0"), Some(2025_0319));
        assert_eq!(date("VERSION_MISSING"), None);
        assert_eq!(version("no such thing"), None);
    }

    #[test]
    fn what_a_release_does_is_known_by_its_day() {
        let of = |version: &str| Release {
            path: "/usr/bin/runsc".into(),
            version: version.into(),
        };
        assert!(of("0.0~20240729.0").is_restless());
        assert!(!of("release-20260803.0").is_restless());
        assert!(!of("VERSION_MISSING").is_restless());
        assert!(of("0.0~20240729.0").writes_in_order());
        assert!(!of("release-20250319.0").writes_in_order());
        assert!(!of("VERSION_MISSING").writes_in_order());
    }

    #[test]
    fn what_is_missing_is_said() {
        assert!(Release::of(Path::new("/no/runsc")).is_err_and(|e| e.contains("cannot be run")));
        assert!(Release::of(Path::new("/bin/true")).is_err_and(|e| e.contains("does not say")));
    }
}
