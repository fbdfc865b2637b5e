"""Templates with the published SDKs 0.1.9 and 1.0.3; address and key in the environment, a directory to work in as the
argument."""

import sys
import time
from pathlib import Path

from nullspace import Template, TemplateBuild, wait_for_port, wait_for_timeout
from nullspace.errors import BuildError, NotFoundError

try:
    from nullspace import Sandbox as Box
    from nullspace.errors import SandboxError as AnyError
except ImportError:
    from nullspace import Machine as Box
    from nullspace.errors import MachineError as AnyError

WORK = Path(sys.argv[1])
SECRET = "s3cr3t-of-a-build-4711"


def made_from(name, check, **options):
    box = Box.create(template=name, **options)
    try:
        return check(box)
    finally:
        box.kill()


def shell(box, line):
    done = box.commands.run(line, shell=True)
    assert done.exit_code == 0, (line, done)
    return done.stdout.strip()


def steps():
    tree = WORK / "tree"
    (tree / "deep" / "empty").mkdir(parents=True)
    (tree / "deep" / "file name.txt").write_text("deep")
    (tree / "run.sh").write_text("#!/bin/sh\necho ran\n")
    (tree / "run.sh").chmod(0o755)
    (tree / "ignored.log").write_text("no")
    (tree / ".dockerignore").write_text("*.log\n")
    (WORK / "single").write_text("one")
    builder = (
        Template.from_template("base", file_context_path=str(WORK))
        .run_cmd("useradd --create-home app")
        .make_dir("/srv/app", mode=0o755)
        .run_cmd("chown app /srv/app")
        .copy("tree", "/srv/app", user="app")
        .copy("single", "/etc/single.conf", mode="0600")
        .copy("single", "/srv/")
        .make_symlink("/srv/app/run.sh", "/usr/local/bin/runner")
        .rename("/srv/single", "/srv/renamed")
        .run_cmd("touch /srv/useless; echo $BUILT_WITH > /etc/built")
        .remove("/srv/useless")
        .set_build_envs({"BUILT_WITH": "care"})
        .set_user("app")
        .set_workdir("/srv/app")
        .set_runtime_envs({"GREETING": "hello"})
    )
    entries = []
    build = Template.build(builder, "stepped", on_log_entry=entries.append)
    kinds = [str(entry.kind.value) for entry in entries]
    assert kinds[0] == "start" and kinds[-1] == "end", kinds
    status = build.status if hasattr(build, "status") else build["status"]
    assert str(getattr(status, "value", status)) == "ready", status

    def look(box):
        assert shell(box, "id -un; pwd; echo $GREETING; echo $HOME").split() == ["app", "/srv/app", "hello", "/home/app"]
        assert shell(box, "runner") == "ran"
        assert shell(box, "stat -c '%U %a' run.sh; ls deep; cat 'deep/file name.txt'").split("\n") == [
            "app 755",
            "empty",
            "file name.txt",
            "deep",
        ]
        assert shell(box, "stat -c '%U %a' /etc/single.conf; cat /srv/renamed /etc/built").split() == ["root", "600", "onecare"]
        assert shell(box, "test ! -e /srv/useless && test ! -e /srv/single && echo gone") == "gone"

    made_from("stepped", look)
    # Nothing changed: nothing is done again, and one step changed: that one and what follows.
    begun = time.monotonic()
    third = TemplateBuild.connect(Template.build_in_background(builder, "stepped").build_id)
    third.wait_until_terminal()
    print("rebuilt in", round(time.monotonic() - begun, 2), "s")
    data = third.to_dict()
    counts = data["cache_summary"]
    assert counts.layer_misses == 0 and counts.final_artifact_hits == 1, counts
    # Of another template, also by a bare name.
    derived = Template.from_template("stepped").run_cmd("cat /etc/built > mine")
    Template.build(derived, name="derived", tags=["v1"])
    made_from("derived:v1", lambda box: shell(box, "cat mine; id -un") == "care\napp" or 1 / 0)


def services():
    builder = (
        Template.from_template("base")
        .run_cmd("mkdir /www && echo page > /www/index.html")
        .set_start_cmd("python3 -m http.server 8000 --directory /www", wait_for_port(8000))
    )
    Template.build(builder, "server")
    made_from("server", lambda box: shell(box, "curl -sf localhost:8000") == "page" or 1 / 0)
    never = Template.from_template("base").set_start_cmd("exit 7", wait_for_port(8000, timeout_secs=2))
    try:
        Template.build(never, "never")
    except BuildError as error:
        detail = error.error_detail
        assert str(getattr(detail.phase, "value", detail.phase)) == "readiness", detail
        assert "ended with 7" in str(error), error
    else:
        raise AssertionError("it got ready")
    assert not Template.exists("never")


def dockerfiles():
    place = WORK / "docker"
    (place / "src").mkdir(parents=True)
    (place / "src" / "main.txt").write_text("main")
    (place / "skip.me").write_text("no")
    (place / ".dockerignore").write_text("skip.me\n")
    (place / "Dockerfile").write_text(
        """# syntax=docker/dockerfile:1
ARG BASE=base
FROM $BASE AS build
ARG NAME=world
ENV TEXT="hello ${NAME}" OTHER=x
WORKDIR /build
COPY --chmod=0640 src ./src
RUN <<EOF
set -e
echo $TEXT > out.txt
cat src/main.txt >> out.txt
test ! -e skip.me
EOF
RUN --mount=type=secret,id=token cat /run/secrets/token | wc -c > size && echo the token is $(cat /run/secrets/token)
RUN --mount=type=secret,id=token,env=TOKEN test -n "$TOKEN"
RUN ln -s out.txt link && test ! -e /run/secrets/token

FROM nullspace/base:latest
LABEL org.example.kind="test of templates"
EXPOSE 8080
HEALTHCHECK --interval=5s CMD curl -f localhost:8080
RUN useradd --uid 4000 worker
COPY --from=build --chown=worker /build/ /data/
COPY --from=build /build/out.txt /build/src/main.t* /data/single/
COPY <<-END /data/inline
	with \\$ and ${UNSET:-default}
	END
USER worker
WORKDIR /data
SHELL ["/bin/bash", "-c"]
RUN [[ -e out.txt ]] && echo shelled > /tmp/shelled
CMD ["sleep", "600"]
"""
    )
    builder = Template.from_dockerfile(str(place / "Dockerfile")).add_build_secret("token", SECRET)
    entries = []
    build = Template.build(builder, "docked", on_log_entry=entries.append)
    said = "\n".join(entry.message for entry in entries)
    assert "the token is ***" in said and SECRET not in said, said

    def look(box):
        found = shell(box, "cat out.txt; echo; cat link; echo; id -u; pwd")
        assert found.split("\n") == ["hello world", "main"] * 2 + ["4000", "/data"], found
        assert shell(box, "cat size") == str(len(SECRET))
        assert shell(box, "ls single; cat inline /tmp/shelled").split("\n") == [
            "main.txt",
            "out.txt",
            "with $ and default",
            "shelled",
        ]
        assert shell(box, "stat -c %a src/main.txt; stat -c %U src/main.txt single/out.txt").split() == ["640", "worker", "root"]
        assert "sleep 600" in shell(box, "ps -eo args")

    made_from("docked", look)
    metadata = build.to_dict()["oci_metadata"]
    assert metadata.labels == {"org.example.kind": "test of templates"}, metadata
    assert metadata.healthcheck.test[0] == "CMD-SHELL"
    try:
        Template.build(Template.from_dockerfile_content("FROM base\nRUN --mount=type=ssh true\n"), "refused")
    except AnyError as error:
        assert error.code == "invalid_request" and "line 2" in str(error), error
    else:
        raise AssertionError("it was not refused")


def names():
    names = {info.name for info in Template.list()}
    assert {"base", "host", "code-interpreter", "stepped", "derived"} <= names, names
    assert "never" not in names
    info = Template.get("base")
    assert info.builtin and info.canonical_ref == "nullspace/base"
    assert Template.exists("stepped") and not Template.exists("nothing")
    assert Template.get("stepped").default_tag == "default"
    Template.assign_tags("stepped", ["stable", "v1"])
    assert {tag.tag for tag in Template.get_tags("stepped")} == {"default", "stable", "v1"}
    Template.remove_tags("stepped", "v1")
    page = Template.list_builds("stepped", limit=1)
    assert len(page.builds) == 1 and page.next_cursor
    older = Template.list_builds("stepped", limit=100, cursor=page.next_cursor)
    build = TemplateBuild.connect(older.builds[-1].build_id)
    assert "promoted" in build.promote(tag="promoted").tags
    made_from("stepped:promoted", lambda box: shell(box, "runner"))
    renamed = Template.rename("stepped", "walked")
    assert renamed.name == "walked"
    assert [alias.alias_ref for alias in Template.list_aliases("walked")] == ["default/stepped"]
    made_from("stepped", lambda box: shell(box, "runner"))
    assert str(getattr(Template.set_visibility("walked", "public").visibility, "value", "public")) == "public"
    claim = Template.reserve_name("claimed")
    Template.release_name_claim(claim.claim_token)
    assert Template.get_namespace("nullspace").kind is not None
    checked = Template.validate(Template.from_template("base").run_cmd("true"))
    assert checked.valid, checked
    plan = Template.plan(Template.from_dockerfile_content("FROM base\nRUN echo hi\n"))
    assert plan.build_plan["run_steps"] == ["RUN echo hi"], plan
    Template.delete("derived")
    assert not Template.exists("derived")
    try:
        Template.get("derived")
    except NotFoundError as error:
        assert error.code == "template_not_found"


def failures():
    failing = Template.from_template("base").run_cmd("echo fine").run_cmd("echo why >&2; exit 9")
    build = Template.build_in_background(failing, "failing")
    try:
        TemplateBuild.connect(build.build_id).wait_until_terminal()
    except BuildError as error:
        assert error.error_detail.details["exit_code"] == 9, error.error_detail
        assert error.error_detail.step_index == 2
    else:
        raise AssertionError("it did not fail")
    again = TemplateBuild.connect(build.build_id).retry()
    assert again.to_dict()["retry_of_build_id"] == build.build_id
    slow = Template.build_in_background(Template.from_template("base").run_cmd("sleep 300"), "slow")
    snapshot = TemplateBuild.connect(slow.build_id).cancel(reason="enough")
    data = snapshot.to_dict()
    assert data["build"]["status"].value == "cancelled", data
    lines = list(TemplateBuild.connect(slow.build_id).logs(follow=True))
    assert lines[-1].kind.value == "cancelled"


steps()
services()
dockerfiles()
names()
failures()
