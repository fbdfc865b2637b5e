"""A crew of two: a researcher who looks notes up with a tool, and a writer who makes a report of what was found."""

import json
import os
from pathlib import Path

# CrewAI reports what crews look like, and asks whether to send traces, unless it is told not to.
os.environ.setdefault("CREWAI_DISABLE_TELEMETRY", "true")
os.environ.setdefault("CREWAI_TRACING_ENABLED", "false")
os.environ.setdefault("OTEL_SDK_DISABLED", "true")

from crewai import LLM, Agent, Crew, Process, Task  # noqa: E402
from crewai.tools import tool  # noqa: E402

NOTES = Path("notes")
DEFAULT_TOPIC = "tides"

looked_up = []


@tool("search_notes")
def search_notes(word: str) -> str:
    """Finds the lines of the notes that hold a word."""
    found = [
        f"{path.name}:{number}: {line}"
        for path in sorted(NOTES.glob("*.md"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if word.lower() in line.lower()
    ]
    looked_up.append({"word": word, "found": found})
    print(f"tool: {word}: {len(found)} lines", flush=True)
    return "\n".join(found) or "nothing"


def main():
    topic = json.loads(os.environ.get("NULLSPACE_INPUT") or "{}").get("topic") or DEFAULT_TOPIC
    llm = LLM(model="openai/" + os.environ.get("OPENAI_MODEL", "gpt-4o-mini"))
    researcher = Agent(
        role="Researcher",
        goal="Find what the notes say, and no more",
        backstory="You look everything up and name the file and line that it stands in.",
        tools=[search_notes],
        llm=llm,
    )
    writer = Agent(
        role="Writer",
        goal="Write briefly and to the point",
        backstory="You turn findings into a page that people like to read.",
        llm=llm,
    )
    research = Task(
        description="Find out what the notes say about {topic}.",
        expected_output="A list of facts, each with its file and line.",
        agent=researcher,
    )
    report = Task(
        description="Write a page about {topic} from what the researcher found.",
        expected_output="A page of Markdown that names its sources.",
        agent=writer,
        context=[research],
    )
    crew = Crew(agents=[researcher, writer], tasks=[research, report], process=Process.sequential)

    print(f"topic: {topic}", flush=True)
    done = crew.kickoff(inputs={"topic": topic})
    for task in done.tasks_output:
        print(f"{task.agent}: {task.raw}", flush=True)

    result = {
        "run_id": os.environ.get("NULLSPACE_RUN_ID"),
        "topic": topic,
        "looked_up": looked_up,
        "tasks": [{"agent": task.agent, "text": task.raw} for task in done.tasks_output],
    }
    Path("result.json").write_text(json.dumps(result, indent=2) + "\n")
    Path("reports").mkdir(exist_ok=True)
    Path("reports/report.md").write_text(done.raw + "\n")


if __name__ == "__main__":
    main()
