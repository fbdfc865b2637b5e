"""The same with the published SDK 1.0.3, which says `machine` and reads ids as UUIDs. Takes the URL of a receiver."""

import sys
import time

from nullspace import Machine
from nullspace.lifecycle import Lifecycle

receiver = sys.argv[1]
lifecycle = Lifecycle()


def until(holds, what):
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


webhook = lifecycle.create_webhook(receiver, ["create", "destroy"], "shh-very-secret")
assert webhook.enabled and webhook.has_signing_secret
machine = Machine.create(template="host", metadata={"team": "a"})
machine.kill()


def events():
    return lifecycle.list_machine_events(machine.id, order_asc=True).events


until(lambda: len(events()) == 4, "four events")
assert all(event.machine_id == machine.id for event in events())
assert lifecycle.list_events(machine_id=machine.id, operation="destroy", limit=1).has_more
stream = lifecycle.stream_events(machine_id=machine.id)
streamed = [next(stream) for _ in range(4)]
stream.close()
assert [event.id for event in streamed] == [event.id for event in events()]
until(
    lambda: [d.delivery_status.value for d in lifecycle.list_webhook_deliveries(webhook.id)] == ["succeeded"] * 4,
    "four deliveries",
)
delivery = lifecycle.list_webhook_deliveries(webhook.id, limit=1)[0]
detail = lifecycle.get_webhook_delivery(webhook.id, delivery.id)
assert detail.event.machine_id == machine.id and detail.attempts[0].response_status == 204
assert lifecycle.get_webhook(webhook.id).last_delivery_status.value == "succeeded"
assert not lifecycle.update_webhook(webhook.id, enabled=False).enabled
assert [hook.id for hook in lifecycle.list_webhooks()] == [webhook.id]
lifecycle.delete_webhook(webhook.id)
assert lifecycle.list_webhooks() == []
lifecycle.close()
print("ok")
