//! Logging in over SSH, with OpenSSH's own programs. The machines are the fake engine's: folders.

#![allow(clippy::unwrap_used)]

mod common;

use std::{
    process::{Output, Stdio},
    time::Duration,
};

use common::{
    World,
    ssh::{Access, LIMIT, Person, bytes, code, ended, fed, text, until},
};
use reqwest::StatusCode;
use serde_json::json;
use tokio::{io::AsyncWriteExt, process::Command};

#[tokio::test(flavor = "multi_thread")]
async fn commands_have_three_streams_and_an_end() {
    let world = World::new().await;
    let machine = world.machine().await;
    let person = Person::new().await;
    let access = person.ask(&world, &machine, json!({})).await;

    let said = access.run(&["echo out; echo err >&2; exit 7"]).await;
    assert_eq!(
        (text(&said.stdout), text(&said.stderr)),
        ("out\n".into(), "err\n".into())
    );
    assert_eq!(code(&said), 7);
    let words = access.run(&["printf", "'%s|'", "'a b'", "c"]).await;
    assert_eq!(text(&words.stdout), "a b|c|");
    let place = access
        .run(&["echo $HOME $USER $LOGNAME $SHELL $FROM_TEMPLATE; basename $PWD"])
        .await;
    assert_eq!(text(&place.stdout), "/root root root /bin/sh yes\nroot\n");
    // OpenSSH has no code for it.
    assert_eq!(code(&access.run(&["kill -9 $$"]).await), 255);
    assert_eq!(code(&access.run(&["exit 137"]).await), 137);
    assert_eq!(code(&access.run(&["no-such-program"]).await), 127);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_through_is_what_arrives() {
    let world = World::new().await;
    let machine = world.machine().await;
    let person = Person::new().await;
    let access = person.ask(&world, &machine, json!({})).await;

    let data = bytes(24 << 20);
    let echoed = fed(access.ssh(&["cat"]), data.clone()).await;
    assert_eq!(code(&echoed), 0, "{}", text(&echoed.stderr));
    assert!(
        echoed.stdout == data,
        "{} bytes of {}",
        echoed.stdout.len(),
        data.len()
    );
    // Far more comes out than goes in, and it goes in faster than it can be used.
    let many = fed(
        access.ssh(&["while read -r line; do head -c 200000 /dev/zero; done | wc -c"]),
        b"x\n".repeat(50),
    )
    .await;
    assert_eq!(text(&many.stdout).trim(), "10000000");
    let grown = fed(
        access.ssh(&["sed 's/./&&&&&&&&&&&&&&&&/g'"]),
        b"0123456789abcde\n".repeat(1 << 18),
    )
    .await;
    assert_eq!(grown.stdout.len(), (15 * 16 + 1) << 18);
    // One that does not read ends all the same, and so does what it was to read.
    let deaf = fed(access.ssh(&["exec 0<&-; echo done"]), data).await;
    assert_eq!((code(&deaf), text(&deaf.stdout)), (0, "done\n".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shell_has_a_terminal() {
    let world = World::new().await;
    let machine = world.machine().await;
    let person = Person::new().await;
    let access = person.ask(&world, &machine, json!({})).await;

    let mut command = access.program("ssh");
    command
        .env("TERM", "vt220")
        .env("LC_ALL", "C.UTF-8")
        .env("SECRET", "x");
    command
        .args(["-tt", "-o", "SendEnv=LC_ALL SECRET"])
        .arg(access.destination());
    let typed = "tty; echo $TERM-$LC_ALL-$SECRET-; stty size; exit 5\n";
    let said = fed(command, typed.into()).await;
    let shown = text(&said.stdout);
    assert!(shown.contains("/dev/pts/"), "{shown}");
    assert!(shown.contains("vt220-C.UTF-8--"), "{shown}");
    assert_eq!(code(&said), 5);
    // Those who use the API do not see it.
    let (_, listed) = world.get(&format!("/v1/machines/{machine}/pty")).await;
    assert_eq!(listed, json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_still_runs_is_hung_up() {
    let world = World::new().await;
    let machine = world.machine().await;
    let person = Person::new().await;
    let access = person.ask(&world, &machine, json!({})).await;
    let file = |name: &str| world.engine.machine_root(&machine).join("root").join(name);

    let script = "trap 'echo hup > told; exit' HUP; touch begun; while :; do sleep 0.05; done";
    let mut child = access.ssh(&[script]).spawn().unwrap();
    until(|| file("begun").exists()).await;
    child.kill().await.unwrap();
    until(|| std::fs::read_to_string(file("told")).is_ok_and(|text| text == "hup\n")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_else_gets_in() {
    let mut world = World::new().await;
    let (machine, other) = (world.machine().await, world.machine().await);
    let (person, stranger) = (Person::new().await, Person::new().await);
    let access = person.ask(&world, &machine, json!({})).await;
    let refused = |output: &Output| {
        assert_eq!(code(output), 255, "{output:?}");
        let said = text(&output.stderr);
        assert!(said.contains("Permission denied (publickey)"), "{said}");
    };

    // Another user, another's key, a key without its certificate.
    let mut command = access.program("ssh");
    command.args(["nobody@127.0.0.1", "true"]);
    refused(&ended(command).await);
    let stolen = Access {
        person: &stranger,
        ..person.ask(&world, &machine, json!({})).await
    };
    refused(&stolen.run(&["true"]).await);
    std::fs::remove_file(stolen.certificate()).unwrap();
    let bare = Access {
        person: &person,
        ..stolen
    };
    refused(&bare.run(&["true"]).await);

    // A certificate that somebody else has signed.
    let forged = person.ask(&world, &machine, json!({})).await;
    let mut sign = Command::new("ssh-keygen");
    sign.args(["-q", "-I", "ssh_x", "-n", "root", "-s"])
        .arg(stranger.key());
    sign.arg(person.dir.path().join("key.pub"));
    assert!(ended(sign).await.status.success());
    std::fs::copy(person.dir.path().join("key-cert.pub"), forged.certificate()).unwrap();
    std::fs::remove_file(person.dir.path().join("key-cert.pub")).unwrap();
    refused(&forged.run(&["true"]).await);

    // One machine's certificate leads to that machine.
    let elsewhere = person.ask(&world, &other, json!({})).await;
    for (access, id) in [(&access, &machine), (&elsewhere, &other)] {
        let said = access.run(&["pwd"]).await;
        assert!(text(&said.stdout).contains(id.as_str()), "{said:?}");
    }
    world.delete(&format!("/v1/machines/{machine}")).await;
    refused(&access.run(&["true"]).await);

    // It outlives the server, until it is over.
    let brief = person.ask(&world, &other, json!({"ttl_seconds": 1})).await;
    world.restart().await;
    let port = world
        .server
        .as_ref()
        .unwrap()
        .ssh_address()
        .unwrap()
        .port()
        .to_string();
    let moved = |access: Access<'_>| {
        let hosts = std::fs::read_to_string(access.known_hosts()).unwrap();
        std::fs::write(access.known_hosts(), hosts.replace(&access.port, &port)).unwrap();
        (access.file, access.user)
    };
    let (file, user) = moved(elsewhere);
    let elsewhere = Access {
        person: &person,
        port: port.clone(),
        file,
        user,
    };
    assert_eq!(code(&elsewhere.run(&["true"]).await), 0);
    let (file, user) = moved(brief);
    let brief = Access {
        person: &person,
        port: port.clone(),
        file,
        user,
    };
    let over = async { while code(&brief.run(&["true"]).await) == 0 {} };
    tokio::time::timeout(LIMIT, over).await.unwrap();
    refused(&brief.run(&["true"]).await);
    // The record alone ends it too, whatever the certificate says of its time.
    let store = &world.server.as_ref().unwrap().app().store;
    store
        .write(|tx| {
            let over = "UPDATE ssh_grant SET expires_at = 1";
            Ok::<_, nullspace_store::StoreError>(tx.execute(over, ()).map(drop)?)
        })
        .await
        .unwrap();
    refused(&elsewhere.run(&["true"]).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_ends_with_its_machine() {
    let world = World::new().await;
    let machine = world.machine().await;
    let person = Person::new().await;
    let access = person.ask(&world, &machine, json!({})).await;
    let begun = world.engine.machine_root(&machine).join("root/begun");
    let mut child = access.ssh(&["touch begun; sleep 1000"]).spawn().unwrap();
    until(|| begun.exists()).await;
    world.delete(&format!("/v1/machines/{machine}")).await;
    let ended = tokio::time::timeout(LIMIT, child.wait())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(ended.code(), Some(255));
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_make_no_sense_are_refused() {
    let world = World::new().await;
    let machine = world.machine().await;
    let person = Person::new().await;
    let key = person.public_key();
    let path = format!("/v1/machines/{machine}/ssh-access");
    let secret = std::fs::read_to_string(person.key()).unwrap();
    for (body, about) in [
        (json!({}), "public_key"),
        (json!({"public_key": ""}), "public_key"),
        (json!({"public_key": "ssh-ed25519 AAAA"}), "public_key"),
        (json!({"public_key": format!("{key}{key}")}), "one line"),
        (json!({"public_key": secret}), "one line"),
        (
            json!({"public_key": "-----BEGIN PUBLIC KEY-----"}),
            "public_key",
        ),
        (json!({"public_key": key, "ttl_seconds": 0}), "above 0"),
        (
            json!({"public_key": key, "expires_in_minutes": -1}),
            "expires_in_minutes",
        ),
        (
            json!({"public_key": key, "ttl_seconds": 5, "expires_in_minutes": 5}),
            "one of them",
        ),
        (
            json!({"public_key": key, "user": "-oProxyCommand=x"}),
            "user",
        ),
        (
            json!({"public_key": key, "user": "nobody-here"}),
            "nobody-here",
        ),
    ] {
        let (status, answer) = world.post(&path, body.clone()).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{body} {answer}");
        assert_eq!(answer["code"], "invalid_request");
        let said = answer["error"].as_str().unwrap();
        assert!(said.contains(about), "{said}");
    }
    let body = json!({"public_key": key});
    let (status, answer) = world
        .post("/v1/sandboxes/mch_x/ssh-access", body.clone())
        .await;
    assert_eq!(
        (status, &answer["code"]),
        (StatusCode::NOT_FOUND, &json!("sandbox_not_found"))
    );
    world.delete(&format!("/v1/machines/{machine}")).await;
    let (status, answer) = world.post(&path, body).await;
    assert_eq!(
        (status, &answer["code"]),
        (StatusCode::CONFLICT, &json!("machine_not_ready"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_says_no_more_than_it_must() {
    let world = World::new().await;
    let machine = world.machine().await;
    let person = Person::new().await;
    let access = person
        .ask(&world, &machine, json!({"expires_in_minutes": 100_000}))
        .await;
    let mut show = Command::new("ssh-keygen");
    show.args(["-L", "-f"]).arg(access.certificate());
    let shown = text(&ended(show).await.stdout);
    let after = |name: &str| {
        let lines = shown.lines().map(str::trim);
        let from = lines.skip_while(|line| !line.starts_with(name));
        from.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(after("Principals:")[1], "root");
    assert_eq!(after("Critical Options:")[0], "Critical Options: (none)");
    assert_eq!(
        after("Extensions:")[1..],
        ["permit-port-forwarding", "permit-pty"]
    );
    let id = access.file.file_name().unwrap().to_str().unwrap();
    assert_eq!(after("Key ID:")[0], format!("Key ID: \"{id}\""));
    use std::os::unix::fs::PermissionsExt;
    for name in ["ssh_host", "ssh_user_ca"] {
        let file = world.data.path().join("keys").join(name);
        let mode = std::fs::metadata(file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}

/// Text that programs send back as it is.
async fn echo(listener: tokio::net::TcpListener) {
    while let Ok((mut stream, _)) = listener.accept().await {
        tokio::spawn(async move {
            let (mut from, mut to) = stream.split();
            let _ = tokio::io::copy(&mut from, &mut to).await;
            let _ = to.shutdown().await;
        });
    }
}

/// What comes back through a port that is being opened.
async fn through(port: u16, data: Vec<u8>) -> Vec<u8> {
    use tokio::io::AsyncReadExt;
    let connecting = async {
        loop {
            match tokio::net::TcpStream::connect(("127.0.0.1", port)).await {
                Ok(stream) => return stream,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    };
    let mut stream = tokio::time::timeout(LIMIT, connecting).await.unwrap();
    let (mut from, mut to) = stream.split();
    let mut back = Vec::new();
    let sending = async {
        to.write_all(&data).await.unwrap();
        to.shutdown().await.unwrap();
    };
    let receiving = async { from.read_to_end(&mut back).await.unwrap() };
    tokio::time::timeout(LIMIT, async { tokio::join!(sending, receiving) })
        .await
        .unwrap();
    back
}

/// A port that was free a moment ago.
async fn free_port() -> u16 {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
        .await
        .unwrap();
    listener.local_addr().unwrap().port()
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_lead_both_ways() {
    let world = World::new().await;
    let machine = world.machine().await;
    let person = Person::new().await;
    let access = person.ask(&world, &machine, json!({})).await;
    let server = tokio::net::TcpListener::bind(("127.0.0.1", 0))
        .await
        .unwrap();
    let echoing = server.local_addr().unwrap().port();
    let echoing_task = tokio::spawn(echo(server));

    for flag in ["-L", "-R"] {
        let port = free_port().await;
        let mut command = access.program("ssh");
        command.args(["-N", "-o", "ExitOnForwardFailure=yes", flag]);
        command
            .arg(format!("{port}:localhost:{echoing}"))
            .arg(access.destination());
        let mut child = command.spawn().unwrap();
        let data = bytes(8 << 20);
        let (first, second) =
            tokio::join!(through(port, data.clone()), through(port, data.clone()));
        assert!(first == data && second == data, "{flag}");
        child.kill().await.unwrap();
        // The port is given back.
        let freed = async {
            while tokio::net::TcpListener::bind(("127.0.0.1", port))
                .await
                .is_err()
            {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(LIMIT, freed).await.unwrap();
    }

    // Only the machine itself, and only a port that is free.
    let mut elsewhere = access.program("ssh");
    elsewhere
        .args(["-W", "192.0.2.1:80"])
        .arg(access.destination());
    assert!(!ended(elsewhere).await.status.success());
    let mut taken = access.program("ssh");
    taken.args([
        "-o",
        "ExitOnForwardFailure=yes",
        "-R",
        &format!("{echoing}:localhost:1"),
    ]);
    taken.arg(access.destination()).arg("true");
    assert_eq!(code(&ended(taken).await), 255);
    echoing_task.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stuck_port_does_not_hold_up_a_shell() {
    let world = World::new().await;
    let machine = world.machine().await;
    let person = Person::new().await;
    let access = person.ask(&world, &machine, json!({})).await;
    // Nobody ever reads what is sent there.
    let server = tokio::net::TcpListener::bind(("127.0.0.1", 0))
        .await
        .unwrap();
    let port = free_port().await;
    let mut command = access.program("ssh");
    let to = format!("{port}:localhost:{}", server.local_addr().unwrap().port());
    command.args(["-L", &to]).arg(access.destination());
    command.arg("while read -r line; do echo got $line; done");
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let (mut stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut lines = tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(stdout));
    let mut say = async |word: &str| {
        stdin
            .write_all(format!("{word}\n").as_bytes())
            .await
            .unwrap();
        let line = tokio::time::timeout(LIMIT, lines.next_line())
            .await
            .unwrap()
            .unwrap();
        assert_eq!(line, Some(format!("got {word}")));
    };
    say("before").await;
    let mut stuck = tokio::net::TcpStream::connect(("127.0.0.1", port))
        .await
        .unwrap();
    let (_held, _) = server.accept().await.unwrap();
    // A good deal less than is kept for one connection here.
    stuck.write_all(&bytes(256 << 10)).await.unwrap();
    say("after").await;
    child.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_the_clients_is_reached_from_a_machine() {
    let world = World::new().await;
    let machine = world.machine().await;
    let person = Person::new().await;
    let access = person.ask(&world, &machine, json!({})).await;
    let socket = person.dir.path().join("agent");
    let mut agent = Command::new("ssh-agent");
    agent
        .arg("-D")
        .arg("-a")
        .arg(&socket)
        .stdout(Stdio::null())
        .kill_on_drop(true);
    let mut agent = agent.spawn().unwrap();
    until(|| socket.exists()).await;
    let mut command = access.program("ssh");
    command.env("SSH_AUTH_SOCK", &socket).env("DISPLAY", ":99");
    command
        .args(["-A", "-X", "-o", "LogLevel=INFO"])
        .arg(access.destination());
    command.arg("echo agent=$SSH_AUTH_SOCK display=$DISPLAY");
    let said = ended(command).await;
    assert_eq!(text(&said.stdout), "agent= display=\n");
    let told = text(&said.stderr).to_lowercase();
    assert!(told.contains("x11 forwarding request failed"), "{told}");
    agent.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn files_go_both_ways() {
    let world = World::new().await;
    let machine = world.machine().await;
    let person = Person::new().await;
    let access = person.ask(&world, &machine, json!({})).await;
    let home = world.engine.machine_root(&machine).join("root");
    let here = person.dir.path().join("tree");
    let data = bytes(5 << 20);
    std::fs::create_dir_all(here.join("deep/er")).unwrap();
    std::fs::write(here.join("deep/er/big file"), &data).unwrap();
    std::fs::write(here.join("deep/empty"), "").unwrap();
    std::fs::write(here.join("run"), "#!/bin/sh\n").unwrap();
    use std::os::unix::{ffi::OsStrExt, fs::PermissionsExt};
    std::fs::set_permissions(here.join("run"), PermissionsExt::from_mode(0o755)).unwrap();
    let odd = std::ffi::OsStr::from_bytes(b"n\xe9");
    std::fs::write(here.join(odd), "latin").unwrap();
    let same = |other: &std::path::Path| {
        assert!(std::fs::read(other.join("deep/er/big file")).unwrap() == data);
        assert_eq!(std::fs::read(other.join("deep/empty")).unwrap(), b"");
        assert_eq!(std::fs::read(other.join(odd)).unwrap(), b"latin");
        let mode = std::fs::metadata(other.join("run"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o755);
    };
    let fine = |output: Output| assert!(output.status.success(), "{}", text(&output.stderr));

    // scp: over SFTP, and with the machine's own scp.
    for (name, flags) in [("new", "-rq"), ("old", "-Orq")] {
        let there = format!("{}:{name}", access.destination());
        let mut up = access.program("scp");
        up.arg(flags).arg(&here).arg(&there);
        fine(ended(up).await);
        same(&home.join(name));
        let back = person.dir.path().join(format!("back-{name}"));
        let mut down = access.program("scp");
        down.arg(flags).arg(&there).arg(&back);
        fine(ended(down).await);
        same(&back);
    }

    // sftp: what else there is.
    let batch = person.dir.path().join("batch");
    let lines = "mkdir made\nput tree/run made/one\nchmod 600 made/one\nrename made/one made/two\n\
                 ln -s two made/link\nln made/two made/hard\nls -la made\npwd\ndf made\n\
                 -rmdir made\nrm made/hard\nget made/link fetched\n-reput tree/run made/two\n-get nowhere\n\
                 cd new/deep\npwd\n";
    std::fs::write(&batch, lines).unwrap();
    let mut sftp = access.program("sftp");
    sftp.arg("-b")
        .arg(&batch)
        .arg(access.destination())
        .current_dir(person.dir.path());
    let done = ended(sftp).await;
    let (shown, told) = (text(&done.stdout), text(&done.stderr));
    assert!(done.status.success(), "{shown}{told}");
    assert!(
        shown.contains("Remote working directory: /root\n"),
        "{shown}"
    );
    assert!(
        shown.contains("Remote working directory: /root/new/deep\n"),
        "{shown}"
    );
    assert!(
        shown.contains("lrwxrwxrwx") && shown.contains("-rw-------"),
        "{shown}"
    );
    assert!(told.contains("not found"), "{told}");
    assert_eq!(
        std::fs::read(person.dir.path().join("fetched")).unwrap(),
        b"#!/bin/sh\n"
    );
    assert_eq!(
        std::fs::read_link(home.join("made/link")).unwrap(),
        std::path::Path::new("two")
    );
    assert!(!home.join("made/hard").exists());

    // rsync: the machine's own.
    let shell = [
        "ssh",
        "-F",
        "none",
        "-i",
        access.person.key().to_str().unwrap(),
    ]
    .map(str::to_owned);
    let shell = [shell.to_vec(), access.options()].concat().join(" ");
    let mut rsync = Command::new("rsync");
    rsync
        .args(["-a", "-e", &shell])
        .arg(format!("{}/", here.display()));
    rsync
        .arg(format!("{}:synced/", access.destination()))
        .kill_on_drop(true);
    fine(ended(rsync).await);
    same(&home.join("synced"));
}
