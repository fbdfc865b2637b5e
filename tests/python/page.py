"""A page for a browser, on the machine's own loopback: a script, data that it fetches and a WebSocket, none of which the
browser is given a token for. Standard library only.

    python3 page.py PORT
"""

import base64
import hashlib
import http.server
import sys
import threading

PAGE = b"<!doctype html><body><p id=told>nothing</p><script src=/app.js></script><img src=/held></body>"
SCRIPT = b"""
const told = document.getElementById("told");
const asked = new XMLHttpRequest();
asked.open("GET", "/data", false);
asked.send();
told.textContent = `data ${asked.status} ${asked.responseText} cookie [${document.cookie}]`;
const socket = new WebSocket(`ws://${location.host}/socket`);
socket.onmessage = (event) => {
  told.textContent += ` socket ${event.data}`;
  socket.send("seen");
};
"""
# The page counts as loaded when the script has told all.
seen = threading.Event()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path = self.path
        print(path, self.headers.get("cookie"), self.headers.get("referer"), flush=True)
        if path == "/socket":
            return self.socket()
        if path == "/held":
            seen.wait(60)
        kind, body = {
            "/": ("text/html", PAGE),
            "/app.js": ("text/javascript", SCRIPT),
            "/data": ("text/plain", b"fetched"),
        }.get(path, ("text/plain", b""))
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def socket(self):
        key = self.headers["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        self.send_response(101)
        self.send_header("upgrade", "websocket")
        self.send_header("connection", "upgrade")
        self.send_header("sec-websocket-accept", base64.b64encode(hashlib.sha1(key.encode()).digest()).decode())
        self.end_headers()
        self.wfile.write(b"\x81\x07welcome")
        self.close_connection = True
        if len(self.rfile.read(10)) == 10:
            seen.set()

    def log_message(self, *_):
        pass


http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
