"""Real workers and llama-servers, killed in the middle of answers: the text is what it would have been."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import attrs
import httpx
import orjson
import pytest

from auxot.demo.tiny_model import ANSWER
from tests.live.processes import Daemon, House, children_of, running_router, running_worker

OPENAI, ANTHROPIC, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
PATHS = (OPENAI, ANTHROPIC, RESPONSES, OPENAI, ANTHROPIC, RESPONSES)  # of the streams of a round
BLOCKING = (OPENAI, ANTHROPIC)  # and of its other answers
N_ROUNDS = 26  # of eight answers each, some four of which lose their worker
N_TOKENS = 1200
EXPECTED = " ".join((ANSWER.split() * N_TOKENS)[:N_TOKENS])


def request_of(path: str, **changes: Any) -> dict[str, Any]:
    plain = {"model": "any", "stream": True, "ignore_eos": True, **changes}
    if path == RESPONSES:
        return {**plain, "input": "hi", "max_output_tokens": N_TOKENS, "reasoning": {"effort": "none"}}
    asked = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": N_TOKENS, **plain}
    if path == OPENAI:
        asked = {"reasoning_effort": "none", "stream_options": {"include_usage": True}, **asked}
    return asked


@attrs.frozen
class Outcome:
    """What a client got: the text, tokens of the prompt and of the answer, and errors."""

    text: str
    usage: tuple[int, int]
    errors: list[Any]
    thoughts: str = ""


def outcome_of(path: str, stream: str) -> Outcome:
    lines = [line[6:] for line in stream.splitlines() if line.startswith("data: ") and line != "data: [DONE]"]
    events = [orjson.loads(line) for line in lines]
    errors = [event for event in events if event.get("error") or event.get("type") == "response.failed"]
    if path == OPENAI:
        pieces = [event["choices"][0]["delta"].get("content") or "" for event in events if event.get("choices")]
        thoughts = [event["choices"][0]["delta"].get("reasoning_content") or "" for event in events if event["choices"]]
        usage = next((event["usage"] for event in events if event.get("usage")), {})
        n_tokens = usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0)
        return Outcome("".join(pieces), n_tokens, errors, "".join(thoughts))
    if path == ANTHROPIC:
        pieces = [event["delta"].get("text", "") for event in events if event["type"] == "content_block_delta"]
        usage = next((event["usage"] for event in events if event["type"] == "message_delta"), {})
    else:
        pieces = [event["delta"] for event in events if event["type"] == "response.output_text.delta"]
        usage = events[-1].get("response", {}).get("usage") or {}
    n_prompt = usage.get("input_tokens", 0) + usage.get("cache_read_input_tokens", 0)
    return Outcome("".join(pieces), (n_prompt, usage.get("output_tokens", 0)), errors)


def ask(
    client: httpx.Client, path: str, on_piece: Callable[[str, int], None] = lambda *_: None, **changes: Any
) -> Outcome:
    """Read a stream to its end; `on_piece` gets the worker's id and the number of reads so far."""
    with client.stream("POST", path, json=request_of(path, **changes)) as response:
        worker_id = response.headers.get("x-auxot-worker", "")
        pieces = []
        for piece in response.iter_raw():
            pieces.append(piece)
            on_piece(worker_id, len(pieces))
    return outcome_of(path, b"".join(pieces).decode())


def ask_blocking(client: httpx.Client, path: str) -> Outcome:
    asked = request_of(path)
    asked.pop("stream_options", None)
    body = client.post(path, json={**asked, "stream": False}).json()
    usage = body["usage"]
    if path == OPENAI:
        text = body["choices"][0]["message"]["content"]
        return Outcome(text, (usage["prompt_tokens"], usage["completion_tokens"]), [])
    n_prompt = usage["input_tokens"] + usage.get("cache_read_input_tokens", 0)
    return Outcome(body["content"][0]["text"], (n_prompt, usage["output_tokens"]), [])


@attrs.define
class Workers:
    """Two workers; what is killed of them comes back."""

    house: House
    variables: dict[str, str]
    stack: ExitStack
    daemons: list[Daemon] = attrs.field(factory=list)

    def start(self) -> None:
        """Start one more."""
        name = f"worker{len(self.daemons)}"
        self.daemons.append(self.stack.enter_context(running_worker(self.house, name=name, **self.variables)))

    def kill(self, worker_id: str, *, only_llama: bool) -> None:
        """Kill the worker of that id at once, or only its llama-server."""
        for daemon in self.daemons:
            if any(line["event"] == "link.open" and line["worker_id"] == worker_id for line in daemon.log()):
                if only_llama:
                    for pid in children_of(daemon.pid):
                        os.kill(pid, signal.SIGKILL)
                else:
                    daemon.send(signal.SIGKILL)
                return
        raise AssertionError(worker_id)

    def mend(self) -> None:
        """Start anew what was killed, and wait for it."""
        n_alive = sum(daemon.process.poll() is None for daemon in self.daemons)
        for _ in range(2 - n_alive):
            self.start()
        self.house.wait_health(workers=2, active_jobs=0)


@pytest.fixture
def workers(tmp_path: Path, llama_server_binary: Path, tiny_model: Path) -> Iterator[Workers]:
    variables = {"AUXOT_LLAMA_BINARY": str(llama_server_binary), "AUXOT_MODEL_FILE": str(tiny_model)}
    with running_router(tmp_path, AUXOT_MAX_PARALLEL="4", AUXOT_CTX_SIZE="4096") as house, ExitStack() as stack:
        yield Workers(house, variables, stack)


@attrs.define
class Killer:
    """Kills what writes the stream that it watches, once, after so many reads."""

    workers: Workers
    after_reads: int
    only_llama: bool
    has_killed: bool = False

    def __call__(self, worker_id: str, n_reads: int) -> None:
        if not self.has_killed and n_reads >= self.after_reads:
            self.has_killed = True
            self.workers.kill(worker_id, only_llama=self.only_llama)


def test_streams_of_killed_workers_are_what_they_would_have_been(workers):
    """A client would lose its answer with the worker, or get it with a gap, a repetition or wrong counts."""
    chance = random.Random(7)
    house = workers.house
    n_runs, prompts = 0, {}
    with house.client() as client, ThreadPoolExecutor(len(PATHS) + len(BLOCKING)) as pool:
        workers.mend()
        for path in set(PATHS):
            uncut = ask(client, path)
            assert uncut.text == EXPECTED
            prompts[path] = uncut.usage[0]
        for n in range(N_ROUNDS):
            workers.mend()
            killer = Killer(workers, chance.randrange(1, 300), only_llama=bool(n % 2))
            streams = [pool.submit(ask, client, path, *([killer] if k == 0 else [])) for k, path in enumerate(PATHS)]
            streams += [pool.submit(ask_blocking, client, path) for path in BLOCKING]
            for path, stream in zip(PATHS + BLOCKING, streams, strict=True):
                outcome = stream.result()
                assert outcome.errors == []
                assert outcome.text == EXPECTED
                assert outcome.usage == (prompts[path], N_TOKENS)
                n_runs += 1
    jobs = [line for line in house.router.log() if line["event"] == "job.finished"]
    n_continued = sum(line["event"] == "job.continued" for line in house.router.log())

    assert {line["outcome"] for line in jobs} == {"length"}
    assert n_continued >= N_ROUNDS


@pytest.mark.parametrize(
    "changes",
    [
        {"reasoning_effort": "high", "chat_template_kwargs": {"enable_thinking": True}},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]},
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "The quick brown"}]},
    ],
    ids=["after thoughts", "with tools offered", "of a prefill"],
)
def test_a_continuation_knows_how_the_answer_began(workers, changes):
    """The next worker would think again, or begin at another place."""
    with workers.house.client() as client:
        workers.mend()
        uncut = ask(client, OPENAI, **changes)
        killer = Killer(workers, 100, only_llama=False)
        outcome = ask(client, OPENAI, killer, **changes)
    (continued,) = [line for line in workers.house.router.log() if line["event"] == "job.continued"]
    assert continued["attempt"] == 2
    # The marks around thoughts are tokens that nobody sees, so that the limit comes a few tokens late.
    assert outcome.text.startswith(uncut.text)
    assert len(outcome.text) - len(uncut.text) < (50 if outcome.thoughts else 1)
    assert outcome.usage == uncut.usage
    assert (outcome.thoughts, outcome.errors) == (uncut.thoughts, [])
    assert bool(outcome.thoughts) is ("reasoning_effort" in changes)
