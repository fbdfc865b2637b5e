//! What installs leave behind, in real machines: kept once, whole, and as it was.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::{
    host::run,
    python::{published, python},
    world::{World, repository},
};

/// A job whose install step and entry point are these scripts.
fn project(world: &World, name: &str, install: &str, main: &str) -> PathBuf {
    let place = world.home().join(name);
    std::fs::create_dir_all(&place).unwrap();
    let config = format!(
        "name = '{name}'\ninstall = 'sh install.sh'\nentrypoint = 'sh main.sh'\n[outputs]\npaths = ['result']\n"
    );
    std::fs::write(place.join("nullspace.agent.toml"), config).unwrap();
    std::fs::write(place.join("install.sh"), install).unwrap();
    std::fs::write(place.join("main.sh"), main).unwrap();
    place
}

impl World {
    async fn begin(&self, name: &str) -> String {
        let runs = format!("/v1/agent-deployments/{name}/runs");
        let (status, run) = self.post(&runs, json!({"input": {}})).await;
        assert_eq!(status, 201, "{run}");
        format!("{runs}/{}", run["id"].as_str().unwrap())
    }

    async fn ended(&self, run: &str) -> Value {
        self.until_at(run, |run| !run["completed_at"].is_null())
            .await
    }

    /// The kinds and the text of a run's log.
    async fn told(&self, run: &str) -> Vec<(String, String)> {
        let (_, page) = self.get(&format!("{run}/logs?limit=1000")).await;
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        page["events"]
            .as_array()
            .unwrap()
            .iter()
            .map(|event| (text(&event["event_type"]), text(&event["message"])))
            .collect()
    }

    /// Runs to a good end: what it printed, and whether it had to install.
    async fn printed_by(&self, name: &str) -> (Vec<String>, bool) {
        let run = self.begin(name).await;
        let ended = self.ended(&run).await;
        let told = self.told(&run).await;
        assert_eq!(ended["status"], "succeeded", "{ended} {told:#?}");
        let installed = told.iter().any(|(kind, _)| kind == "install_started");
        let lines = told
            .into_iter()
            .filter(|(kind, _)| kind == "stdout")
            .map(|(_, line)| line)
            .collect();
        (lines, installed)
    }

    fn artifacts(&self) -> usize {
        std::fs::read_dir(self.data().join("artifacts")).map_or(0, Iterator::count)
    }
}

/// What a tree is, down to times: the same in the machine that installed and in those that come after.
const LOOK: &str = r#"
find /opt/made /etc/motd /etc/issue /usr/local/bin -xdev 2>/dev/null | sort | while read -r path; do
    stat -c '%n %F %a %u %g %s %Y %h' "$path"; readlink "$path"
done
sha256sum /opt/made/big | cut -d' ' -f1
getfattr -d /opt/made/big 2>/dev/null
ls /opt/emptied
"#;

#[tokio::test(flavor = "multi_thread")]
async fn what_was_installed_is_as_it_was() {
    let world = World::start().await;
    let install = r#"
set -e
mkdir -p /opt/made/deep/er /opt/emptied
head -c 5000000 /dev/urandom > /opt/made/big
ln -s ../made/big /opt/made/link; ln -s /nowhere /opt/made/dangling; ln /opt/made/big /opt/made/hard
chmod 4750 /opt/made/big; chown 12:34 /opt/made/deep; touch -d 2001-02-03 /opt/made/deep/er
printf 'x' > '/opt/made/ünï
code'; mkfifo /opt/made/fifo
# What the template has, and is gone, or another, or a directory in place of a file.
rm -f /etc/motd; mkdir /etc/motd; rm /etc/issue; echo other > /etc/issue.net
rm -rf /usr/share/doc/bash; mkdir /usr/share/doc/bash
echo installed
"#;
    let main = format!(
        "{LOOK}\nls -A /usr/share/doc/bash; cat /etc/issue.net; test ! -e /etc/issue && test -d /etc/motd; echo done"
    );
    let place = project(&world, "tree", install, &main);
    world.ok(&["agent", "deploy", place.to_str().unwrap()]);
    let (first, installed) = world.printed_by("tree").await;
    assert!(installed);
    let made: Vec<String> = first
        .iter()
        .filter(|line| *line != "installed")
        .cloned()
        .collect();
    assert!(
        made.iter().any(|line| line.contains("/opt/made/hard")),
        "{made:#?}"
    );
    assert_eq!(made.last().unwrap(), "done");
    for _ in 0..2 {
        let (again, installed) = world.printed_by("tree").await;
        assert!(!installed);
        assert_eq!(again, made);
    }
    assert_eq!(world.artifacts(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_package_is_installed_once_by_either_command_line() {
    let world = World::start().await;
    let example = repository().join("examples/minimal-job");
    let example = example.to_str().unwrap();
    let theirs = |arguments: &[&str]| -> Value {
        let done = published(&world, &python())
            .args(arguments)
            .output()
            .unwrap();
        assert!(done.status.success(), "{arguments:?}: {done:?}");
        serde_json::from_slice(&done.stdout).unwrap()
    };
    // Built while it is deployed, with the published command line.
    let deployed = theirs(&[
        "agent",
        "deploy",
        "--project-dir",
        example,
        "--rebuild",
        "--json",
    ]);
    let summary = &deployed["version"]["cache_summary"];
    assert_eq!(
        (&summary["policy"], &summary["artifact_ready"]),
        (&json!("rebuild"), &json!(true)),
        "{deployed}"
    );
    assert_eq!(world.artifacts(), 1);
    let (printed, installed) = world.printed_by("minimal-job").await;
    assert!(!installed && printed.iter().any(|line| line.contains("3/3")));
    // Neither read nor written.
    for deployed in [
        theirs(&[
            "agent",
            "deploy",
            "--project-dir",
            example,
            "--no-cache",
            "--json",
        ]),
        world.json(&["agent", "deploy", example, "--no-cache", "--json"]),
    ] {
        let summary = &deployed["version"]["cache_summary"];
        assert_eq!(summary["policy"], "no_cache", "{deployed}");
        let (_, installed) = world.printed_by("minimal-job").await;
        assert!(installed);
    }
    assert_eq!(world.artifacts(), 1);
    // The same bundle again finds what is there; ours builds anew when told to, and shows it.
    let deployed = world.json(&["agent", "deploy", example, "--json"]);
    assert_eq!(
        deployed["version"]["cache_summary"]["artifact_ready"], true,
        "{deployed}"
    );
    assert!(!world.printed_by("minimal-job").await.1);
    let shown = world.nullspace(&["agent", "deploy", example, "--rebuild"]);
    assert!(shown.status.success(), "{shown:?}");
    let text = [shown.stdout, shown.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    assert!(text.contains("humanize"), "{text}");
    assert!(!world.printed_by("minimal-job").await.1);
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_at_once_install_once() {
    let world = World::start().await;
    let install = "echo $$ > /opt/who; head -c 20000000 /dev/urandom > /opt/data; sleep 1";
    let place = project(&world, "shared", install, "sha256sum /opt/data /opt/who");
    world.ok(&["agent", "deploy", place.to_str().unwrap()]);
    let mut runs = Vec::new();
    for _ in 0..4 {
        runs.push(world.begin("shared").await);
    }
    let (mut installs, mut printed) = (0, Vec::new());
    for run in &runs {
        let ended = world.ended(run).await;
        assert_eq!(ended["status"], "succeeded", "{ended}");
        for (kind, text) in world.told(run).await {
            installs += usize::from(kind == "install_started");
            if kind == "stdout" {
                printed.push(text);
            }
        }
    }
    printed.sort();
    printed.dedup();
    assert_eq!((installs, printed.len()), (1, 2), "{printed:#?}");
    assert_eq!(world.artifacts(), 1);
    world.until_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_server_keeps_nothing_half() {
    let mut world = World::start().await;
    // Long enough for kills in its middle, and while what it left is kept.
    let install =
        "for i in $(seq 40); do head -c 2000000 /dev/urandom > /opt/$i; echo $i; sleep 0.05; done";
    let main = "ls /opt | wc -l; du -sb /opt | cut -f1";
    let place = project(&world, "killed", install, main);
    world.ok(&["agent", "deploy", place.to_str().unwrap()]);
    let run = world.begin("killed").await;
    for lines in [3, 20, 38] {
        world
            .until_at(&format!("{run}/logs?tail=1"), |page| {
                page["offset"].as_u64().unwrap_or(0) > lines
            })
            .await;
        world.kill();
        world.serve().await;
    }
    // And at every moment of its keeping.
    for _ in 0..6 {
        world.kill();
        world.serve().await;
    }
    let ended = world.ended(&run).await;
    let told = world.told(&run).await;
    assert_eq!(ended["status"], "succeeded", "{ended} {told:#?}");
    let printed: Vec<&str> = told
        .iter()
        .filter(|(kind, _)| kind == "stdout")
        .map(|(_, text)| text.as_str())
        .collect();
    // What was lost before it was kept is installed again: from the first step to the last.
    let steps: Vec<String> = (1..=40).map(|i| i.to_string()).collect();
    let (installs, main) = printed.split_at(printed.len() - 2);
    assert!(installs.len() >= 40 && installs.chunks(40).all(|install| install == steps));
    assert_eq!(main[0], "40", "{told:#?}");
    // Whatever was kept of it is whole.
    let (again, _) = world.printed_by("killed").await;
    assert_eq!(again[again.len() - 2..], *main);
    let (third, installed) = world.printed_by("killed").await;
    assert!(!installed, "{third:?}");
    assert_eq!(third, *main);
    world.until_empty().await;
    assert_eq!(
        world.artifacts(),
        1,
        "{}",
        list(&world.data().join("artifacts"))
    );
}

fn list(directory: &Path) -> String {
    run("ls", &["-lA", directory.to_str().unwrap()])
}
