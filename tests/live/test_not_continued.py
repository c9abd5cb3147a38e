"""What no other worker can go on with: a worker is lost in the middle of it, and the client is told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from auxot.demo.tiny_model import TOOL_NAME, TOOL_PARAMETERS
from tests.live.answers import ANTHROPIC, COMPLETIONS, OPENAI, RESPONSES, ask
from tests.live.site import Site, running_site

FUNCTION = {"name": TOOL_NAME, "parameters": TOOL_PARAMETERS}
CALL = {"ignore_eos": False}
SHORT = {"max_tokens": 24}
SCHEMA = {"name": "s", "schema": {"type": "array", "items": {"const": "word"}, "minItems": 6, "maxItems": 6}}
OBJECT = {"temperature": 0, "ignore_eos": False}
CUTS = (0.2, 0.35, 0.5, 0.6, 0.7, 0.8, 0.9)  # of the bytes that the worker sends for the answer
MAX_ROUNDS = 4  # a busy machine sends short thoughts in one piece, which no cut divides


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, llama_server_binary: Path, tiny_model: Path) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    with running_site(folder, llama=llama_server_binary, model=tiny_model, n_workers=1) as site:
        yield site


@pytest.mark.parametrize(
    ("path", "changes"),
    [
        pytest.param(OPENAI, CALL | {"tools": [{"type": "function", "function": FUNCTION}]}, id="chat: a call"),
        pytest.param(
            ANTHROPIC, CALL | {"tools": [{"name": TOOL_NAME, "input_schema": TOOL_PARAMETERS}]}, id="messages: a call"
        ),
        pytest.param(RESPONSES, CALL | {"tools": [{"type": "function", **FUNCTION}]}, id="responses: a call"),
        pytest.param(
            OPENAI,
            SHORT | {"reasoning_effort": "high", "chat_template_kwargs": {"enable_thinking": True}},
            id="chat: thoughts",
        ),
        pytest.param(
            ANTHROPIC,
            {"max_tokens": 1049, "ignore_eos": False, "thinking": {"type": "enabled", "budget_tokens": 1024}},
            id="messages: thoughts",
        ),
        pytest.param(RESPONSES, {"max_output_tokens": 24, "reasoning": {"effort": "high"}}, id="responses: thoughts"),
        pytest.param(OPENAI, SHORT | {"n": 2}, id="chat: two choices"),
        pytest.param(OPENAI, SHORT | {"logprobs": True}, id="chat: logprobs"),
        pytest.param(OPENAI, SHORT | {"temperature": 0, "grammar": "root ::= [a-zA-Z ]*"}, id="chat: a grammar"),
        pytest.param(
            OPENAI,
            OBJECT | {"response_format": {"type": "json_schema", "json_schema": SCHEMA}},
            id="chat: a schema",
        ),
        pytest.param(
            RESPONSES, OBJECT | {"text": {"format": {"type": "json_schema", **SCHEMA}}}, id="responses: a schema"
        ),
        pytest.param(COMPLETIONS, SHORT, id="completions: text"),
    ],
)
def test_what_has_begun_and_cannot_be_continued_ends_with_the_error_of_the_dialect(site, path, changes):
    """A call, a thought or an object is cut in two and looks whole, or begins a second time."""
    (place,) = site.places
    with site.house.client() as client:
        uncut: Any = None

        def run() -> None:
            nonlocal uncut
            uncut = ask(client, path, **changes)

        n_bytes = site.bytes_of(run)
        assert uncut.is_whole
        assert not uncut.is_empty
        n_told = 0
        for n_cuts, cut in enumerate(CUTS * MAX_ROUNDS):
            if n_told and n_cuts >= len(CUTS):
                break
            place.wire.set_trap(after_bytes=round(cut * n_bytes), spring=place.wire.cut)
            outcome = ask(client, path, **changes)
            place.wire.remove_trap()
            if outcome.errors:
                assert len(outcome.errors) == 1
                assert "worker" in outcome.errors[0]["message"]
                assert not outcome.is_whole
                assert not outcome.is_empty
                assert uncut.text.startswith(outcome.text)
                assert uncut.thoughts.startswith(outcome.thoughts)
                assert uncut.arguments.startswith(outcome.arguments)
                n_told += 1
            else:  # nothing had been seen and it began again, or the cut came behind its end or the thoughts
                assert outcome.text.startswith(uncut.text)
                assert (outcome.thoughts, outcome.arguments) == (uncut.thoughts, uncut.arguments)
            site.mend()
        assert n_told
