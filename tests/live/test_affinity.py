"""How much of their prompts real llama-servers have to read when conversations grow, told by their own counts."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import attrs
import httpx

from tests.live.processes import House, running_router, running_worker

N_WORKERS = 4
N_SLOTS = 2
# Host memory for prompts that are in no slot: a worker's share of the conversations, and not those of all workers. The
# default holds a handful of real conversations, but thousands of this model's.
CACHE_RAM_MIB = 6
N_CONVERSATIONS = 16
N_TURNS = 20
N_AT_ONCE = 4
MAX_SHARE = 0.3  # of what is read without affinity
SYSTEM = "You are one of many assistants, and all of them are told this. " * 8


@attrs.define
class Tally:
    """Prompt tokens of some requests."""

    n_prompt: int = 0
    n_read: int = 0  # not from the cache
    routes: list[str] = attrs.field(factory=list)
    workers: set[str] = attrs.field(factory=set)

    def add(self, response: httpx.Response) -> None:
        usage = response.json()["usage"]
        self.n_prompt += usage["prompt_tokens"]
        self.n_read += usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"]
        self.routes.append(response.headers["x-auxot-route"])
        self.workers.add(response.headers["x-auxot-worker"])


@contextmanager
def house_of_workers(folder: Path, binary: Path, model: Path, **settings: str) -> Iterator[House]:
    """Run a router with N_WORKERS workers."""
    folder.mkdir()
    with ExitStack() as stack:
        house = stack.enter_context(running_router(folder, AUXOT_MAX_PARALLEL=str(N_SLOTS), **settings))
        for n in range(N_WORKERS):
            llama = {"AUXOT_LLAMA_BINARY": str(binary), "LLAMA_ARG_CACHE_RAM": str(CACHE_RAM_MIB)}
            worker = running_worker(house, name=f"worker{n}", AUXOT_MODEL_FILE=str(model), **llama)
            stack.enter_context(worker)
        house.wait_health(workers=N_WORKERS)
        yield house


@attrs.define
class Conversation:
    """A conversation that grows by a question and an answer with each turn."""

    number: int
    tally: Tally
    messages: list[dict[str, Any]] = attrs.field(factory=list)

    def __attrs_post_init__(self) -> None:
        self.messages.append({"role": "system", "content": SYSTEM})

    def take_turn(self, client: httpx.Client) -> None:
        """Ask the next question, and keep the answer."""
        question = f"Conversation {self.number}, question {len(self.messages)}: what comes next? " * 3
        self.messages.append({"role": "user", "content": question})
        body = {"messages": self.messages, "chat_template_kwargs": {"enable_thinking": False}}
        response = client.post("/v1/chat/completions", json=body)
        assert response.status_code == 200, response.text
        self.tally.add(response)
        self.messages.append(response.json()["choices"][0]["message"])


def converse(house: House, tally: Tally, *, n_turns: int = N_TURNS, n_at_once: int = N_AT_ONCE) -> None:
    """Have all conversations, some of them at the same time; their turns are mixed."""
    conversations = [Conversation(n, tally) for n in range(N_CONVERSATIONS)]
    with house.client() as client, ThreadPoolExecutor(n_at_once) as pool:
        for _ in range(n_turns):
            for _ in pool.map(lambda conversation: conversation.take_turn(client), conversations):
                pass


def test_growing_conversations_are_read_once(tmp_path: Path, tiny_model: Path, llama_server_binary: Path) -> None:
    """A conversation's next turn goes to a worker that has to read its whole history again."""
    tallies: dict[str, Tally] = {}
    for affinity in ("true", "false"):
        folder = tmp_path / affinity
        with house_of_workers(folder, llama_server_binary, tiny_model, AUXOT_AFFINITY=affinity) as house:
            converse(house, tallies.setdefault(affinity, Tally()))
    warm, cold = tallies["true"], tallies["false"]
    assert warm.n_prompt == cold.n_prompt
    assert warm.n_read <= MAX_SHARE * cold.n_read
    assert len(warm.workers) == N_WORKERS
    assert set(cold.routes) == {"least-loaded"}
