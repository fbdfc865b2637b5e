//! `cargo xtask check`: formatting, lints, and licences where cargo-deny is installed.

use std::process::Command;

use anyhow::{Result, ensure};

pub(crate) fn run() -> Result<()> {
    cargo(&["fmt", "--all", "--check"])?;
    cargo(&[
        "clippy",
        "--workspace",
        "--all-targets",
        "--quiet",
        "--",
        "-D",
        "warnings",
    ])?;
    if Command::new("cargo")
        .args(["deny", "--version"])
        .output()
        .is_ok_and(|o| o.status.success())
    {
        cargo(&["deny", "check", "licenses", "bans", "sources"])
    } else {
        println!("skipped: cargo-deny is not installed (cargo install cargo-deny)");
        Ok(())
    }
}

fn cargo(args: &[&str]) -> Result<()> {
    println!("cargo {}", args.join(" "));
    ensure!(
        Command::new("cargo").args(args).status()?.success(),
        "cargo {} failed",
        args[0]
    );
    Ok(())
}
