"""Runs inside a machine: `python3 - connect HOST PORT ...`, `resolve NAME ...` or `flood ADDRESS PORT COUNT`.
One JSON object on stdout."""

import errno
import json
import socket
import sys
import threading


def connect(host, port):
    with socket.create_connection((host, int(port)), timeout=5) as s:
        return s.makefile().readline().strip()


def resolve(name):
    return sorted({found[4][0] for found in socket.getaddrinfo(name, None, socket.AF_INET)})


def attempt(work, *arguments):
    try:
        return work(*arguments)
    except socket.gaierror as error:
        return {socket.EAI_NONAME: "no such name", socket.EAI_NODATA: "no address"}.get(error.errno, str(error))
    except TimeoutError:
        return "timeout"
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))


def main(what, *arguments):
    if what == "flood":
        address, port, count = arguments
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            for n in range(int(count)):
                s.sendto(str(n).encode(), (address, int(port)))
        return {}
    if what == "resolve":
        return {name: attempt(resolve, name) for name in arguments}
    results = {}

    def one(host, port):
        results[f"{host} {port}"] = attempt(connect, host, port)

    threads = [threading.Thread(target=one, args=place) for place in zip(arguments[::2], arguments[1::2])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


print(json.dumps(main(*sys.argv[1:])))
