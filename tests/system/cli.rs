//! Our command line against a real server.

use std::{
    io::{BufRead, BufReader, Write},
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
    // What a terminal shows of it differs between kernels; the shell reads what follows only if it ended the program.
    keys.write_all(b"\x03").unwrap();
    // The kernel throws away what is typed and printed at about the time of such a key, also a little later.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    let ended = loop {
        // Once the shell has ended nobody reads it.
        let _ = keys.write_all(b"exit 5\r");
        std::thread::sleep(std::time::Duration::from_millis(300));
        if let Some(ended) = here.try_wait().unwrap() {
            break ended;
        }
        assert!(std::time::Instant::now() < deadline, "the shell goes on");
    };
    assert_eq!(ended.code(), Some(5));
    let again = world.nullspace(&connect);
    assert_eq!(again.status.code(), Some(5));
    world.ok(&["machine", "kill", &id]);
}

#[tokio::test(flavor = "multi_thread")]
async fn files() {
    let world = World::start().await;
    let id = world.machine(json!({"template": "base"})).await;
    let run = |arguments: &[&str]| {
        let mut line = vec!["machine", "file", arguments[0], id.as_str()];
        line.extend(&arguments[1..]);
        world.ok(&line)
    };
    let parsed = |text: String| -> Value { serde_json::from_str(&text).unwrap() };
    let piped = |arguments: &[&str], text: &[u8]| {
        let mut child = world
            .program()
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(text).unwrap();
        let done = child.wait_with_output().unwrap();
        assert!(
            done.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&done.stdout)
        );
        String::from_utf8(done.stdout).unwrap()
    };
    let write = ["machine", "file", "write", &id, "/srv/a.txt"];
    assert_eq!(piped(&write, b"one\ntwo\n"), "Wrote /srv/a.txt\n");
    assert_eq!(run(&["read", "/srv/a.txt"]), "one\ntwo\n");
    let base64 = [
        "machine",
        "file",
        "write",
        &id,
        "/srv/b.bin",
        "--encoding",
        "base64",
        "--json",
    ];
    assert_eq!(parsed(piped(&base64, b"AP8=\n"))["size"], 2);
    assert_eq!(
        parsed(run(&[
            "read",
            "/srv/b.bin",
            "--encoding",
            "base64",
            "--json"
        ])),
        json!({"path": "/srv/b.bin", "encoding": "base64", "content": "AP8="})
    );
    let files = r#"{"/srv/d/x": "two", "/srv/d/y": "2"}"#;
    assert_eq!(
        parsed(run(&["write-files", files]))
            .as_array()
            .unwrap()
            .len(),
        2
    );
    assert_eq!(
        run(&["list", "/srv/d"]),
        "x\tfile\t3\t/srv/d/x\ny\tfile\t1\t/srv/d/y\n"
    );
    assert_eq!(
        parsed(run(&["find", "/srv", "^two$"])),
        json!([{"file": "/srv/a.txt", "line": 2, "content": "two"}, {"file": "/srv/d/x", "line": 1, "content": "two"}])
    );
    assert_eq!(
        parsed(run(&["search", "/srv", "*.txt"])),
        json!(["/srv/a.txt"])
    );
    assert_eq!(
        parsed(run(&["replace", "t(w)o", "$1", "/srv/a.txt", "/srv/d/x"])),
        json!({"replacements": 2})
    );
    assert_eq!(
        parsed(run(&["mv", "/srv/d/x", "/srv/d/z"]))["path"],
        "/srv/d/z"
    );
    assert_eq!(
        run(&["chmod", "/srv/d/z", "0600"]),
        "Updated permissions for /srv/d/z\n"
    );
    assert_eq!(parsed(run(&["info", "/srv/d/z"]))["mode"], "0600");
    assert_eq!(run(&["mkdir", "/srv/e/f"]), "Created /srv/e/f\n");
    assert_eq!(run(&["rm", "/srv/e"]), "Removed /srv/e\n");
    assert_eq!(
        world
            .nullspace(&["machine", "file", "exists", &id, "/srv/e"])
            .status
            .code(),
        Some(1)
    );
    let url = run(&["download-url", "/srv/a.txt"]);
    let body = reqwest::get(url.trim())
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    assert_eq!(body, "one\nw\n");

    // What happens while somebody looks.
    let mut watch = world
        .program()
        .args(["machine", "file", "watch", &id, "/srv", "--recursive"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(watch.stderr.take().unwrap()).lines();
    assert!(said.next().unwrap().unwrap().contains("Watching"));
    run(&["rm", "/srv/b.bin"]);
    let mut events = BufReader::new(watch.stdout.take().unwrap()).lines();
    let event = parsed(events.next().unwrap().unwrap());
    watch.kill().unwrap();
    watch.wait().unwrap();
    assert_eq!(
        event,
        json!({"type": "remove", "name": "b.bin", "path": "/srv/b.bin", "event_type": "remove"})
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_and_trees_that_are_kept_alike() {
    let world = World::start().await;
    let id = world.machine(json!({"template": "base"})).await;
    let big: Vec<u8> = (0..20u32 << 18)
        .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();
    std::fs::write(world.home().join("big"), &big).unwrap();
    let sum = {
        use sha2::Digest as _;
        hex::encode(sha2::Sha256::digest(&big))
    };
    let done = world.json(&["machine", "upload", &id, "big", "/srv/", "--json"]);
    assert_eq!(
        (&done["transport"], &done["target_path"]),
        (&json!("resumable"), &json!("/srv/big"))
    );
    assert!(world.out(&id, "sha256sum /srv/big").await.starts_with(&sum));

    // One that was cut off: the first and the last part are there, the one between is sent.
    let base = format!("/v1/machines/{id}");
    let begun = world
        .post(
            &format!("{base}/uploads"),
            json!({"kind": "file", "source_kind": "restartable_file",
            "target_path": "/srv/again", "content_length": big.len()}),
        )
        .await
        .1;
    let upload = begun["session"]["upload_id"].as_str().unwrap();
    let size = usize::try_from(begun["session"]["part_size"].as_u64().unwrap()).unwrap();
    for part in [0, 2] {
        use sha2::Digest as _;
        let data = big.chunks(size).nth(part).unwrap().to_vec();
        let path = format!("{base}/uploads/{upload}/parts/{part}");
        let sent = world
            .request(reqwest::Method::PUT, &path)
            .header(
                "x-nullspace-part-sha256",
                hex::encode(sha2::Sha256::digest(&data)),
            )
            .body(data)
            .send()
            .await
            .unwrap();
        assert_eq!(sent.status(), 200);
    }
    let stands = world
        .request(reqwest::Method::GET, &format!("{base}/uploads/{upload}"))
        .send()
        .await
        .unwrap();
    assert_eq!(stands.headers()["x-nullspace-upload-parts"], "0-0,2-2");
    let done = world.json(&[
        "machine", "upload", &id, "big", "--resume", upload, "--json",
    ]);
    assert_eq!(done["resumed"], true);
    assert!(
        world
            .out(&id, "sha256sum /srv/again")
            .await
            .starts_with(&sum)
    );
    let (code, body) = world.fails(&[
        "machine", "upload", &id, "tree", "--resume", upload, "--json",
    ]);
    assert_eq!(
        (code, body),
        (2, json!("invalid_request")),
        "no such source"
    );

    let tree = world.home().join("tree");
    std::fs::create_dir_all(tree.join("sub")).unwrap();
    for (path, text) in [
        ("a", "one"),
        ("sub/b", "two"),
        ("x.log", "x"),
        (".nullspaceignore", "*.log\n"),
    ] {
        std::fs::write(tree.join(path), text).unwrap();
    }
    let plan = world.json(&[
        "machine",
        "upload",
        &id,
        "tree",
        "/srv/tree",
        "--dry-run",
        "--json",
    ]);
    assert_eq!(plan["plan"]["excluded_entry_count"], 1, "{plan}");
    let to = format!("{id}:/srv/tree");
    let sync = |options: &[&str]| {
        let mut line = vec!["machine", "sync", "tree", to.as_str(), "--json"];
        line.extend(options);
        world.json(&line)
    };
    let done = sync(&[]);
    assert_eq!(
        done["sent"],
        json!([".nullspaceignore", "a", "sub/b"]),
        "{done}"
    );
    assert_eq!(world.out(&id, "cat /srv/tree/sub/b").await, "two");
    // As long as it was, but not the same; and one that is not here any more.
    std::fs::write(tree.join("sub/b"), "owt").unwrap();
    std::fs::remove_file(tree.join("a")).unwrap();
    world
        .out(
            &id,
            "mkdir /srv/tree/old && touch /srv/tree/old/f /srv/tree/kept.log",
        )
        .await;
    let done = sync(&["--delete", "--dry-run"]);
    assert_eq!(
        (&done["sent"], &done["deleted"]),
        (&json!(["sub/b"]), &json!(["a", "old"])),
        "{done}"
    );
    assert_eq!(world.out(&id, "cat /srv/tree/sub/b").await, "two");
    sync(&["--delete"]);
    assert_eq!(world.out(&id, "cat /srv/tree/sub/b").await, "owt");
    assert_eq!(world.out(&id, "ls /srv/tree").await, "kept.log\nsub");
    assert_eq!(sync(&["--delete"])["unchanged"], 2);
}
