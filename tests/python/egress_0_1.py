"""Rules for traffic out, as users of the published client 0.1.9 write them: `egress_0_1.py REACHED REFUSED`."""

import sys

from nullspace import Sandbox

reached, refused = sys.argv[1:]
TRY = "import socket; socket.create_connection(('{}', 80), timeout=5); print('open')"


def opens(sandbox, address):
    return sandbox.commands.run("python3", args=["-c", TRY.format(address)]).stdout.strip() == "open"


with_lists = Sandbox.create(network={"deny_out": ["0.0.0.0/0"], "allow_out": [reached]})
assert opens(with_lists, reached) and not opens(with_lists, refused)
with_lists.kill()

typed = Sandbox.create(network={"egress": {"mode": "custom", "deny_cidrs": [refused + "/32"]}})
assert opens(typed, reached) and not opens(typed, refused)
# Events that this client does not know would break it.
assert {event.operation.value for event in typed.list_lifecycle().events} == {"create"}
typed.kill()

without = Sandbox.create(internet_access=False)
assert not opens(without, reached)
without.kill()
