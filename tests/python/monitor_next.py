"""What machines use and the monitor, with the published SDK 1.0.3, which says `machine` where 0.1.9 says `sandbox`."""

import queue

from nullspace import Machine, Monitor

LIMIT = 120


def main():
    box = Machine.create(template="host", memory_mb=256, timeout=300)
    [sample] = box.get_metrics()
    assert sample.mem_total_bytes == 256 << 20 and sample.cpu_percent >= 0, sample
    events = queue.Queue()
    subscription = Monitor().subscribe(
        interval_ms=300,
        include_processes=True,
        on_snapshot=lambda event: events.put(("snapshot", [m.id for m in event.machines])),
        on_update=lambda event: events.put(("removed" if event.removed else "update", event.machine_id)),
        on_metrics=lambda event: events.put(("metrics", event.machine_id)),
        on_processes=lambda event: events.put(("processes", event.machine_id)),
    )

    def until(wanted):
        while events.get(timeout=LIMIT) != wanted:
            pass

    until(("snapshot", [box.id]))
    until(("metrics", box.id))
    until(("processes", box.id))
    box.kill()
    until(("removed", box.id))
    subscription.stop()
    print("ok")


main()
