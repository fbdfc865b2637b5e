"""A small job: looks at the machine it runs in, counts some words, and leaves a report behind.

Nullspace hands the run's input over as JSON in NULLSPACE_INPUT.
"""

import json
import os
import platform
import time
from collections import Counter
from pathlib import Path

import humanize

DEFAULT_TEXT = "every run gets a machine of its own and the machine is gone when the run is over"


def step(text):
    # Unbuffered, so that whoever follows the log sees each step when it happens.
    print(text, flush=True)


def main():
    started = time.monotonic()
    data = json.loads(os.environ.get("NULLSPACE_INPUT") or "{}")
    text = str(data.get("text") or DEFAULT_TEXT)

    step("1/3 looking at the machine")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    machine = {
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "memory": humanize.naturalsize(memory, binary=True),
    }
    step(f"    {machine['system']}, Python {machine['python']}, {machine['memory']} of memory")

    step(f"2/3 counting words in {humanize.naturalsize(len(text.encode()))} of text")
    words = Counter(text.lower().split())
    top = words.most_common(3)
    step(f"    {humanize.intcomma(sum(words.values()))} words, {len(words)} different")

    step("3/3 writing the result")
    seconds = time.monotonic() - started
    result = {
        "run_id": os.environ.get("NULLSPACE_RUN_ID"),
        "words": sum(words.values()),
        "different_words": len(words),
        "most_common": [{"word": word, "count": count} for word, count in top],
        "machine": machine,
        "took": humanize.precisedelta(seconds, minimum_unit="milliseconds"),
    }
    Path("result.json").write_text(json.dumps(result, indent=2) + "\n")
    reports = Path("reports")
    reports.mkdir(exist_ok=True)
    lines = [f"- **{word}**: {count}" for word, count in top]
    summary = ["# Word report", "", f"{result['words']} words, {result['different_words']} different.", "", *lines, ""]
    (reports / "summary.md").write_text("\n".join(summary))


if __name__ == "__main__":
    main()
