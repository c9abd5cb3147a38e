"""The same request to one llama-server, directly and through router and worker, gives the same answer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import httpx
import orjson
import pytest

from tests.live.differential import Case, ask, ask_anthropic
from tests.live.differential_cases import ANTHROPIC_CASES, CHAT_CASES, COMPLETION_CASES, FORWARDED, REFUSALS
from tests.live.processes import external_llama, running_router, running_worker

# Of its connections: llama-server closes one after a number of requests, and does not always say so before.
ONE_REQUEST_EACH = httpx.Limits(max_keepalive_connections=0)


@attrs.frozen
class Pair:
    """The two ways to the same llama-server."""

    direct: httpx.Client
    router: httpx.Client


@pytest.fixture(scope="module")
def pair(llama_server_binary: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("house")
    arguments = ("-c", "65536", "--embeddings", "--pooling", "mean", "--reasoning-format", "deepseek")
    with (
        external_llama(llama_server_binary, tiny_model, *arguments) as url,
        running_router(folder) as house,
        running_worker(house, AUXOT_LLAMA_URL=url),
        httpx.Client(base_url=url, timeout=60, trust_env=False, limits=ONE_REQUEST_EACH) as direct,
        house.client() as router,
    ):
        house.wait_health(workers=1)
        yield Pair(direct, router)


def by_name(cases: list[Case]) -> Any:
    return pytest.mark.parametrize("case", cases, ids=str)


@pytest.mark.parametrize("stream", [False, True], ids=["blocking", "streaming"])
@by_name(CHAT_CASES)
def test_chat(pair, case, stream):
    """A field would be lost or changed on the way, or a part of the answer on the way back."""
    check(pair, "/v1/chat/completions", case, stream=stream)


@pytest.mark.parametrize("stream", [False, True], ids=["blocking", "streaming"])
@by_name(COMPLETION_CASES)
def test_completions(pair, case, stream):
    """A raw prompt would not arrive as it was sent, or its answer not as it was written."""
    check(pair, "/v1/completions", case, stream=stream)


@by_name(ANTHROPIC_CASES)
def test_messages(pair, case):
    """Anthropic's dialect would build another prompt, or tell the answer differently."""
    assert ask_anthropic(pair.router, case.body) == ask_anthropic(pair.direct, case.for_llama)


@by_name(ANTHROPIC_CASES)
def test_count_tokens(pair, case):
    """A client would be told another length of its prompt than it is billed."""
    counts = [
        client.post("/v1/messages/count_tokens", json={**body, "stream": False}).raise_for_status().json()
        for client, body in ((pair.router, case.body), (pair.direct, case.for_llama))
    ]
    assert counts[0] == counts[1]


@pytest.mark.parametrize(("path", "body"), FORWARDED.values(), ids=FORWARDED)
def test_forwarded(pair, path, body):
    """An endpoint that is passed on would lose something of its request or its answer."""
    answers = [client.post(path, json=body) for client in (pair.router, pair.direct)]
    assert [answer.status_code for answer in answers] == [200, 200]
    ours, theirs = (answer.json() for answer in answers)
    for answer in (ours, theirs):
        answer.pop("model", None)  # the name of a file there, what the client called it here
    assert ours == theirs


@pytest.mark.parametrize("stream", [False, True], ids=["blocking", "streaming"])
@pytest.mark.parametrize("refusal", REFUSALS, ids=str)
def test_refusals(pair, refusal, stream):
    """A request that cannot be fulfilled would be answered with something else, or blamed on the server."""
    content = refusal.body if isinstance(refusal.body, bytes) else orjson.dumps({**refusal.body, "stream": stream})
    direct, ours = (client.post("/v1/chat/completions", content=content) for client in (pair.direct, pair.router))
    assert (direct.status_code, ours.status_code) == (refusal.direct, 400), ours.text
    error = ours.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", refusal.param), error


def check(pair: Pair, path: str, case: Case, *, stream: bool) -> None:
    expected = ask(pair.direct, path, case.for_llama, stream=stream or case.streamed)
    assert ask(pair.router, path, case.body, stream=stream) == (case.view(expected) if case.view else expected)
