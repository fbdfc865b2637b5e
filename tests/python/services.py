"""Services with the published SDK, and their addresses with curl, urllib and WebSocket.

    python services.py PROJECT_DIR

The project runs `web.py`.
"""

import asyncio
import hashlib
import http.client
import json
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import websockets

from nullspace import AgentDeployment, AsyncAgentDeployment, Sandbox
from nullspace.errors import NotFoundError, SandboxError

PROJECT = Path(sys.argv[1])
BIG = 64 << 20


def fetch(url, data=None, method=None):
    with urllib.request.urlopen(urllib.request.Request(url, data=data, method=method), timeout=60) as answer:
        return json.load(answer)


def until(what, limit=120):
    """The first true thing that it gives."""
    deadline = time.monotonic() + limit
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.05)
    return found


def start(deployment, **arguments):
    service = deployment.start_service(**arguments)
    assert service.status in ("starting", "ready"), service
    return until(lambda: (now := deployment.get_service(service.id)).status != "starting" and now)


def messages(deployment, service):
    return [event.message for event in deployment.iter_service_logs(service.id)]


def bodies(url):
    data = bytes(range(256)) * (BIG // 256)
    wanted = {"length": BIG, "sha256": hashlib.sha256(data).hexdigest()}
    assert fetch(url, data) == wanted
    # The same without a length said before.
    place = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(place.hostname, place.port, timeout=60)
    connection.request("POST", "/", (data[at : at + 100_000] for at in range(0, BIG, 100_000)), encode_chunked=True)
    assert json.load(connection.getresponse()) == wanted
    # And down, on the same connection.
    connection.request("GET", f"/bytes/{BIG}")
    digest = hashlib.sha256()
    answer = connection.getresponse()
    while piece := answer.read(1 << 16):
        digest.update(piece)
    assert digest.hexdigest() == wanted["sha256"]
    connection.close()


def streams(url, deployment, service):
    with urllib.request.urlopen(f"{url}/events", timeout=60) as answer:
        # The second event is written when the first is here.
        assert answer.readline() == b"data: first\n"
        fetch(url, b"", "PUT")
        assert answer.read() == b"\ndata: second\n\n"
    with urllib.request.urlopen(f"{url}/endless", timeout=60) as answer:
        answer.readline()
    until(lambda: "the reader has gone" in messages(deployment, service))


def headers(url):
    curl = ["curl", "--silent", "--show-error", "--fail", "-H", "X-Mine: one", f"{url}/headers?a=b%20c&d"]
    seen = json.loads(subprocess.run(curl, check=True, capture_output=True).stdout)
    assert (seen["path"], seen["query"]) == ("/headers", "a=b%20c&d"), seen
    names = {name.lower(): value for name, value in seen["headers"].items()}
    assert names["x-mine"] == "one" and names["host"] == urllib.parse.urlsplit(url).netloc, seen
    assert names["x-forwarded-proto"] == "http" and names["x-forwarded-for"] == "127.0.0.1", seen


async def sockets(url):
    async with websockets.connect(url.replace("http", "ws", 1) + "/socket", max_size=None) as socket:
        for text in ("hello", "é" * 1000, "x" * (1 << 20)):
            await socket.send(text)
            assert await socket.recv() == text
        await socket.send(b"\x00\xff")
        assert await socket.recv() == b"\x00\xff"
        await (await socket.ping())


def life():
    deployment, first, _ = AgentDeployment.deploy(PROJECT)
    service = start(deployment, envs={"TOKEN": "from a client"}, idempotency_key="one")
    assert service.status == "ready", (service, messages(deployment, service))
    assert deployment.start_service(envs={"TOKEN": "from a client"}, idempotency_key="one").id == service.id
    url = deployment.service_url(service.id).public_url
    assert url == service.public_url and service.port == 8080
    assert fetch(url)["token"] == "from a client"
    headers(url)
    streams(url, deployment, service)
    bodies(url)
    asyncio.run(sockets(url))

    # A new version: same service, same address, another machine. Variables are those given with it.
    (PROJECT / "version").write_text("two")
    deployment, second, _ = AgentDeployment.deploy(PROJECT)
    moved = deployment.restart_service(service.id, reason="a new version", envs={"TOKEN": "second"})
    assert moved.id == service.id
    moved = until(
        lambda: (now := deployment.get_service(service.id)).version_id == second.id and now.status == "ready" and now
    )
    assert moved.sandbox_id != service.sandbox_id
    assert deployment.service_url(service.id).public_url == url
    answer = fetch(url)
    assert (answer["version"], answer["token"]) == ("two", "second"), answer
    assert Sandbox.connect(moved.sandbox_id).commands.run("cat", args=["/workspace/project/version"]).stdout == "two"
    assert [s.id for s in deployment.list_services(status="ready").items] == [service.id]

    deployment.restart_service(service.id)
    until(lambda: fetch(url)["token"] is None)

    stopped = deployment.stop_service(service.id, reason="enough", retain_sandbox=True)
    stopped = until(lambda: (now := deployment.get_service(service.id)).status == "stopped" and now)
    machine = deployment.connect_sandbox(stopped)
    assert machine.commands.run("cat", args=["version"]).stdout == "two"
    machine.kill()
    assert stopped.public_url is None
    try:
        fetch(url)
        raise AssertionError("it still answers")
    except urllib.error.URLError:
        pass
    told = [event.event_type for event in deployment.iter_service_logs(service.id)]
    assert told.count("service_ready") >= 1 and "service_stopped" in told, told
    # A stopped one starts again.
    deployment.restart_service(service.id, envs={"TOKEN": "third"})
    until(lambda: deployment.get_service(service.id).status == "ready")
    assert fetch(deployment.service_url(service.id).public_url)["token"] == "third"
    for call, error in [
        (lambda: deployment.get_service("adsvc_none"), NotFoundError),
        (lambda: deployment.start_service(version_id="adver_none"), NotFoundError),
    ]:
        try:
            call()
            raise AssertionError("no error")
        except error:
            pass
    deployment.delete()
    assert AgentDeployment.get(deployment.id).status == "deleted"


async def asynchronous():
    made, _, _ = AgentDeployment.deploy(PROJECT)
    deployment = await AsyncAgentDeployment.get(made.id)
    service = await deployment.start_service(envs={"TOKEN": "async"})
    async for event in deployment.iter_service_logs(service.id, follow=True, poll_interval=0.05):
        if event.event_type == "service_ready":
            break
    url = (await deployment.service_url(service.id)).public_url
    answer = await asyncio.to_thread(fetch, url)
    assert answer["token"] == "async", answer
    stopped = await deployment.stop_service(service.id)
    assert stopped.status in ("stopping", "stopped"), stopped
    await deployment.delete()


def refused():
    config = (PROJECT / "nullspace.agent.toml").read_text()
    (PROJECT / "nullspace.agent.toml").write_text(config + '[env]\nrequired = ["TOKEN"]\n')
    deployment, _, _ = AgentDeployment.deploy(PROJECT)
    before = len(Sandbox.list())
    try:
        deployment.start_service()
        raise AssertionError("it started")
    except SandboxError as error:
        assert error.code == "invalid_request" and "TOKEN" in str(error), error
    assert len(Sandbox.list()) == before
    deployment.delete()


life()
asyncio.run(asynchronous())
refused()
print("ok")
