"""Previews with the published SDK 0.1.9, opened with plain clients.

    python previews.py WEB_PY
"""

import asyncio
import hashlib
import http.client
import json
import sys
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import websockets

from nullspace import AsyncSandbox, Sandbox
from nullspace.errors import AuthError, ConflictError, NotFoundError, SandboxError

WEB = Path(sys.argv[1]).read_text()
BIG = 64 << 20


def fetch(url, data=None, method=None, headers={}):
    request = urllib.request.Request(url, data=data, method=method, headers=headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def refused(url, status, code, headers={}):
    try:
        fetch(url, headers=headers)
    except urllib.error.HTTPError as error:
        body = json.load(error)
        assert (error.code, body["code"]) == (status, code), (error.code, body)
    else:
        raise AssertionError(f"{url} was let in")


def raises(kind, code, work):
    try:
        work()
    except kind as error:
        assert error.code == code, (error.code, error)
        return
    raise AssertionError(f"no {kind.__name__}")


def at(url, path):
    """Another path with the same token."""
    place = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit(place._replace(path=path))


def serve(box, port=8080):
    box.files.write("/srv/web.py", WEB)
    box.files.write("/srv/version", "one")
    box.commands.run(f"cd /srv && PORT={port} exec /usr/bin/python3 web.py", shell=True, background=True)
    ready = box.wait_for_preview(port, kind="http", path="/", timeout_secs=20, interval_ms=50)
    assert ready.ready and ready.route_ready and ready.service_ready, ready
    assert (ready.sandbox_id, ready.port, ready.kind, ready.path) == (box.id, port, "http", "/"), ready


def bodies(url):
    data = bytes(range(256)) * (BIG // 256)
    wanted = {"length": BIG, "sha256": hashlib.sha256(data).hexdigest()}
    assert fetch(url, data) == wanted
    place = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(place.hostname, place.port, timeout=60)
    connection.request("GET", f"/bytes/{BIG}?{place.query}")
    digest = hashlib.sha256()
    answer = connection.getresponse()
    while piece := answer.read(1 << 16):
        digest.update(piece)
    assert digest.hexdigest() == wanted["sha256"]
    connection.close()


def events(url):
    with urllib.request.urlopen(at(url, "/events"), timeout=60) as answer:
        # The second event is written when the first is here.
        assert answer.readline() == b"data: first\n"
        fetch(url, b"", "PUT")
        assert answer.read() == b"\ndata: second\n\n"


async def sockets(preview, box):
    async with websockets.connect(at(preview.websocket_url, "/socket"), max_size=None) as socket:
        for text in ("hello", "é" * 1000, "x" * (1 << 20)):
            await socket.send(text)
            assert await socket.recv() == text
        # It ends with its grant.
        await asyncio.to_thread(box.revoke_preview_url, preview.grant.id)
        try:
            await asyncio.wait_for(socket.recv(), 30)
            raise AssertionError("it goes on")
        except websockets.ConnectionClosed:
            pass


def signed(box):
    preview = box.create_signed_preview_url(8080, expires_in_seconds=600)
    grant = preview.grant
    assert grant.id.startswith("pvg_") and grant.sandbox_id == box.id and grant.port == 8080, grant
    assert (grant.auth_mode, grant.bootstrap_transport, grant.status) == ("direct", "query", "active"), grant
    assert sorted(grant.token_kinds) == ["http_port", "websocket_port"], grant
    assert preview.access_token_transport == "query" and preview.access_token_expires_at == grant.expires_at
    assert fetch(preview.url)["version"] == "one"
    seen = fetch(at(preview.url, "/headers") + "&a=b%20c&d")
    assert (seen["path"], seen["query"]) == ("/headers", "a=b%20c&d"), seen
    assert "edge_token" not in json.dumps(seen), seen
    bodies(preview.url)
    events(preview.url)
    listed = {item.id: item for item in box.list_preview_urls(port=8080)}
    told = listed[grant.id]
    assert told.http_request_count == 6 and told.use_count == 6, told
    assert told.bytes_in_count == BIG and told.bytes_out_count > BIG, told
    assert told.first_used_at <= told.last_used_at, told
    assert box.list_preview_urls(port=8081) == []
    base = preview.url.partition("?")[0]
    refused(base, 401, "edge_token_missing")
    refused(base + "?edge_token=forged", 401, "edge_token_invalid")
    refused(preview.url[:-1] + ("0" if preview.url[-1] != "0" else "1"), 401, "edge_token_invalid")
    token = urllib.parse.urlsplit(preview.websocket_url).query
    refused(base + "?" + token, 403, "edge_token_scope_mismatch")
    # Another machine's.
    with Sandbox.create(template="host") as other:
        serve(other)
        theirs = other.get_preview_url(8080)
        refused(base + "?" + urllib.parse.urlsplit(theirs.url).query, 403, "edge_token_scope_mismatch")
        raises(NotFoundError, "preview_grant_not_found", lambda: other.revoke_preview_url(grant.id))
    asyncio.run(sockets(preview, box))
    refused(preview.url, 401, "preview_grant_revoked")
    again = box.revoke_preview_url(grant.id)
    assert again.success and again.grant.status == "revoked" and again.grant.revoked_at, again


def proxied(box):
    target = box.create_preview_proxy_target(8080, expires_in_seconds=600)
    assert target.sandbox_id == box.id and target.token_header_name == "x-nullspace-preview-proxy-token", target
    assert target.traffic_access_required is False and target.warnings == [], target
    header = {target.token_header_name: target.http_token}
    assert fetch(target.http_url, headers=header)["version"] == "one"
    seen = fetch(at(target.http_url, "/headers"), headers=header | {"x-forwarded-for": "203.0.113.9"})
    assert target.http_token not in json.dumps(seen), seen
    names = {name.lower(): value for name, value in seen["headers"].items()}
    assert names["x-forwarded-for"] == "203.0.113.9, 127.0.0.1", seen
    refused(target.http_url, 401, "preview_proxy_token_missing")
    wrong = {target.token_header_name: target.websocket_token}
    refused(target.http_url, 403, "preview_proxy_token_scope_mismatch", wrong)

    async def socket():
        url = at(target.websocket_url, "/socket")
        header = {target.token_header_name: target.websocket_token}
        async with websockets.connect(url, additional_headers=header) as socket:
            await socket.send("through a proxy")
            assert await socket.recv() == "through a proxy"

    asyncio.run(socket())
    only = box.create_preview_proxy_target(8080, transports=["http"], include_traffic_token_hint=False)
    assert only.websocket_token is None and only.websocket_url is None, only
    assert only.grant.token_kinds == ["http_port"] and only.traffic_access_required is None, only
    box.revoke_preview_url(target.grant.id)
    refused(target.http_url, 401, "preview_proxy_token_revoked", header)


def published(box):
    host = box.get_host(8080)
    assert fetch(f"http://{host}")["version"] == "one"
    assert fetch(box.get_url(8080))["version"] == "one"
    assert box.get_host(8080) == host
    refused(f"http://{host}/?edge_token=forged", 401, "edge_token_invalid")

    async def socket():
        async with websockets.connect(box.get_websocket_url(8080) + "/socket") as socket:
            await socket.send("open")
            assert await socket.recv() == "open"

    asyncio.run(socket())


def private():
    network = {"allow_public_traffic": False, "mask_request_host": "app-${PORT}.internal"}
    with Sandbox.create(template="host", network=network) as box:
        assert box.get_info().traffic_access_token is None
        token = box.traffic_access_token
        assert token, box
        serve(box)
        preview = box.get_preview_url(8080)
        refused(preview.url, 401, "unauthorized")
        header = {"x-nullspace-traffic-access-token": token}
        seen = fetch(at(preview.url, "/headers"), headers=header)
        names = {name.lower(): value for name, value in seen["headers"].items()}
        assert names["host"] == "app-8080.internal" and token not in json.dumps(seen), seen
        refused(at(preview.url, "/").partition("?")[0], 401, "edge_token_missing", header)
        target = box.create_preview_proxy_target(8080)
        assert target.traffic_access_required is True, target
        assert target.traffic_access_header_name == "x-nullspace-traffic-access-token", target
        host = box.get_host(8080)
        refused(f"http://{host}", 401, "unauthorized")
        assert fetch(f"http://{host}", headers=header)["version"] == "one"


def elsewhere(box):
    """On the machine's own loopback, on none of its addresses, and where nobody listens."""
    box.commands.run(
        "cd /srv && exec /usr/bin/python3 -m http.server 8090 --bind 127.0.0.1", shell=True, background=True
    )
    assert box.wait_for_preview(8090, timeout_secs=20, interval_ms=50).ready
    url = at(box.create_signed_preview_url(8090).url, "/version")
    with urllib.request.urlopen(url, timeout=60) as answer:
        assert answer.read() == b"one"
    ready = box.wait_for_preview(8091, timeout_secs=1, interval_ms=100)
    assert not ready.ready and ready.route_ready and not ready.service_ready, ready
    assert ready.code == "preview_service_not_ready" and ready.error and ready.suggested_action, ready
    refused(box.create_signed_preview_url(8091).url, 502, "service_unreachable")
    for port in (22, 5900, 5999):
        raises(SandboxError, "invalid_request", lambda: box.get_preview_url(port))
        raises(SandboxError, "invalid_request", lambda: box.get_host(port))


async def asynchronous(id):
    box = await AsyncSandbox.connect(id)
    preview = await box.create_signed_preview_url(8080)
    answer = await asyncio.to_thread(fetch, preview.url)
    assert answer["version"] == "one"
    assert (await box.wait_for_preview(8080)).ready
    assert preview.grant.id in [item.id for item in await box.list_preview_urls()]
    assert (await box.revoke_preview_url(preview.grant.id)).success


def main():
    box = Sandbox.create(template="host", timeout=600)
    serve(box)
    signed(box)
    proxied(box)
    elsewhere(box)
    asyncio.run(asynchronous(box.id))
    published(box)
    last = box.create_signed_preview_url(8080)
    same = Sandbox.connect(box.id)
    box.kill()
    try:
        fetch(last.url)
        raise AssertionError("it still answers")
    except urllib.error.URLError:
        pass
    told = {item.id: item for item in same.list_preview_urls()}[last.grant.id]
    assert told.status == "disabled" and told.disabled_at, told
    raises(ConflictError, "sandbox_not_ready", lambda: same.get_preview_url(8080))
    raises(NotFoundError, "sandbox_not_found", lambda: Sandbox.connect("mch_none").get_host(80))
    private()
    # The words of the edge are those that the SDK takes for a matter of keys.
    assert issubclass(AuthError, SandboxError)
    print("ok")


main()
