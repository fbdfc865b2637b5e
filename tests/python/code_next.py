"""Code in kernels with the published SDK 1.0.3, which says `machine` where 0.1.9 says `sandbox`."""

from nullspace import Machine
from nullspace.errors import NotFoundError


def main():
    box = Machine.create(template="code-interpreter", timeout=600)
    interpreter = box.code_interpreter
    out = []
    done = box.run_code("print('hi'); 6 * 7", on_stdout=lambda m: out.append(m.line))
    assert out == ["hi\n"] and done.results[0].text == "42", done
    context = interpreter.create_code_context(language="javascript")
    assert context.language == "javascript"
    assert box.run_code("1 + 1", context=context).results[0].text == "2"
    interpreter.restart_code_context(context)
    interpreter.interrupt_code_context(context)
    interpreter.remove_code_context(context)
    context = interpreter.create_code_context()
    run = interpreter.create_run("from IPython.display import HTML\nHTML('<p>')", context=context)
    assert run.machine_id == box.id
    done = interpreter.wait_for_run(run.id, poll_interval=0.05)
    assert done.status == "succeeded", done
    assert [r.id for r in interpreter.list_runs(status="succeeded")["items"]] == [run.id]
    (artifact,) = interpreter.list_artifacts(kind="html")["items"]
    assert interpreter.download_artifact(artifact["id"]) == b"<p>"
    interpreter.delete_artifact(artifact["id"])
    try:
        interpreter.get_artifact(artifact["id"])
    except NotFoundError:
        pass
    else:
        raise AssertionError("it is still there")
    box.kill()
    print("ok")


main()
