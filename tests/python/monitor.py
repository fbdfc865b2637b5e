"""What machines use and the monitor, with the published SDK 0.1.9."""

import asyncio
import queue

from nullspace import AsyncMonitor, Monitor, Sandbox
from nullspace.errors import ConflictError, NotFoundError

LIMIT = 120


def sample_is_true(sample):
    assert 0 <= sample.cpu_percent and sample.cpu_count == 2, sample
    assert 0 < sample.mem_used_bytes < sample.mem_total_bytes == 256 << 20, sample
    assert 0 < sample.disk_used_bytes < sample.disk_total_bytes, sample
    assert sample.network_rx_bytes >= 0 and sample.network_tx_bytes >= 0, sample
    assert sample.timestamp.tzinfo is not None


def main():
    box = Sandbox.create(template="host", memory_mb=256, metadata={"n": "one"}, timeout=300)
    [sample] = box.get_metrics()
    sample_is_true(sample)
    [sample] = Sandbox.get_metrics_by_id(box.id)
    sample_is_true(sample)
    try:
        Sandbox.get_metrics_by_id("mch_none")
    except NotFoundError as error:
        assert error.code == "sandbox_not_found", error.code
    else:
        raise AssertionError("metrics of a machine that never was")

    events = queue.Queue()

    def told(kind):
        return lambda event: events.put((kind, event))

    def until(kind, what=lambda event: True):
        while True:
            got, event = events.get(timeout=LIMIT)
            assert got != "error", event
            if got == kind and what(event):
                return event

    process = box.commands.run("sleep 600", shell=True, background=True)
    subscription = Monitor().subscribe(
        interval_ms=300,
        include_processes=True,
        **{f"on_{kind}": told(kind) for kind in ["snapshot", "update", "metrics", "processes", "error"]},
    )
    kind, first = events.get(timeout=LIMIT)
    assert kind == "snapshot", kind
    [info] = first.sandboxes
    assert (info.id, info.status, info.metadata) == (box.id, "running", {"n": "one"}), info
    sample_is_true(until("metrics", lambda e: e.sandbox_id == box.id).metrics)
    until("processes", lambda e: [p.pid for p in e.processes if p.running] == [process.pid])
    other = Sandbox.create(template="host", memory_mb=256, timeout=300)
    until("update", lambda e: e.sandbox_id == other.id and e.sandbox.status == "running")
    until("metrics", lambda e: e.sandbox_id == other.id)
    other.kill()
    gone = until("update", lambda e: e.sandbox_id == other.id and e.removed)
    assert gone.sandbox.status == "destroyed", gone
    subscription.stop()
    try:
        Sandbox.get_metrics_by_id(other.id)
    except ConflictError as error:
        assert error.code == "sandbox_not_ready", error.code
    else:
        raise AssertionError("metrics of a machine that has ended")

    async def asynchronous():
        seen = asyncio.Queue()
        monitor = AsyncMonitor()
        subscription = await monitor.subscribe(interval_ms=300, on_metrics=seen.put_nowait)
        event = await asyncio.wait_for(seen.get(), LIMIT)
        assert event.sandbox_id == box.id
        await subscription.stop()

    asyncio.run(asynchronous())
    box.kill()
    print("ok")


main()
