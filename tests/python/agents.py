"""Agent Deployments with the published SDK: `python agents.py EXAMPLE_DIR`, address and key in the environment."""

import asyncio
import json
import sys
import tempfile
import uuid
from pathlib import Path

from nullspace import AgentDeployment, AsyncAgentDeployment, Sandbox
from nullspace.errors import ConflictError, NotFoundError, SandboxError


def project(toml, script="true\n", **files):
    """A project directory whose entry point is a shell script."""
    root = Path(tempfile.mkdtemp(prefix="project-"))
    name = f"t-{uuid.uuid4().hex[:12]}"
    (root / "nullspace.agent.toml").write_text(f'name = "{name}"\nentrypoint = "sh main.sh"\ntemplate = "host"\n{toml}')
    (root / "main.sh").write_text(script)
    for path, text in files.items():
        (root / path).write_text(text)
    return root


def finish(deployment, run):
    """The log of a run up to its end, and the run then."""
    events = list(deployment.iter_run_logs(run.id, follow=True, poll_interval=0.05))
    return events, deployment.get_run(run.id)


def lines(events, source="stdout", phase="entrypoint"):
    return [e.message for e in events if e.source == source and e.metadata.get("phase") == phase]


def raises(kind, code, work):
    try:
        work()
    except kind as error:
        assert error.code == code, (error.code, error)
        return error
    raise AssertionError(f"no {kind.__name__}")


def example(path):
    deployment, version, manifest = AgentDeployment.deploy(path)
    assert version.status == "ready", version
    assert version.bundle_digest == manifest.bundle_digest
    deployment.refresh()
    assert deployment.active_version_id == version.id
    run = deployment.run(input={"text": "a b a"})
    events, run = finish(deployment, run)
    assert run.status == "succeeded", (run, [e.message for e in events])
    assert run.exit_code == 0
    assert any("humanize" in line for line in lines(events, phase="install"))
    assert "3/3 writing the result" in lines(events)
    # The machine is gone, its outputs are not.
    assert Sandbox.connect(run.sandbox_id).get_info().status == "destroyed"
    out = Path(tempfile.mkdtemp(prefix="out-"))
    deployment.download_run_output(run.id, "result.json", out / "result.json")
    result = json.loads((out / "result.json").read_text())
    assert result["run_id"] == run.id and result["words"] == 3, result
    outputs = deployment.run_outputs(run.id).outputs
    assert [(o["configured_path"], o["status"], o["kind"]) for o in outputs] == [
        ("result.json", "available", "file"),
        ("reports/", "available", "directory"),
    ]
    # The same bundle again is another version of the same deployment.
    again, second, _ = AgentDeployment.deploy(path)
    assert again.id == deployment.id and second.version_number == version.version_number + 1
    assert deployment.get_version(version.id).status == "superseded"
    assert [v.id for v in deployment.list_versions().items] == [second.id, version.id]
    old = deployment.run(version_id=version.id)
    assert finish(deployment, old)[1].status == "succeeded"
    assert [r.id for r in deployment.list_runs(limit=1).items] == [old.id]
    deployment.delete()
    assert deployment.id not in [d.id for d in AgentDeployment.list().items]


def failures():
    deployment, _, _ = AgentDeployment.deploy(project("", "echo before; echo bad >&2; exit 3\n"))
    events, run = finish(deployment, deployment.run())
    assert (run.status, run.exit_code) == ("failed", 3), run
    assert "entrypoint" in run.failure_reason
    assert lines(events) == ["before"] and lines(events, "stderr") == ["bad"]
    assert events[-1].metadata["failure_phase"] == "entrypoint" and events[-1].level == "error"
    deployment.delete()

    deployment, _, _ = AgentDeployment.deploy(project('install = "exit 9"\n'))
    _, run = finish(deployment, deployment.run())
    assert (run.status, run.exit_code) == ("failed", 9) and "install" in run.failure_reason
    deployment.delete()

    deployment, _, _ = AgentDeployment.deploy(project("[resources]\ntimeout_seconds = 1\n", "sleep 600\n"))
    _, run = finish(deployment, deployment.run())
    assert run.status == "timed_out", run
    deployment.delete()

    deployment, _, _ = AgentDeployment.deploy(project("", "echo up; sleep 600\n"))
    run = deployment.run()
    for event in deployment.iter_run_logs(run.id, follow=True, poll_interval=0.05):
        if event.message == "up":
            break
    cancelled = deployment.cancel_run(run.id, reason="enough")
    assert cancelled.status == "cancelled" and "enough" in cancelled.failure_reason, cancelled
    assert deployment.cancel_run(run.id).status == "cancelled"
    deployment.delete()


def retained():
    deployment, _, _ = AgentDeployment.deploy(project("", "echo kept > note; exit 1\n"))
    _, run = finish(deployment, deployment.run(retain_on_failure=True, retention_seconds=300))
    assert run.status == "failed"
    machine = deployment.connect_sandbox(run)
    assert machine.files.read("/workspace/project/note") == "kept\n"
    assert machine.commands.run("cat", args=["note"]).stdout == "kept\n"
    machine.kill()
    deployment.delete()


def environment():
    script = 'echo "$GIVEN-$EXTRA"; echo "$NULLSPACE_INPUT"; test -n "$NULLSPACE_RUN_ID" -a -n "$NULLSPACE_DEPLOYMENT_ID"\n'
    root = project('[env]\nrequired = ["GIVEN"]\noptional = ["EXTRA"]\n', script)
    deployment, version, _ = AgentDeployment.deploy(root)
    assert version.env_spec == {"required": ["GIVEN"], "optional": ["EXTRA"]}
    error = raises(SandboxError, "invalid_request", deployment.run)
    assert "GIVEN" in str(error)
    events, run = finish(deployment, deployment.run(input={"k": [1, "é"]}, envs={"GIVEN": "secret-value"}))
    assert run.status == "succeeded", run
    first, given = lines(events)
    assert first == "secret-value-" and json.loads(given) == {"k": [1, "é"]}
    assert "secret-value" not in repr(run)
    deployment.delete()


def conflicts():
    deployment = AgentDeployment.create(name=f"t-{uuid.uuid4().hex[:12]}", mode="job", metadata={"team": "x"})
    raises(ConflictError, "agent_deployment_name_conflict", lambda: AgentDeployment.create(name=deployment.name, mode="job"))
    raises(ConflictError, "conflict", deployment.run)
    raises(NotFoundError, "agent_run_not_found", lambda: deployment.get_run("adrun_none"))
    raises(NotFoundError, "agent_version_not_found", lambda: deployment.run(version_id="adver_none"))
    raises(NotFoundError, "agent_deployment_not_found", lambda: AgentDeployment.get("adpl_none"))
    deployment.update(description="d", metadata={"team": "y"})
    assert AgentDeployment.get(deployment.id).metadata == {"team": "y"}
    deployment.delete()
    assert AgentDeployment.get(deployment.id).status == "deleted"
    service = AgentDeployment.create(name=f"t-{uuid.uuid4().hex[:12]}", mode="service")
    raises(ConflictError, "agent_mode_conflict", service.run)
    service.delete()


def one_key_one_run():
    deployment, _, _ = AgentDeployment.deploy(project(""))
    runs = {deployment.run(idempotency_key="k").id for _ in range(3)}
    assert len(runs) == 1
    raises(ConflictError, "idempotency_conflict", lambda: deployment.run(idempotency_key="k", input={"other": 1}))
    finish(deployment, deployment.get_run(runs.pop()))
    deployment.delete()


async def asynchronous():
    made, _, _ = AgentDeployment.deploy(project("", "seq 3000\n"))
    deployment = await AsyncAgentDeployment.get(made.id)
    run = await deployment.run()
    events = [e async for e in deployment.iter_run_logs(run.id, follow=True, poll_interval=0.05)]
    assert lines(events) == [str(n) for n in range(1, 3001)]
    await deployment.delete()


def main():
    example(Path(sys.argv[1]))
    failures()
    retained()
    environment()
    conflicts()
    one_key_one_run()
    asyncio.run(asynchronous())
    print("ok")


main()
