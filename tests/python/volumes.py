"""Volumes with the published SDK, 0.1.9 and 1.0.3: the words for machines are all that differs."""

import os
import tempfile
import threading

from nullspace import Volume
from nullspace.errors import ConflictError, NotFoundError

from either import Box, out, refused


def files(volume):
    f = volume.files
    info = f.write("/notes/a.txt", "alpha\nbeta\n")
    assert (info.path, info.size, info.is_dir) == ("/notes/a.txt", 11, False)
    assert f.read("/notes/a.txt") == "alpha\nbeta\n"
    f.write("/notes/b.bin", b"\x00\x01binary")
    assert f.read("/notes/b.bin", format="bytes") == b"\x00\x01binary"
    f.write("/streamed", iter([b"one ", b"two"]))
    assert f.read("/streamed") == "one two"
    assert [i.path for i in f.write_files([("/c/1", "x"), ("/c/2", "y")])] == ["/c/1", "/c/2"]
    assert [i.name for i in f.list("/notes")] == ["a.txt", "b.bin"]
    assert [i.path for i in f.list("/", depth=2)].count("/notes/a.txt") == 1
    assert f.exists("/notes") and not f.exists("/nothing")
    assert f.info("/notes").is_dir
    assert f.make_dir("/made/deep")
    assert f.rename("/c/1", "/made/1").path == "/made/1"
    f.set_permissions("/made/1", "0600")
    assert f.info("/made/1").mode == "0600"
    assert [(m.file, m.line) for m in f.find_files("/", "^beta$")] == [("/notes/a.txt", 2)]
    assert f.search_files("/", "*.bin") == ["/notes/b.bin"]
    done = f.replace_in_files(["/notes/a.txt", "/notes/b.bin"], "beta", "gamma", dry_run=True)
    assert (done.dry_run, done.replacements, done.binary_files_skipped) == (True, 1, 1)
    f.replace_in_files(["/notes/a.txt"], "beta", "gamma")
    assert f.read("/notes/a.txt") == "alpha\ngamma\n"
    f.remove("/made")
    assert not f.exists("/made")
    refused("not_found", lambda: f.read("/nothing"))
    refused("invalid_request", lambda: f.read("relative"))
    refused("invalid_request", lambda: f.write("/../out", "x"))


def transfers(volume):
    f = volume.files
    with tempfile.TemporaryDirectory() as here:
        big = os.path.join(here, "big")
        with open(big, "wb") as file:
            file.write(os.urandom((8 << 20) + 77))
        sent = f.upload(big, "/big")
        assert sent.transport == "resumable", sent
        tree = os.path.join(here, "tree")
        os.makedirs(os.path.join(tree, "inner"))
        for name in ("one", "inner/two"):
            with open(os.path.join(tree, name), "w") as file:
                file.write(name)
        os.symlink("one", os.path.join(tree, "link"))
        f.upload(tree, "/tree")
        assert f.read("/tree/inner/two") == "inner/two"
        f.download("/big", os.path.join(here, "back"))
        assert open(big, "rb").read() == open(os.path.join(here, "back"), "rb").read()
        done = f.download("/tree", os.path.join(here, "copy"))
        assert done.extracted
        assert open(os.path.join(here, "copy", "inner", "two")).read() == "inner/two"
        assert os.readlink(os.path.join(here, "copy", "link")) == "one"
        f.download("/tree", os.path.join(here, "tree.tar"), archive=True)
        assert os.path.getsize(os.path.join(here, "tree.tar")) % 512 == 0


def watches(volume, box):
    seen, got = [], threading.Event()

    def on_event(event):
        seen.append(event)
        got.set()

    watch = volume.files.watch_dir("/notes", on_event)
    out(box, "echo x > /data/notes/from-machine")
    assert got.wait(30), "a machine's write is seen"
    assert seen[0].name == "from-machine", seen
    watch.stop()


def main():
    volume = Volume.create("shared")
    assert Volume.from_name("shared").id == volume.id
    assert Volume.get_by_name("shared").id == Volume.get(volume.id).id == volume.id
    fresh = Volume.from_name("fresh", create_if_missing=True)
    assert sorted(v.name for v in Volume.list()) == ["fresh", "shared"]
    assert Volume.list(fields=["name"]) == [{"name": "fresh"}, {"name": "shared"}]
    error = refused("conflict", lambda: Volume.create("shared"))
    assert isinstance(error, ConflictError)
    assert isinstance(refused("not_found", lambda: Volume.from_name("nope")), NotFoundError)
    assert volume.status.value == "available"

    files(volume)
    transfers(volume)

    one = Box.create(volumes=[volume.mount("/data")], timeout=300)
    assert [(a.volume_id, a.mount_path, a.state.value if hasattr(a.state, "value") else a.state) for a in one.volumes] == [
        (volume.id, "/data", "mounted")
    ], one.volumes
    two = Box.create(timeout=300)
    assert two.volumes == []
    attached = two.attach_volume(volume.id, "/mnt/shared")
    assert attached.mount_path == "/mnt/shared"
    # Each sees what the other writes, with the same owners.
    out(one, "echo from one > /data/x && chown 1000:1000 /data/x && mkdir -p /data/sub && echo s > /data/sub/s")
    assert out(two, "cat /mnt/shared/x && stat -c %u:%g /mnt/shared/x") == "from one\n1000:1000"
    out(two, "echo from two >> /mnt/shared/x")
    assert out(one, "cat /data/x") == "from one\nfrom two"
    assert volume.files.read("/x") == "from one\nfrom two\n"
    volume.files.write("/y", "from nowhere")
    assert out(one, "cat /data/y") == "from nowhere"
    watches(volume, one)

    looking = two.attach_volume(volume.id, "/look", read_only=True, subpath="sub")
    assert out(two, "cat /look/s") == "s"
    for line in ("touch /look/z", "rm /look/s", "mount -o remount,rw /look"):
        assert two.commands.run(line, shell=True).exit_code != 0, line
    assert [a.mount_path for a in two.list_volumes()] == ["/mnt/shared", "/look"]
    assert [a.mount_path for a in two.volumes] == ["/mnt/shared", "/look"]
    assert two.get_volume_health(looking.id).last_error_code is None
    assert two.remount_volume(looking.id).mount_path == "/look"
    assert two.detach_volume(looking.id).mount_path == "/look"
    assert out(two, "ls /look") == ""
    assert [a.mount_path for a in two.list_volumes()] == ["/mnt/shared"]
    refused("volume_overlapping_mounts", lambda: two.attach_volume(volume.id, "/mnt"))
    refused("volume_invalid_mount_path", lambda: two.attach_volume(volume.id, "/"))
    assert sorted(a.mount_path for a in volume.attachments()) == ["/data", "/mnt/shared"]
    info = volume.get_info()
    assert (info.mount_count, info.status.value) == (2, "attached"), info
    assert info.used_bytes > (8 << 20) and info.inode_count > 5, info
    refused("volume_busy", volume.delete)

    one.kill()
    two.kill()
    assert volume.attachments() == []
    assert volume.files.read("/x") == "from one\nfrom two\n"
    refused("invalid_request", volume.delete)
    for entry in volume.files.list("/"):
        volume.files.remove(entry.path)
    volume.delete()
    fresh.delete()
    assert Volume.list() == []


main()
