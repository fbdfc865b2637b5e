"""Machines whose memory is kept on disk, as users of the published client 1.0.3 write it."""

import asyncio

from nullspace import AsyncMachine, Machine
from nullspace.snapshot import Snapshot

machine = Machine.create(timeout=900)
pid = machine.commands.run("sleep 1000 > /dev/null 2>&1 & echo $!", shell=True).stdout.strip()
alive = f"kill -0 {pid} && echo alive"
child = machine.fork()
assert child.id != machine.id
for one in (machine, child):
    assert one.commands.run(alive, shell=True).stdout == "alive\n"
child.kill()
snapshot = machine.hibernate()
assert snapshot.machine_id == machine.id and snapshot.size_bytes > 1 << 20, snapshot
assert machine.get_info().status.value == "paused"
machine = Machine.resume(machine.id)
assert machine.commands.run(alive, shell=True).stdout == "alive\n"
assert Snapshot.list() == []
machine.kill()


async def wakes():
    machine = await AsyncMachine.create(timeout=900, on_timeout="pause", auto_resume=True)
    await machine.hibernate()
    lines = await asyncio.gather(*(machine.commands.run("echo woken", shell=True) for _ in range(4)))
    assert [line.stdout for line in lines] == ["woken\n"] * 4
    events = (await machine.list_lifecycle()).events
    asked = [e for e in events if (e.operation.value, e.status.value) == ("resume_from_snapshot", "requested")]
    assert len(asked) == 1, events
    forks = await asyncio.gather(*(machine.fork() for _ in range(3)))
    assert len({fork.id for fork in forks}) == 3
    for one in forks:
        assert (await one.commands.run("echo fork", shell=True)).stdout == "fork\n"
        await one.kill()
    await machine.kill()


asyncio.run(wakes())
