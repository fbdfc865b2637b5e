"""What Prometheus makes of `/metrics`: its own parser reads a file, and these must be in there."""

import sys

from prometheus_client.parser import text_string_to_metric_families


def main(path, machine):
    with open(path) as file:
        families = {family.name: family for family in text_string_to_metric_families(file.read())}
    samples = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families.values()
        for sample in family.samples
    }

    def value(name, **labels):
        key = (name, tuple(sorted(labels.items())))
        assert key in samples, (key, sorted(samples))
        return samples[key]

    def family(name, kind):
        assert name in families, (name, sorted(families))
        assert families[name].type == kind, (name, families[name].type)
        assert families[name].documentation, name

    assert value("nullspace_build_info", version="0.1.0", engine="native") == 1
    family("nullspace_machines", "gauge")
    assert value("nullspace_machines", state="running") == 1
    assert value("nullspace_machines", state="creating") == 0

    family("nullspace_http_requests", "counter")
    family("nullspace_http_request_seconds", "histogram")
    route = "/v1/machines/{id}/exec"
    assert value("nullspace_http_requests_total", route=route, method="POST", status="200") == 2
    assert value("nullspace_http_request_seconds_count", route=route, method="POST") == 2
    assert value("nullspace_http_request_seconds_bucket", route=route, method="POST", le="+Inf") == 2
    assert value("nullspace_http_requests_total", route="none", method="GET", status="404") == 1
    assert value("nullspace_http_requests_total", route="/metrics", method="GET", status="401") == 1
    assert not any("secret" in str(key) for key in samples)

    for name, count in [("machine_create", 1), ("exec", 2)]:
        family(f"nullspace_{name}_seconds", "histogram")
        assert value(f"nullspace_{name}_seconds_count") == count, name
        buckets = [
            (float(dict(labels)["le"]), number)
            for (sample, labels), number in samples.items()
            if sample == f"nullspace_{name}_seconds_bucket"
        ]
        counts = [number for _, number in sorted(buckets)]
        assert counts == sorted(counts) and counts[-1] == count, buckets
    assert value("nullspace_machine_create_failures_total") == 0
    family("nullspace_store_commit_seconds", "histogram")
    assert 0 < value("nullspace_store_commit_seconds_count") <= value("nullspace_store_writes_total")
    assert value("nullspace_events_total") >= 2
    assert value("nullspace_websockets") == 1
    for direction in ["in", "out"]:
        value("nullspace_gateway_bytes_total", direction=direction)

    assert value("process_resident_memory_bytes") > 1 << 20
    assert 3 < value("process_open_fds") < value("process_max_fds")
    assert value("process_cpu_seconds_total") > 0
    assert value("process_start_time_seconds") > 1_700_000_000

    assert value("nullspace_machine_cpu_seconds_total", machine_id=machine) > 0
    used = value("nullspace_machine_memory_used_bytes", machine_id=machine)
    assert 0 < used < value("nullspace_machine_memory_limit_bytes", machine_id=machine) == 128 << 20
    used = value("nullspace_machine_disk_used_bytes", machine_id=machine)
    assert 0 < used < value("nullspace_machine_disk_limit_bytes", machine_id=machine)
    value("nullspace_machine_network_receive_bytes_total", machine_id=machine)
    value("nullspace_machine_network_transmit_bytes_total", machine_id=machine)
    print("ok")


main(*sys.argv[1:])
