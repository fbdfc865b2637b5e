"""What the scripts for both published SDKs, 0.1.9 and 1.0.3, share: their words for machines are all that differs."""

import nullspace
from nullspace import errors

NEWER = not hasattr(nullspace, "Sandbox")
Box = nullspace.Machine if NEWER else nullspace.Sandbox
Refusal = errors.MachineError if NEWER else errors.SandboxError


def refused(code, work):
    try:
        work()
    except Refusal as error:
        assert error.code == code, (error.code, code, str(error))
        return error
    raise AssertionError(f"not refused with {code}")


def out(box, line):
    done = box.commands.run(line, shell=True)
    assert done.exit_code == 0, (line, done)
    return done.stdout.strip()
