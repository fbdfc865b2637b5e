"""Rules for traffic out, as users of the published client 1.0.3 write them: `egress_1_0.py REACHED REFUSED`."""

import sys

from nullspace import Machine
from nullspace.types import EgressMode, EgressRateLimit, NetworkEgressPolicy

reached, refused = sys.argv[1:]
TRY = "import socket; socket.create_connection(('{}', 80), timeout=5); print('open')"


def opens(machine, address):
    return machine.commands.run("python3", args=["-c", TRY.format(address)]).stdout.strip() == "open"


policy = NetworkEgressPolicy.custom(allow_cidrs=[reached + "/32"], rate_limit=EgressRateLimit(kbit_per_sec=10_000))
machine = Machine.create(network={"egress": policy.to_dict()})
assert opens(machine, reached) and not opens(machine, refused)

effective = machine.update_egress(NetworkEgressPolicy.deny_all())
assert effective == NetworkEgressPolicy.deny_all(), effective
assert not opens(machine, reached)

effective = machine.update_egress(NetworkEgressPolicy.custom(deny_cidrs=[refused]))
assert effective.mode is EgressMode.CUSTOM and effective.deny_cidrs == [refused + "/32"], effective
assert opens(machine, reached) and not opens(machine, refused)

effective = machine.update_egress({"mode": "allow_all"})
assert effective == NetworkEgressPolicy.allow_all(), effective
assert opens(machine, refused)
machine.kill()
