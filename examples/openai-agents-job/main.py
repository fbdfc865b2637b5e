"""An analyst: answers a question about orders.csv with numbers that a tool computes from the file.

The model decides what to look up; it never sees the file itself, only what the tool gives it.
"""

import asyncio
import csv
import json
import os
from collections import defaultdict
from pathlib import Path

# The SDK sends traces of every run, prompts included, to OpenAI unless it is told not to. Run with
# --env OPENAI_AGENTS_DISABLE_TRACING=0 to have them.
os.environ.setdefault("OPENAI_AGENTS_DISABLE_TRACING", "1")

from agents import Agent, Runner, function_tool, set_default_openai_api  # noqa: E402

DEFAULT_QUESTION = "Which region brought in the most, and what does it buy?"
ORDERS = list(csv.DictReader(Path("orders.csv").open()))
COLUMNS = list(ORDERS[0])

lookups = []


@function_tool
def summarize_orders(value: str, by: str) -> str:
    """Adds up a column of the orders in groups.

    Args:
        value: The column to add up: units or amount.
        by: The column to group by: day, region or product.
    """
    groups = defaultdict(list)
    for order in ORDERS:
        groups[order[by]].append(float(order[value]))
    lines = [
        f"{by}={name}: {len(numbers)} orders, {value} total {sum(numbers):.2f}, mean {sum(numbers) / len(numbers):.2f}"
        for name, numbers in sorted(groups.items(), key=lambda group: -sum(group[1]))
    ]
    lookups.append({"value": value, "by": by, "result": lines})
    print(f"tool: {value} by {by}: {len(lines)} groups", flush=True)
    return "\n".join(lines)


async def main():
    question = json.loads(os.environ.get("NULLSPACE_INPUT") or "{}").get("question") or DEFAULT_QUESTION
    # Servers other than OpenAI's often speak only the older of its two APIs.
    if api := os.environ.get("OPENAI_API"):
        set_default_openai_api(api)
    analyst = Agent(
        name="Analyst",
        instructions=f"You answer questions about {len(ORDERS)} orders with the columns {', '.join(COLUMNS)}. "
        "Look every number up with the tool, as often as you need. Answer in a few sentences of Markdown.",
        tools=[summarize_orders],
        model=os.environ.get("OPENAI_MODEL"),
    )

    print(f"question: {question}", flush=True)
    done = await Runner.run(analyst, question, max_turns=10)
    answer = done.final_output
    print(f"answer: {answer}", flush=True)

    usage = done.context_wrapper.usage
    result = {
        "run_id": os.environ.get("NULLSPACE_RUN_ID"),
        "question": question,
        "answer": answer,
        "lookups": lookups,
        "usage": {"requests": usage.requests, "input": usage.input_tokens, "output": usage.output_tokens},
    }
    Path("result.json").write_text(json.dumps(result, indent=2) + "\n")
    evidence = [f"- {line}" for lookup in lookups for line in lookup["result"]]
    Path("reports").mkdir(exist_ok=True)
    report = ["# Orders", "", f"> {question}", "", answer, "", "## Numbers", "", *evidence, ""]
    Path("reports/report.md").write_text("\n".join(report))


if __name__ == "__main__":
    asyncio.run(main())
