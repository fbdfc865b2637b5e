//! Tenants with the programs that people use: our command line, the published clients, OpenSSH.

use std::{
    process::Output,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    gvisor,
    python::{next_python, published, python},
    world::{KEY, World},
};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn fine(output: Output) -> String {
    assert!(output.status.success(), "{output:?}");
    text(&output.stdout)
}

/// Our command line with a key.
fn with_key(world: &World, key: &str, arguments: &[&str]) -> Output {
    let mut program = world.program();
    program.env("NULLSPACE_API_KEY", key);
    program.args(arguments).output().unwrap()
}

fn json(output: Output) -> Value {
    serde_json::from_str(&fine(output)).unwrap()
}

fn key(world: &World, tenant: &str, scope: &str) -> String {
    let made = world.nullspace(&["key", "create", "--tenant", tenant, "--scope", scope]);
    fine(made).trim().to_owned()
}

/// Two tenants side by side, each with its own names and its own limits, from the command line.
#[tokio::test(flavor = "multi_thread")]
async fn two_teams_on_one_server() {
    let world = World::start().await;
    fine(world.nullspace(&["tenant", "create", "red", "--max-machines", "1"]));
    fine(world.nullspace(&["tenant", "create", "blue"]));
    let (red, blue) = (key(&world, "red", "admin"), key(&world, "blue", "admin"));
    let create = ["machine", "create", "--template", "host"];
    let machine = json(with_key(&world, &red, &create));
    let id = machine["id"].as_str().unwrap();

    // The other one finds nothing, by any command; exit codes are the published ones.
    let exec = ["machine", "exec", id, "--", "true"];
    fine(with_key(&world, &red, &exec));
    for (arguments, code) in [
        (&exec[..], 3),
        (&["machine", "get", id], 3),
        (&["machine", "kill", id], 3),
        (&["ssh", id, "--", "true"], 3),
        (&["tenant", "list"], 5),
    ] {
        let output = with_key(&world, &blue, arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?} {output:?}");
    }
    assert_eq!(
        json(with_key(&world, &blue, &["machine", "list", "--json"])),
        serde_json::json!([])
    );
    let over = with_key(&world, &red, &create);
    assert_eq!(over.status.code(), Some(6), "{over:?}");
    assert!(
        text(&over.stderr).contains("this tenant may have 1 machines"),
        "{over:?}"
    );
    fine(with_key(&world, &blue, &create));
    for key in [&red, &blue] {
        fine(with_key(&world, key, &["volume", "create", "data"]));
    }

    // So do the published command lines, with their own exit codes.
    for python in [python(), next_python()] {
        let ask = |key: &str, arguments: &[&str]| {
            let mut program = published(&world, &python);
            program.env("NULLSPACE_API_KEY", key);
            program.args(arguments).output().unwrap()
        };
        let noun = match text(&ask(&red, &["--help"]).stdout).contains("sandbox") {
            true => "sandbox",
            false => "machine",
        };
        fine(ask(&red, &[noun, "exec", id, "--", "true"]));
        assert_eq!(
            ask(&blue, &[noun, "exec", id, "--", "true"]).status.code(),
            Some(3)
        );
        assert_eq!(
            ask(&red, &[noun, "create", "--template", "host"])
                .status
                .code(),
            Some(6)
        );
    }

    let told = text(&with_key(&world, &red, &["audit", "list", "--about", id]).stdout);
    assert!(told.contains(&format!("/v1/machines/{id}/exec")), "{told}");
    assert!(text(&world.nullspace(&["audit", "list", "--about", id]).stdout).contains("404"));
    fine(with_key(&world, &red, &["machine", "kill", id]));
    fine(with_key(&world, &red, &["volume", "delete", "data"]));
    fine(world.nullspace(&["tenant", "set", "red", "--max-machines", "none"]));
    fine(world.nullspace(&["tenant", "delete", "red"]));
    assert_eq!(
        with_key(&world, &red, &["tenant", "show"]).status.code(),
        Some(4)
    );
}

/// A key that was revoked lets nobody in any more, by no way that it opened.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_revoked_key_opened_is_shut() {
    let world = World::start().await;
    let key = key(&world, "default", "write");
    let machine = json(with_key(
        &world,
        &key,
        &["machine", "create", "--template", "host"],
    ));
    let id = machine["id"].as_str().unwrap();
    let serve = "python3 -m http.server 8000 --directory /etc > /dev/null 2>&1 &";
    world.out(id, serve).await;
    let access = json(with_key(&world, &key, &["ssh", id, "--json"]));
    let word = |name: &str| access[name].as_str().unwrap();
    let log_in = || {
        let mut ssh = world.isolated("ssh");
        ssh.args([
            "-F",
            "none",
            "-o",
            "BatchMode=yes",
            "-o",
            "IdentitiesOnly=yes",
        ]);
        for (option, name) in [
            ("IdentityFile", "identity_file"),
            ("CertificateFile", "certificate_file"),
            ("UserKnownHostsFile", "known_hosts_file"),
        ] {
            ssh.arg("-o").arg(format!("{option}={}", word(name)));
        }
        ssh.arg("-o").arg(format!("Port={}", access["port"]));
        let to = format!("{}@{}", word("user"), word("host"));
        ssh.args([to.as_str(), "echo in"]).output().unwrap()
    };
    assert_eq!(fine(log_in()), "in\n");
    let preview = with_key(
        &world,
        &key,
        &["machine", "preview-url", "create", id, "8000", "--json"],
    );
    let preview = json(preview);
    let url = ["url", "http_url", "preview_url"]
        .into_iter()
        .find_map(|name| preview[name].as_str())
        .unwrap_or_else(|| panic!("{preview}"));
    let look = async || reqwest::get(url).await.unwrap().status().as_u16();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while look().await != 200 {
        assert!(
            std::time::Instant::now() < deadline,
            "{url} does not answer"
        );
    }

    let keys = json(world.nullspace(&["key", "list", "--json"]));
    let mine = keys
        .as_array()
        .unwrap()
        .iter()
        .find(|row| row["scope"] == "write")
        .unwrap();
    fine(world.nullspace(&["key", "revoke", mine["id"].as_str().unwrap()]));
    let refused = with_key(&world, &key, &["machine", "list"]);
    assert_eq!(refused.status.code(), Some(4), "{refused:?}");
    assert!(!log_in().status.success());
    assert_eq!(look().await, 401);
    // The machine is the tenant's, and goes on.
    assert_eq!(world.out(id, "echo there").await, "there");
}

/// When all processors are busy a tenant with one machine has as much of them as one with many.
#[tokio::test(flavor = "multi_thread")]
async fn many_machines_of_one_tenant_do_not_outweigh_one_of_another() {
    const MANY: usize = 6;
    for isolation in ["native", "gvisor"] {
        if isolation == "gvisor" && !gvisor::is_here() {
            continue;
        }
        let world = gvisor::world(isolation).await;
        fine(world.nullspace(&["tenant", "create", "many"]));
        let many = key(&world, "many", "write");
        let create = ["machine", "create", "--template", "host", "--vcpus", "2"];
        let script = "while :; do :; done & while :; do :; done";
        let mut all = Vec::new();
        for key in std::iter::repeat_n(many.as_str(), MANY).chain([KEY]) {
            let id = json(with_key(&world, key, &create))["id"]
                .as_str()
                .unwrap()
                .to_owned();
            let busy = ["machine", "exec", &id, "--background", "--shell", script];
            fine(with_key(&world, key, &busy));
            all.push((key.to_owned(), id));
        }
        let (own, others) = all.split_last().unwrap();
        let load = |(key, id): &(String, String)| {
            let told = json(with_key(&world, key, &["machine", "metrics", id, "--json"]));
            told[0]["cpu_percent"].as_f64().unwrap()
        };
        // By machine it would be a seventh.
        let deadline = Instant::now() + Duration::from_secs(120);
        loop {
            let theirs: f64 = others.iter().map(load).sum();
            let part = load(own) / (load(own) + theirs);
            if (0.35..0.65).contains(&part) {
                break;
            }
            assert!(
                Instant::now() < deadline,
                "{isolation}: it has {part:.2} of what is used"
            );
        }
        fine(with_key(&world, &own.0, &["machine", "kill", &own.1]));
        for (key, id) in others {
            fine(with_key(&world, key, &["machine", "kill", id]));
        }
    }
}
