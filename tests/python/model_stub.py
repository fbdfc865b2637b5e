"""A model server for the examples' tests: it runs inside the machine, beside the framework that is tested.

    python3 model_stub.py PORT CALLS.json

Speaks OpenAI's Chat Completions and Responses APIs and Anthropic's Messages API, streamed or not. Its mind is a script:
CALLS.json is a list of [tool, arguments]. For each message of the user it calls these tools in their order, each when
the result of the one before is there, and then answers with a text that has the results in it. A request that offers no
tools gets a text at once. It keeps nothing: all it knows is in the request.

It is back in its caller's hands when it listens, and goes on in the background; one that listens already is left alone.
"""

import errno
import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CALLS = []


class Refused(Exception):
    """The request is not what the script was written for."""


# --- what a request says, whichever API it came through


class Turn:
    def __init__(self):
        self.tools = set()
        self.users = []  # texts of the user, oldest first
        self.results = []  # what tools gave since the last of them

    def user(self, text):
        self.users.append(text)
        self.results = []

    def decide(self):
        """Answers with (tool, arguments), or (None, text)."""
        done = len(self.results)
        if self.tools and done < len(CALLS):
            tool, arguments = CALLS[done]
            if tool not in self.tools:
                raise Refused(f"no tool {tool} is offered, only {sorted(self.tools)}")
            return tool, arguments
        lines = [f"Message {len(self.users)} was: {self.users[-1] if self.users else ''}"]
        lines += [f"Tool result {number}: {result}" for number, result in enumerate(self.results, 1)]
        return None, "\n\n".join(lines)


def flat(content):
    """The text of a content: a string, or a list of typed parts."""
    if isinstance(content, str):
        return content
    texts = [part if isinstance(part, str) else part.get("text", "") for part in content or []]
    return "\n".join(text for text in texts if text)


def identity(prefix):
    return f"{prefix}_{os.urandom(12).hex()}"


# --- OpenAI, Chat Completions


def chat(request):
    turn = Turn()
    turn.tools = {tool["function"]["name"] for tool in request.get("tools") or []}
    for message in request["messages"]:
        if message["role"] == "user":
            turn.user(flat(message["content"]))
        elif message["role"] == "tool":
            turn.results.append(flat(message["content"]))
    tool, what = turn.decide()
    if tool:
        function = {"name": tool, "arguments": json.dumps(what)}
        calls = [{"id": identity("call"), "type": "function", "function": function}]
        message = {"role": "assistant", "content": None, "tool_calls": calls}
    else:
        message = {"role": "assistant", "content": what}
    base = {"id": identity("chatcmpl"), "created": int(time.time()), "model": request["model"]}
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    end = "tool_calls" if tool else "stop"
    if not request.get("stream"):
        choice = {"index": 0, "message": message, "finish_reason": end, "logprobs": None}
        return {**base, "object": "chat.completion", "choices": [choice], "usage": usage}

    def chunk(delta, end=None):
        choice = {"index": 0, "delta": delta, "finish_reason": end}
        return None, {**base, "object": "chat.completion.chunk", "choices": [choice]}

    def events():
        if tool:
            yield chunk({**message, "tool_calls": [{**calls[0], "index": 0}]})
        else:
            yield chunk({"role": "assistant", "content": ""})
            for piece in pieces(what):
                yield chunk({"content": piece})
        yield chunk({}, end)
        if (request.get("stream_options") or {}).get("include_usage"):
            yield None, {**base, "object": "chat.completion.chunk", "choices": [], "usage": usage}
        yield None, "[DONE]"

    return events()


# --- OpenAI, Responses


def responses(request):
    turn = Turn()
    turn.tools = {tool["name"] for tool in request.get("tools") or [] if tool["type"] == "function"}
    items = request["input"]
    for item in [{"role": "user", "content": items}] if isinstance(items, str) else items:
        if item.get("role") == "user":
            turn.user(flat(item["content"]))
        elif item.get("type") == "function_call_output":
            turn.results.append(flat(item["output"]))
    tool, what = turn.decide()
    if tool:
        item = {"type": "function_call", "id": identity("fc"), "call_id": identity("call"), "name": tool}
        item |= {"arguments": json.dumps(what), "status": "completed"}
    else:
        part = {"type": "output_text", "text": what, "annotations": [], "logprobs": []}
        item = {"type": "message", "id": identity("msg"), "role": "assistant", "status": "completed", "content": [part]}
    response = {
        "id": identity("resp"),
        "object": "response",
        "created_at": int(time.time()),
        "status": "completed",
        "model": request["model"],
        "output": [item],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": request.get("tools") or [],
        "usage": {
            "input_tokens": 10,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": 5,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 15,
        },
    }
    if not request.get("stream"):
        return response

    def events():
        number = 0

        def event(kind, **fields):
            nonlocal number
            number += 1
            return kind, {"type": kind, "sequence_number": number - 1, **fields}

        yield event("response.created", response={**response, "status": "in_progress", "output": [], "usage": None})
        here = {"output_index": 0, "item_id": item["id"]}
        if tool:
            begun = {**item, "arguments": "", "status": "in_progress"}
            yield event("response.output_item.added", output_index=0, item=begun)
            yield event("response.function_call_arguments.delta", **here, delta=item["arguments"])
            yield event("response.function_call_arguments.done", **here, name=tool, arguments=item["arguments"])
        else:
            begun = {**item, "content": [], "status": "in_progress"}
            yield event("response.output_item.added", output_index=0, item=begun)
            here["content_index"] = 0
            yield event("response.content_part.added", **here, part={**part, "text": ""})
            for piece in pieces(what):
                yield event("response.output_text.delta", **here, delta=piece, logprobs=[])
            yield event("response.output_text.done", **here, text=what, logprobs=[])
            yield event("response.content_part.done", **here, part=part)
        yield event("response.output_item.done", output_index=0, item=item)
        yield event("response.completed", response=response)

    return events()


# --- Anthropic, Messages


def messages(request):
    turn = Turn()
    turn.tools = {tool["name"] for tool in request.get("tools") or []}
    for message in request["messages"]:
        content = message["content"]
        if message["role"] != "user":
            continue
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        results = [flat(part.get("content")) for part in parts if part["type"] == "tool_result"]
        turn.results += results
        # What a client adds by itself, beside a result or in a message of its own, is no word of the user.
        text = flat([part for part in parts if not part.get("text", "").startswith("<system-reminder>")])
        if text and not results:
            turn.user(text)
    tool, what = turn.decide()
    if tool:
        block = {"type": "tool_use", "id": identity("toolu"), "name": tool, "input": what}
    else:
        block = {"type": "text", "text": what}
    end = {"stop_reason": "tool_use" if tool else "end_turn", "stop_sequence": None}
    message = {"id": identity("msg"), "type": "message", "role": "assistant", "model": request["model"]}
    message |= {"content": [block], **end, "usage": {"input_tokens": 10, "output_tokens": 5}}
    if not request.get("stream"):
        return message

    def events():
        def event(kind, **fields):
            return kind, {"type": kind, **fields}

        yield event("message_start", message={**message, "content": [], "stop_reason": None})
        if tool:
            yield event("content_block_start", index=0, content_block={**block, "input": {}})
            delta = {"type": "input_json_delta", "partial_json": json.dumps(what)}
            yield event("content_block_delta", index=0, delta=delta)
        else:
            yield event("content_block_start", index=0, content_block={**block, "text": ""})
            for piece in pieces(what):
                yield event("content_block_delta", index=0, delta={"type": "text_delta", "text": piece})
        yield event("content_block_stop", index=0)
        yield event("message_delta", delta=end, usage={"output_tokens": 5})
        yield event("message_stop")

    return events()


def count_tokens(_):
    return {"input_tokens": 10}


def pieces(text, size=40):
    return [text[at : at + size] for at in range(0, len(text), size)]


# --- HTTP

APIS = {
    "/v1/chat/completions": chat,
    "/v1/responses": responses,
    "/v1/messages": messages,
    "/v1/messages/count_tokens": count_tokens,
}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        api = APIS.get(self.path.partition("?")[0])
        try:
            if api is None:
                raise Refused(f"nothing is at {self.path}")
            answer = api(json.loads(body))
        except Refused as refused:
            # Not a status that a client would try again on.
            print("model stub:", refused, flush=True)
            return self.json(400, {"error": {"type": "invalid_request_error", "message": str(refused)}})
        if isinstance(answer, dict):
            return self.json(200, answer)
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        for name, data in answer:
            lines = [f"event: {name}"] if name else []
            lines.append(f"data: {data if isinstance(data, str) else json.dumps(data)}")
            self.wfile.write(("\n".join(lines) + "\n\n").encode())
            self.wfile.flush()

    def do_GET(self):
        self.json(404, {"error": {"type": "not_found_error", "message": self.path}})

    def do_HEAD(self):
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def json(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format, *arguments):
        print("model stub:", format % arguments, flush=True)


def main():
    port, script = sys.argv[1:]
    with open(script) as file:
        CALLS.extend(json.load(file))
    try:
        server = ThreadingHTTPServer(("127.0.0.1", int(port)), Handler)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return
        raise
    if os.fork() == 0:
        server.serve_forever()


if __name__ == "__main__":
    main()
