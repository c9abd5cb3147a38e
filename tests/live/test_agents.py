"""Claude Code, Codex and OpenCode against the whole product: each completes a turn, to the letter."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from auxot.demo.tiny_model import ANSWER
from tests.live.agents import CTX_TOKENS, agents_folder, run_claude, run_codex, run_opencode
from tests.live.processes import House, running_router, running_worker


@pytest.fixture(scope="module")
def house(llama_server_binary: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    agents_folder()  # no house for nobody
    with (
        running_router(
            tmp_path_factory.mktemp("house"), AUXOT_CTX_SIZE=str(CTX_TOKENS), AUXOT_MAX_PARALLEL="2"
        ) as running,
        running_worker(running, AUXOT_LLAMA_BINARY=str(llama_server_binary), AUXOT_MODEL_FILE=str(tiny_model)),
    ):
        running.wait_health(workers=1)
        yield running


def jobs(house: House) -> list[dict]:
    """Return the line of each job that has ended."""
    return [line for line in house.router.log() if line["event"] == "job.finished"]


def test_claude_code_completes_a_turn_and_the_next(house, tmp_path):
    """Claude Code would not understand our stream, or every turn would read its whole prompt again."""
    first = run_claude(house, tmp_path, "say hi")
    assert (first["result"], first["is_error"], first["stop_reason"]) == (ANSWER, False, "end_turn")
    second = run_claude(house, tmp_path, "--continue", "say it again")
    assert (second["result"], second["session_id"]) == (ANSWER, first["session_id"])
    n_first_tokens = first["usage"]["input_tokens"] + first["usage"]["cache_read_input_tokens"]
    assert n_first_tokens > 10_000
    assert second["usage"]["cache_read_input_tokens"] >= n_first_tokens - 1
    assert second["usage"]["input_tokens"] < 1_000


def test_conversations_of_claude_code_share_their_system_prompt(house, tmp_path):
    """Something that we put before the system prompt, or left there, would make one conversation's cache useless."""
    run_claude(house, tmp_path, "How are you today, my friend?")
    usage = run_claude(house, tmp_path, "What is the weather like outside?")["usage"]
    assert usage["cache_read_input_tokens"] > 10_000
    assert usage["cache_read_input_tokens"] > 3 * usage["input_tokens"]


def test_codex_completes_a_turn(house, tmp_path):
    """Codex, which speaks the Responses API only, would not understand our stream."""
    events = run_codex(house, tmp_path, "say hi")
    items = [event["item"] for event in events if event["type"] == "item.completed"]
    assert [item["text"] for item in items if item["type"] == "agent_message"] == [ANSWER]
    (ended,) = [event for event in events if event["type"] == "turn.completed"]
    assert ended["usage"]["input_tokens"] > 10_000
    assert ended["usage"]["output_tokens"] > len(ANSWER.split())


def test_opencode_completes_a_turn(house, tmp_path):
    """OpenCode would not understand our stream of chat completions."""
    n_jobs = len(jobs(house))
    assert ANSWER in run_opencode(house, tmp_path, "say hi")
    asked = jobs(house)[n_jobs:]
    assert {job["outcome"] for job in asked} == {"stop"}
    assert max(job["prompt_tokens"] for job in asked) > 10_000
