"""Code in kernels with the published SDK 0.1.9; address and key in the environment."""

import base64
import hashlib
import json
import threading
import time

from nullspace import Sandbox
from nullspace.errors import NotFoundError, NotImplementedError, SandboxError


def raises(kind, code, work):
    try:
        work()
    except kind as error:
        assert error.code == code, (error.code, error)
        return error
    raise AssertionError(f"no {kind.__name__}")


def printed(execution):
    return "".join(execution.logs.stdout)


def python(box):
    out, results, errors = [], [], []
    done = box.run_code(
        "import sys\nprint('one')\nprint('two', file=sys.stderr)\nx = 40\nx + 2",
        on_stdout=lambda m: out.append(m.line),
        on_result=results.append,
        on_error=errors.append,
    )
    assert out == ["one\n"] and printed(done) == "one\n", out
    assert "".join(done.logs.stderr) == "two\n"
    assert done.results[-1].text == "42" and done.results[-1].is_main_result
    assert results == done.results and not errors and done.error is None
    first = done.execution_count
    assert box.run_code("x").results[0].text == "40", "variables stay"
    assert box.run_code("x").execution_count == first + 2

    failed = box.run_code("def f():\n    raise ValueError('no such thing')\nf()")
    assert (failed.error.name, failed.error.value) == ("ValueError", "no such thing")
    assert "in f()" in failed.error.traceback and "\x1b" not in failed.error.traceback
    assert box.run_code("1 +").error.name == "SyntaxError"

    assert box.run_code("import os; os.environ['K']", envs={"K": "it's"}).results[0].text == '"it\'s"'
    assert box.run_code("os.environ.get('K', 'none')").results[0].text == "'none'", "for one execution alone"
    assert box.run_code("os.environ['OF_MACHINE']").results[0].text == "'yes'"
    assert box.run_code("os.getcwd()").results[0].text == "'/workspace'"

    # What a shell, a terminal and a cell install and import is one and the same.
    done = box.install_packages(["humanize"])
    assert done.error is None and "Successfully installed" in printed(done), printed(done)
    assert box.run_code("import humanize").error is None
    assert box.commands.run("python3 -c 'import humanize, pandas'", shell=True, timeout=60).exit_code == 0


def rich(box):
    code = """
from IPython.display import display, HTML, Markdown, JSON
shown = display(HTML("<b>1</b>"), display_id=True)
shown.update(HTML("<i>2</i>"))
display(Markdown("# title"))
display(JSON({"a": [1]}))
import pandas as pd
pd.DataFrame({"a": [1, 2]})
"""
    done = box.run_code(code)
    one, two, title, data, frame = done.results
    assert (one.html, two.html, title.markdown) == ("<b>1</b>", "<i>2</i>", "# title")
    assert data.json == {"a": [1]} and data.data["application/json"] == {"a": [1]}
    assert not one.is_main_result and frame.is_main_result
    assert "<table" in frame.html and "a" in frame.text
    kinds = sorted(a.kind for a in done.artifacts)
    assert kinds == ["document", "html", "html", "html"], kinds


def chart(box, code):
    done = box.run_code("import matplotlib.pyplot as plt\n" + code + "\nplt.show()")
    assert done.error is None, done.error
    (result,) = [r for r in done.results if r.png]
    assert base64.b64decode(result.png).startswith(b"\x89PNG")
    assert result.chart is not None and not any("nullspace" in kind for kind in result.data)
    return result.chart


def charts(box):
    bar = chart(
        box,
        "plt.bar(['a', 'b'], [1, 2.5], label='north')\nplt.title('t')\nplt.xlabel('x')\nplt.ylabel('y')",
    )
    assert (bar.type, bar.title, bar.x_label, bar.y_label) == ("bar", "t", "x", "y")
    assert [(e.label, e.value, e.group) for e in bar.elements] == [("a", 1, "north"), ("b", 2.5, "north")]
    pie = chart(box, "plt.pie([30, 50], labels=['p', 'q'])")
    assert pie.type == "pie" and [(e.label, e.value) for e in pie.elements] == [("p", 30), ("q", 50)], pie
    line = chart(box, "plt.plot([1, 2], [3, 4.5], label='up')\nplt.plot([1], [0])")
    points = [(e.x, e.y, e.group) for e in line.elements]
    assert line.type == "line" and points == [(1, 3, "up"), (2, 4.5, "up"), (1, 0, None)], points
    dots = chart(box, "plt.scatter([1, 2], [3, 4])")
    assert dots.type == "scatter" and [(e.x, e.y) for e in dots.elements] == [(1, 3), (2, 4)]
    whiskers = chart(box, "plt.boxplot([[1, 2, 3, 4], [2, 3, 9]], tick_labels=['p', 'q'])")
    assert whiskers.type == "box_and_whisker", whiskers
    first = whiskers.elements[0]
    assert (first.label, first.min, first.q1, first.median, first.q3, first.max) == ("p", 1, 1.75, 2.5, 3.25, 4)
    both = chart(box, "f, (a, b) = plt.subplots(1, 2)\na.plot([1], [2])\nb.bar(['z'], [3])")
    assert both.type == "superchart" and [e["type"] for e in both.elements] == ["line", "bar"]


def contexts(box):
    interpreter = box.code_interpreter
    box.files.make_dir("/data/here")
    context = interpreter.create_code_context(cwd="/data/here/", language="python")
    assert (context.language, context.cwd) == ("python3", "/data/here")
    assert context.id in [c.id for c in interpreter.list_code_contexts()]
    assert box.run_code("import os; os.getcwd()", context=context).results[0].text == "'/data/here'"
    box.run_code("mine = 1", context=context)
    assert box.run_code("mine").error.name == "NameError", "each context has its own variables"
    # The context counts, not the language.
    assert box.run_code("mine", context=context, language="javascript").results[0].text == "1"
    interpreter.restart_code_context(context)
    done = box.run_code("mine", context=context)
    assert done.error.name == "NameError" and done.execution_count == 1
    raises(SandboxError, "invalid_request", lambda: interpreter.create_code_context(cwd="/nowhere"))
    raises(SandboxError, "invalid_request", lambda: interpreter.create_code_context(cwd="/workspace/.nullspace"))
    raises(SandboxError, "invalid_request", lambda: interpreter.create_code_context(language="cobol"))
    interpreter.remove_code_context(context)
    raises(NotFoundError, "not_found", lambda: box.run_code("1", context=context))
    raises(NotFoundError, "not_found", lambda: interpreter.remove_code_context(context))


def ends(box):
    """What stops code before its end."""
    interpreter = box.code_interpreter
    context = interpreter.create_code_context()
    box.run_code("kept = 7", context=context)
    late = box.run_code("import time\ntime.sleep(60)", context=context, timeout=1)
    assert late.error.name == "TimeoutError", late.error
    assert box.run_code("kept", context=context).results[0].text == "7", "a time limit interrupts"

    def interrupt(message):
        interpreter.interrupt_code_context(context)

    stopped = box.run_code("print('on', flush=True)\ntime.sleep(60)", context=context, on_stdout=interrupt)
    assert stopped.error.name == "KeyboardInterrupt", stopped.error
    assert box.run_code("kept", context=context).results[0].text == "7"
    shell = box.run_code("!echo on; sleep 60", context=context, on_stdout=interrupt)
    assert shell.error is None or shell.error.name == "KeyboardInterrupt", shell.error

    died = box.run_code("import os\nos._exit(3)", context=context)
    assert died.error.name == "KernelDied", died
    fresh = box.run_code("kept", context=context)
    assert fresh.error.name == "NameError", "a fresh kernel"
    box.run_code("kept = 8", context=context)
    box.commands.run("pkill -9 -f '[k]ernel.py'", shell=True)
    lost = box.run_code("kept", context=context)
    assert lost.error.name == "KernelDied", lost
    assert box.run_code("1", context=context).results[0].text == "1"
    memory = box.run_code("x = bytearray(8 << 30)\nx[::4096] = b'1' * len(x[::4096])", context=context)
    assert memory.error.name in ("MemoryError", "KernelDied"), memory.error
    assert box.run_code("2", context=context).results[0].text == "2"

    # What runs the kernels ends: said once, then all begins anew.
    box.run_code("kept = 9", context=context)
    box.commands.run("pkill -9 -f '[b]ridge.py'", shell=True)
    lost = box.run_code("kept", context=context)
    assert lost.error.name == "KernelLost", lost
    assert box.run_code("kept", context=context).error.name == "NameError"

    # One at a time, in their order.
    runs = threading.Event()
    first = "print('on', flush=True)\nimport time\ntime.sleep(1)\norder = 'first'"
    waits = threading.Thread(target=lambda: box.run_code(first, context=context, on_stdout=lambda m: runs.set()))
    waits.start()
    runs.wait()
    assert box.run_code("order", context=context).results[0].text == "'first'"
    waits.join()

    # A client that goes away interrupts its code.
    box.run_code("import time\nended = None", context=context)
    stream = box._client.request_stream(
        "POST",
        f"/v1/sandboxes/{box.id}/code/execute",
        json={
            "code": "print('on', flush=True)\ntry:\n    time.sleep(60)\nfinally:\n    ended = True",
            "context_id": context.id,
        },
    )
    assert any(event["type"] == "stdout" for event in stream)
    stream.close()
    assert box.run_code("ended", context=context).results[0].text == "True"

    # What is printed is bounded, and however much it is the kernel goes on.
    sizes = []
    box.run_code("print('x' * 50_000_000)\n'after'", context=context, on_stdout=lambda m: sizes.append(len(m.line)))
    assert 30_000_000 < sum(sizes) < 34_000_000, sum(sizes)
    interpreter.remove_code_context(context)


def quiet(box, answers):
    """Code that says nothing for longer than a client waits for a byte."""
    patient = Sandbox.connect(box.id)
    assert patient._client._client.timeout.read == 30
    context = patient.code_interpreter.create_code_context()
    answers.append(patient.run_code("import time\ntime.sleep(33)\n'done'", context=context).results[0].text)


def javascript(box):
    done = box.run_code(
        "const a: number = 41; console.log('out'); console.error('err'); a + 1", language="typescript"
    )
    assert printed(done) == "out\n" and "".join(done.logs.stderr) == "err\n", done
    assert done.results[0].text == "42" and done.results[0].is_main_result and done.execution_count == 1
    assert box.run_code("a + 2", language="ts").results[0].text == "43", "variables stay"
    failed = box.run_code("throw new TypeError('no')", language="typescript")
    assert failed.error.name == "TypeError" and failed.error.value == "no", failed.error
    code = "Deno.env.get('K') ?? 'none'"
    assert box.run_code(code, language="ts", envs={"K": "v"}).results[0].text == '"v"'
    assert box.run_code(code, language="ts").results[0].text == '"none"'
    shown = box.run_code("await Deno.jupyter.display({'text/html': '<b>x</b>'}, {raw: true}); 1", language="ts")
    assert [r.html for r in shown.results] == ["<b>x</b>", None], shown
    late = box.run_code("while (true) {}", language="ts", timeout=1)
    assert late.error.name == "TimeoutError" and "variables are gone" in late.error.value
    assert box.run_code("typeof a", language="ts").results[0].text == '"undefined"', "a fresh kernel"
    many = box.run_code("for (let i = 0; i < 2000; i++) console.log(i); 'end'", language="js")
    assert printed(many) == "".join(f"{i}\n" for i in range(2000))
    assert many.results[0].text == '"end"'


def runs(box):
    interpreter = box.code_interpreter
    context = interpreter.create_code_context()
    run = interpreter.create_run("print('in'); import os; os.environ['K']", context=context, envs={"K": "v"}, timeout=60)
    assert run.status in ("queued", "running", "succeeded") and run.sandbox_id == box.id and run.timeout_secs == 60
    done = interpreter.wait_for_run(run.id, poll_interval=0.05)
    assert done.status == "succeeded" and done.started_at and done.completed_at and done.expires_at, done
    assert done.execution.results[0].text == "'v'" and printed(done.execution) == "in\n"
    failed = interpreter.wait_for_run(interpreter.create_run("1/0", context=context).id, poll_interval=0.05)
    assert failed.status == "failed" and failed.execution.error.name == "ZeroDivisionError"
    late = interpreter.create_run("import time; time.sleep(60)", context=context, timeout=1)
    late = interpreter.wait_for_run(late.id, poll_interval=0.05)
    assert late.status == "failed" and late.execution.error.name == "TimeoutError"

    long = interpreter.create_run("import time; kept = 1; time.sleep(60)", context=context)
    waiting = interpreter.create_run("never = 1", context=context)
    while interpreter.get_run(long.id).status != "running":
        time.sleep(0.02)
    assert interpreter.get_run(waiting.id).status == "queued"
    assert interpreter.cancel_run(waiting.id).status == "cancelled"
    assert interpreter.cancel_run(long.id).cancel_requested_at
    cancelled = interpreter.wait_for_run(long.id, poll_interval=0.05)
    assert cancelled.status == "cancelled" and cancelled.started_at
    assert box.run_code("kept", context=context).results[0].text == "1"
    assert box.run_code("never", context=context).error.name == "NameError"
    assert interpreter.cancel_run(long.id).status == "cancelled", "again is fine"

    page = interpreter.list_runs(limit=2)
    assert [r.id for r in page["items"]] == [waiting.id, long.id] and page["next_cursor"]
    rest = interpreter.list_runs(limit=50, cursor=page["next_cursor"])
    assert [r.id for r in rest["items"]] == [late.id, failed.id, run.id] and rest["next_cursor"] is None
    assert [r.id for r in interpreter.list_runs(status="succeeded")["items"]] == [run.id]
    assert interpreter.list_runs(context_id="ctx_none")["items"] == []
    raises(NotFoundError, "not_found", lambda: interpreter.get_run("crun_none"))
    raises(NotFoundError, "not_found", lambda: interpreter.create_run("1", context="ctx_none"))


def artifacts(box):
    interpreter = box.code_interpreter
    context = interpreter.create_code_context()
    code = """
import os
os.makedirs("/workspace/artifacts/sub", exist_ok=True)
open("/workspace/artifacts/sub/a.csv", "w").write("a,b\\n1,2\\n")
from IPython.display import display, SVG
display(SVG('<svg xmlns="http://www.w3.org/2000/svg"/>'))
"""
    seen = []
    done = box.run_code(code, context=context, on_artifact=seen.append)
    assert seen == done.artifacts and sorted(a.kind for a in seen) == ["file", "image"], seen
    (csv,) = [a for a in seen if a.kind == "file"]
    assert (csv.name, csv.mime_type, csv.size_bytes) == ("a.csv", "text/csv", 8), csv
    assert csv.metadata["path"] == "/workspace/artifacts/sub/a.csv" and csv.context_id == context.id
    assert csv.sha256 == hashlib.sha256(b"a,b\n1,2\n").hexdigest()
    # It stays what it was, whatever becomes of the file.
    box.files.write("/workspace/artifacts/sub/a.csv", "changed")
    assert interpreter.download_artifact(csv.id) == b"a,b\n1,2\n"
    assert interpreter.get_artifact(csv.id) == csv
    again = box.run_code("1", context=context)
    assert [a.name for a in again.artifacts] == ["a.csv"], "what changed meanwhile is one more"
    assert box.run_code("1", context=context).artifacts == []
    (svg,) = interpreter.list_artifacts(context_id=context.id, kind="image")["items"]
    assert interpreter.preview_artifact(svg["id"]).startswith(b"<svg")
    page = interpreter.list_artifacts(context_id=context.id, limit=2)
    assert len(page["items"]) == 2 and page["next_cursor"]
    rest = interpreter.list_artifacts(context_id=context.id, limit=2, cursor=page["next_cursor"])
    assert len(rest["items"]) == 1 and rest["next_cursor"] is None
    count = interpreter.list_artifacts(context_id=context.id, execution_count=1)
    assert len(count["items"]) == 2
    interpreter.delete_artifact(csv.id)
    raises(NotFoundError, "not_found", lambda: interpreter.download_artifact(csv.id))
    raises(NotFoundError, "not_found", lambda: interpreter.delete_artifact(csv.id))
    run = interpreter.create_run("from IPython.display import HTML\nHTML('<p>')", context=context)
    done = interpreter.wait_for_run(run.id, poll_interval=0.05)
    (html,) = done.execution.artifacts
    assert html.kind == "html" and html.metadata == {"run_id": run.id}
    assert interpreter.download_artifact(html.id) == b"<p>"
    return html.id


def main():
    box = Sandbox.create(template="code-interpreter", envs={"OF_MACHINE": "yes"}, timeout=600)
    assert box.get_info().config.memory_mb == 2048
    answers = []
    waiting = threading.Thread(target=quiet, args=(box, answers))
    waiting.start()
    for part in (python, rich, charts, contexts, javascript, runs):
        start = time.monotonic()
        part(box)
        print(f"{part.__name__}: {time.monotonic() - start:.1f} s", flush=True)
    html = artifacts(box)
    waiting.join()
    assert answers == ["'done'"], answers
    ends(box)
    offline = Sandbox.create(template="code-interpreter", internet_access=False, timeout=600)
    assert offline.run_code("1 + 1").results[0].text == "2"
    assert offline.run_code("1 + 1", language="javascript").results[0].text == "2"
    offline.kill()
    plain = Sandbox.create(template="base", timeout=600)
    refused = raises(NotImplementedError, "not_implemented", lambda: plain.run_code("1"))
    assert "base" in str(refused) and "kernels" in str(refused), refused
    plain.kill()
    # A handle asks no more once it has killed its machine.
    other = Sandbox.connect(box.id)
    box.kill()
    # Its artifacts are there for a while.
    assert other.code_interpreter.download_artifact(html) == b"<p>"
    raises(SandboxError, "sandbox_not_ready", lambda: other.run_code("1"))
    print(json.dumps({"ok": True}))


main()
