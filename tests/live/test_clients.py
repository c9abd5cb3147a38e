"""Libraries that many programs are written on, as clients of the whole product: each program prints what it got.

`scripts/install_clients.sh` installs the libraries, in an environment of their own.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from auxot.demo.tiny_model import ANSWER, N_ANSWER_TOKENS, TOOL_ARGUMENTS, TOOL_NAME
from tests.live.processes import API_KEY, House, running_router, running_worker

PROGRAMS = Path(__file__).parent / "clients"
RUN_LIMIT_S = 120
EXPECTED = {
    "blocking": ANSWER,
    "n_tokens": N_ANSWER_TOKENS,
    "streaming": ANSWER,
    "n_streamed_tokens": N_ANSWER_TOKENS,
    "tool": TOOL_NAME,
    "arguments": orjson.loads(TOOL_ARGUMENTS),
}


@pytest.fixture(scope="module")
def python() -> Path:
    """Return the Python that has the libraries."""
    venv = Path(os.environ.get("AUXOT_CLIENTS_VENV") or Path.home() / ".auxot" / "clients-venv")
    if not (venv / "installed.lock").is_file():
        pytest.skip(f"no client libraries in {venv}: scripts/install_clients.sh installs them")
    return venv / "bin" / "python"


@pytest.fixture(scope="module")
def house(
    python: Path,  # noqa: ARG001 -- no house for nobody
    llama_server_binary: Path,
    tiny_model: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[House]:
    with (
        running_router(tmp_path_factory.mktemp("house")) as running,
        running_worker(running, AUXOT_LLAMA_BINARY=str(llama_server_binary), AUXOT_MODEL_FILE=str(tiny_model)),
    ):
        running.wait_health(workers=1)
        yield running


def run(python: Path, program: str, house: House, home: Path) -> dict[str, Any]:
    """Run a client program with nowhere to go but the router; return what it prints."""
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "AUXOT_URL": house.url,
        "AUXOT_KEY": API_KEY,
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # else it fetches its price list
        "LANGSMITH_TRACING": "false",
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "NO_PROXY": "127.0.0.1",
    }
    ended = subprocess.run(
        [python, PROGRAMS / program],
        env=environ,
        cwd=home,
        capture_output=True,
        text=True,
        timeout=RUN_LIMIT_S,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    answers: dict[str, Any] = orjson.loads(ended.stdout)
    return answers


def test_litellm(python, house, tmp_path):
    """Programs on LiteLLM would fail, or lose text, tool calls or token counts."""
    answers = run(python, "litellm_client.py", house, tmp_path)
    assert answers == {name: {**EXPECTED, "finish_reason": "tool_calls"} for name in ("openai", "anthropic")}


def test_langchain(python, house, tmp_path):
    """Programs on LangChain would fail, or lose text, tool calls, their results or token counts."""
    answers = run(python, "langchain_client.py", house, tmp_path)
    assert answers == {name: {**EXPECTED, "after_tool": ANSWER} for name in ("openai", "responses", "anthropic")}
