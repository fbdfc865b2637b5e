"""Templates over images in files, with the published SDKs 0.1.9 and 1.0.3; address and key in the environment, the directory
with the files as the argument."""

import sys
from pathlib import Path

from nullspace import Template

try:
    from nullspace import Sandbox as Box
except ImportError:
    from nullspace import Machine as Box

FORMS = Path(sys.argv[1])
BASES = ["oci-archive:oci.tar", "archive:docker.tar:team/tiny:v1", "archive:layout:tiny", "rootfs-archive:rootfs.tar.gz"]

for number, base in enumerate(BASES):
    name = f"file-{number}"
    (FORMS / "Dockerfile").write_text(f"FROM {base}\nUSER root\nRUN cat /app/file > /seen\n")
    Template.build(Template.from_dockerfile(str(FORMS / "Dockerfile")), name)
    box = Box.create(template=name)
    try:
        done = box.commands.run("cat /seen; echo $FROM_IMAGE; pwd", shell=True)
        # An archive of files says nothing about machines.
        said = ["yes", "/app"] if "rootfs" not in base else ["/"]
        assert done.stdout.split() == ["from-image", *said], (base, done)
    finally:
        box.kill()
    Template.delete(name)
