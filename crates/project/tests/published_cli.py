"""Runs the published CLI over the projects named on standard input, for published_cli.rs to compare with.

Input:  {"projects": [{"dir": str, "config": str | null}], "configs": [str]}, configs being TOML texts.
Output: {"projects": [...], "configs": [...]}, one object for each.
"""

import hashlib
import json
import pathlib
import re
import sys
import tomllib

from click.testing import CliRunner
from nullspace import _agent_bundle, _agent_config, _agent_detection, cli


def invoke(*arguments):
    result = CliRunner().invoke(cli.main, list(arguments))
    return json.loads(result.stdout) if result.exit_code == 0 else None


def project(case):
    directory, file = case["dir"], case["config"]
    option = ["--config", file] if file else []
    answer = {
        "dry_run": invoke("agent", "deploy", "--dry-run", "--json", "--project-dir", directory, *option),
        "error": None,
        "archive": None,
    }
    try:
        config, _ = _agent_detection.load_or_detect_agent_config(directory, config_path=file)
        manifest = _agent_bundle.build_agent_bundle_manifest(directory, config)
        archive = _agent_bundle.build_agent_bundle_archive(directory, manifest)
        answer["archive"] = {"sha256": hashlib.sha256(archive).hexdigest(), "length": len(archive)}
    except (_agent_config.AgentConfigError, _agent_bundle.AgentBundleError) as error:
        answer["error"] = str(error)
    except (ValueError, re.error) as error:
        # Not an answer to the user but a traceback: a pattern it cannot read.
        answer["error"] = f"crash: {error}"

    # `init` replaces the config file, so what was there is put back.
    path = pathlib.Path(directory) / _agent_config.CONFIG_FILENAME
    before = path.read_bytes() if path.exists() else None
    answer["init"] = invoke("agent", "init", "--json", "--force", "--project-dir", directory)
    answer["init_text"] = path.read_text("utf-8") if answer["init"] else None
    if before is not None:
        path.write_bytes(before)
    elif path.exists():
        path.unlink()
    return answer


def config(text):
    try:
        read = _agent_config.parse_agent_config(tomllib.loads(text), source="f")
    except _agent_config.AgentConfigError as error:
        return {"error": str(error)}
    wire = read.to_dict()
    wire.pop("bundle", None)
    wire.setdefault("install", None)
    return {
        "config": read.to_dict(),
        "wire": wire,
        "digest": _agent_config.agent_config_digest(read),
        "toml": _agent_config.render_agent_config_toml(read),
    }


cases = json.load(sys.stdin)
json.dump(
    {"projects": [project(case) for case in cases["projects"]], "configs": [config(text) for text in cases["configs"]]},
    sys.stdout,
)
