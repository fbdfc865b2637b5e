"""Machines with the published SDK 1.0.3, which says `machine` where 0.1.9 says `sandbox`."""

import uuid

from nullspace import Machine
from nullspace.errors import NotFoundError


def main():
    tag = uuid.uuid4().hex
    box = Machine.create(template="base", envs={"COLOR": "blue"}, metadata={"tag": tag}, timeout=120)
    info = box.get_info()
    assert info.status == "running" and info.metadata == {"tag": tag}
    done = box.commands.run("echo $COLOR; exit 3", shell=True)
    assert (done.exit_code, done.stdout) == (3, "blue\n")
    background = box.commands.run("sleep 60", shell=True, background=True)
    assert background.pid in [p.pid for p in box.commands.list()]
    box.commands.kill(background.pid)
    box.files.write("/data/a", b"\x00bytes")
    assert box.files.read("/data/a", format="bytes") == b"\x00bytes"
    assert [i.name for i in box.files.list("/data")] == ["a"]
    box.files.remove("/data/a")
    assert not box.files.exists("/data/a")
    assert box.id in [i.id for i in Machine.list()]
    box.kill()
    assert Machine.get_info_by_id(box.id).status == "destroyed"
    try:
        Machine.connect("mch_none").get_info()
    except NotFoundError as error:
        assert error.code == "machine_not_found", error.code
    else:
        raise AssertionError("found a machine that never was")
    print("ok")


main()
