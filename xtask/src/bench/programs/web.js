// What the benchmark's services run: small answers, a stream with a pause in it, and a WebSocket that echoes.
"use strict";
const crypto = require("crypto");
const fs = require("fs");
const http = require("http");

const version = fs.readFileSync("version", "utf8").trim();

const server = http.createServer((request, response) => {
  request.resume();
  request.on("end", () => {
    if (request.url !== "/stream") return response.end(`version ${version}\n`);
    response.write("first\n");
    setTimeout(() => response.end(`version ${version}\n`), 500);
  });
});

server.on("upgrade", (request, socket, head) => {
  const key = request.headers["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
  const accept = crypto.createHash("sha1").update(key).digest("base64");
  socket.setNoDelay(true);
  socket.on("error", () => socket.destroy());
  socket.write(
    "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" +
      `Sec-WebSocket-Accept: ${accept}\r\n\r\n`,
  );
  // Short masked text frames are all that it is sent.
  let rest = head;
  socket.on("data", (data) => {
    rest = rest.length > 0 ? Buffer.concat([rest, data]) : data;
    while (rest.length >= 2) {
      const length = rest[1] & 0x7f;
      if (rest.length < 6 + length) return;
      const answer = Buffer.alloc(2 + length);
      answer[0] = 0x81;
      answer[1] = length;
      for (let n = 0; n < length; n++) answer[2 + n] = rest[6 + n] ^ rest[2 + (n & 3)];
      socket.write(answer);
      rest = rest.subarray(6 + length);
    }
  });
});

// Proxies keep connections: closing them in the middle of a measurement is not what is measured.
server.keepAliveTimeout = 600_000;
server.listen(process.env.PORT, "0.0.0.0");
