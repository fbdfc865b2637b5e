//! `cargo xtask check`: formatting, lints, the client for macOS, and licences. What a host lacks is said, not
//! installed.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Command};

use anyhow::{Result, ensure};

/// What the client must build for besides Linux.
const MACOS: &str = "aarch64-apple-darwin";

pub(crate) fn run() -> Result<()> {
    cargo(&["fmt", "--all", "--check"], &[])?;
    cargo(
        &[
            "clippy",
            "--workspace",
            "--all-targets",
            "--quiet",
            "--",
            "-D",
            "warnings",
        ],
        &[],
    )?;
    macos()?;
    if succeeds("cargo", &["deny", "--version"]) {
        cargo(&["deny", "check", "licenses", "bans", "sources"], &[])
    } else {
        println!("skipped: cargo-deny is not installed (cargo install cargo-deny)");
        Ok(())
    }
}

/// Lints the client for macOS. Nothing is linked, so a compiler for C that makes empty files will do.
fn macos() -> Result<()> {
    let installed = Command::new("rustup")
        .args(["target", "list", "--installed"])
        .output()
        .is_ok_and(|o| String::from_utf8_lossy(&o.stdout).contains(MACOS));
    if !installed {
        println!("skipped: no Rust for macOS is installed (rustup target add {MACOS})");
        return Ok(());
    }
    let tools = tempfile::tempdir()?;
    let cc = script(
        tools.path(),
        "cc",
        r#"while [ $# -gt 1 ]; do [ "$1" = -o ] && : > "$2"; shift; done"#,
    )?;
    let ar = script(
        tools.path(),
        "ar",
        r#"for file; do case "$file" in *.a) : > "$file" ;; esac; done"#,
    )?;
    let sdk = tools.path().display().to_string();
    cargo(
        &[
            "clippy",
            "--package",
            "nullspace-cli",
            "--target",
            MACOS,
            "--quiet",
            "--",
            "-D",
            "warnings",
        ],
        &[
            ("CC_aarch64_apple_darwin", &cc),
            ("AR_aarch64_apple_darwin", &ar),
            ("CARGO_TARGET_AARCH64_APPLE_DARWIN_LINKER", &cc),
            ("SDKROOT", &sdk),
        ],
    )
}

fn script(directory: &Path, name: &str, body: &str) -> Result<String> {
    let path = directory.join(name);
    fs::write(&path, format!("#!/bin/sh\n{body}\nexit 0\n"))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path.display().to_string())
}

fn succeeds(program: &str, args: &[&str]) -> bool {
    let output = Command::new(program).args(args).output();
    output.is_ok_and(|o| o.status.success())
}

fn cargo(args: &[&str], env: &[(&str, &str)]) -> Result<()> {
    println!("cargo {}", args.join(" "));
    ensure!(
        Command::new("cargo")
            .args(args)
            .envs(env.iter().copied())
            .status()?
            .success(),
        "cargo {} failed",
        args[0]
    );
    Ok(())
}
