"""The program of services under test: HTTP, streams, WebSocket and bodies of any size. Standard library only."""

import base64
import hashlib
import http.server
import json
import os
import pathlib
import signal
import sys
import time

VERSION = pathlib.Path("version").read_text().strip()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path, _, query = self.path.partition("?")
        match path.strip("/").split("/"):
            case ["bytes", count]:
                self.pieces(int(count))
            case ["events"]:
                self.events()
            case ["socket"]:
                self.socket()
            case ["endless"]:
                self.endless()
            case ["headers"]:
                self.answer({"path": path, "query": query, "headers": dict(self.headers.items())})
            case ["die"]:
                os._exit(9)
            case _:
                self.answer({"version": VERSION, "token": os.environ.get("TOKEN"), "pid": os.getpid()})

    def do_POST(self):
        """Says what it was sent, without holding it."""
        digest, length = hashlib.sha256(), 0
        for piece in self.body():
            digest.update(piece)
            length += len(piece)
        self.answer({"length": length, "sha256": digest.hexdigest()})

    def body(self):
        if self.headers.get("transfer-encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            left = int(self.headers.get("content-length", 0))
            while left > 0:
                piece = self.rfile.read(min(left, 1 << 16))
                left -= len(piece)
                yield piece

    def answer(self, value):
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def pieces(self, count):
        self.send_response(200)
        self.send_header("content-length", str(count))
        self.end_headers()
        piece = bytes(range(256)) * 256
        while count > 0:
            count -= self.wfile.write(piece[:count])

    def stream(self):
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()

    def events(self):
        """One event; the second when whoever reads the first has answered at /go."""
        self.stream()
        self.wfile.write(b"data: first\n\n")
        self.wfile.flush()
        while not os.path.exists("go"):
            time.sleep(0.01)
        self.wfile.write(b"data: second\n\n")

    def do_PUT(self):
        pathlib.Path("go").touch()
        self.answer({})

    def endless(self):
        """Until the reader is gone."""
        self.stream()
        try:
            while True:
                self.wfile.write(b"data: more\n\n")
                time.sleep(0.01)
        except OSError:
            print("the reader has gone", flush=True)

    def socket(self):
        key = self.headers["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        self.send_response(101)
        self.send_header("upgrade", "websocket")
        self.send_header("connection", "upgrade")
        self.send_header("sec-websocket-accept", base64.b64encode(hashlib.sha1(key.encode()).digest()).decode())
        self.end_headers()
        self.close_connection = True
        while (frame := self.frame()) is not None:
            first, data = frame
            if len(data) < 126:
                head = bytes([first, len(data)])
            elif len(data) < 1 << 16:
                head = bytes([first, 126]) + len(data).to_bytes(2, "big")
            else:
                head = bytes([first, 127]) + len(data).to_bytes(8, "big")
            self.wfile.write(head + data)
            if first & 15 == 8:
                return

    def frame(self):
        head = self.rfile.read(2)
        if len(head) < 2:
            return None
        length = head[1] & 127
        if length > 125:
            length = int.from_bytes(self.rfile.read(2 if length == 126 else 8), "big")
        mask = self.rfile.read(4)
        data = self.rfile.read(length)
        mask = (mask * (length // 4 + 1))[:length]
        return head[0], (int.from_bytes(data, "big") ^ int.from_bytes(mask, "big")).to_bytes(length, "big")

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = False
    request_queue_size = 256


def end(*_):
    print("told to end", flush=True)
    sys.exit(0)


signal.signal(signal.SIGTERM, end)
server = Server(("0.0.0.0", int(os.environ["PORT"])), Handler)
print("version", VERSION, "listens", flush=True)
server.serve_forever()
