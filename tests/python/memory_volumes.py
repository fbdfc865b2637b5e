"""Volumes of machines whose memory is kept, with the published SDK, 0.1.9 and 1.0.3: the words for machines are all that
differs."""

from nullspace import Volume
from nullspace.errors import ConflictError, NotFoundError
from nullspace.snapshot import Snapshot

from either import Box, out, refused

# Holds a file of the volume open, and says in it who it is whenever it is told to.
WRITER = """
import os, socket, time
log = open("/data/log", "a", buffering=1)
log.write("begun\\n")
n = 0
while True:
    if os.path.exists("/workspace/say"):
        os.remove("/workspace/say")
        n += 1
        log.write(f"{socket.gethostname()} {os.getpid()} {n}\\n")
        open("/workspace/said", "w").close()
    time.sleep(0.01)
"""


def says(box):
    out(box, "rm -f said; touch say; while [ ! -e said ]; do sleep 0.01; done")
    return out(box, "tail -n 1 /data/log").split()


def paths(box):
    return [(a.mount_path, a.volume_id, a.read_only) for a in box.list_volumes()]


data, look, gone, spare = (Volume.create(name) for name in ("data", "look", "gone", "spare"))
look.files.write("/part/word", "look\n")
box = Box.create(timeout=900, volumes=[data.mount("/data"), gone.mount("/gone")])
box.attach_volume(look.mount("/look", read_only=True, subpath="part"))
box.detach_volume(next(a.id for a in box.list_volumes() if a.mount_path == "/gone"))
box.files.write("/workspace/writer.py", WRITER)
out(box, "python3 writer.py > /dev/null 2>&1 & while ! grep -q begun /data/log; do sleep 0.01; done")
_, pid, _ = says(box)

# Two branches: the same process in each, with the same file of the volume open; each has its own memory.
first, second = box.fork(), box.fork()
has = [("/data", data.id, False), ("/look", look.id, True)]
for one in (first, second):
    assert [(a.mount_path, a.volume_id, a.read_only) for a in one.volumes] == has, one.volumes
    assert paths(one) == has
    assert says(one) == [one.id.replace("_", "-"), pid, "2"], out(one, "cat /data/log")
    assert out(one, "cat /look/word; ls -A /gone") == "look"
    assert one.commands.run("touch /look/x", shell=True).exit_code != 0, "to be read only"
out(first, "echo from first > /data/first")
out(second, "echo from second > /data/second")
for one in (box, first, second):
    assert out(one, "cat /data/first /data/second") == "from first\nfrom second"
    assert len(out(one, "cat /data/log").splitlines()) == 4
assert data.files.read("/first") == "from first\n"
ids = {a.id for one in (box, first, second) for a in one.list_volumes()}
assert len(ids) == 6, "each has attachments of its own"
assert data.get_info().mount_count == look.get_info().mount_count == 3
assert gone.get_info().mount_count == 0
# One lets go of it, and the others do not; what it has open it keeps.
first.detach_volume(first.list_volumes()[1].id)
assert paths(first) == has[:1] and out(first, "ls -A /look") == ""
assert out(second, "cat /look/word") == "look" and paths(second) == has
assert look.get_info().mount_count == 2
refused("volume_busy", data.delete)
first.kill()
second.kill()
assert data.get_info().mount_count == 1

snapshot = box.create_snapshot()
box.kill()
assert data.get_info().mount_count == 0, "a snapshot holds no volume"
# None named: those that it had. The process goes on where it was.
one = Box.create(snapshot_id=snapshot.id, timeout=900)
assert paths(one) == has and says(one) == [one.id.replace("_", "-"), pid, "2"]
one.kill()
# Named: the same, in another order and with one more, which is there when the machine runs.
named = [spare.mount("/more/here"), look.mount("/look", read_only=True, subpath="part"), data.mount("/data")]
one = Box.create(snapshot_id=snapshot.id, timeout=900, volumes=named)
assert paths(one) == [("/more/here", spare.id, False), has[1], has[0]]
out(one, "echo more > /more/here/word")
assert spare.files.read("/word") == "more\n" and says(one)[1] == pid
one.kill()
error = refused("incompatible_snapshot", lambda: Box.create(snapshot_id=snapshot.id, volumes=[data.mount("/data")]))
assert isinstance(error, ConflictError) and "/look" in str(error), error
# Another volume cannot stand in for one in which a file is open.
wrong = [spare.mount("/data"), look.mount("/look", read_only=True, subpath="part")]
refused("incompatible_snapshot", lambda: Box.create(snapshot_id=snapshot.id, volumes=wrong))
for entry in look.files.list("/"):
    look.files.remove(entry.path)
look.delete()
error = refused("not_found", lambda: Box.create(snapshot_id=snapshot.id))
assert isinstance(error, NotFoundError) and "look" in str(error) and "/look" in str(error), error
# Nothing was open in that one: another stands in for it.
instead = [data.mount("/data"), spare.mount("/look")]
one = Box.create(snapshot_id=snapshot.id, timeout=900, volumes=instead)
assert out(one, "cat /look/word") == "more" and says(one)[1] == pid
one.kill()
Snapshot.delete(snapshot.id)
assert data.attachments() == spare.attachments() == []
