//! Volumes of real machines: through the published clients and ours, against machines that mean harm, and across crashes.

use std::{
    io::Write,
    process::{Output, Stdio},
    time::{Duration, Instant},
};

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::{
    python::{next_python, published, python, script},
    world::World,
};

async fn volume(world: &World, name: &str) -> String {
    let (status, body) = world.post("/v1/volumes", json!({"name": name})).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    body["id"].as_str().unwrap().to_owned()
}

fn mount(reference: &str, path: &str) -> Value {
    json!({"ref": reference, "mount_path": path, "read_only": false})
}

async fn attach(world: &World, machine: &str, mount: Value) -> (StatusCode, Value) {
    world
        .post(&format!("/v1/machines/{machine}/volumes"), mount)
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_sdk() {
    let world = World::start().await;
    script(&world, &python(), "volumes.py", &[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_newer_sdk() {
    let world = World::start().await;
    script(&world, &next_python(), "volumes.py", &[]);
}

/// The same commands, of both published programs and ours.
#[tokio::test(flavor = "multi_thread")]
async fn with_each_command_line() {
    let world = World::start().await;
    let tree = world.home().join("tree");
    std::fs::create_dir_all(tree.join("inner")).unwrap();
    std::fs::write(tree.join("inner/file"), "in a tree").unwrap();
    std::fs::write(world.home().join("big"), vec![b'x'; (8 << 20) + 3]).unwrap();
    let programs: [(&str, &dyn Fn() -> std::process::Command); 3] = [
        ("ours", &|| world.program()),
        ("theirs", &|| published(&world, &python())),
        ("newer", &|| published(&world, &next_python())),
    ];
    for (name, program) in programs {
        let run = |arguments: &[&str], stdin: &str| -> Output {
            let mut child = program()
                .arg("volume")
                .args(arguments)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            let mut pipe = child.stdin.take().unwrap();
            pipe.write_all(stdin.as_bytes()).unwrap();
            drop(pipe);
            child.wait_with_output().unwrap()
        };
        let ok = |arguments: &[&str]| {
            let done = run(arguments, "");
            assert!(done.status.success(), "{name} {arguments:?}: {done:?}");
            String::from_utf8(done.stdout).unwrap()
        };
        let json = |arguments: &[&str]| -> Value {
            let text = ok(arguments);
            serde_json::from_str(&text).unwrap_or_else(|_| panic!("{name} {arguments:?}: {text}"))
        };
        let made = json(&["create", name]);
        let id = made["id"].as_str().unwrap();
        assert_eq!(json(&["get", name])["id"], id);
        assert_eq!(
            json(&["get", id, "--fields", "name"]),
            json!({"name": name})
        );
        assert!(ok(&["list", "--json"]).contains(id));
        assert!(ok(&["list"]).contains(name));
        let written = run(&["write", name, "/a.txt"], "one\ntwo\n");
        let written: Value = serde_json::from_slice(&written.stdout).unwrap();
        assert_eq!(
            (&written["path"], &written["size"]),
            (&json!("/a.txt"), &json!(8))
        );
        run(&["write", id, "/b.bin", "--encoding", "base64"], "AAEC");
        assert_eq!(ok(&["cat", name, "/a.txt"]), "one\ntwo\n");
        assert_eq!(
            ok(&["read", name, "/b.bin", "--encoding", "base64"]).trim(),
            "AAEC"
        );
        ok(&["write-files", name, r#"{"/c/1": "x", "/c/2": "y"}"#]);
        assert!(ok(&["ls-files", name]).contains("a.txt"));
        assert_eq!(json(&["stat", name, "/a.txt"])["size"], 8);
        assert_eq!(json(&["info", name, "/a.txt"])["size"], 8);
        assert_eq!(json(&["exists", name, "/a.txt"])["exists"], true);
        assert_eq!(run(&["exists", name, "/nope"], "").status.code(), Some(1));
        ok(&["mkdir", name, "/d/e"]);
        assert_eq!(json(&["mv", name, "/c/1", "/d/1"])["path"], "/d/1");
        ok(&["chmod", name, "/d/1", "0755"]);
        assert_eq!(json(&["find", name, "/", "^two$"])[0]["line"], 2);
        assert_eq!(json(&["search", name, "/", "*.bin"]), json!(["/b.bin"]));
        let replaced = json(&["replace", name, "one", "uno", "/a.txt", "--dry-run"]);
        assert_eq!(
            (&replaced["dry_run"], &replaced["replacements"]),
            (&json!(true), &json!(1))
        );
        ok(&["replace", name, "one", "uno", "/a.txt"]);
        let url = ok(&["download-url", name, "/a.txt"]);
        let text = reqwest::get(url.trim())
            .await
            .unwrap()
            .text()
            .await
            .unwrap();
        assert_eq!(text, "uno\ntwo\n");
        let url = json(&["upload-url", name, "/up"]);
        let client = reqwest::Client::new();
        let sent = client
            .put(url["url"].as_str().unwrap())
            .body("up")
            .send()
            .await
            .unwrap();
        assert!(sent.status().is_success());
        ok(&["upload", name, tree.to_str().unwrap(), "/tree"]);
        ok(&[
            "upload",
            name,
            world.home().join("big").to_str().unwrap(),
            "/big",
            "--json",
        ]);
        assert_eq!(json(&["stat", name, "/big"])["size"], (8 << 20) + 3);
        let into = world.home().join(format!("{name}-tree"));
        ok(&["download", name, "/tree", into.to_str().unwrap()]);
        assert_eq!(
            std::fs::read_to_string(into.join("inner/file")).unwrap(),
            "in a tree"
        );
        let file = world.home().join(format!("{name}-big"));
        let done = json(&["download", name, "/big", file.to_str().unwrap(), "--json"]);
        assert_eq!(done["bytes_downloaded"], (8 << 20) + 3, "{done}");
        let tar = world.home().join(format!("{name}.tar"));
        ok(&[
            "download",
            name,
            "/tree",
            tar.to_str().unwrap(),
            "--archive",
        ]);
        assert!(tar.metadata().unwrap().len() >= 1024);
        assert!(
            !run(&["download", name, "/big", file.to_str().unwrap()], "")
                .status
                .success()
        );

        let mut watch = program()
            .args([
                "volume",
                "watch",
                name,
                "/d",
                "--recursive",
                "--timeout",
                "8",
            ])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines =
            std::io::BufRead::lines(std::io::BufReader::new(watch.stdout.take().unwrap()));
        let seen = std::thread::spawn(move || lines.next().unwrap().unwrap());
        // It may begin at any moment, so something happens until it has seen that.
        let mut n = 0;
        while !seen.is_finished() {
            n += 1;
            let body = json!({"path": format!("/d/seen-{n}"), "content": "x"});
            world
                .post(&format!("/v1/volumes/{id}/files/write"), body)
                .await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert!(seen.join().unwrap().contains("/d/seen-"));
        let _ = watch.kill();
        watch.wait().unwrap();

        let spec = format!("ref={name},mount=/data,subpath=c,ro=true");
        let noun = if name == "theirs" {
            "sandbox"
        } else {
            "machine"
        };
        let created = program()
            .args([noun, "create", "--volume", &spec])
            .output()
            .unwrap();
        let machine: Value = serde_json::from_slice(&created.stdout)
            .unwrap_or_else(|_| panic!("{name}: {created:?}"));
        let machine = machine["id"].as_str().unwrap();
        assert_eq!(world.out(machine, "cat /data/2").await, "y");
        assert_ne!(world.shell(machine, "touch /data/z").await["exit_code"], 0);
        let busy = run(&["delete", id], "");
        assert_eq!(busy.status.code(), Some(7), "{busy:?}");
        world.delete(&format!("/v1/machines/{machine}")).await;
        for path in ["/a.txt", "/b.bin", "/c", "/d", "/up", "/tree", "/big"] {
            ok(&["rm", name, path]);
        }
        ok(&["delete", id]);
        assert_eq!(run(&["get", name], "").status.code(), Some(3));
    }
}

/// A machine that has a volume swaps what is in it for links, while others mount parts of it and work on it.
#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_volume_stays_a_volume() {
    let world = World::start().await;
    let id = volume(&world, "hostile").await;
    let one = world
        .machine(json!({"volumes": [mount("hostile", "/v")]}))
        .await;
    world
        .out(&one, "mkdir -p /v/real/in && echo inside > /v/real/in/file && ln -s / /v/root && ln -s ../../../../.. /v/up && ln -s real /v/alias")
        .await;
    // One made in a machine with a kernel of its own exists in that kernel alone.
    let pipe = world.data().join("volumes").join(&id).join("pipe");
    crate::host::run("mkfifo", &[pipe.to_str().unwrap()]);
    let two = world.machine(json!({})).await;
    for subpath in [
        "root",
        "root/etc",
        "up",
        "up/etc",
        "alias",
        "alias/in",
        "pipe",
        "real/in/file",
        "../x",
    ] {
        let wanted = json!({"ref": "hostile", "mount_path": "/m", "subpath": subpath});
        let (status, body) = attach(&world, &two, wanted.clone()).await;
        assert_eq!(
            (status.as_u16(), &body["code"]),
            (400, &json!("volume_invalid_mount_path")),
            "{subpath}: {body}"
        );
        let (status, body) = world
            .post("/v1/machines", json!({"volumes": [wanted]}))
            .await;
        assert_eq!(
            (status.as_u16(), &body["code"]),
            (400, &json!("volume_invalid_mount_path")),
            "{subpath}: {body}"
        );
    }
    // A link of the machine's own where the volume is to go.
    world
        .out(&two, "ln -s /etc /link && echo file > /file")
        .await;
    for path in ["/link", "/link/x", "/file", "/file/x"] {
        let (status, body) = attach(&world, &two, mount("hostile", path)).await;
        assert_eq!(
            (status.as_u16(), &body["code"]),
            (400, &json!("volume_invalid_mount_path")),
            "{path}: {body}"
        );
    }
    assert_eq!(
        world.get(&format!("/v1/machines/{two}/volumes")).await.1,
        json!([])
    );
    // Set-user-id programs and device nodes have no effect in it.
    world
        .out(
            &one,
            "for p in sh id; do cp /usr/bin/$p /v/$p && chown 0:0 /v/$p && chmod 4755 /v/$p; done",
        )
        .await;
    assert_ne!(
        world
            .shell(&one, "mknod /v/disk b 8 0 && head -c 1 /v/disk")
            .await["exit_code"],
        0
    );
    assert!(
        attach(&world, &two, mount("hostile", "/m"))
            .await
            .0
            .is_success()
    );
    // Where the machine's kernel is not the host's it has mounts of its own, without these.
    let options = world.out(&two, "grep ' /m ' /proc/self/mounts").await;
    assert!(
        options.contains(" 9p ") || (options.contains("nosuid") && options.contains("nodev")),
        "{options}"
    );
    let nobody = "setpriv --reuid 65534 --clear-groups /m/id -u";
    assert_eq!(world.out(&two, nobody).await, "65534");
    // Swapped as fast as it goes, nobody ever sees more than the volume.
    let swap =
        "cd /v; while [ ! -e stop ]; do mv real away; ln -s / real; rm real; mv away real; done";
    let body = json!({"command": swap, "shell": true, "background": true});
    world.post(&format!("/v1/machines/{one}/exec"), body).await;
    let (mut seen, mut refused) = (0, 0);
    for _ in 0..60 {
        let wanted = json!({"ref": "hostile", "mount_path": "/part", "subpath": "real/in", "read_only": true});
        let (status, body) = attach(&world, &two, wanted).await;
        if status == StatusCode::CREATED {
            seen += 1;
            assert_eq!(world.out(&two, "ls -A /part").await, "file");
            let path = format!(
                "/v1/machines/{two}/volumes/{}",
                body["id"].as_str().unwrap()
            );
            assert_eq!(world.delete(&path).await.0, StatusCode::OK);
        } else {
            refused += 1;
            assert_eq!(body["code"], "volume_invalid_mount_path", "{body}");
        }
        let body = json!({"path": "/real/etc/hostname", "encoding": "utf8"});
        let (status, body) = world
            .post(&format!("/v1/volumes/{id}/files/read"), body)
            .await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{body}");
    }
    println!("mounted {seen} times, refused {refused} times");
    world.out(&one, "touch /v/stop").await;
    // The directory that the mount is in goes by another name; it is found all the same.
    let (_, attached) = attach(&world, &two, mount("hostile", "/deep/er")).await;
    world
        .out(&two, "mv /deep /moved && test -e /moved/er/sh")
        .await;
    let path = format!(
        "/v1/machines/{two}/volumes/{}",
        attached["id"].as_str().unwrap()
    );
    let (status, body) = world.get(&format!("{path}/health")).await;
    assert_eq!(
        (status, &body["state"]),
        (StatusCode::OK, &json!("mounted"))
    );
    assert_eq!(world.delete(&path).await.0, StatusCode::OK);
    assert_eq!(world.out(&two, "ls -A /moved/er").await, "");
}

/// The server is killed again and again while volumes come and go; nothing that was acknowledged is lost, and nothing is
/// left.
#[tokio::test(flavor = "multi_thread")]
async fn volumes_outlive_everything() {
    let mut world = World::start().await;
    let id = volume(&world, "data").await;
    let keeper = world
        .machine(json!({"volumes": [mount("data", "/data")]}))
        .await;
    world
        .out(
            &keeper,
            "while :; do date +%s%N >> /data/log; sleep 0.01; done >/dev/null 2>&1 &",
        )
        .await;
    let other = world.machine(json!({})).await;
    for round in 0..12_u64 {
        let base = world.base_url();
        let body = json!({"path": format!("/written-{round}"), "content": "acknowledged"});
        let (status, _) = world
            .post(&format!("/v1/volumes/{id}/files/write"), body)
            .await;
        assert_eq!(status, StatusCode::OK);
        // Whatever of this it comes to before the server is killed.
        let machine = other.clone();
        let storm = tokio::spawn(async move {
            let client = reqwest::Client::new();
            for n in 0.. {
                let send = client
                    .post(format!("{base}/v1/machines/{machine}/volumes"))
                    .bearer_auth(crate::world::KEY)
                    .json(&mount("data", &format!("/m{}", n % 3)))
                    .send();
                let Ok(answer) = send.await else { return };
                let body: Value = answer.json().await.unwrap_or_default();
                if let Some(id) = body["id"].as_str() {
                    let path = format!("{base}/v1/machines/{machine}/volumes/{id}");
                    if client
                        .delete(path)
                        .bearer_auth(crate::world::KEY)
                        .send()
                        .await
                        .is_err()
                    {
                        return;
                    }
                }
                let made = client
                    .post(format!("{base}/v1/volumes"))
                    .bearer_auth(crate::world::KEY)
                    .json(&json!({"name": format!("short-{round}-{n}")}))
                    .send();
                let Ok(answer) = made.await else { return };
                let body: Value = answer.json().await.unwrap_or_default();
                if let Some(id) = body["id"].as_str() {
                    let path = format!("{base}/v1/volumes/{id}");
                    let _ = client
                        .delete(path)
                        .bearer_auth(crate::world::KEY)
                        .send()
                        .await;
                }
            }
        });
        tokio::time::sleep(Duration::from_millis(7 * (round % 6) + 1)).await;
        world.kill();
        storm.abort();
        let _ = storm.await;
        world.serve().await;
        // What is on record is in the machine, and nothing else is.
        let at = format!("/v1/machines/{other}/volumes");
        let settled = world
            .until_at(&at, |all| {
                let all = all.as_array().unwrap();
                all.iter().all(|one| one["state"] == "mounted")
            })
            .await;
        let mut on_record: Vec<_> = settled
            .as_array()
            .unwrap()
            .iter()
            .map(|one| one["mount_path"].as_str().unwrap().to_owned())
            .collect();
        on_record.sort();
        let mounts = world
            .out(
                &other,
                "grep -o ' /m[0-9] ' /proc/self/mounts | tr -d ' ' | sort || true",
            )
            .await;
        assert_eq!(mounts.lines().collect::<Vec<_>>(), on_record);
        for one in settled.as_array().unwrap() {
            let path = format!("{at}/{}", one["id"].as_str().unwrap());
            assert_eq!(world.delete(&path).await.0, StatusCode::OK);
        }
        let (_, all) = world.get("/v1/volumes").await;
        let mut listed: Vec<_> = all
            .as_array()
            .unwrap()
            .iter()
            .map(|one| one["id"].as_str().unwrap().to_owned())
            .collect();
        listed.sort();
        let mut there: Vec<_> = std::fs::read_dir(world.data().join("volumes"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        there.sort();
        assert_eq!(listed, there);
        assert_eq!(
            world
                .out(&keeper, "tail -n 1 /data/log | wc -c")
                .await
                .trim(),
            "20"
        );
    }
    for round in 0..12 {
        let body = json!({"path": format!("/written-{round}"), "encoding": "utf8"});
        let (_, read) = world
            .post(&format!("/v1/volumes/{id}/files/read"), body)
            .await;
        assert_eq!(read["content"], "acknowledged", "{round}");
    }
    // Machines that die with their launcher leave it as well.
    let launcher = world.host.launcher().unwrap();
    crate::host::run("kill", &["-9", &launcher.to_string()]);
    world
        .until(&keeper, |machine| machine["status"] == "error")
        .await;
    assert_eq!(
        world.get(&format!("/v1/volumes/{id}/attachments")).await.1,
        json!([])
    );
    let again = world
        .machine(json!({"volumes": [mount("data", "/again")]}))
        .await;
    assert_eq!(
        world.out(&again, "cat /again/written-3").await,
        "acknowledged"
    );
    world.delete(&format!("/v1/machines/{again}")).await;
}

/// Nobody else would ever remove it, and the volume could not be deleted.
/// A volume with limits is a file system of that size: to machines, to the API, and after a server that was killed.
#[tokio::test(flavor = "multi_thread")]
async fn a_limit_holds_for_who_writes_in_a_machine() {
    if !std::path::Path::new("/dev/loop-control").exists() {
        println!("skipped: this host has no loop devices, so limits are counted");
        return;
    }
    for isolation in ["native", "gvisor"] {
        let mut world = crate::gvisor::world(isolation).await;
        let size = 20 << 20;
        let body = json!({"name": "small", "max_size_bytes": size, "max_file_count": 500});
        let (status, made) = world.post("/v1/volumes", body).await;
        assert_eq!(status, StatusCode::OK, "{made}");
        assert_eq!(made["quota_enforcement"], "file_system");
        let id = made["id"].as_str().unwrap().to_owned();
        let one = json!({"template": "host", "volumes": [mount("small", "/v")]});
        let one = world.machine(one).await;
        let two = world.machine(json!({"template": "host"})).await;
        world.out(&one, "mkdir /v/sub && echo a > /v/sub/a").await;
        let mut part = mount("small", "/part");
        part["subpath"] = json!("sub");
        let (status, body) = attach(&world, &two, part).await;
        assert!(status.is_success(), "{body}");
        assert_eq!(world.out(&two, "ls /part; cat /part/a").await, "a\na");

        // Too much, from either machine, and then nobody can write more.
        for (machine, path) in [(&one, "/v/large"), (&two, "/part/large")] {
            let flood = format!("head -c 60000000 /dev/zero > {path}");
            let flooded = world.shell(machine, &flood).await;
            assert_ne!(flooded["exit_code"], 0, "{flooded}");
            assert!(
                flooded["stderr"]
                    .as_str()
                    .unwrap()
                    .contains("No space left"),
                "{flooded}"
            );
            let length = world.out(machine, &format!("stat -c %s {path}")).await;
            let length: u64 = length.parse().unwrap();
            assert!(
                (size - (1 << 20)..size + (4 << 20)).contains(&length),
                "{length}"
            );
            let body = json!({"path": "/more", "content": "x".repeat(5 << 20)});
            let (status, body) = world
                .post(&format!("/v1/volumes/{id}/files/write"), body)
                .await;
            assert_eq!(
                (status.as_u16(), &body["code"]),
                (507, &json!("volume_quota_exceeded")),
                "{body}"
            );
            world.out(machine, &format!("rm {path}")).await;
        }
        let script = "n=0; while (: > /v/sub/f$n) 2> /tmp/why; do n=$((n+1)); done; echo $n; cat /tmp/why; rm /v/sub/f*";
        let said = world.out(&one, script).await;
        let (count, why) = said.split_once('\n').unwrap();
        assert!((400..1000).contains(&count.parse().unwrap()), "{said}");
        assert!(why.contains("No space left"), "{said}");

        // What is there outlives the server; what is no volume's does not.
        world.out(&one, "echo kept > /v/kept; sync").await;
        world.kill();
        let volumes = world.data().join("volumes");
        for left in ["vol_left.image", "vol_left.image.new"] {
            std::fs::write(volumes.join(left), "").unwrap();
        }
        world.serve().await;
        assert_eq!(world.out(&one, "cat /v/kept").await, "kept");
        let read = json!({"path": "/kept", "encoding": "utf8"});
        let (_, read) = world
            .post(&format!("/v1/volumes/{id}/files/read"), read)
            .await;
        assert_eq!(read["content"], "kept\n");
        let (_, seen) = world.get(&format!("/v1/volumes/{id}")).await;
        assert_eq!(seen["inode_count"], 3, "{seen}");
        assert_eq!(std::fs::read_dir(&volumes).unwrap().count(), 2);

        // Only an empty one can be deleted, and then nothing is left of it.
        for machine in [&one, &two] {
            world.delete(&format!("/v1/machines/{machine}")).await;
        }
        world.until_empty().await;
        let path = format!("/v1/volumes/{id}");
        let (status, body) = world.delete(&path).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{body}");
        for name in ["/kept", "/sub/a", "/sub"] {
            let remove = format!("{path}/files/remove");
            let (status, body) = world.post(&remove, json!({"path": name})).await;
            assert!(status.is_success(), "{name}: {body}");
        }
        let (status, body) = world.delete(&path).await;
        assert!(status.is_success(), "{body}");
        assert_eq!(std::fs::read_dir(&volumes).unwrap().count(), 0);
        let begun = Instant::now();
        while has_device(&volumes) {
            assert!(begun.elapsed() < Duration::from_secs(60), "a device stays");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Whether there is a block device over a file of a directory.
fn has_device(directory: &std::path::Path) -> bool {
    let devices = std::fs::read_dir("/sys/block").unwrap().flatten();
    devices
        .filter_map(|device| std::fs::read(device.path().join("loop/backing_file")).ok())
        .any(|path| path.starts_with(directory.as_os_str().as_encoded_bytes()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_dies_while_it_writes_leaves_no_half_of_a_file() {
    let mut world = World::start().await;
    let id = volume(&world, "data").await;
    let pieces =
        futures_util::stream::repeat_with(|| Ok::<_, std::io::Error>(vec![7_u8; 64 << 10]));
    let upload = world
        .request(
            reqwest::Method::PUT,
            &format!("/v1/volumes/{id}/file?path=/large"),
        )
        .body(reqwest::Body::wrap_stream(pieces));
    let upload = tokio::spawn(upload.send());
    let volumes = world.data().join("volumes");
    let halves = || {
        let found = std::process::Command::new("find")
            .arg(&volumes)
            .args(["-name", ".nullspace-incoming-*"])
            .output()
            .unwrap();
        String::from_utf8_lossy(&found.stdout).lines().count()
    };
    let deadline = Instant::now() + Duration::from_secs(60);
    while halves() == 0 {
        assert!(Instant::now() < deadline, "nothing is being written");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    world.kill();
    assert!(upload.await.unwrap().is_err());
    while halves() > 0 {
        assert!(Instant::now() < deadline, "half of a file is left");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    world.serve().await;
    let (status, body) = world.delete(&format!("/v1/volumes/{id}")).await;
    assert_eq!(status, StatusCode::NO_CONTENT, "{body}");
}
