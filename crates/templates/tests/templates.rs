//! The built-in templates as they really are: made, entered, and killed while being made.
//!
//! `base` is made once for all tests on a host, in the shared cache; that takes minutes the first time.

#![allow(clippy::unwrap_used)]

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use nullspace_templates::{DEFAULT_CACHE_DIR, Layer, Phase, Templates};

/// Says why a test cannot run here; true if so.
fn skipped(tools: &[&str]) -> bool {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root");
        return true;
    }
    for tool in tools {
        if !Path::new("/usr/bin").join(tool).exists() {
            println!("skipped: {tool} is not installed");
            return true;
        }
    }
    false
}

/// Runs a script in a throw-away machine on `layer`: a mount namespace with an overlay, so that nothing
/// is written to the layer.
fn enter(layer: &Layer, script: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let lower: Vec<_> = layer.lower.iter().map(|p| p.to_str().unwrap()).collect();
    let mut setup = String::from(
        "set -e\nmount -t tmpfs tmpfs \"$W\"\nmkdir \"$W\"/upper \"$W\"/work \"$W\"/root\n\
         mount -t overlay overlay -o \"lowerdir=$LOWER,upperdir=$W/upper,workdir=$W/work\" \"$W/root\"\n\
         mount -t proc proc \"$W/root/proc\"\nmount --bind /dev \"$W/root/dev\"\n",
    );
    for bind in &layer.binds {
        let (source, target) = (bind.source.display(), bind.target.display());
        setup.push_str(&format!("mount --bind {source} \"$W/root{target}\"\n"));
        if bind.read_only {
            setup.push_str(&format!("mount -o remount,bind,ro \"$W/root{target}\"\n"));
        }
    }
    setup.push_str(
        "exec env -i $ENV chroot \"$W/root\" /bin/sh -ec 'cd \"$0\"; eval \"$1\"' \"$CWD\" \"$SCRIPT\"\n",
    );
    let env: Vec<_> = layer.env.iter().map(|(k, v)| format!("{k}={v}")).collect();
    let out = Command::new("unshare")
        .args([
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--propagation",
            "private",
            "sh",
            "-c",
            &setup,
        ])
        .env("W", dir.path())
        .env("LOWER", lower.join(":"))
        .env("ENV", env.join(" "))
        .env("CWD", &layer.default_cwd)
        .env("SCRIPT", script)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(
        out.status.success(),
        "{script}: {}\n{text}{}",
        out.status,
        String::from_utf8_lossy(&out.stderr)
    );
    text
}

#[test]
fn base_has_what_agent_projects_expect() {
    if skipped(&["mmdebstrap"]) {
        return;
    }
    let data = tempfile::tempdir().unwrap();
    let templates = Templates::open(data.path(), Some(Path::new(DEFAULT_CACHE_DIR))).unwrap();
    let layer = templates
        .ensure_base(&|p| eprintln!("{} {}", p.phase, p.line))
        .unwrap();
    assert_eq!(templates.base_ready().as_ref(), Some(&layer));
    // Another data directory finds it without making it.
    let other = tempfile::tempdir().unwrap();
    let other = Templates::open(other.path(), Some(Path::new(DEFAULT_CACHE_DIR))).unwrap();
    assert_eq!(
        other
            .ensure_base(&|p| panic!("built again: {p:?}"))
            .unwrap(),
        layer
    );
    templates.verify_base().unwrap();
    assert_eq!(templates.layer(&layer.digest).as_ref(), layer.lower.first());
    assert_eq!(templates.layer("../../etc"), None);

    let programs = [
        "python", "python3", "pip", "uv", "node", "npm", "git", "curl", "bash", "tar", "gzip",
        "xz", "ps", "less",
    ];
    for program in programs {
        enter(&layer, &format!("{program} --version"));
    }
    enter(
        &layer,
        "unzip -v; python -c 'import ssl, sqlite3, ctypes, venv'; node -e 'require(\"crypto\")'",
    );
    assert_eq!(
        enter(&layer, "pwd; id -u; stat -c %a /tmp /root").trim(),
        "/workspace\n0\n1777\n700"
    );
    enter(
        &layer,
        "python -m venv v; v/bin/pip --version; uv venv --offline w; w/bin/python --version",
    );
    for file in ["resolv.conf", "hostname", "hosts", "machine-id"] {
        let meta = std::fs::symlink_metadata(layer.lower[0].join("etc").join(file)).unwrap();
        assert!(meta.is_file() && meta.len() == 0, "{file}");
    }
    // Installing into the system is allowed, and packages are consistent.
    enter(
        &layer,
        "mkdir p
        printf '[project]\\nname = \"p\"\\nversion = \"1\"\\n' > p/pyproject.toml
        pip install --no-index --no-build-isolation ./p
        uv pip uninstall --system p
        test -z \"$(dpkg --audit)\"",
    );
    // Nothing of the build stays behind.
    enter(
        &layer,
        "! grep -rl mmdebstrap /etc
        test -z \"$(find /tmp /var/tmp /run /var/log /var/lib/apt/lists /var/cache/apt -type f)\"",
    );
    templates.verify_base().unwrap();
}

#[test]
fn host_shows_the_hosts_programs() {
    if skipped(&[]) {
        return;
    }
    let data = tempfile::tempdir().unwrap();
    let templates = Templates::open(data.path(), None).unwrap();
    let layer = templates.host().unwrap();
    let start = Instant::now();
    assert_eq!(templates.host().unwrap(), layer);
    println!("made again in {:?}", start.elapsed());
    let text = enter(
        &layer,
        "ls / /etc; awk 'BEGIN { print 6 * 7 }'; id -un; pwd",
    );
    for word in ["42", "root", "/workspace", "passwd"] {
        assert!(text.lines().any(|l| l == word), "{word} in {text}");
    }
    enter(
        &layer,
        "! touch /usr/x 2>/dev/null; test ! -e /etc/shadow; touch /etc/x /tmp/x /workspace/x",
    );
    let names: Vec<_> = std::fs::read_dir(data.path().join("layers"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|n| !n.starts_with(".lock-"))
        .collect();
    assert_eq!(names, [layer.digest]);
}

const BUILD_IN: &str = "NULLSPACE_TEST_BUILD_IN";

/// Not a test of its own: the builder that the next test kills.
#[test]
fn helper_builder() {
    let Some(dir) = std::env::var_os(BUILD_IN) else {
        return;
    };
    let templates = Templates::open(Path::new(&dir), None).unwrap();
    templates
        .ensure_base(&|p| {
            if p.phase == Phase::Downloading {
                eprintln!("downloading");
            }
        })
        .unwrap();
}

#[test]
fn a_killed_build_leaves_nothing_behind() {
    if skipped(&["mmdebstrap"]) {
        return;
    }
    let data = tempfile::tempdir().unwrap();
    let mut builder = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "helper_builder", "--nocapture"])
        .env(BUILD_IN, data.path())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(builder.stderr.take().unwrap()).lines();
    assert!(
        lines.any(|l| l.unwrap().contains("downloading")),
        "the build ended before it began"
    );
    let leftovers = || {
        std::fs::read_dir(data.path().join("layers"))
            .unwrap()
            .filter(|e| {
                e.as_ref()
                    .unwrap()
                    .file_name()
                    .to_string_lossy()
                    .starts_with(".building-")
            })
            .count()
    };
    assert_eq!(leftovers(), 1);
    builder.kill().unwrap();
    builder.wait().unwrap();

    // Its processes end with it and give up the lock, and then the next start cleans up.
    let start = Instant::now();
    while leftovers() > 0 {
        assert!(
            start.elapsed() < Duration::from_secs(30),
            "the killed build still holds its lock"
        );
        let templates = Templates::open(data.path(), None).unwrap();
        assert_eq!(templates.base_ready(), None);
        std::thread::yield_now();
    }
    println!("cleaned up after {:?}", start.elapsed());
}
