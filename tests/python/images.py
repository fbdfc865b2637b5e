"""Templates over images with the published SDKs 0.1.9 and 1.0.3; address and key in the environment. Arguments: a registry,
one that wants to know who asks, and the name and password for that."""

import sys

from nullspace import Template
from nullspace.errors import BuildError

try:
    from nullspace import Sandbox as Box
except ImportError:
    from nullspace import Machine as Box

OPEN, CLOSED, USER, PASSWORD = sys.argv[1:5]


def shell(box, line):
    done = box.commands.run(line, shell=True)
    assert done.exit_code == 0, (line, done)
    return done.stdout.strip()


def made_from(name, check):
    box = Box.create(template=name)
    try:
        check(box)
    finally:
        box.kill()


def is_image(box):
    assert shell(box, "id -u; pwd; cat file; echo $FROM_IMAGE").split() == ["1000", "/app", "from-image", "yes"]
    box.files.write("/app/note", "written")
    assert shell(box, "cat /app/note") == "written"


def every_way_in():
    builders = {
        "image": Template.from_image(f"{OPEN}/team/tiny:v1"),
        "debian": Template.from_debian_image("bookworm"),
        "ubuntu": Template.from_ubuntu_image(),
        "plain": Template.from_base_image(),
        "python": Template.from_python_image("3.12", variant="slim"),
        "node": Template.from_node_image("22"),
        "bun": Template.from_bun_image("1"),
    }
    for name, builder in builders.items():
        assert Template.validate(builder, name)
        entries = []
        Template.build(builder, f"over-{name}", on_log_entry=entries.append)
        assert any("sha256:" in entry.message for entry in entries), entries
        made_from(f"over-{name}", is_image)


def steps_over_an_image():
    builder = (
        Template.from_debian_image("bookworm")
        .run_cmd("echo step > step; id -u > who")
        .set_user("root")
        .run_cmd("id -u > /who")
        .set_runtime_envs({"MINE": "too"})
    )
    Template.build(builder, "stepped-over")
    look = "cat /app/step /app/who /who; echo $FROM_IMAGE $MINE; id -u; pwd"
    made_from("stepped-over", lambda box: shell(box, look).split() == ["step", "1000", "0", "yes", "too", "0", "/app"] or 1 / 0)
    docked = Template.from_dockerfile_content(
        f"""FROM debian:bookworm AS one
RUN echo one > one
FROM {OPEN}/team/tiny:v1
COPY --from=one /app/one .
COPY --from=python:3.12-slim /app/file /two
"""
    )
    Template.build(docked, "docked-over")
    made_from("docked-over", lambda box: shell(box, "cat one /two") == "one\nfrom-image" or 1 / 0)
    # And a template over a template over an image.
    Template.build(Template.from_template("docked-over").run_cmd("cat one > three"), "again-over")
    made_from("again-over", lambda box: shell(box, "cat three; id -u") == "one\n1000" or 1 / 0)


def credentials():
    image = f"{CLOSED}/team/closed:v1"
    Template.build(Template.from_image(image, username=USER, password=PASSWORD), "closed")
    made_from("closed", is_image)
    for builder in (Template.from_image(image), Template.from_image(image, username=USER, password="wrong")):
        try:
            Template.build(builder, "refused")
        except BuildError as error:
            phase = error.error_detail.phase
            assert str(getattr(phase, "value", phase)) == "auth", error.error_detail
        else:
            raise AssertionError("it was let in")


every_way_in()
steps_over_an_image()
credentials()
for template in Template.list():
    name = template.name if hasattr(template, "name") else template["name"]
    if name.endswith("over") or name.startswith("over-") or name == "closed":
        Template.delete(name)
