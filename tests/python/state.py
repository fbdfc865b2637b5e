"""Machines that sleep and go on, as users of the published client 0.1.9 write it. The engine stops them in place."""

from nullspace import Sandbox
from nullspace.errors import ConflictError, SandboxError
from nullspace.snapshot import Snapshot


def refused(work, kind, text):
    try:
        work()
    except kind as error:
        assert text in str(error), error
        return
    raise AssertionError(f"not refused: {text}")


sandbox = Sandbox.create(timeout=600, metadata={"of": "state"})
sandbox.files.write("/workspace/file", "one\n")
pid = sandbox.commands.run("sleep 1000 > /dev/null 2>&1 & echo $!", shell=True).stdout.strip()
snapshot = sandbox.hibernate()
assert snapshot.sandbox_id == sandbox.id and snapshot.size_bytes > 0, snapshot
assert snapshot.metadata["lasts"] == "until_host_restart", snapshot
info = sandbox.get_info()
assert (info.status.value, info.snapshot_id) == ("paused", snapshot.id), info
assert Snapshot.get(snapshot.id) == snapshot
assert [s.id for s in Snapshot.list(sandbox_id=sandbox.id)] == [snapshot.id]
refused(lambda: sandbox.commands.run("true"), ConflictError, "paused")
refused(lambda: Snapshot.delete(snapshot.id), SandboxError, "goes on from it")
sandbox = Sandbox.resume(snapshot.id)
assert (sandbox.id, sandbox.get_info().status.value) == (snapshot.sandbox_id, "running")
assert sandbox.commands.run(f"kill -0 {pid} && cat file", shell=True).stdout == "one\n"
assert Snapshot.list() == []

snapshot = sandbox.pause()
again = Sandbox.connect(sandbox.id)
assert again.commands.run(f"kill -0 {pid}", shell=True).exit_code == 0
refused(again.fork, SandboxError, "cannot fork")
refused(again.create_snapshot, SandboxError, "cannot keep the memory")
operations = [f"{e.operation.value}/{e.status.value}" for e in reversed(again.list_lifecycle().events)]
assert operations == ["create/requested", "create/succeeded"] + [
    "hibernate/requested",
    "hibernate/succeeded",
    "resume_from_snapshot/requested",
    "resume_from_snapshot/succeeded",
] * 2, operations
again.kill()

wakes = Sandbox.create(timeout=600, on_timeout="pause", auto_resume=True)
wakes.hibernate()
assert wakes.commands.run("echo woken", shell=True).stdout == "woken\n"
wakes.hibernate()
wakes.kill()
assert Snapshot.list() == []
