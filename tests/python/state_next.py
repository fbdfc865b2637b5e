"""Machines that sleep and go on, as users of the published client 1.0.3 write it. The engine stops them in place."""

import asyncio

from nullspace import AsyncMachine, Machine
from nullspace.errors import MachineError
from nullspace.snapshot import Snapshot

machine = Machine.create(timeout=600)
machine.files.write("/workspace/file", "one\n")
pid = machine.commands.run("sleep 1000 > /dev/null 2>&1 & echo $!", shell=True).stdout.strip()
snapshot = machine.hibernate()
assert snapshot.machine_id == machine.id and snapshot.size_bytes > 0, snapshot
assert machine.get_info().status.value == "paused"
assert Snapshot.get(snapshot.id) == snapshot
assert [s.id for s in Snapshot.list(machine_id=machine.id)] == [snapshot.id]
try:
    machine.commands.run("true")
except MachineError as error:
    assert "paused" in str(error), error
else:
    raise AssertionError("a command in a paused machine")
machine = Machine.resume(machine.id)
assert machine.commands.run(f"kill -0 {pid} && cat file", shell=True).stdout == "one\n"
try:
    machine.fork()
except MachineError as error:
    assert "cannot fork" in str(error), error
else:
    raise AssertionError("a fork on an engine that has none")
machine.kill()


async def wakes():
    machine = await AsyncMachine.create(timeout=600, on_timeout="pause", auto_resume=True)
    await machine.hibernate()
    lines = await asyncio.gather(*(machine.commands.run("echo woken", shell=True) for _ in range(4)))
    assert [line.stdout for line in lines] == ["woken\n"] * 4
    events = (await machine.list_lifecycle()).events
    asked = [e for e in events if (e.operation.value, e.status.value) == ("resume_from_snapshot", "requested")]
    assert len(asked) == 1, events
    await machine.kill()


asyncio.run(wakes())
