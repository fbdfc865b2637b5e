// HTTP and WebSocket on one port: a room whose messages reach everybody in it, and a page of them.

import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import { WebSocket, WebSocketServer } from "ws";

interface Message {
  from: number;
  text: string;
  at: string;
}

const messages: Message[] = [];
const port = Number(process.env.PORT ?? 3000);

function answer(response: ServerResponse, status: number, value: unknown): void {
  response.writeHead(status, { "content-type": "application/json" });
  response.end(JSON.stringify(value) + "\n");
}

const server = createServer((request: IncomingMessage, response: ServerResponse) => {
  switch (request.url) {
    case "/health":
      return answer(response, 200, { ok: true });
    case "/messages":
      return answer(response, 200, { messages });
    default:
      return answer(response, 404, { error: `nothing at ${request.url}` });
  }
});

const room = new WebSocketServer({ server, path: "/room" });
let guests = 0;

room.on("connection", (guest: WebSocket) => {
  const from = ++guests;
  guest.send(JSON.stringify({ you_are: from }));
  guest.on("message", (data) => {
    const message: Message = { from, text: data.toString(), at: new Date().toISOString() };
    messages.push(message);
    for (const other of room.clients) {
      if (other.readyState === WebSocket.OPEN) other.send(JSON.stringify(message));
    }
  });
});

process.on("SIGTERM", () => process.exit(0));
server.listen(port, "0.0.0.0", () => console.log(`listening on port ${port}`));
