"""Runs inside a machine: `git_server.py ROOT PORT USER DIGEST`. Git's own `http-backend` behind a small HTTP server: below
/open/ for everybody, below /private/ for USER and the password with that SHA-256, which is therefore nowhere in the machine.
/moved/HOST/… leads to http://HOST/…, and below /slow/ an answer takes as long as the file /srv/slow is there."""

import base64
import hashlib
import os
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ROOT, PORT, USER, DIGEST = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def knows(self):
        scheme, _, given = self.headers.get("Authorization", "").partition(" ")
        if scheme != "Basic":
            return False
        user, _, password = base64.b64decode(given).decode().partition(":")
        return user == USER and hashlib.sha256(password.encode()).hexdigest() == DIGEST

    def body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        whole = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            whole += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return whole

    def refuse(self, status, headers=()):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def serve(self):
        body = self.body()
        path, _, query = self.path.partition("?")
        if path.startswith("/moved/"):
            return self.refuse(301, [("Location", "http://" + self.path[len("/moved/"):])])
        while path.startswith("/slow/") and os.path.exists("/srv/slow"):
            time.sleep(0.05)
        if not path.startswith(("/open/", "/slow/")) and not self.knows():
            return self.refuse(401, [("WWW-Authenticate", 'Basic realm="private"')])
        env = {
            "PATH": os.environ["PATH"],
            "GIT_PROJECT_ROOT": ROOT,
            "GIT_HTTP_EXPORT_ALL": "1",
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "safe.directory",
            "GIT_CONFIG_VALUE_0": "*",
            "REMOTE_USER": USER,
            "REMOTE_ADDR": self.client_address[0],
            "REQUEST_METHOD": self.command,
            "PATH_INFO": path.replace("/slow/", "/open/", 1),
            "QUERY_STRING": query,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
        }
        done = subprocess.run(["git", "http-backend"], input=body, env=env, stdout=subprocess.PIPE, check=True)
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        headers = [line.partition(": ")[::2] for line in head.decode().split("\r\n")]
        status = next((int(value.split()[0]) for name, value in headers if name == "Status"), 200)
        self.send_response(status)
        for name, value in headers:
            if name != "Status":
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = serve


ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
