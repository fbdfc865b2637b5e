"""Two guests of the TypeScript example's room, over WebSocket through the service's address.

    python room.py URL
"""

import asyncio
import json
import sys
import urllib.request

import websockets

URL = sys.argv[1].rstrip("/")


async def main():
    room = URL.replace("http", "ws", 1) + "/room"
    async with websockets.connect(room) as ann, websockets.connect(room) as bob:
        you = [json.loads(await guest.recv())["you_are"] for guest in (ann, bob)]
        assert sorted(you) == [1, 2], you
        await ann.send("hello from one of us")
        for guest in (ann, bob):
            heard = json.loads(await guest.recv())
            assert (heard["from"], heard["text"]) == (you[0], "hello from one of us"), heard
    with urllib.request.urlopen(f"{URL}/messages") as answer:
        messages = json.load(answer)["messages"]
    assert [message["text"] for message in messages] == ["hello from one of us"], messages


asyncio.run(main())
