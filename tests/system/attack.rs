//! `nullspace doctor --attack`: that it finds nothing here, and that it would.

use std::process::Command;

use serde_json::{Value, json};

use crate::{gvisor, world::repository};

const PROGRAM: &str = env!("CARGO_BIN_EXE_nullspace");

fn probes(report: &Value) -> Vec<(String, Value)> {
    let probes = report["probes"].as_array().unwrap().iter();
    probes
        .map(|probe| (probe["name"].as_str().unwrap().to_owned(), probe.clone()))
        .collect()
}

/// Every probe on every engine, and the table in SECURITY.md names each.
#[test]
fn nothing_that_is_tried_gets_through() {
    let home = tempfile::tempdir().unwrap();
    let done = Command::new(PROGRAM)
        .args(["doctor", "--attack", "--json"])
        .env("HOME", home.path())
        .env("TMPDIR", home.path())
        .output()
        .unwrap();
    assert!(done.status.success(), "{done:?}");
    let report: Value = serde_json::from_slice(&done.stdout).unwrap();
    let engines: &[&str] = match gvisor::is_here() {
        true => &["native", "gvisor"],
        false => &["native"],
    };
    assert_eq!(report["engines"], json!(engines));
    let probes = probes(&report);
    assert!(probes.len() >= 40, "{}", probes.len());
    for (name, probe) in &probes {
        for engine in engines {
            let status = &probe["engines"][engine]["status"];
            assert!(
                status == "stopped" || status == "contained",
                "{name} on {engine}: {probe}"
            );
        }
    }
    assert_eq!(report["ok"], true);
    let security = std::fs::read_to_string(repository().join("SECURITY.md")).unwrap();
    for (name, _) in &probes {
        // Disks are this host's own.
        let is_told = name.starts_with("dev_") || security.contains(&format!("`{name}`"));
        assert!(is_told, "{name} is not in SECURITY.md");
    }
    // Nothing of its servers is left.
    assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 0);
}

/// The same attempts by root, where nothing keeps it from anything: in namespaces of its own, so that nothing comes of them.
#[test]
fn the_attempts_succeed_where_nothing_stops_them() {
    let calls = [
        "mount",
        "unmount",
        "open_tree",
        "fsopen",
        "mount_setattr",
        "unshare_user",
        "unshare_mount",
        "unshare_net",
        "clone3_user",
        "setns",
        "io_uring",
        "add_key",
        "keyctl",
        "swapon",
        "acct",
        "clock_settime",
        "syslog",
        "ptrace",
        "kcmp",
        "mknod_disk",
        "mknod_memory",
        "raw_socket",
        "packet_socket",
        "priority",
        "host_name",
        "delete_module",
        "reboot",
    ];
    let all: Vec<Value> = calls
        .iter()
        .map(|name| json!({"name": name, "try": {"call": name}}))
        .collect();
    let done = Command::new("unshare")
        .args([
            "--mount",
            "--pid",
            "--uts",
            "--ipc",
            "--fork",
            "--mount-proc",
        ])
        // Process 1 is what the attempts are about.
        .args([
            "sh",
            "-c",
            "ulimit -n 4096; \"$0\" attack-probe all \"$1\"; exit",
        ])
        .arg(PROGRAM)
        .arg(Value::Array(all).to_string())
        .output()
        .unwrap();
    let said: Vec<(String, Value)> = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(said.len(), calls.len(), "{done:?}");
    let mut let_through = 0;
    for (name, how) in said {
        if how["refused"] == "Function not implemented" {
            println!("skipped: this kernel has no {name}");
            continue;
        }
        assert!(how.get("let_through").is_some(), "{name}: {how}");
        let_through += 1;
    }
    assert!(let_through > 20, "{let_through}");
}
