"""Prints 300 lines with the time of their printing, one every 20 ms."""

import time

for _ in range(300):
    print(time.time_ns(), flush=True)
    time.sleep(0.02)
