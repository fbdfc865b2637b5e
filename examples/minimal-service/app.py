"""A small HTTP service: Python's standard library and nothing else."""

import http.server
import json
import os
import signal
import sys
import time


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path == "/health":
            self.answer({"ok": True})
        elif self.path == "/":
            self.answer({"hello": "from a machine", "service": os.environ.get("NULLSPACE_SERVICE_ID")})
        elif self.path == "/stream":
            self.stream()
        else:
            self.answer({"error": f"nothing at {self.path}"}, 404)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.answer({"you_said": body.decode(errors="replace")})

    def answer(self, value, status=200):
        body = json.dumps(value).encode() + b"\n"
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def stream(self):
        """Server-sent events: each is there as soon as it is written."""
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        for number in range(5):
            self.wfile.write(f"data: {json.dumps({'number': number})}\n\n".encode())
            self.wfile.flush()
            time.sleep(0.2)

    def log_request(self, code="-", size="-"):
        # The readiness check asks every few seconds: not worth a line.
        if self.path != "/health":
            super().log_request(code, size)


# Asked to end: 10 seconds are left for what is under way.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
print("listening on port", os.environ["PORT"])
http.server.ThreadingHTTPServer(("0.0.0.0", int(os.environ["PORT"])), Handler).serve_forever()
