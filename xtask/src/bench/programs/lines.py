"""Writes 1,000,000 numbered lines of 100 bytes, first into a file and then to standard output, and says how long.

Both in blocks: runs have PYTHONUNBUFFERED set, and a system call for each line would be most of what is measured.
"""

import json
import os
import time


def write(out):
    start = time.monotonic()
    for n in range(1_000_000):
        print(f"{n:099d}", file=out)
    out.flush()
    return time.monotonic() - start


with open("lines", "w") as out:
    file = write(out)
os.unlink("lines")
with open(1, "w", closefd=False) as out:
    stdout = write(out)
with open("result.json", "w") as out:
    json.dump({"file": file, "stdout": stdout}, out)
