"""Machines whose memory is kept on disk, as users of the published client 0.1.9 write it."""

import time

from nullspace import Sandbox, Volume
from nullspace.errors import ConflictError
from nullspace.snapshot import Snapshot

COUNTER = """
import os, secrets, socket, threading, time
word = secrets.token_hex(8)
server = socket.create_server(("127.0.0.1", 8111))
def answer():
    while True:
        peer, _ = server.accept()
        peer.sendall(f"{word} {os.getpid()} {count} {secrets.token_hex(8)} {int(time.time())}".encode())
        peer.close()
count = 0
threading.Thread(target=answer, daemon=True).start()
open("/workspace/ready", "w").close()
while True:
    count += 1
    time.sleep(0.01)
"""
ASK = """
import socket
with socket.create_connection(("127.0.0.1", 8111), 20) as peer:
    print(peer.makefile().read())
"""


def ask(sandbox):
    word, pid, count, drawn, clock = sandbox.commands.run("python3 /workspace/ask.py", shell=True).stdout.split()
    assert abs(int(clock) - time.time()) < 10, clock
    return word, pid, int(count), drawn


# As plain as it can be.
sandbox = Sandbox.create(timeout=900, metadata={"of": "memory"}, envs={"A": "b"})
sandbox.files.write("/workspace/count.py", COUNTER)
sandbox.files.write("/workspace/ask.py", ASK)
sandbox.commands.run("python3 /workspace/count.py > /dev/null 2>&1 & while [ ! -e ready ]; do sleep 0.01; done", shell=True)
word, pid, count, drawn = ask(sandbox)

child = sandbox.fork()
assert child.id != sandbox.id
seen, number = {drawn}, count
for one in (sandbox, child):
    its_word, its_pid, its_count, its_drawn = ask(one)
    assert (its_word, its_pid) == (word, pid), "the same process, with what it had in memory"
    assert its_count >= number
    seen.add(its_drawn)
assert len(seen) == 3, "what was drawn after the fork is not the same"
# Nothing is shared afterwards.
child.files.write("/workspace/only", "child")
assert not sandbox.files.exists("/workspace/only")
assert child.commands.run("hostname", shell=True).stdout.strip() == child.id.replace("_", "-")
assert child.commands.run("echo $A", shell=True).stdout == "b\n"
child.kill()

snapshot = sandbox.create_snapshot()
assert snapshot.sandbox_id == sandbox.id and snapshot.size_bytes > 1 << 20, snapshot
first, second = (Sandbox.create(snapshot_id=snapshot.id, timeout=900) for _ in range(2))
assert {ask(one)[:2] for one in (first, second)} == {(word, pid)}
# What was made of it does not need it any more.
Snapshot.delete(snapshot.id)
assert {ask(one)[:2] for one in (first, second)} == {(word, pid)}
first.kill()
second.kill()

before = ask(sandbox)[2]
kept = sandbox.hibernate()
info = sandbox.get_info()
assert (info.status.value, info.snapshot_id) == ("paused", kept.id), info
assert kept.metadata.get("lasts") != "until_host_restart", kept
try:
    sandbox.commands.run("true")
except ConflictError:
    pass
else:
    raise AssertionError("a command in a machine that sleeps")
again = Sandbox.resume(kept.id)
assert again.id == sandbox.id
its_word, its_pid, its_count, _ = ask(again)
assert (its_word, its_pid) == (word, pid) and its_count >= before
assert Snapshot.list() == []
# Whoever holds the old handle goes on with it.
assert ask(sandbox)[0] == word
sandbox.kill()

# Volumes are there again, those of its making and those that came later, and those that went are not.
first, second, gone = (Volume.create(name) for name in ("first", "second", "gone"))
holder = Sandbox.create(timeout=900, volumes=[first.mount("/first"), gone.mount("/gone")])
holder.attach_volume(second.mount("/second", read_only=True))
second.files.write("/word", "second\n")
for one in holder.list_volumes():
    if one.mount_path == "/gone":
        holder.detach_volume(one.id)
holder.commands.run("echo first > /first/word; sleep 1000 > /dev/null 2>&1 < /first/word & echo $! > /workspace/pid", shell=True)
kept = holder.hibernate()
assert first.files.read("/word") == "first\n"
holder = Sandbox.resume(kept.id)
said = holder.commands.run("kill -0 $(cat pid); cat /first/word /second/word; touch /second/x 2>&1 || echo refused; ls /gone", shell=True)
assert said.stdout.startswith("first\nsecond\n") and said.stdout.endswith("refused\n"), said
assert sorted(one.mount_path for one in holder.list_volumes()) == ["/first", "/second"]
holder.commands.run("echo more >> /first/word", shell=True)
assert first.files.read("/word") == "first\nmore\n"
holder.kill()

wakes = Sandbox.create(timeout=900, on_timeout="pause", auto_resume=True)
wakes.commands.run("sleep 1000 > /dev/null 2>&1 & echo $! > /workspace/pid", shell=True)
wakes.hibernate()
assert wakes.commands.run("kill -0 $(cat pid) && echo woken", shell=True).stdout == "woken\n"
wakes.kill()
assert Snapshot.list() == []
