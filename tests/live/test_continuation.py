"""Real workers and llama-servers, lost in the middle of answers: the text is what it would have been."""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.live.answers import ANTHROPIC, N_TOKENS, OPENAI, RESPONSES, WHOLE, Outcome, ask, ask_blocking
from tests.live.processes import wait_until
from tests.live.site import Site, running_site

STREAMS = (OPENAI, ANTHROPIC, RESPONSES, OPENAI, ANTHROPIC)  # of a round
BLOCKING = (OPENAI, ANTHROPIC, RESPONSES)  # and its other answers; about half of all are the lost worker's
N_LOST = 100  # answers that lose their worker
MAX_ROUNDS = 60
DIALECTS = {OPENAI: "openai.chat", ANTHROPIC: "anthropic.messages", RESPONSES: "openai.responses"}  # in the log
SEED = int(os.environ.get("AUXOT_TEST_SEED") or random.SystemRandom().randrange(1_000_000))


@pytest.fixture
def site(request: pytest.FixtureRequest, tmp_path: Path, llama_server_binary: Path, tiny_model: Path) -> Iterator[Site]:
    """Two workers; a parameter adds settings of the router."""
    settings = getattr(request, "param", {})
    with running_site(tmp_path, llama=llama_server_binary, model=tiny_model, **settings) as site:
        yield site


def ask_at_once(client: httpx.Client, pool: ThreadPoolExecutor) -> list[tuple[str, Outcome]]:
    """Ask for a round of answers, with their paths."""
    asked = [(path, pool.submit(ask, client, path)) for path in STREAMS]
    asked += [(path, pool.submit(ask_blocking, client, path)) for path in BLOCKING]
    return [(path, answer.result()) for path, answer in asked]


@pytest.fixture
def client(site: Site) -> Iterator[httpx.Client]:
    with site.house.client() as client:
        yield client


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(len(STREAMS) + len(BLOCKING)) as pool:
        yield pool


def kind_of(line: dict[str, Any]) -> tuple[str, bool]:
    """Return the dialect of a finished job, and whether it was a stream."""
    return line["dialect"], line["stream"]


def test_a_hundred_answers_that_lose_their_worker_are_what_they_would_have_been(site, client, pool):
    """A client loses its answer with the worker, or gets it with a gap, a repetition, or usage of a part or twice."""
    chance = random.Random(SEED)
    prompts = {path: ask(client, path).usage[0] for path in DIALECTS}
    round_bytes = site.bytes_of(lambda: ask_at_once(client, pool))
    n_lost: Counter[tuple[str, bool]] = Counter()
    for n in range(MAX_ROUNDS):
        site.mend()
        place = chance.choice(site.places)
        spring = (place.wire.cut, place.kill_worker, place.wire.cut, place.kill_llama)[n % 4]
        place.wire.set_trap(after_bytes=chance.randrange(1, round_bytes), spring=spring)
        for path, outcome in ask_at_once(client, pool):
            assert outcome == Outcome(WHOLE, (prompts[path], N_TOKENS), []), f"AUXOT_TEST_SEED={SEED}, round {n}"
        place.wire.remove_trap()
        n_lost = Counter(kind_of(line) for line in site.lines("job.finished") if line["attempt"] > 1)
        if n_lost.total() >= N_LOST:
            break
    jobs = site.lines("job.finished")
    assert n_lost.total() >= N_LOST, f"AUXOT_TEST_SEED={SEED}"
    assert {line["outcome"] for line in jobs} == {"length"}
    continued = {line["job_id"] for line in site.lines("job.continued")}
    n_continued = Counter(kind_of(line) for line in jobs if line["job_id"] in continued)
    kinds = [(DIALECTS[path], stream) for path in (OPENAI, ANTHROPIC) for stream in (True, False)]
    assert all(n_continued[kind] >= N_LOST // 20 for kind in kinds), f"{n_continued}, AUXOT_TEST_SEED={SEED}"


FREEZABLE = {
    "AUXOT_DEAD_WORKER_TIMEOUT": "2s",
    "AUXOT_HEARTBEAT_INTERVAL": "500ms",
    "AUXOT_MAX_ATTEMPTS": "10",  # on a machine that is slow enough a live worker is taken for dead
}


@pytest.mark.parametrize("site", [FREEZABLE], indirect=True)
@pytest.mark.parametrize("fault", ["frozen worker", "frozen host", "dead wire"])
def test_the_answers_of_a_silent_worker_are_continued_and_its_return_doubles_nothing(site, client, pool, fault):
    """Clients wait for ever for a host that hangs, or read its late words behind those of the worker that went on."""
    place = site.places[0]
    springs = {
        "frozen worker": place.freeze_worker,
        "frozen host": place.freeze_host,
        "dead wire": place.wire.go_dead,
    }
    round_bytes = site.bytes_of(lambda: ask_at_once(client, pool))
    place.wire.set_trap(after_bytes=round_bytes // 3, spring=springs[fault])
    outcomes = ask_at_once(client, pool)
    assert {(outcome.text, outcome.usage[1], tuple(outcome.errors)) for _, outcome in outcomes} == {
        (WHOLE, N_TOKENS, ())
    }
    assert place.wire.has_sprung
    assert site.lines("worker.silent")
    assert site.lines("job.continued")

    place.thaw()
    site.mend()  # both are back, and nobody runs anything
    assert {outcome.text for _, outcome in ask_at_once(client, pool)} == {WHOLE}
    n_asked = 3 * len(outcomes)
    wait_until(lambda: len(site.lines("job.finished")) >= n_asked, what="the log, behind the last bytes of answers")
    assert len({line["job_id"] for line in site.lines("job.finished")}) == len(site.lines("job.finished")) == n_asked
    assert place.worker.process.poll() is None


@pytest.mark.parametrize(
    "changes",
    [
        {"reasoning_effort": "high", "chat_template_kwargs": {"enable_thinking": True}},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]},
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "The quick brown"}]},
    ],
    ids=["after thoughts", "with tools offered", "of a prefill"],
)
def test_a_continuation_knows_how_the_answer_began(site, client, changes):
    """The next worker would think again, or begin at another place."""
    uncut = ask(client, OPENAI, **changes)
    outcome = cut_in_the_middle(site, lambda: ask(client, OPENAI, **changes))
    (continued,) = site.lines("job.continued")
    assert continued["attempt"] == 2
    assert outcome.text == uncut.text
    assert outcome.usage == uncut.usage
    assert (outcome.thoughts, outcome.errors) == (uncut.thoughts, [])
    assert bool(outcome.thoughts) is ("reasoning_effort" in changes)


def cut_in_the_middle(site: Site, run: Callable[[], Outcome]) -> Outcome:
    """Run it twice, the second time with a worker that is lost half-way; only one worker is left for that."""
    place, other = site.places
    other.worker.send(signal.SIGTERM)
    other.worker.wait()
    site.house.wait_health(workers=1, active_jobs=0)
    n_bytes = site.bytes_of(run)
    place.wire.set_trap(after_bytes=n_bytes // 2, spring=place.wire.cut)
    outcome = run()
    assert place.wire.has_sprung
    return outcome
