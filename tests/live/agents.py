"""The coding agents that people use, run as they are: headless, in a home of their own, with no way out but the router.

`scripts/install_agents.sh` installs them. Each sends tens of thousands of bytes for "hi", and the tiny model counts a
byte as a token: give each slot CTX_TOKENS.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.live.processes import API_KEY, House

CTX_TOKENS = 65_536
MODEL = "any"
RUN_LIMIT_S = 120
_CLOSED_PROXY = "http://127.0.0.1:9"  # the discard port: refused at once, where a name to resolve could hang


def agents_folder() -> Path:
    """Return where the install script puts the agents; skips the test if it has not run."""
    folder = Path(os.environ.get("AUXOT_AGENTS_DIR") or Path.home() / ".auxot" / "agents")
    if not (folder / "installed").is_file():
        pytest.skip(f"no agents in {folder}: scripts/install_agents.sh installs them, where npm reaches its registry")
    return folder


def run_claude(house: House, home: Path, *arguments: str) -> dict[str, Any]:
    """Give Claude Code one turn; return its final `result` object."""
    output = _run(
        "claude",
        *arguments,
        *("--print", "--model", MODEL, "--output-format", "json"),
        home=home,
        ANTHROPIC_BASE_URL=f"{house.url}/api/anthropic",
        ANTHROPIC_API_KEY=API_KEY,
        CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC="1",
        DISABLE_TELEMETRY="1",
    )
    result: dict[str, Any] = orjson.loads(output)
    return result


def run_codex(house: House, home: Path, prompt: str) -> list[dict[str, Any]]:
    """Give Codex one turn; return its events."""
    config = f"""
        model = "{MODEL}"
        model_provider = "auxot"
        check_for_update_on_startup = false

        [analytics]
        enabled = false

        [model_providers.auxot]
        name = "Auxot"
        base_url = "{house.url}/api/openai/v1"
        env_key = "AUXOT_KEY"
        wire_api = "responses"
    """
    _write(home / ".codex" / "config.toml", config)
    output = _run("codex", "exec", "--json", "--skip-git-repo-check", prompt, home=home, AUXOT_KEY=API_KEY)
    return [orjson.loads(line) for line in output.splitlines() if line.startswith("{")]


def run_opencode(house: House, home: Path, prompt: str) -> str:
    """Give OpenCode one turn; return what it prints."""
    provider = {
        "npm": "@ai-sdk/openai-compatible",  # built in, not fetched
        "name": "Auxot",
        "options": {"baseURL": f"{house.url}/api/openai/v1", "apiKey": API_KEY},
        "models": {MODEL: {}},
    }
    config = {
        "provider": {"auxot": provider},
        "model": f"auxot/{MODEL}",
        "small_model": f"auxot/{MODEL}",
        "autoupdate": False,
        "share": "disabled",
    }
    _write(home / ".config" / "opencode" / "opencode.json", orjson.dumps(config).decode())
    return _run(
        *("opencode", "run", prompt),
        home=home,
        OPENCODE_DISABLE_AUTOUPDATE="1",
        OPENCODE_DISABLE_MODELS_FETCH="1",
    )


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _run(agent: str, *arguments: str, home: Path, **variables: str) -> str:
    """Run an agent to its end in an empty folder; return its standard output."""
    project, temporary = home / "project", home / "tmp"
    for folder in (project, temporary):
        folder.mkdir(parents=True, exist_ok=True)
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "TMPDIR": str(temporary),
        "HTTP_PROXY": _CLOSED_PROXY,
        "HTTPS_PROXY": _CLOSED_PROXY,
        "NO_PROXY": "127.0.0.1",
        **variables,
    }
    ended = subprocess.run(
        [agents_folder() / "bin" / agent, *arguments],
        env=environ,
        cwd=project,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=RUN_LIMIT_S,
        check=False,
    )
    assert ended.returncode == 0, (
        f"{agent}: exit code {ended.returncode}\n{ended.stdout[-2000:]}\n{ended.stderr[-2000:]}"
    )
    return ended.stdout
