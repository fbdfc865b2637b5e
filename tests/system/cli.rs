//! Our command line against a real server.

use std::{
    io::Write,
    process::{Output, Stdio},
};

use serde_json::{Value, json};

use crate::world::{World, repository};

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

impl World {
    pub fn ok(&self, arguments: &[&str]) -> String {
        let done = self.nullspace(arguments);
        assert!(done.status.success(), "{arguments:?}: {}", text(&done));
        String::from_utf8(done.stdout).unwrap()
    }

    pub fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.ok(arguments)).unwrap()
    }

    fn fails(&self, arguments: &[&str]) -> (i32, Value) {
        let done = self.nullspace(arguments);
        let body = serde_json::from_slice(&done.stdout).unwrap_or(Value::Null);
        (done.status.code().unwrap(), body["error"]["code"].clone())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn machines() {
    let world = World::start().await;
    let made = world.json(&[
        "machine",
        "create",
        "--template",
        "host",
        "--env",
        "A=b",
        "--metadata",
        "team=x",
        "--json",
    ]);
    let id = made["id"].as_str().unwrap();
    assert!(world.ok(&["machine", "list"]).contains(id));
    assert_eq!(
        world.json(&["sandbox", "get", id, "--json"])["status"],
        "running"
    );
    let done = world.nullspace(&[
        "machine",
        "exec",
        id,
        "--",
        "sh",
        "-c",
        "echo $A; echo e >&2; exit 9",
    ]);
    assert_eq!(done.status.code(), Some(9));
    assert_eq!((&*done.stdout, &*done.stderr), (&b"b\n"[..], &b"e\n"[..]));

    let tree = world.home().join("tree");
    std::fs::create_dir_all(tree.join("a/b")).unwrap();
    std::fs::write(tree.join("a/b/file"), "deep").unwrap();
    std::fs::write(tree.join("top"), vec![7u8; 5 << 20]).unwrap();
    world.ok(&["machine", "cp", "tree", &format!("{id}:/srv/tree")]);
    assert_eq!(world.out(id, "cat /srv/tree/a/b/file").await, "deep");
    world.ok(&["machine", "cp", &format!("{id}:/srv/tree"), "back"]);
    let back = world.home().join("back");
    assert_eq!(std::fs::read(back.join("top")).unwrap(), vec![7u8; 5 << 20]);
    assert_eq!(std::fs::read(back.join("a/b/file")).unwrap(), b"deep");

    assert_eq!(
        world.fails(&["machine", "get", "mch_none", "--json"]),
        (3, json!("machine_not_found"))
    );
    assert_eq!(
        world.fails(&["machine", "create", "--template", "none", "--json"]),
        (3, json!("template_not_found"))
    );
    world.ok(&["machine", "kill", id]);
    assert_eq!(
        world
            .fails(&["machine", "exec", id, "--json", "--", "true"])
            .0,
        7
    );
    let done = world
        .program()
        .args(["machine", "list", "--json"])
        .env("NULLSPACE_API_KEY", "wrong")
        .output()
        .unwrap();
    assert_eq!(done.status.code(), Some(4), "{}", text(&done));
    let done = world
        .program()
        .args(["machine", "list"])
        .env("NULLSPACE_API_URL", "http://127.0.0.1:1")
        .output()
        .unwrap();
    assert_eq!(done.status.code(), Some(1), "{}", text(&done));
}

#[tokio::test(flavor = "multi_thread")]
async fn agents() {
    let world = World::start().await;
    let project = world.home().join("my-agent");
    std::fs::create_dir(&project).unwrap();
    std::fs::write(
        project.join("main.py"),
        "import json, os\nprint('hello', flush=True)\njson.dump(json.loads(os.environ['NULLSPACE_INPUT']), open('result.json', 'w'))\n",
    )
    .unwrap();
    std::fs::write(project.join("requirements.txt"), "").unwrap();
    let here = |arguments: &[&str]| {
        let done = world
            .program()
            .args(arguments)
            .current_dir(&project)
            .output()
            .unwrap();
        assert!(done.status.success(), "{arguments:?}: {}", text(&done));
        String::from_utf8(done.stdout).unwrap()
    };
    here(&["agent", "init"]);
    let file = project.join("nullspace.agent.toml");
    let config = std::fs::read_to_string(&file).unwrap();
    assert!(
        config.contains("entrypoint = \"python main.py\""),
        "{config}"
    );
    std::fs::write(
        &file,
        "name = 'my-agent'\nentrypoint = 'python main.py'\n[outputs]\npaths = ['result.json']\n",
    )
    .unwrap();

    let dry: Value =
        serde_json::from_str(&here(&["agent", "deploy", ".", "--dry-run", "--json"])).unwrap();
    assert_eq!(dry["dry_run"], true);
    let deployed: Value = serde_json::from_str(&here(&["agent", "deploy", ".", "--json"])).unwrap();
    assert_eq!(deployed["version"]["status"], "ready");
    assert_eq!(
        deployed["bundle"]["bundle_digest"],
        dry["bundle"]["bundle_digest"]
    );

    let followed = world.nullspace(&[
        "agent",
        "run",
        "my-agent",
        "--input-json",
        "{\"a\": 1}",
        "--follow",
    ]);
    assert!(followed.status.success(), "{}", text(&followed));
    assert!(text(&followed).contains("hello"), "{}", text(&followed));
    let started = world.json(&[
        "agent",
        "run",
        "my-agent",
        "--input-json",
        "{\"a\": 2}",
        "--json",
    ]);
    let run = started["id"].as_str().unwrap();
    let log = world.ok(&[
        "agent", "logs", "my-agent", "--run", run, "--follow", "--json",
    ]);
    let lines: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(
        lines
            .iter()
            .filter(|event| event["message"] == "hello")
            .count(),
        1
    );
    assert_eq!(lines.last().unwrap()["event_type"], "run_succeeded");
    let status = world.json(&["agent", "status", "my-agent", "--run", run, "--json"]);
    assert_eq!(status["target"]["status"], "succeeded");
    assert!(
        world
            .ok(&["agent", "outputs", "my-agent", "--run", run])
            .contains("result.json\tavailable")
    );
    world.ok(&[
        "agent",
        "outputs",
        "my-agent",
        "--run",
        run,
        "--download",
        "out",
    ]);
    assert_eq!(
        std::fs::read_to_string(world.home().join("out/result.json")).unwrap(),
        "{\"a\": 2}"
    );
    assert!(world.ok(&["agent", "list"]).contains("my-agent"));
    assert_eq!(
        world.json(&["agent", "get", "my-agent", "--json"])["id"],
        deployed["deployment"]["id"]
    );

    // A failed run keeps its machine when asked; it can be entered.
    std::fs::write(
        project.join("main.py"),
        "open('note', 'w').write('left')\nraise SystemExit(4)\n",
    )
    .unwrap();
    here(&["agent", "deploy", "."]);
    let failed = world.nullspace(&[
        "agent",
        "run",
        "my-agent",
        "--retain-on-failure",
        "--retention-seconds",
        "300",
        "--follow",
    ]);
    assert_ne!(failed.status.code(), Some(0), "{}", text(&failed));
    let machine = world.json(&["agent", "machine", "my-agent", "--json"]);
    let id = machine["sandbox_id"].as_str().unwrap();
    world
        .until(id, |machine| machine["timeout_at"].is_string())
        .await;
    assert!(
        world
            .ok(&["agent", "shell", "my-agent", "--cmd", "cat note"])
            .contains("left")
    );
    world.ok(&["machine", "kill", id]);

    assert_eq!(world.fails(&["agent", "get", "nothing", "--json"]).0, 3);
    world.ok(&["agent", "delete", "my-agent", "--yes"]);
    assert!(!world.ok(&["agent", "list"]).contains("my-agent"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_server_lets_its_own_user_in() {
    let world = World::without_key().await;
    // Nothing but the address is told: the key is where the command line looks.
    let done = world
        .program()
        .args(["machine", "list", "--json"])
        .env_remove("NULLSPACE_API_KEY")
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", text(&done));
    let config = world.home().join(".config/nullspace/config.json");
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(
        std::fs::metadata(&config).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let kept: Value = serde_json::from_str(&std::fs::read_to_string(&config).unwrap()).unwrap();
    let key = kept["api_key"].as_str().unwrap();
    // The server itself knows only what the key hashes to, and says it nowhere.
    for file in ["nullspace.db", "nullspace.db-wal"] {
        let bytes = std::fs::read(world.data().join(file)).unwrap_or_default();
        assert!(
            !bytes.windows(key.len()).any(|w| w == key.as_bytes()),
            "{file}"
        );
    }
    assert!(!world.serve_log().contains(key));
}

#[tokio::test(flavor = "multi_thread")]
async fn quickstart_shows_the_whole_path() {
    let world = World::start().await;
    let done = world.nullspace(&["quickstart"]);
    assert!(done.status.success(), "{}", text(&done));
    let told = text(&done);
    for what in [
        "Successfully installed humanize",
        "3/3 writing the result",
        "\"most_common\"",
        "What to try next",
    ] {
        assert!(told.contains(what), "{what}: {told}");
    }
    let result = String::from_utf8(done.stdout).unwrap();
    let at = result.find('{').unwrap();
    let parsed: Value = serde_json::Deserializer::from_str(&result[at..])
        .into_iter()
        .next()
        .unwrap()
        .unwrap();
    assert_eq!(parsed["words"], 18);
    let example = repository().join("examples/minimal-job/main.py");
    assert!(example.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_and_terminals() {
    let world = World::start().await;
    let id = world.machine(json!({"template": "base"})).await;
    let done = world.nullspace(&[
        "machine",
        "process",
        "stream",
        &id,
        "sh",
        "-c",
        "printf 'a\\377b'; echo err >&2; exit 4",
    ]);
    // Byte by byte, and each where it was printed.
    assert_eq!(
        (done.status.code(), &*done.stdout, &*done.stderr),
        (Some(4), &b"a\xffb"[..], &b"err\n"[..])
    );
    let started = world.json(&[
        "machine",
        "exec",
        &id,
        "--background",
        "--shell",
        "read word; echo got $word; sleep 600",
        "--json",
    ]);
    let pid = started["pid"].to_string();
    let piped = |arguments: &[&str], text: &str| {
        let mut child = world
            .program()
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(text.as_bytes()).unwrap();
        drop(stdin);
        let done = child.wait_with_output().unwrap();
        let shown = String::from_utf8_lossy(&done.stdout).into_owned();
        (done.status.code(), shown)
    };
    let (code, _) = piped(&["machine", "process", "stdin", &id, &pid], "it\n");
    assert_eq!(code, Some(0));
    assert!(
        world
            .ok(&["machine", "process", "list", &id])
            .contains("running")
    );
    let path = format!("/v1/machines/{id}/processes/{pid}/logs");
    world
        .until_at(&path, |logs| logs["stdout"] == "got it\n")
        .await;
    world.ok(&["machine", "process", "kill", &id, &pid]);
    let attached = world.nullspace(&["machine", "process", "attach", &id, &pid]);
    assert_eq!(
        (attached.status.code(), &*attached.stdout),
        (Some(137), &b"got it\n"[..])
    );
    assert_eq!(
        world.ok(&["machine", "process", "logs", &id, &pid]),
        "got it\n"
    );
    let code = world.ok(&["machine", "process", "code-run", &id, "print(6 * 7)"]);
    assert_eq!(code, "42\n");
    assert_eq!(
        world.fails(&["machine", "process", "attach", &id, "999999", "--json"]),
        (3, json!("not_found"))
    );

    let made = world.json(&[
        "machine", "pty", "create", &id, "--cols", "50", "--rows", "11",
    ]);
    let session = made["session_id"].as_str().unwrap();
    let connect = ["machine", "pty", "connect", &id, "--session-id", session];
    // Left by a time limit, it goes on.
    let (code, _) = piped(&[&connect[..], &["--timeout", "1"]].concat(), "x=kept\n");
    assert_eq!(code, Some(124));
    assert_eq!(world.json(&["machine", "pty", "list", &id])[0]["cols"], 50);
    world.ok(&[
        "machine", "pty", "resize", &id, session, "--cols", "60", "--rows", "12",
    ]);
    // In a terminal of one's own: its size is the other's, its keys go there, colours and full-screen programs come back.
    let line = format!(
        "stty cols 91 rows 17; exec {} machine pty connect {id} --session-id {session}",
        crate::world::PROGRAM
    );
    let mut here = world
        .isolated("script")
        .args(["-qfec", &line, "/dev/null"])
        .env("SHELL", "/bin/sh")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut keys = here.stdin.take().unwrap();
    let mut screen = here.stdout.take().unwrap();
    let mut shown = String::new();
    let mut until = |keys: &mut dyn Write, typed: &str, wanted: &str| {
        keys.write_all(typed.as_bytes()).unwrap();
        let mut piece = [0; 4096];
        while !shown.contains(wanted) {
            let n = std::io::Read::read(&mut screen, &mut piece).unwrap();
            assert!(n > 0, "{wanted:?} did not come: {shown:?}");
            shown.push_str(&String::from_utf8_lossy(&piece[..n]));
        }
        let end = shown.find(wanted).unwrap() + wanted.len();
        shown.drain(..end);
    };
    until(&mut keys, "stty size; echo $x-$TERM\r", "17 91\r\n");
    until(&mut keys, "", "kept-xterm-256color\r\n");
    until(
        &mut keys,
        "printf '\\033[31mré%s\\033[0m\\n' d\r",
        "\u{1b}[31mréd\u{1b}[0m",
    );
    // The alternate screen of a full-screen program, and its end by a key.
    until(
        &mut keys,
        "python3 -c 'import curses; curses.wrapper(lambda s: (s.addstr(3, 4, \"full\"), s.getch()))'\r",
        "\u{1b}[?1049h",
    );
    until(&mut keys, "", "full");
    until(&mut keys, "q", "\u{1b}[?1049l");
    until(&mut keys, "sleep 600\r", "sleep 600");
    until(&mut keys, "\u{3}", "^C");
    keys.write_all(b"exit 5\r").unwrap();
    assert_eq!(here.wait().unwrap().code(), Some(5));
    let again = world.nullspace(&connect);
    assert_eq!(again.status.code(), Some(5));
    world.ok(&["machine", "kill", &id]);
}
