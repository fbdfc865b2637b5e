"""Runs code in Jupyter kernels for the server. One of these runs in a machine; it is the kernels' parent.

    server ──connection per request──▶ bridge ──jupyter_client──▶ kernel of a context

Its first line on standard output says where it listens and the word that lets a request in. A request is one line of
JSON. The answer is one line, `{"ok": ...}`, and for `execute` and `attach` one line for each event after it, the last of
which is `end`. A caller of `execute` that closes the connection interrupts what it asked for; a run goes on.
"""

import asyncio
import collections
import contextlib
import ctypes
import hmac
import json
import math
import mimetypes
import os
import secrets
import signal
import stat
import sys
import time

from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager

HERE = os.path.dirname(os.path.abspath(__file__))
CHART = "application/vnd.nullspace.chart+json"
# The longest request, in bytes.
MOST_REQUEST = 8 << 20
# Executions that wait for one context.
MOST_WAITING = 32
# Characters of output of one execution, and of one that nobody follows; what comes later is dropped.
MOST_OUTPUT, MOST_RUN_OUTPUT = 32 << 20, 8 << 20
# What an event takes beside its text.
EVENT = 64
# Characters of one result.
MOST_RESULT = 6 << 20
# Characters in one event of output.
CHUNK = 64 << 10
# Runs that ended and nobody has taken yet.
MOST_RUNS = 256
# How long a kernel may take to start, and to stop what it is interrupted in, in seconds.
START, GRACE = 60, 5
# A cell's files are looked for here, and this many at most.
FILES, MOST_FILES, MOST_SEEN = "/workspace/artifacts", 64, 4096


class Refused(Exception):
    def __init__(self, code, message):
        super().__init__(message)
        self.code = code


class Manager(AsyncKernelManager):
    """A kernel that is known by its command line instead of by files."""

    spec = None

    @property
    def kernel_spec(self):
        return self.spec


PYTHON = KernelSpec(
    argv=[os.environ.get("NULLSPACE_KERNEL_PYTHON", "/usr/bin/python3"), os.path.join(HERE, "kernel.py"), "-f", "{connection_file}"],
    display_name="Python",
    language="python",
)
# Its text is for programs too: no colours.
DENO = KernelSpec(
    argv=[os.environ.get("NULLSPACE_DENO", "deno"), "jupyter", "--kernel", "--conn", "{connection_file}"],
    display_name="Deno",
    language="typescript",
    env={"NO_COLOR": "1", "DENO_NO_UPDATE_CHECK": "1"},
)


def now():
    return int(time.time() * 1000)


def line(value):
    """One line of JSON in UTF-8, whatever the kernel sent."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError:
        text = json.dumps(finite(value), ensure_ascii=False)
    return text.encode("utf-8", "replace") + b"\n"


def finite(value):
    """The same without numbers that JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    return [finite(inner) for inner in value] if isinstance(value, list) else value


def is_deep(value, room=100):
    """Whether it is nested deeper than readers of JSON put up with."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return room == 0 or any(is_deep(one, room - 1) for one in inner)


def die_with_parent():
    """In a kernel, before it is one: it does not outlive the bridge, who alone knows it."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


class Events:
    """On their way to whoever reads. Pieces of output that wait become one."""

    def __init__(self):
        self.waiting, self.grown = collections.deque(), asyncio.Event()

    def put(self, event):
        last = self.waiting[-1] if self.waiting else {}
        same = event["type"] in ("stdout", "stderr") and last.get("type") == event["type"]
        if same and len(last["text"]) + len(event["text"]) <= CHUNK:
            last["text"] += event["text"]
        else:
            self.waiting.append(event)
        self.grown.set()

    async def get(self):
        while not self.waiting:
            self.grown.clear()
            await self.grown.wait()
        return self.waiting.popleft()


class Context:
    """A kernel, made when it is first needed, and the executions that wait for it."""

    def __init__(self, ident, language, cwd):
        self.ident, self.language, self.cwd = ident, language, cwd
        self.manager = self.client = None
        self.turn = asyncio.Lock()
        self.waiting = 0
        self.current = None
        self.count = 0
        # What became of a kernel that nobody has been told of yet.
        self.lost = None
        self.closed = False
        # Whether the next execution begins with a fresh kernel.
        self.renew = False

    @property
    def is_python(self):
        return self.language == "python3"

    async def alive(self):
        return self.manager is not None and await self.manager.is_alive()

    async def start(self):
        manager = Manager(transport="tcp")
        manager.spec = PYTHON if self.is_python else DENO
        try:
            # What a kernel prints before it is one is of no use to anybody.
            quiet = {"stdout": asyncio.subprocess.DEVNULL, "stderr": asyncio.subprocess.DEVNULL}
            await manager.start_kernel(cwd=self.cwd, preexec_fn=die_with_parent, **quiet)
            client = manager.client()
            client.start_channels()
            await client.wait_for_ready(timeout=START)
        except Exception as error:
            with contextlib.suppress(Exception):
                await manager.shutdown_kernel(now=True)
            raise Refused("kernel_failed", f"the kernel did not start: {error}") from error
        self.manager, self.client, self.count = manager, client, 0

    async def stop(self):
        manager, client = self.manager, self.client
        self.manager = self.client = None
        if client is not None:
            client.stop_channels()
        if manager is not None:
            with contextlib.suppress(Exception):
                await manager.shutdown_kernel(now=True)

    async def interrupt(self):
        """Stops what runs. Deno's kernel cannot stop without ending, so there it ends."""
        if self.current is None or self.manager is None:
            return
        if self.is_python:
            await self.manager.interrupt_kernel()
        else:
            self.current.stop("Interrupted", "interrupted; a JavaScript kernel ends with that, and its variables are gone")


class Execution:
    """One piece of code on its way through a kernel."""

    def __init__(self, code, envs, timeout, most):
        self.code, self.envs, self.timeout, self.most = code, envs, timeout, most
        self.events = Events()
        self.done = asyncio.Event()
        self.output = 0
        self.is_cut = False
        self.cancelled = False
        # Set when the kernel has to go: why.
        self.ending = asyncio.get_running_loop().create_future()
        self.failed = False

    def emit(self, event):
        self.events.put(event)

    def stop(self, name, value):
        if not self.ending.done():
            self.ending.set_result((name, value))

    def error(self, name, value, traceback=""):
        self.failed = True
        self.emit({"type": "error", "name": name, "value": value[:CHUNK], "traceback": (traceback or f"{name}: {value}")[: 4 * CHUNK]})

    def room(self, size):
        if self.output + size + EVENT <= self.most:
            self.output += size + EVENT
            return True
        if not self.is_cut:
            self.is_cut = True
            text = f"\n[nullspace: this execution put out over {self.most >> 20} MiB; the rest is dropped]\n"
            self.emit({"type": "stderr", "text": text, "timestamp": now()})
        return False

    def stream(self, name, text):
        kind = "stderr" if name == "stderr" else "stdout"
        for at in range(0, len(text), CHUNK):
            piece = text[at : at + CHUNK]
            if not self.room(len(piece)):
                return
            self.emit({"type": kind, "text": piece, "timestamp": now()})

    def result(self, data, main):
        if not isinstance(data, dict):
            return
        data = {kind: form for kind, form in data.items() if not is_deep(form)}
        chart = data.pop(CHART, None)
        if not data and chart is None:
            return
        event = {"type": "result", "data": data, "chart": chart, "main": main}
        size = len(json.dumps(event))
        if size > MOST_RESULT:
            kept = {"text/plain": str(data.get("text/plain", ""))[:CHUNK]}
            event = {"type": "result", "data": kept, "chart": None, "main": main}
            self.stream("stderr", f"\n[nullspace: a result of {size >> 20} MiB is over {MOST_RESULT >> 20} MiB; only its text is here]\n")
            size = len(kept["text/plain"])
        if self.room(size):
            self.emit(event)


class Files:
    """What cells put into the directory for artifacts."""

    def __init__(self):
        self.known = self.look()

    def look(self):
        found = {}
        for directory, _, names in os.walk(FILES):
            for name in names:
                path = os.path.join(directory, name)
                with contextlib.suppress(OSError):
                    info = os.lstat(path)
                    if stat.S_ISREG(info.st_mode):
                        found[path] = (info.st_ino, info.st_mtime_ns, info.st_size)
                if len(found) >= MOST_SEEN:
                    return found
        return found

    def fresh(self):
        seen, before = self.look(), self.known
        self.known = seen
        changed = [path for path, what in seen.items() if before.get(path) != what]
        return [(path, seen[path][2]) for path in sorted(changed)[:MOST_FILES]]


class Run:
    """An execution that nobody has to wait for. Its events are kept until the server has them."""

    def __init__(self, ident, context, execution):
        self.ident, self.context, self.execution = ident, context, execution
        self.kept, self.ended, self.grown = [], False, asyncio.Event()
        self.task = None

    async def follow(self):
        while not self.ended:
            event = await self.execution.events.get()
            self.kept.append(event)
            self.ended = event["type"] == "end"
            self.grown.set()

    async def events(self):
        at = 0
        while True:
            while at < len(self.kept):
                yield self.kept[at]
                at += 1
            if self.ended:
                return
            self.grown.clear()
            if at == len(self.kept) and not self.ended:
                await self.grown.wait()


class Bridge:
    def __init__(self):
        self.token, self.instance = secrets.token_hex(16), secrets.token_hex(8)
        self.contexts, self.runs = {}, {}
        self.files = Files()
        self.tasks = set()

    def keep(self, coroutine):
        task = asyncio.ensure_future(coroutine)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    def context(self, wanted):
        """The context that the server speaks of; the server's record is what counts."""
        known = self.contexts.get(wanted["id"])
        if known is None:
            known = self.contexts[wanted["id"]] = Context(wanted["id"], wanted["language"], wanted["cwd"])
            if wanted.get("instance") not in (None, self.instance):
                known.lost = "what ran the kernels of this machine ended"
        return known

    def queue(self, request):
        context = self.context(request["context"])
        if context.waiting >= MOST_WAITING:
            raise Refused("queue_full", f"{MOST_WAITING} executions wait for this context")
        most = MOST_RUN_OUTPUT if "run" in request else MOST_OUTPUT
        execution = Execution(request["code"], request.get("envs") or {}, request.get("timeout") or 300, most)
        context.waiting += 1
        return context, execution, self.keep(self.execute(context, execution))

    async def execute(self, context, execution):
        """Takes its turn; whatever happens, the last event is `end`."""
        try:
            async with context.turn:
                if execution.cancelled:
                    pass
                elif context.closed:
                    execution.error("ContextRemoved", "the context was removed")
                elif context.lost:
                    lost, context.lost = context.lost, None
                    execution.error("KernelLost", f"{lost}, and the variables of this context with it; the next execution begins anew")
                else:
                    context.current = execution
                    await self.in_kernel(context, execution)
        except Refused as error:
            execution.error("KernelFailed", str(error))
        except Exception as error:
            execution.error("KernelFailed", f"{type(error).__name__}: {error}")
            await context.stop()
        finally:
            context.waiting -= 1
            if context.current is execution:
                context.current = None
            outcome = "cancelled" if execution.cancelled else "error" if execution.failed else "ok"
            execution.emit({"type": "end", "outcome": outcome})
            execution.done.set()

    async def in_kernel(self, context, execution):
        if context.renew:
            context.renew = False
            await context.stop()
        if context.manager is not None and not await context.alive():
            await context.stop()
            execution.error("KernelDied", "the kernel ended since the last execution, and its variables with it; the next execution begins anew")
            return
        if context.manager is None:
            await context.start()
        if execution.cancelled:
            return
        execution.emit({"type": "started"})
        watching = asyncio.ensure_future(self.deadline(context, execution))
        talking = asyncio.ensure_future(self.talk(context, execution))
        dying = asyncio.ensure_future(self.death(context))
        try:
            await asyncio.wait({talking, dying, execution.ending}, return_when=asyncio.FIRST_COMPLETED)
            if not talking.done() and not execution.ending.done():
                # What it said last may still be on its way.
                await asyncio.wait({talking}, timeout=0.5)
            if talking.done():
                talking.result()
            elif execution.ending.done():
                await context.stop()
                execution.error(*execution.ending.result())
            else:
                await context.stop()
                execution.error("KernelDied", "the kernel ended while the code ran (out of memory, or the code ended it); its variables are gone")
        finally:
            for task in (watching, talking, dying):
                task.cancel()
        for path, size in self.files.fresh():
            kind = mimetypes.guess_type(path)[0] or "application/octet-stream"
            execution.emit({"type": "file", "path": path, "size": size, "mime_type": kind})

    async def death(self, context):
        while await context.alive():
            await asyncio.sleep(0.2)

    async def deadline(self, context, execution):
        await asyncio.sleep(execution.timeout)
        await self.halt(context, execution, "TimeoutError", f"the time limit of {execution.timeout} s was reached")

    async def halt(self, context, execution, name, value):
        """Interrupts an execution; a kernel that does not heed it ends."""
        if context.current is not execution:
            return
        execution.halted = (name, value)
        if context.is_python:
            await context.interrupt()
            await asyncio.sleep(GRACE)
            value += "; the kernel did not stop, so it was ended, and its variables are gone"
        else:
            value += "; a JavaScript kernel ends with that, and its variables are gone"
        if context.current is execution:
            execution.stop(name, value)

    async def talk(self, context, execution):
        """From the request to what the kernel says last about it."""
        client = context.client
        if execution.envs:
            await self.silently(context, set_envs(context, execution.envs))
        message = client.execute(execution.code, allow_stdin=False, stop_on_error=False)
        await self.listen(context, message, execution)
        if execution.envs and context.is_python:
            await self.silently(context, '__import__("nullspace_env").pop()')
        if not context.is_python:
            # Deno may say that it is idle before it has said everything: what a second piece of code says comes after.
            mark = secrets.token_hex(8)
            code = f"{unset_envs(execution.envs)}console.log({mark!r}); console.error({mark!r}); {mark!r}"
            await self.listen(context, message, execution, client.execute(code, store_history=False), mark)

    async def silently(self, context, code):
        message = context.client.execute(code, silent=True, store_history=False, allow_stdin=False)
        await self.listen(context, message, None)

    async def listen(self, context, message, execution, last=None, mark=None):
        """Hands on what the kernel says about `message`, until it is idle again or has said all of `mark`."""
        marks = 0
        while True:
            said = await context.client.get_iopub_msg(timeout=None)
            parent, kind, content = said["parent_header"].get("msg_id"), said["msg_type"], said["content"]
            if mark and parent == last:
                if mark in json.dumps(content):
                    marks += 1 if kind in ("stream", "execute_result") else 0
                    if marks == 3:
                        return
                    continue
                # What the first piece of code said late may carry the name of the second.
                if kind in ("status", "execute_input"):
                    continue
            elif parent != message:
                continue
            if kind == "status":
                if content["execution_state"] == "idle" and last is None:
                    return
            elif execution is not None:
                self.hand_on(context, execution, kind, content)

    def hand_on(self, context, execution, kind, content):
        if kind == "stream":
            execution.stream(content.get("name"), content.get("text", ""))
        elif kind in ("execute_result", "display_data", "update_display_data"):
            execution.result(content.get("data"), kind == "execute_result")
        elif kind == "execute_input":
            # Deno counts what the bridge runs, too.
            context.count += 1
            count = content.get("execution_count", 0) if context.is_python else context.count
            execution.emit({"type": "count", "execution_count": count})
        elif kind == "error":
            traceback = "\n".join(map(str, content.get("traceback") or []))
            halted = getattr(execution, "halted", None)
            if halted:
                execution.error(*halted, traceback)
            else:
                execution.error(str(content.get("ename", "Error")), str(content.get("evalue", "")), traceback)

    async def cancel(self, run):
        execution = run.execution
        if run.ended:
            return "ended"
        execution.cancelled = True
        if run.context.current is execution:
            self.keep(self.halt(run.context, execution, "Cancelled", "the run was cancelled"))
            return "running"
        return "queued"

    async def restart(self, wanted):
        context = self.context(wanted)
        context.lost, context.renew = None, True
        current = context.current
        if current is not None:
            # What waits is not waited for: the first of it begins with the fresh kernel.
            current.stop("KernelRestarted", "the context was restarted while the code ran")
            await current.done.wait()
            return
        async with context.turn:
            if context.renew:
                context.renew = False
                await context.stop()
                await context.start()

    async def close(self, wanted):
        context = self.contexts.pop(wanted["id"], None)
        if context is None:
            return
        context.closed = True
        if context.current is not None:
            context.current.stop("ContextRemoved", "the context was removed while the code ran")
        async with context.turn:
            await context.stop()

    async def answer(self, request, reader, send):
        op = request.get("op")
        if op == "execute":
            context, execution, _ = self.queue(request)
            await send({"ok": True, "instance": self.instance})
            await self.stream(context, execution, reader, send)
        elif op == "run":
            if request["run"] not in self.runs:
                self.forget_old_runs()
                context, execution, task = self.queue(request)
                run = self.runs[request["run"]] = Run(request["run"], context, execution)
                run.task = self.keep(run.follow())
            await send({"ok": True, "instance": self.instance})
        elif op == "attach":
            run = self.run(request)
            await send({"ok": True, "instance": self.instance})
            async for event in run.events():
                await send(event)
        elif op == "cancel":
            await send({"ok": True, "was": await self.cancel(self.run(request))})
        elif op == "forget":
            self.runs.pop(request["run"], None)
            await send({"ok": True})
        elif op == "open":
            context = self.context(request["context"])
            async with context.turn:
                if context.manager is None:
                    await context.start()
            await send({"ok": True, "instance": self.instance})
        elif op == "close":
            await self.close(request["context"])
            await send({"ok": True})
        elif op == "restart":
            await self.restart(request["context"])
            await send({"ok": True, "instance": self.instance})
        elif op == "interrupt":
            await self.context(request["context"]).interrupt()
            await send({"ok": True})
        else:
            raise Refused("unknown", f"unknown request {op!r}")

    def run(self, request):
        run = self.runs.get(request["run"])
        if run is None:
            raise Refused("no_run", "no such run")
        return run

    def forget_old_runs(self):
        ended = [ident for ident, run in self.runs.items() if run.ended]
        for ident in ended[: max(0, len(ended) - MOST_RUNS + 1)]:
            del self.runs[ident]

    async def stream(self, context, execution, reader, send):
        gone = asyncio.ensure_future(reader.read(1))
        try:
            while True:
                event = asyncio.ensure_future(execution.events.get())
                await asyncio.wait({event, gone}, return_when=asyncio.FIRST_COMPLETED)
                if not event.done():
                    event.cancel()
                    return
                await send(event.result())
                if event.result()["type"] == "end":
                    return
        finally:
            gone.cancel()
            # Nobody listens any more: what still runs is stopped, what waits does not begin.
            execution.cancelled = True
            if context.current is execution:
                self.keep(self.halt(context, execution, "Cancelled", "the caller went away"))

    async def serve(self, reader, writer):
        async def send(value):
            writer.write(line(value))
            await writer.drain()

        try:
            try:
                request = json.loads(await reader.readline())
                if not hmac.compare_digest(str(request.pop("token", "")), self.token):
                    raise Refused("token", "not the word")
                await self.answer(request, reader, send)
            except Refused as error:
                await send({"ok": False, "code": error.code, "message": str(error)[:CHUNK]})
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                await send({"ok": False, "code": "request", "message": f"{type(error).__name__}: {error}"[:CHUNK]})
        except (ConnectionError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.close()


def set_envs(context, envs):
    if context.is_python:
        return f'__import__("nullspace_env").push({envs!r})'
    kept = "globalThis[Symbol.for('nullspace.env')]"
    return f"{kept} = Object.entries({json.dumps(envs)}).map(([k, v]) => {{ const o = Deno.env.get(k); Deno.env.set(k, v); return [k, o]; }}); undefined"


def unset_envs(envs):
    if not envs:
        return ""
    kept = "globalThis[Symbol.for('nullspace.env')]"
    return f"{kept}.forEach(([k, o]) => o === undefined ? Deno.env.delete(k) : Deno.env.set(k, o)); "


async def main():
    bridge = Bridge()
    server = await asyncio.start_server(bridge.serve, "127.0.0.1", 0, limit=MOST_REQUEST)
    port = server.sockets[0].getsockname()[1]
    print(json.dumps({"port": port, "token": bridge.token, "instance": bridge.instance}), flush=True)
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    # A terminal's interrupt is meant for kernels.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    await ended.wait()
    for context in bridge.contexts.values():
        await context.stop()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
