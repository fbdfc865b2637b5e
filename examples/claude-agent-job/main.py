"""A reviewer: reads the code in cart/, runs its tests, and writes down what is wrong.

The agent has Claude Code's tools for reading and one of our own, which runs the tests for real. All of it happens in the
run's machine.
"""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

from claude_agent_sdk import (
    AssistantMessage,
    ClaudeAgentOptions,
    ResultMessage,
    TextBlock,
    ToolUseBlock,
    create_sdk_mcp_server,
    query,
    tool,
)

CODE = Path("cart").resolve()
DEFAULT_TASK = "Review the code and find out why a test fails. Show the smallest change that mends it."

test_runs = []


@tool("run_tests", "Runs the tests of the code under review and gives their output", {})
async def run_tests(_):
    command = [sys.executable, "-m", "unittest", "-v"]
    done = await asyncio.to_thread(subprocess.run, command, cwd=CODE, capture_output=True, text=True, timeout=60)
    test_runs.append({"exit_code": done.returncode, "output": done.stderr})
    return {"content": [{"type": "text", "text": f"exit code {done.returncode}\n{done.stderr}"}]}


async def main():
    task = json.loads(os.environ.get("NULLSPACE_INPUT") or "{}").get("task") or DEFAULT_TASK
    options = ClaudeAgentOptions(
        cwd=CODE,
        system_prompt="You review Python code. Read it and run its tests before you judge. Answer in Markdown, briefly.",
        tools=["Read", "Glob", "Grep"],
        mcp_servers={"review": create_sdk_mcp_server("review", tools=[run_tests])},
        # Nobody is there to be asked: what is not named here is denied.
        allowed_tools=["Read", "Glob", "Grep", "mcp__review__run_tests"],
        permission_mode="dontAsk",
        max_turns=20,
        # The machine has nothing of yours; this keeps the agent from looking for settings, and from phoning home.
        setting_sources=[],
        env={"CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1"},
    )

    print(f"task: {task}", flush=True)
    tools, result = [], None
    async for message in query(prompt=task, options=options):
        if isinstance(message, AssistantMessage):
            for block in message.content:
                if isinstance(block, ToolUseBlock):
                    tools.append(block.name)
                    print(f"tool: {block.name} {json.dumps(block.input)}", flush=True)
                elif isinstance(block, TextBlock):
                    print(block.text, flush=True)
        elif isinstance(message, ResultMessage):
            result = message
    if result is None or result.is_error:
        sys.exit(f"the agent did not finish: {result.result if result else 'no result'}")

    summary = {
        "run_id": os.environ.get("NULLSPACE_RUN_ID"),
        "task": task,
        "tools": tools,
        "test_runs": test_runs,
        "turns": result.num_turns,
        "cost_usd": result.total_cost_usd,
    }
    Path("result.json").write_text(json.dumps(summary, indent=2) + "\n")
    reports = Path("reports")
    reports.mkdir(exist_ok=True)
    (reports / "review.md").write_text(f"# Review of {CODE.name}\n\n> {task}\n\n{result.result}\n")


if __name__ == "__main__":
    asyncio.run(main())
