"""Machines with the published SDK 0.1.9; address and key in the environment."""

import asyncio
import hashlib
import os
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

from nullspace import AsyncSandbox, Sandbox, SandboxQuery
from nullspace.errors import (
    AuthError,
    BatchWriteError,
    ConflictError,
    NotFoundError,
    NotImplementedError,
    PermissionError,
    SandboxError,
)


def raises(kind, code, work):
    try:
        work()
    except kind as error:
        assert error.code == code, (error.code, error)
        return error
    raise AssertionError(f"no {kind.__name__}")


def until(condition):
    for _ in range(500):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("it never happened")


def life():
    tag = uuid.uuid4().hex
    box = Sandbox.create(
        template="base", vcpus=1, memory_mb=256, timeout=120, cwd="/srv/work", envs={"COLOR": "blue"}, metadata={"tag": tag}
    )
    info = box.get_info()
    assert info.status == "running" and info.template == "base" and info.cwd == "/srv/work"
    assert (info.config.vcpus, info.config.memory_mb) == (1, 256)
    assert info.metadata == {"tag": tag} and info.timeout_ms == 120_000
    assert box.is_running()
    assert box.commands.run("pwd").stdout == "/srv/work\n"
    assert box.commands.run("echo $COLOR", shell=True).stdout == "blue\n"
    box.set_timeout(600)
    assert box.get_info().timeout_ms == 600_000
    assert box.get_info(fields=["id", "status"]) == {"id": box.id, "status": "running"}
    raises(SandboxError, "invalid_fields", lambda: box.get_info(fields=["nothing"]))

    same = Sandbox.connect(box.id, timeout=900)
    assert same.commands.run("true").exit_code == 0
    assert same.get_info().timeout_ms == 900_000
    found = Sandbox.list(query=SandboxQuery(metadata={"tag": tag}))
    assert [i.id for i in found.items] == [box.id]
    box.kill()
    assert Sandbox.get_info_by_id(box.id).status == "destroyed"
    assert [i.id for i in Sandbox.list(query=SandboxQuery(metadata={"tag": tag})).items] == []
    raises(ConflictError, "sandbox_not_ready", lambda: same.commands.run("true"))
    raises(NotFoundError, "sandbox_not_found", lambda: Sandbox.connect("mch_none").get_info())
    raises(NotFoundError, "template_not_found", lambda: Sandbox.create(template="nothing"))
    raises(SandboxError, "invalid_request", lambda: Sandbox.create(vcpus=0))

    events = [(e.operation, e.status) for e in same.list_lifecycle(order_asc=True).events]
    assert events[:2] == [("create", "requested"), ("create", "succeeded")], events
    assert ("destroy", "requested") in events, events


def one_key_one_machine():
    key = str(uuid.uuid4())
    first = Sandbox.create(template="host", idempotency_key=key)
    again = Sandbox.create(template="host", idempotency_key=key)
    assert first.id == again.id
    raises(ConflictError, "idempotency_conflict", lambda: Sandbox.create(template="base", idempotency_key=key))
    first.kill()


def options():
    """What else can be asked for."""
    with Sandbox.create(
        template="host", disk_mb=64, internet_access=False, network={"allow_public_traffic": False}, timeout_action="destroy",
        warm_pool="pool_none", warm_pool_mode="bypass", metadata={"nested": {"a": [1, None, "ü"]}},
    ) as box:
        info = box.get_info()
        assert info.metadata == {"nested": {"a": [1, None, "ü"]}}
        assert box.get_info(fields="internet_access,timeout_action") == {"internet_access": False, "timeout_action": "destroy"}
        assert box.is_running()
    assert not box_is_running(box.id)
    assert Sandbox.run_once("sh", ["-c", "echo $A; exit 3"], template="host", envs={"A": "b"}).exit_code == 3
    assert Sandbox.list().items == []
    raises(AuthError, "unauthorized", lambda: Sandbox.list(api_key="ns_live_wrong"))
    raises(AuthError, "unauthorized", lambda: Sandbox.create(template="host", api_key="ns_live_wrong"))
    raises(SandboxError, "invalid_request", lambda: Sandbox.create(auto_resume=True))
    raises(SandboxError, "invalid_request", lambda: Sandbox.create(cwd="relative"))
    raises(SandboxError, "warm_pool_not_found", lambda: Sandbox.create(template="host", warm_pool="twp_none"))
    raises(SandboxError, "invalid_request", lambda: Sandbox.create(envs={"A=B": "c"}))


def box_is_running(id):
    return Sandbox.get_info_by_id(id).status == "running"


def lists():
    boxes = [Sandbox.create(template="host", metadata={"pages": "yes", "n": n}) for n in range(5)]
    other = Sandbox.create(template="base", metadata={"pages": "no"})
    newest_first = [box.id for box in reversed(boxes)]

    def ids(**filters):
        return [info.id for info in Sandbox.list(**filters).items]

    query = SandboxQuery(metadata={"pages": "yes"})
    assert [info.id for info in Sandbox.list(query=query, limit=2)] == newest_first
    # Page by page.
    first = Sandbox.list(query=query, limit=2)
    assert [info.id for info in first.items] == newest_first[:2] and first.has_next
    token, seen = first.next_token, newest_first[:2]
    while token:
        page = Sandbox.list(query=query, limit=2, next_token=token)
        seen += [info.id for info in page.items]
        token = page.next_token
    assert seen == newest_first, seen
    assert ids() == [other.id, *newest_first]
    assert ids(query=SandboxQuery(template="base")) == [other.id]
    assert ids(query=SandboxQuery(metadata={"pages": "yes", "n": 3})) == [boxes[3].id]
    assert ids(query=SandboxQuery(metadata={"pages": "maybe"})) == []
    assert ids(state="running") == ids() and ids(state="paused") == []
    assert Sandbox.list(query=SandboxQuery(template="base"), fields=["id", "template"]) == [{"id": other.id, "template": "base"}]
    raises(SandboxError, "invalid_fields", lambda: Sandbox.list(fields=["nothing"]))
    raises(SandboxError, "invalid_request", lambda: Sandbox.list(limit=0))
    Sandbox.kill_by_id(other.id)
    for box in boxes:
        box.kill()
    assert ids() == []


def times_out():
    box = Sandbox.create(template="host", timeout=1)
    until(lambda: box.get_info().status == "destroyed")


def commands(box):
    run = box.commands.run
    done = run("sh", ["-c", "echo out; echo err >&2; exit 7"])
    assert (done.exit_code, done.stdout, done.stderr) == (7, "out\n", "err\n")
    assert run("echo $0 $1", ["a"], shell=True).stdout.strip() == "sh a"
    assert run("pwd", cwd="/tmp").stdout == "/tmp\n"
    assert run("printenv", ["A"], envs={"A": "ü"}).stdout == "ü\n"
    assert run("no-such-program").exit_code == 127
    raises(SandboxError, "invalid_request", lambda: run("true", cwd="/nothing"))
    raises(SandboxError, "exec_timeout", lambda: run("sleep", ["60"], timeout=1))
    big = run("head -c 5000000 /dev/zero | tr '\\0' x", shell=True)
    assert len(big.stdout) == 5_000_000

    cat = run("cat", background=True)
    assert any(p.pid == cat.pid and p.running for p in box.commands.list())
    box.commands.send_stdin(cat.pid, "line one\n")
    until(lambda: box.commands.get_logs(cat.pid).stdout == "line one\n")
    assert box.commands.get_logs(cat.pid).exit_code is None
    box.commands.kill(cat.pid)
    until(lambda: box.commands.get_logs(cat.pid).exit_code is not None)
    done = run("echo a; echo b >&2; exit 4", shell=True, background=True)
    until(lambda: box.commands.get_logs(done.pid).exit_code == 4)
    logs = box.commands.get_logs(done.pid)
    assert (logs.stdout, logs.stderr) == ("a\n", "b\n") and sorted(logs.output.split()) == ["a", "b"]
    raises(NotFoundError, "not_found", lambda: box.commands.get_logs(999999))
    # What a process reads: whole lines in order, any text, and nothing once it ended.
    sort = run("head -n 3 | sort", shell=True, background=True)
    for line in ["ü\n", "b\n", "a\n"]:
        box.commands.send_stdin(sort.pid, line)
    until(lambda: box.commands.get_logs(sort.pid).exit_code == 0)
    assert box.commands.get_logs(sort.pid).stdout == "a\nb\nü\n"
    raises(SandboxError, "invalid_request", lambda: box.commands.send_stdin(sort.pid, "more"))
    raises(NotFoundError, "not_found", lambda: box.commands.send_stdin(999999, "more"))
    raises(NotFoundError, "not_found", lambda: box.commands.kill(999999))
    # A whole tree is killed, not its first process alone.
    tree = run("sleep 7777 & sleep 7777 & wait", shell=True, background=True)
    count = lambda: int(run("ps ax -o args= | grep -c '^sleep 7777'", shell=True).stdout)
    until(lambda: count() == 2)
    box.commands.kill(tree.pid)
    until(lambda: count() == 0)
    assert not any(p.pid == tree.pid and p.running for p in box.commands.list())

    assert box.process.code_run("print(6 * 7)").stdout.strip() == "42"


def files(box):
    f = box.files
    info = f.write("/data/note.txt", "héllo")
    assert info.path == "/data/note.txt" and info.size == 6 and not info.is_dir
    assert f.read("/data/note.txt") == "héllo"
    assert f.read("/data/note.txt", format="bytes") == "héllo".encode()
    f.write("/data/blob", bytes(range(256)))
    assert f.read("/data/blob", format="bytes") == bytes(range(256))
    many = f.write_files([("/data/many/1", "one"), ("/data/many/2", b"\x00two")])
    assert [i.path for i in many] == ["/data/many/1", "/data/many/2"]
    assert [i.name for i in f.list("/data")] == ["blob", "many", "note.txt"]
    assert "/data/many/1" in [i.path for i in f.list("/data", depth=2)]
    assert f.exists("/data/blob") and not f.exists("/data/none")
    f.set_permissions("/data/blob", "0640")
    assert f.info("/data/blob").mode == "0640"
    moved = f.rename("/data/blob", "/data/moved")
    assert moved.path == "/data/moved" and not f.exists("/data/blob")
    assert f.make_dir("/data/deep/er") is not False
    assert f.info("/data/deep/er").is_dir
    f.remove("/data/deep")
    assert not f.exists("/data/deep")
    raises(NotFoundError, "not_found", lambda: f.read("/data/none"))
    raises(SandboxError, "invalid_request", lambda: f.read("/data"))
    raises(SandboxError, "invalid_request", lambda: f.write("/workspace/.nullspace/x", "no"))

    # Names and contents of every kind.
    for name in ["with space", "ünï çødé", "a+b%20&c=d?e#f", "-rf", "x" * 255]:
        path = f"/data/names/{name}"
        f.write(path, name)
        assert f.read(path) == name and f.info(path).name == name, name
    assert len(f.list("/data/names")) == 5
    f.write("/data/empty", "")
    assert f.read("/data/empty") == "" and f.info("/data/empty").size == 0
    f.write("/data/note.txt", "shorter")
    assert f.read("/data/note.txt") == "shorter"
    box.commands.run("ln", ["-s", "note.txt", "/data/link"])
    assert f.info("/data/link").symlink_target == "note.txt" and f.read("/data/link") == "shorter"
    f.remove("/data/link")
    assert f.exists("/data/note.txt") and not f.exists("/data/link")
    # As another user.
    f.write("/tmp/mine", "x", user="nobody")
    assert f.info("/tmp/mine").owner == "nobody"
    raises(PermissionError, "permission_denied", lambda: f.write("/etc/theirs", "x", user="nobody"))
    raises(SandboxError, "invalid_request", lambda: f.read("/tmp/mine", user="nobody-here"))
    raises(PermissionError, "permission_denied", lambda: f.write("/sys/kernel/x", "x"))
    # Some of a batch.
    try:
        f.write_files([("/data/batch/1", "one"), ("/sys/kernel/x", "two"), ("/data/batch/3", "three")])
    except BatchWriteError as error:
        assert (len(error.successes), len(error.failures)) == (2, 1), error.failures
        assert error.failures[0].path == "/sys/kernel/x"
    else:
        raise AssertionError("the whole batch was written")
    assert f.read("/data/batch/3") == "three"
    # Whole files as bytes, which the SDK sends as base64, and as an upload of the SDK's.
    blob = os.urandom(47 << 20)
    f.write("/data/whole", blob)
    assert f.read("/data/whole", format="bytes") == blob
    small = Path(tempfile.mkdtemp()) / "small"
    small.write_bytes(blob[: 8 << 20])
    assert f.upload(small, "/data/uploaded").transport == "direct"
    assert f.read("/data/uploaded", format="bytes") == blob[: 8 << 20]

    # Streamed both ways, through the raw route.
    size = 64 << 20
    source = Path(tempfile.mkdtemp()) / "big"
    with source.open("wb") as out:
        for _ in range(size >> 20):
            out.write(os.urandom(1 << 20))
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    with source.open("rb") as data:
        f.write("/data/big", data)
    assert f.info("/data/big").size == size
    assert box.commands.run("sha256sum", ["/data/big"], timeout=60).stdout.split()[0] == digest
    back = hashlib.sha256()
    for piece in f.read("/data/big", format="stream"):
        back.update(piece)
    assert back.hexdigest() == digest


def searches(box):
    """Looking into files, and being told when they change."""
    f = box.files
    f.write("/data/s/a.txt", "one\ntwo\nthree two\n")
    f.write("/data/s/sub/b.txt", "two\n")
    f.write("/data/s/sub/c.bin", b"two\x00two")
    found = [(match.file, match.line, match.content) for match in f.find_files("/data/s", "^t.o$")]
    assert found == [("/data/s/a.txt", 2, "two"), ("/data/s/sub/b.txt", 1, "two")], found
    assert f.search_files("/data/s", "*.txt") == ["/data/s/a.txt", "/data/s/sub/b.txt"]
    assert f.replace_in_files(["/data/s/a.txt", "/data/s/sub/b.txt"], "two", "2") == 3
    assert f.read("/data/s/a.txt") == "one\n2\nthree 2\n"
    f.set_permissions("/data/s/a.txt", "0600")
    assert f.info("/data/s/a.txt").mode == "0600"
    seen = []
    watch = f.watch_dir("/data/s", seen.append, recursive=True)
    f.write("/data/s/new/d.txt", "x")
    f.remove("/data/s/sub/b.txt")
    wanted = {("create", "/data/s/new"), ("remove", "/data/s/sub/b.txt")}
    while not wanted <= {(event.event_type, event.path) for event in seen}:
        time.sleep(0.01)
    watch.stop()
    raises(SandboxError, "invalid_request", lambda: f.find_files("/data/s", "("))
    raises(NotFoundError, "not_found", lambda: f.search_files("/data/none", "*"))


def transfers(box):
    """Uploads in parts, and URLs that need no key."""
    f = box.files
    home = Path(tempfile.mkdtemp())
    big = home / "big"
    big.write_bytes(os.urandom(20 << 20))
    done = f.upload(big, "/data/t/")
    assert (done.transport, done.target_path) == ("resumable", "/data/t/big"), done
    digest = hashlib.sha256(big.read_bytes()).hexdigest()
    assert box.commands.run("sha256sum", ["/data/t/big"]).stdout.split()[0] == digest
    again = f.resume_upload(done.upload_id, big)
    assert again.resumed and again.target_path == "/data/t/big", again
    # A directory, over one that is there.
    tree = home / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "run.sh").write_text("#!/bin/sh\necho ran\n")
    (tree / "run.sh").chmod(0o755)
    (tree / "sub" / "link").symlink_to("../run.sh")
    (tree / ".nullspaceignore").write_text("*.log\n")
    (tree / "no.log").write_text("x")
    f.write("/tmp/tree/old", "old", user="nobody")
    done = f.upload_dir(tree, "/tmp/tree", user="nobody", conflict="merge")
    assert f.search_files("/tmp/tree", "*") == [
        "/tmp/tree/.nullspaceignore", "/tmp/tree/old", "/tmp/tree/run.sh", "/tmp/tree/sub", "/tmp/tree/sub/link",
    ], f.search_files("/tmp/tree", "*")
    assert box.commands.run("/tmp/tree/sub/link", []).stdout == "ran\n"
    assert f.info("/tmp/tree/run.sh").owner == "nobody"
    f.upload_dir(tree, "/tmp/tree", conflict="replace")
    assert not f.exists("/tmp/tree/old")
    raises(SandboxError, "file_upload_error", lambda: f.upload_dir(tree, "/tmp/tree", conflict="error"))
    # By URL.
    to = f.upload_url("/data/by url")
    put = urllib.request.Request(to.url, b"by url", method="PUT")
    assert urllib.request.urlopen(put).status == 204
    assert urllib.request.urlopen(f.download_url("/data/by url")).read() == b"by url"
    try:
        urllib.request.urlopen(to.url)
    except urllib.error.HTTPError as error:
        assert error.code == 403, error.code
    else:
        raise AssertionError("a URL for uploads gave the file")


def streams(box):
    """Commands over the WebSocket."""
    seen = []
    line = "for i in 1 2 3; do echo $i; done; echo é >&2; exit 5"
    done = box.commands.run(line, shell=True, on_stdout=seen.append, on_stderr=seen.append)
    assert (done.exit_code, done.stdout, done.stderr) == (5, "1\n2\n3\n", "é\n"), done
    assert "".join(seen).replace("é\n", "") == "1\n2\n3\n", seen
    done = box.commands.run("seq 200000", shell=True, on_stdout=lambda text: None)
    assert done.stdout == "".join(f"{n}\n" for n in range(1, 200001))
    assert box.commands.run_streaming("no-such-program").exit_code == 127
    # One that goes on: let go of, found again, spoken to.
    seen = []
    live = box.commands.run("echo up; read word; echo got $word", shell=True, background=True, on_stdout=seen.append)
    while not seen:
        time.sleep(0.01)
    live.disconnect()
    heard = []
    again = box.commands.connect(live.pid, on_stdout=heard.append)
    box.commands.send_stdin(live.pid, "it\n")
    result = again.wait()
    assert (result.exit_code, result.stdout) == (0, "up\ngot it\n"), result
    assert "".join(heard) == "up\ngot it\n", heard
    assert box.commands.get_logs(live.pid).stdout == "up\ngot it\n"


def terminals(box):
    session = box.pty.create_session(cols=90, rows=20, cwd="/tmp")
    session.send_input("stty size; pwd; tty\n")
    session.send_input(b"exit 3\n")
    pieces = []
    result = session.wait(on_data=pieces.append, timeout=60)
    shown = b"".join(pieces).decode()
    assert result.exit_code == 3, result
    assert "20 90" in shown and "/tmp" in shown and "/dev/pts/" in shown, shown
    # It outlives its connection, and is found by either of its names.
    session = box.pty.create_session()
    session.disconnect()
    info = box.pty.get_session_info(session.session_id)
    assert (info.pid, info.cols, info.rows) == (session.pid, 120, 30), info
    assert session.session_id in [one.session_id for one in box.pty.list_sessions()]
    box.pty.resize_session(session.session_id, 100, 40)
    again = box.pty.connect(session.pid)
    other = box.pty.connect(session_id=session.session_id)
    again.send_input("stty size; exit\n")
    for one in (again, other):
        pieces = []
        result = one.wait(on_data=pieces.append, timeout=60)
        assert result.exit_code == 0 and b"40 100" in b"".join(pieces), (result, pieces)
    raises(NotFoundError, "not_found", lambda: box.pty.get_session_info("pty_none"))
    killed = box.pty.create_session()
    box.pty.kill_session(killed.session_id)
    assert killed.wait(timeout=60).exit_code == 137


def later(box):
    """What cannot be is refused by name."""
    # An engine that keeps memory forks: memory.py.
    if os.environ["NULLSPACE_ISOLATION"] == "native":
        raises(NotImplementedError, "not_implemented", box.fork)
    raises(NotFoundError, "snapshot_not_found", lambda: Sandbox.create(snapshot_id="snap_x"))


async def asynchronous():
    boxes = await asyncio.gather(*(AsyncSandbox.create(template="host", metadata={"n": n}) for n in range(4)))
    done = await asyncio.gather(*(box.commands.run(f"echo {n}", shell=True) for n, box in enumerate(boxes)))
    assert [d.stdout for d in done] == ["0\n", "1\n", "2\n", "3\n"]
    box = boxes[0]
    await box.files.write("/data/a", b"\x00\xff")
    assert await box.files.read("/data/a", format="bytes") == b"\x00\xff"
    assert not await box.files.exists("/data/none")
    seen = [info.id async for info in await AsyncSandbox.list(limit=3)]
    assert sorted(seen) == sorted(box.id for box in boxes), seen
    try:
        await box.files.read("/data/none")
    except NotFoundError as error:
        assert error.code == "not_found"
    else:
        raise AssertionError("read a file that is not there")
    await asyncio.gather(*(box.kill() for box in boxes))
    assert not box_is_running(box.id)


def main():
    life()
    options()
    one_key_one_machine()
    lists()
    times_out()
    asyncio.run(asynchronous())
    box = Sandbox.create(template="base")
    commands(box)
    streams(box)
    terminals(box)
    files(box)
    searches(box)
    transfers(box)
    later(box)
    box.kill()
    print("ok")


main()
