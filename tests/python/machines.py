"""Machines with the published SDK 0.1.9; address and key in the environment."""

import hashlib
import os
import tempfile
import time
import uuid
from pathlib import Path

from nullspace import Sandbox
from nullspace.errors import ConflictError, NotFoundError, SandboxError


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

    same = Sandbox.connect(box.id)
    assert same.commands.run("true").exit_code == 0
    from nullspace import SandboxQuery

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


def pages():
    boxes = [Sandbox.create(template="host", metadata={"pages": "yes"}) for _ in range(5)]
    from nullspace import SandboxQuery

    query = SandboxQuery(metadata={"pages": "yes"})
    seen = [info.id for info in Sandbox.list(query=query, limit=2)]
    assert seen == [box.id for box in reversed(boxes)], seen
    for box in boxes:
        box.kill()


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


def later(box):
    """What belongs to later is refused by name."""
    raises(SandboxError, "not_implemented", box.hibernate)
    raises(SandboxError, "not_implemented", lambda: Sandbox.create(template="host", on_timeout="pause"))
    raises(SandboxError, "not_implemented", lambda: Sandbox.create(snapshot_id="snap_x"))


def main():
    life()
    one_key_one_machine()
    pages()
    times_out()
    box = Sandbox.create(template="base")
    commands(box)
    files(box)
    later(box)
    box.kill()
    print("ok")


main()
