"""Lifecycle events and webhooks with the published SDK 0.1.9: lists, streams, subscriptions, webhooks.

Takes the URL of a receiver of webhooks.
"""

import asyncio
import sys
import threading
import time

from nullspace import Sandbox
from nullspace.errors import NotFoundError, SandboxError
from nullspace.lifecycle import AsyncLifecycle, Lifecycle

receiver = sys.argv[1]
lifecycle = Lifecycle()

# Everything that happens to a machine, in order.
sandbox = Sandbox.create(template="host", metadata={"team": "a", "deep": {"x": 1, "y": 2}})
sandbox.set_timeout(120)
sandbox.kill()
wanted = [
    ("create", "requested"),
    ("create", "succeeded"),
    ("timeout_updated", "succeeded"),
    ("destroy", "requested"),
    ("destroy", "succeeded"),
]


def words(events):
    return [(event.operation.value, event.status.value) for event in events]


def until(holds, what):
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def listed():
    return lifecycle.list_sandbox_events(sandbox.id, order_asc=True).events


until(lambda: len(listed()) == len(wanted), "the end is written")
events = listed()
assert words(events) == wanted, words(events)
assert all(event.sandbox_id == sandbox.id for event in events)
assert events[0].metadata == {"team": "a", "deep": {"x": 1, "y": 2}}, events[0].metadata
assert events[0].actor_kind.value == "user" and events[0].audience.value == "customer"

page = lifecycle.list_events(sandbox_id=sandbox.id, limit=2)
assert page.has_more and words(page.events) == wanted[:-3:-1], words(page.events)
page = lifecycle.list_events(
    sandbox_id=sandbox.id, operation="create", status="succeeded", from_time="2020-01-01T00:00:00Z"
)
assert words(page.events) == [("create", "succeeded")]
assert lifecycle.list_events(source_sandbox_id=sandbox.id).events == []
assert lifecycle.list_events(snapshot_id="snap_none").events == []
for refused in (lambda: lifecycle.list_sandbox_events("sb_none"), lambda: lifecycle.list_snapshot_events("snap_none")):
    try:
        refused()
        raise AssertionError("found")
    except NotFoundError:
        pass


# A stream begins with what was, and goes on after any event.
def take(count, **filters):
    stream = lifecycle.stream_events(**filters)
    try:
        return [next(stream) for _ in range(count)]
    finally:
        stream.close()


streamed = take(5, sandbox_id=sandbox.id)
assert [event.id for event in streamed] == [event.id for event in events]
rest = take(3, sandbox_id=sandbox.id, after_event_id=events[1].id)
assert [event.id for event in rest] == [event.id for event in events[2:]]
newest = take(2, sandbox_id=sandbox.id, replay_limit=2)
assert [event.id for event in newest] == [event.id for event in events[3:]]
found = take(1, metadata={"deep": {"y": 2}}, operation="timeout_updated", status="succeeded")
assert found[0].id == events[2].id
try:
    take(1, operation="explode")
    raise AssertionError("an unknown operation was streamed")
except SandboxError as error:
    assert error.code == "websocket_error" and "operation" in str(error), error

# Live only: what happens after it was opened.
live, ready = [], threading.Event()


def follow():
    stream = lifecycle.stream_events(live_only=True, operation="create", status="succeeded")
    ready.set()
    live.append(next(stream))
    stream.close()


thread = threading.Thread(target=follow, daemon=True)
thread.start()
ready.wait()
made = []
deadline = time.monotonic() + 30
while not live:
    # The stream is opened when it is first asked: until it is, what happens is not for it.
    assert time.monotonic() < deadline, "nothing came"
    made.append(Sandbox.create(template="host"))
    thread.join(timeout=0.5)
assert live[0].sandbox_id in [machine.id for machine in made], live
for machine in made:
    machine.kill()

# The callback API.
called, failed = [], []
subscription = lifecycle.subscribe(
    sandbox_id=sandbox.id, on_event=lambda event: called.append(event), on_error=failed.append
)
until(lambda: len(called) == 5, called)
subscription.stop()
assert words(called) == wanted and not failed


async def asynchronous():
    client = AsyncLifecycle()
    found = []
    async for event in client.stream_events(sandbox_id=sandbox.id):
        found.append(event)
        if len(found) == 5:
            break
    assert words(found) == wanted
    heard = []
    subscription = await client.subscribe(sandbox_id=sandbox.id, on_event=heard.append)
    deadline = time.monotonic() + 30
    while len(heard) < 5:
        assert time.monotonic() < deadline, heard
        await asyncio.sleep(0.02)
    await subscription.stop()
    assert (await client.list_events(limit=1)).has_more
    await client.close()


asyncio.run(asynchronous())

# Webhooks.
webhook = lifecycle.create_webhook(receiver, ["create", "destroy"], "shh-very-secret")
assert webhook.enabled and webhook.has_signing_secret and webhook.url == receiver
assert [operation.value for operation in webhook.operations] == ["create", "destroy"]
assert [hook.id for hook in lifecycle.list_webhooks()] == [webhook.id]
machine = Sandbox.create(template="host")
machine.kill()


def deliveries():
    return lifecycle.list_webhook_deliveries(webhook.id)


until(
    lambda: [d.delivery_status.value for d in deliveries()] == ["succeeded"] * 4,
    "four deliveries",
)
sent = deliveries()
assert [(d.operation.value, d.status.value) for d in reversed(sent)] == [
    ("create", "requested"),
    ("create", "succeeded"),
    ("destroy", "requested"),
    ("destroy", "succeeded"),
]
detail = lifecycle.get_webhook_delivery(webhook.id, sent[0].id)
assert detail.event.sandbox_id == machine.id and detail.delivery.attempt_count == 1
assert detail.attempts[0].response_status == 204 and detail.attempts[0].attempt_number == 1
assert lifecycle.get_webhook(webhook.id).last_delivery_status.value == "succeeded"
changed = lifecycle.update_webhook(webhook.id, enabled=False, operations=["fork"])
assert not changed.enabled and [o.value for o in changed.operations] == ["fork"]
lifecycle.delete_webhook(webhook.id)
assert lifecycle.list_webhooks() == []
try:
    lifecycle.get_webhook(webhook.id)
    raise AssertionError("found")
except NotFoundError:
    pass
lifecycle.close()
print("ok")
