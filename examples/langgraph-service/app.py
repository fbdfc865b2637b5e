"""A LangGraph agent with a tool, behind a small HTTP server. Threads are kept in SQLite, below STATE_DIR."""

import http.server
import json
import os
import pathlib
import signal
import sqlite3
import sys
import threading

from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

STATE_DIR = pathlib.Path(os.environ.get("STATE_DIR", "/workspace/state"))
STATE_DIR.mkdir(parents=True, exist_ok=True)


@tool
def word_count(text: str) -> str:
    """Counts the words of a text."""
    return f"{len(text.split())} words"


model = ChatOpenAI(model=os.environ.get("OPENAI_MODEL", "gpt-4o-mini")).bind_tools([word_count])


def think(state: MessagesState) -> dict:
    return {"messages": [model.invoke(state["messages"])]}


builder = StateGraph(MessagesState)
builder.add_node("think", think)
builder.add_node("tools", ToolNode([word_count]))
builder.add_edge(START, "think")
builder.add_conditional_edges("think", tools_condition)
builder.add_edge("tools", "think")
# Each request has its thread of the server; the connection is shared and locked by the saver.
connection = sqlite3.connect(STATE_DIR / "threads.sqlite", check_same_thread=False)
graph = builder.compile(checkpointer=SqliteSaver(connection))
turns = threading.Lock()


def config(thread: str) -> dict:
    return {"configurable": {"thread_id": thread}}


def history(thread: str) -> list[dict]:
    messages = graph.get_state(config(thread)).values.get("messages", [])
    return [{"type": message.type, "text": message.content} for message in messages]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        match self.path.strip("/").split("/"):
            case ["health"]:
                self.answer({"ok": True})
            case ["threads", thread]:
                self.answer({"thread": thread, "messages": history(thread)})
            case _:
                self.answer({"error": f"nothing at {self.path}"}, 404)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        match self.path.strip("/").split("/"):
            case ["threads", thread, "messages"]:
                text = json.loads(body)["text"]
                with turns:
                    state = graph.invoke({"messages": [HumanMessage(text)]}, config(thread))
                messages = state["messages"]
                print(f"thread {thread}: {len(messages)} messages")
                self.answer({"reply": messages[-1].content, "messages": len(messages)})
            case _:
                self.answer({"error": f"nothing at {self.path}"}, 404)

    def answer(self, value, status=200):
        body = json.dumps(value).encode() + b"\n"
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, code="-", size="-"):
        if self.path != "/health":
            super().log_request(code, size)


signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
print("threads are in", STATE_DIR)
http.server.ThreadingHTTPServer(("0.0.0.0", int(os.environ["PORT"])), Handler).serve_forever()
