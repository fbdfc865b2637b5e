"""Runs inside a machine: `python3 - tcp ADDRESS PORT ...`, `udp ...` or `calls`. One JSON object on stdout."""

import ctypes
import errno
import json
import os
import socket
import sys
import threading


def family(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def tcp(address, port):
    with socket.socket(family(address), socket.SOCK_STREAM) as s:
        s.settimeout(4)
        s.connect(socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0][4])
    return "open"


def udp(address, port):
    with socket.socket(family(address), socket.SOCK_DGRAM) as s:
        s.sendto(b"from a machine", socket.getaddrinfo(address, port, type=socket.SOCK_DGRAM)[0][4])
    return "sent"


def attempt(work, *arguments):
    try:
        return work(*arguments)
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))


def everywhere(work, places):
    """All at once: what is dropped takes the whole time limit."""
    results = {}

    def one(address, port):
        results[f"{address} {port}"] = attempt(work, address, int(port))

    threads = [threading.Thread(target=one, args=place) for place in places]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


libc = ctypes.CDLL(None, use_errno=True)


def call(name, *arguments):
    if getattr(libc, name)(*arguments) == -1:
        raise OSError(ctypes.get_errno(), name)
    return "ok"


def opened(path, mode="rb"):
    with open(path, mode, buffering=0) as file:
        if mode == "rb":
            return "ok" if file.read(1) else "empty"
        file.write(b"1")
    return "ok"


def calls():
    timespec = ctypes.create_string_buffer(16)
    work = {
        # What must work, or the others prove nothing.
        "getppid": lambda: call("getppid"),
        "make a fifo": lambda: call("mknod", b"/tmp/fifo", 0o10600, 0),
        "read a file": lambda: opened("/etc/passwd"),
        "write a file": lambda: opened("/tmp/file", "wb"),
        # What must not.
        "mount": lambda: call("mount", b"none", b"/mnt", b"tmpfs", 0, None),
        "remount": lambda: call("mount", None, b"/proc/sys", None, 32 | 4096, None),
        "unmount": lambda: call("umount2", b"/proc", 2),
        "ptrace": lambda: call("ptrace", 16, 1, None, None),
        "load a module": lambda: call("syscall", 175, b"\0" * 64, 64, b""),
        "load a module's file": lambda: call("syscall", 313, 0, b"", 0),
        "new user namespace": lambda: call("unshare", 0x10000000),
        "new mount namespace": lambda: call("unshare", 0x20000),
        "host name": lambda: call("sethostname", b"other", 5),
        "clock": lambda: call("clock_settime", 0, timespec),
        "kernel log": lambda: call("klogctl", 3, timespec, 16),
        "block device": lambda: call("mknod", b"/tmp/disk", 0o60600, 0x800),
        "memory device": lambda: call("mknod", b"/tmp/mem", 0o20600, 0x101),
        "raw socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1) and "ok",
        "packet socket": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW) and "ok",
        "the guest's root": lambda: os.listdir("/proc/1/root") and "ok",
        "the guest's memory": lambda: opened("/proc/1/mem"),
        "the guest's environment": lambda: opened("/proc/1/environ"),
    }
    for path in ["/dev/mem", "/dev/kmsg", "/dev/kvm", "/dev/vda", "/dev/sda", "/dev/fuse", "/dev/net/tun"]:
        work[f"read {path}"] = lambda path=path: opened(path)
    for path in ["/proc/kcore", "/proc/keys", "/proc/kallsyms", "/proc/timer_list", "/proc/kmsg", "/proc/config.gz"]:
        work[f"read {path}"] = lambda path=path: opened(path)
    for path in [
        "/proc/sys/kernel/panic",
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/net/ipv4/ip_forward",
        "/proc/sysrq-trigger",
        "/sys/class/net/eth0/mtu",
        "/sys/kernel/uevent_helper",
    ]:
        work[f"write {path}"] = lambda path=path: opened(path, "wb")
    return {name: attempt(one) for name, one in work.items()}


def main(what, *arguments):
    if what == "calls":
        return calls()
    return everywhere({"tcp": tcp, "udp": udp}[what], list(zip(arguments[::2], arguments[1::2])))


print(json.dumps(main(*sys.argv[1:])))
