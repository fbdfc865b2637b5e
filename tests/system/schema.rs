//! Requests that nobody thought of, made of the OpenAPI document: none is answered as if it were the server's fault.

use std::process::Command;

use serde_json::json;

use crate::{python::schema_python, world::World};

/// Seconds that the requests may take, unless the variable says another number. About 5,000 are made in that time.
const SECONDS: &str = "45";
const VARIABLE: &str = "NULLSPACE_TEST_SCHEMA_SECONDS";
/// What would end the machine and the volume that the other requests are about.
const ENDING: &str = "(hibernate|pause|resume|destroy|batch|timeout)$";

/// 501 is the answer to what this server cannot do, and has a code of its own.
#[tokio::test(flavor = "multi_thread")]
async fn no_request_is_the_servers_fault() {
    let world = World::native().await;
    let machine = world
        .machine(json!({"template": "host", "timeout_ms": 3_600_000}))
        .await;
    let (_, volume) = world.post("/v1/volumes", json!({"name": "data"})).await;
    let volume = volume["id"].as_str().unwrap();
    let settings = tempfile::NamedTempFile::new().unwrap();
    let text = format!(
        "[checks]\nnot_a_server_error.expected-statuses = [\"2xx\", \"3xx\", \"4xx\", \"501\"]\n\
         [[operations]]\ninclude-path-regex = \"^/v1/(machines|sandboxes)/[{{]id[}}]\"\nparameters = {{ id = \"{machine}\" }}\n\
         [[operations]]\ninclude-path-regex = \"^/v1/volumes/[{{]id[}}]\"\nparameters = {{ id = \"{volume}\" }}\n"
    );
    std::fs::write(settings.path(), text).unwrap();
    let program = schema_python().with_file_name("schemathesis");
    let seconds = std::env::var(VARIABLE).unwrap_or_else(|_| SECONDS.to_owned());
    let done = Command::new(program)
        .arg("--config-file")
        .arg(settings.path())
        .args(["run", &format!("{}/openapi.json", world.base_url())])
        .args([
            "-H",
            &format!("Authorization: Bearer {}", crate::world::KEY),
        ])
        .args([
            "--checks",
            "not_a_server_error",
            "--phases",
            "coverage,fuzzing",
        ])
        .args(["--max-time", &seconds, "--request-timeout", "30"])
        .args(["--exclude-method", "DELETE", "--exclude-path-regex", ENDING])
        .args([
            "--generation-deterministic",
            "--suppress-health-check",
            "all",
        ])
        .args(["--continue-on-failure", "--no-color"])
        .current_dir(world.home())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&done.stdout);
    let cases = said.lines().find(|line| line.contains(" generated, "));
    println!("{cases:?}");
    // It also ends with 1 for a request that it cannot spell, of a body that is an archive.
    assert!(cases.is_some_and(|line| line.contains(" passed")), "{said}");
    assert!(!said.contains("Server error"), "{said}");
    assert!(!said.contains("Network Error"), "{said}");
}
