"""Warm pools with the published SDKs 0.1.9 and 1.0.3: the words for machines are all that differs."""

import asyncio
import time

from nullspace import AsyncTemplateWarmPool, Template, TemplateWarmPool, Volume, wait_for_port

from either import Box, out, refused


def checkout_of(box):
    told = box.get_info().warm_pool_checkout or getattr(box, "warm_pool_checkout", None)
    return told


def until(pool, what):
    for _ in range(600):
        info = pool.get_info()
        if what(info):
            return info
        time.sleep(0.05)
    raise AssertionError(pool.get_info())


def life():
    pool = TemplateWarmPool.create(
        "host", name="small", min_ready=2, max_ready=3, labels={"team": "a"}, metadata={"nested": {"a": [1, None]}},
        idle_timeout_seconds=60, stale_after_seconds=900, checkout_policy="prefer", version_policy="pinned_build",
    )
    assert pool.id.startswith("twp_"), pool.id
    info = pool.wait_until_ready(timeout_secs=60, interval_secs=0.05)
    assert info.status.ready == 2 and info.status.target == 2, info
    assert (info.vcpus, info.memory_mb, info.disk_mb) == (2, 512, None), info
    assert info.labels == {"team": "a"} and info.metadata == {"nested": {"a": [1, None]}}
    assert info.state.value == "enabled" and info.degraded_reason is None
    assert info.rollout_status.current_counts.ready == 2, info.rollout_status
    assert info.rollout_status.current_identity.runtime_artifact_id == info.runtime_artifact_id
    assert info.created_at is not None and info.last_reconciled_at is not None
    assert Box.list().items == [], "nobody has them"

    volume = Volume.create("warm-data")
    box = Box.create(
        "host", warm_pool=pool, warm_pool_mode="require", warm_pool_wait_ms=100, envs={"WHO": "me"}, metadata={"a": 1},
        cwd="/work/here", timeout=60, internet_access=False, volumes=[{"ref": "warm-data", "mount_path": "/data"}],
    )
    assert out(box, "echo $WHO; pwd; echo kept > /data/file; hostname") == f"me\n/work/here\n{box.id.replace('_', '-')}"
    assert volume.files.read("/file") == "kept\n"
    assert box.get_info().metadata["a"] == 1
    assert [one.id for one in Box.list().items] == [box.id]
    # What it may reach is its own.
    assert box.commands.run("getent hosts example.com", shell=True).exit_code != 0
    after = until(pool, lambda info: info.status.ready == 2)
    assert after.status.claimed == 1, after
    box.kill()
    assert until(pool, lambda info: info.status.claimed == 0).status.ready == 2

    # Others than the pool makes.
    with Box.create("host", vcpus=1, warm_pool=pool.id) as other:
        assert out(other, "echo well") == "well"
    refused("warm_pool_conflict", lambda: Box.create("host", vcpus=1, warm_pool=pool.id, warm_pool_mode="require"))
    with Box.create("host", warm_pool_mode="bypass") as other:
        assert out(other, "echo well") == "well"

    info = pool.update(min_ready=1, max_ready=1, name="smaller")
    assert (info.min_ready, info.max_ready, info.name) == (1, 1, "smaller"), info
    until(pool, lambda info: info.status.ready == 1 and info.status.draining == 0)
    info = pool.update(vcpus=1)
    assert (info.vcpus, info.memory_mb) == (1, 512)
    until(pool, lambda info: info.status.ready == 1 and info.rollout_status.old_ready_or_warming == 0)
    with Box.create("host", vcpus=1, warm_pool=pool.id, warm_pool_mode="require") as other:
        assert out(other, "echo well") == "well"
    listed = TemplateWarmPool.list(template="host", state="enabled", label="team=a", limit=5)
    assert [one.id for one in listed] == [pool.id]
    assert TemplateWarmPool.list(label=["team=a", "team=b"]) == []
    assert [one.id for one in TemplateWarmPool.list(status="ready")] in ([pool.id], [])

    pool.drain()
    info = until(pool, lambda info: info.state.value == "disabled")
    assert info.status.ready == 0 and info.degraded_reason.value == "controller_disabled", info
    refused("warm_pool_unavailable", lambda: Box.create(
        "host", vcpus=1, warm_pool=pool.id, warm_pool_mode="require", warm_pool_wait_ms=30_000))
    with Box.create("host", vcpus=1, warm_pool=pool.id, warm_pool_wait_ms=30_000) as other:
        assert out(other, "echo well") == "well"
    pool.enable()
    pool.wait_until_ready(timeout_secs=60, interval_secs=0.05)
    pool.disable()
    until(pool, lambda info: info.status.ready == 0)
    pool.reconcile()
    pool.delete()
    assert TemplateWarmPool.get(pool.id).state.value == "deleted"
    assert TemplateWarmPool.list() == []
    refused("warm_pool_not_found", lambda: Box.create("host", warm_pool=pool.id))
    refused("invalid_request", lambda: TemplateWarmPool.create("host", name="x", min_ready=2, max_ready=1))
    refused("warm_pool_not_found", lambda: TemplateWarmPool.get("twp_none"))


def rollout():
    """A start command has run already, and a pool follows its tag."""
    def build(word):
        Template.build(
            Template.from_template("base")
            .run_cmd(f"mkdir -p /www && echo {word} > /www/index.html")
            .set_runtime_envs({"GREETING": word})
            .set_start_cmd("exec python3 -m http.server 8000 --directory /www", wait_for_port(8000)),
            "served",
        )

    build("one")
    followed = TemplateWarmPool.create("served", name="f", min_ready=1, max_ready=1, version_policy="track_tag", track_tag="default")
    pinned = TemplateWarmPool.create("served", name="p", min_ready=1, max_ready=1)
    pinned.wait_until_ready(timeout_secs=60, interval_secs=0.05)
    before = followed.wait_until_ready(timeout_secs=60, interval_secs=0.05)
    assert before.rollout_generation == 1 and before.resolved_template_build_id, before

    def served(pool, **options):
        with Box.create("served", warm_pool=pool.id, **options) as box:
            return out(box, "echo $GREETING; python3 -c 'import urllib.request as u; print(u.urlopen(\"http://127.0.0.1:8000\").read().decode())'")

    assert served(followed, warm_pool_mode="require", envs={"GREETING": "mine"}) == "mine\none"
    build("two")
    after = until(followed, lambda info: info.rollout_generation == 2 and info.status.ready == 1)
    assert after.previous_resolved_template_build_id == before.resolved_template_build_id
    assert after.resolved_template_build_id != before.resolved_template_build_id
    assert served(followed, warm_pool_mode="require") == "two\ntwo"
    refused("warm_pool_conflict", lambda: served(pinned, warm_pool_mode="require"))
    assert pinned.get_info().rollout_generation == 1
    pinned.update(template="served")
    until(pinned, lambda info: info.rollout_generation == 2 and info.status.ready == 1)
    assert served(pinned, warm_pool_mode="require") == "two\ntwo"
    Template.delete("served")
    until(pinned, lambda info: info.degraded_reason and info.degraded_reason.value == "template_build_unavailable")
    until(pinned, lambda info: info.status.ready == 0)
    for pool in (followed, pinned):
        pool.delete()


async def asynchronous():
    pool = await AsyncTemplateWarmPool.create("host", name="async", min_ready=1, max_ready=1)
    await pool.wait_until_ready(timeout_secs=60, interval_secs=0.05)
    assert [one.id for one in await AsyncTemplateWarmPool.list(state="enabled")] == [pool.id]
    await pool.drain()
    await pool.delete()


life()
rollout()
asyncio.run(asynchronous())
