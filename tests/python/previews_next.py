"""Previews with the published SDK 1.0.3.

    python previews_next.py WEB_PY
"""

import asyncio
import json
import sys
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import websockets

from nullspace import Machine
from nullspace.errors import NotFoundError

WEB = Path(sys.argv[1]).read_text()


def fetch(url, headers={}):
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60) as answer:
        return json.load(answer)


def refused(url, status, code):
    try:
        fetch(url)
    except urllib.error.HTTPError as error:
        assert (error.code, json.load(error)["code"]) == (status, code), error.code
    else:
        raise AssertionError(f"{url} was let in")


def main():
    box = Machine.create(template="host", timeout=300)
    box.files.write("/srv/web.py", WEB)
    box.files.write("/srv/version", "one")
    box.commands.run("cd /srv && PORT=8080 exec /usr/bin/python3 web.py", shell=True, background=True)
    ready = box.wait_for_preview(8080, kind="http", timeout_secs=20, interval_ms=50)
    assert ready.ready and ready.machine_id == box.id, ready
    for preview in (box.get_preview_url(8080), box.create_signed_preview_url(8080, expires_in_seconds=120)):
        assert preview.grant.machine_id == box.id and preview.grant.status == "active", preview
        assert fetch(preview.url)["version"] == "one"

    async def socket():
        place = urllib.parse.urlsplit(preview.websocket_url)
        async with websockets.connect(urllib.parse.urlunsplit(place._replace(path="/socket"))) as socket:
            await socket.send("hello")
            assert await socket.recv() == "hello"

    asyncio.run(socket())
    told = {item.id: item for item in box.list_preview_urls(port=8080)}[preview.grant.id]
    assert (told.http_request_count, told.websocket_connection_count, told.use_count) == (1, 1, 2), told
    target = box.create_preview_proxy_target(8080, transports=["http", "websocket"])
    assert target.machine_id == box.id, target
    assert fetch(target.http_url, {target.token_header_name: target.http_token})["version"] == "one"
    refused(target.http_url, 401, "preview_proxy_token_missing")
    revoked = box.revoke_preview_url(preview.grant.id)
    assert revoked.success and revoked.grant.status == "revoked", revoked
    refused(preview.url, 401, "preview_grant_revoked")
    try:
        box.revoke_preview_url("pvg_none")
    except NotFoundError as error:
        assert error.code == "preview_grant_not_found", error.code
    else:
        raise AssertionError("revoked what never was")
    assert fetch(f"http://{box.get_host(8080)}")["version"] == "one"
    assert fetch(box.get_url(8080))["version"] == "one"
    box.kill()

    private = Machine.create(template="host", network={"allow_public_traffic": False})
    assert private.traffic_access_token, private
    private.kill()
    print("ok")


main()
