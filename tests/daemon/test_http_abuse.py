"""Bodies that no honest client sends: each is answered, none with a 500, and the router lives on."""

from __future__ import annotations

import base64
import gzip
from contextlib import asynccontextmanager
from typing import Any

import httpx
import orjson
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from auxot.core.forwarded import FORWARDED
from auxot.core.messages import WORKER_FEATURES
from auxot.router import openapi
from tests.daemon.harness import RunningRouter, ScriptedWorker, running_router, scripted_worker
from tests.faults.harness import resident_bytes

FEATURES = tuple({*WORKER_FEATURES, *(row.needs for row in FORWARDED)})
PATHS = [one.path for one in openapi.operations() if one.response and one.request not in (None, openapi.UPLOAD)]
CHATS = ("/v1/chat/completions", "/v1/messages", "/v1/responses")
MEGABYTES_10 = 10 * 1024 * 1024


def body_of(path: str, text: str = "TEXT", **more: Any) -> bytes:
    """Return a small request of that route, with some text where people write theirs."""
    messages = [{"role": "user", "content": text}]
    bodies: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": {"messages": messages},
        "/v1/messages": {"messages": messages, "max_tokens": 5},
        "/v1/messages/count_tokens": {"messages": messages},
        "/v1/chat/completions/input_tokens": {"messages": messages},
        "/v1/completions": {"prompt": text},
        "/v1/rerank": {"query": text, "documents": [text]},
        "/v1/reranking": {"query": text, "documents": [text]},
        "/v1/tokenize": {"content": text},
        "/v1/detokenize": {"tokens": [1, 2]},
        "/v1/apply-template": {"messages": messages},
        "/v1/infill": {"input_prefix": text, "input_suffix": text},
    }
    return orjson.dumps({"model": "any", **bodies.get(path, {"input": text}), **more})


async def _answer_all(worker: ScriptedWorker) -> None:
    while True:
        job = await worker.next_job()
        if job.get("forward"):
            data = base64.b64encode(b'{"data": []}').decode()
            await worker.send("forward_head", job_id=job["job_id"], status=200, content_type="application/json")
            await worker.send("forward_body", job_id=job["job_id"], data=data)
        else:
            await worker.say(job, "Hello")
        await worker.complete(job)


@asynccontextmanager
async def house():
    async with (
        running_router() as running,
        scripted_worker(running, slots=4, features=FEATURES) as worker,
        running.client() as client,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(_answer_all, worker)
        yield running, client
        nursery.cancel_scope.cancel()


async def expect_answer(client: httpx.AsyncClient, path: str, body: bytes) -> int:
    """Send a body; what comes back is a success, or an error that says something to its sender."""
    response = await client.post(path, content=body, headers={"content-type": "application/json"})
    assert response.status_code < 500, (response.status_code, response.text[:500])
    if response.status_code >= 400:
        assert response.json()["error"]["message"]
    return response.status_code


async def expect_life(running: RunningRouter, client: httpx.AsyncClient) -> None:
    """Check that the router answers as before, and that nothing is left of what came before."""
    assert (await running.health())["active_jobs"] == 0
    assert await expect_answer(client, CHATS[0], body_of(CHATS[0])) == 200


def nested(depth: int, opening: bytes = b'{"a":', closing: bytes = b"}") -> bytes:
    return opening * depth + b"1" + closing * depth


BROKEN = {
    "nothing": b"",
    "no JSON": b"hello",
    "half": b'{"model": "any", "messages": [',
    "a list": b"[]",
    "a number": b"5",
    "null": b"null",
    "NaN": b'{"model": NaN}',
    "NUL bytes": b"\0" * 1000,
    "gzip": b"\x1f\x8b\x08\0\0\0\0\0",
    "a byte order mark": b"\xef\xbb\xbf{}",
    "UTF-16": '{"model": "any"}'.encode("utf-16"),
    "deep arrays": nested(100_000, b"[", b"]"),
    "deep objects": nested(100_000),
}


@pytest.mark.parametrize("path", PATHS)
async def test_what_is_no_request_is_a_400(path):
    """A client that sends rubbish would see a fault of the router, or end it."""
    async with house() as (running, client):
        for name, body in BROKEN.items():
            assert await expect_answer(client, path, body) == 400, name
        await expect_life(running, client)


NO_TEXT = [b"\xff\xfe", b"\xed\xa0\x80", b"\\ud800", b"\\udc00\\ud800", b"\n", b"\0"]
STRANGE_TEXT = ["\0", "a\0b", "\u2028", "\ufeff", "\ufffe", "🙂" * 1000, "\u202e", "e\u0301" * 1000, "\x1b[31m"]


@pytest.mark.parametrize("path", PATHS)
async def test_text_that_is_no_text_is_refused_and_nothing_else_happens(path):
    """Invalid UTF-8, lone surrogates or raw control characters would get as far as a worker, or be a 500."""
    async with house() as (running, client):
        expected = 400 if b"TEXT" in body_of(path) else 200
        for inserted in NO_TEXT:
            body = body_of(path).replace(b"TEXT", b"x" + inserted + b"y")
            assert await expect_answer(client, path, body) == expected, inserted
        await expect_life(running, client)


@pytest.mark.parametrize("path", PATHS)
async def test_strange_text_is_text(path):
    """A prompt with a NUL, a control character or an emoji would be refused or break the answer."""
    async with house() as (_, client):
        for text in STRANGE_TEXT:
            assert await expect_answer(client, path, body_of(path, text)) == 200, text


@pytest.mark.parametrize("path", [path for path in PATHS if path != "/v1/detokenize"])
async def test_a_prompt_of_ten_megabytes_is_answered(path):
    """A long document would be refused by the router, whatever the model's context."""
    async with house() as (running, client):
        text = "word " * (MEGABYTES_10 // 5)
        assert await expect_answer(client, path, body_of(path, text)) in (200, 400)
        if path in CHATS:
            assert await expect_answer(client, path, body_of(path, text)) == 200
        await expect_life(running, client)


@pytest.mark.parametrize("path", CHATS)
async def test_five_hundred_tools_are_offered(path):
    """An agent with many tools would get a 500, or lose some of them without a word."""
    schema = {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(20)}}
    forms = {
        "/v1/chat/completions": lambda name: {"type": "function", "function": {"name": name, "parameters": schema}},
        "/v1/messages": lambda name: {"name": name, "input_schema": schema},
        "/v1/responses": lambda name: {"type": "function", "name": name, "parameters": schema},
    }
    tools = [forms[path](f"tool_{n}") for n in range(500)]
    async with running_router() as running, scripted_worker(running) as worker, running.client() as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect_answer, client, path, body_of(path, tools=tools))
            job = await worker.next_job()
            await worker.complete(job)
        assert [tool["function"]["name"] for tool in job["tools"]] == [f"tool_{n}" for n in range(500)]


@pytest.mark.parametrize("path", CHATS)
async def test_deep_schemas_are_passed_on_or_refused(path):
    """A tool's schema that is nested beyond what a JSON writer takes would be a 500."""
    forms = {
        "/v1/chat/completions": b'{"type":"function","function":{"name":"f","parameters":%b}}',
        "/v1/messages": b'{"name":"f","input_schema":%b}',
        "/v1/responses": b'{"type":"function","name":"f","parameters":%b}',
    }
    async with house() as (running, client):
        for depth in (50, 99, 101, 200, 254, 255, 1000):
            schema = nested(depth)
            body = body_of(path, tools=["TOOL"]).replace(b'"TOOL"', forms[path] % schema)
            assert await expect_answer(client, path, body) == (200 if depth <= 99 else 400)
            for field in (b"metadata", b"unknown_field", b"chat_template_kwargs", b"response_format", b"tool_choice"):
                await expect_answer(client, path, body_of(path)[:-1] + b',"%b":%b}' % (field, schema))
        await expect_life(running, client)


NUMBERS = ["1e400", "-1e400", "1e-400", "9" * 30, "-" + "9" * 30, "9" * 5000, "-0", "0.1e1", "5.0", "true", "1e2"]


NUMBER_FIELDS = [
    "max_tokens",
    "max_output_tokens",
    "max_completion_tokens",
    "n_predict",
    "temperature",
    "top_p",
    "top_k",
]
NUMBER_FIELDS += [
    "seed",
    "n",
    "top_logprobs",
    "logprobs",
    "min_p",
    "unknown",
    "stop",
    "tools",
    "messages",
    "input",
    "prompt",
]


@pytest.mark.parametrize("path", [*CHATS, "/v1/completions", "/v1/messages/count_tokens"])
async def test_numbers_beyond_every_range_are_read_or_refused(path):
    """A number that is infinite or has a thousand digits would be a 500."""
    async with house() as (running, client):
        for field in NUMBER_FIELDS:
            body = orjson.loads(body_of(path))
            body.pop(field, None)
            for number in NUMBERS:
                await expect_answer(
                    client, path, orjson.dumps({**body, field: 0}).replace(b":0", b":" + number.encode())
                )
        await expect_life(running, client)


@pytest.mark.parametrize("path", PATHS)
async def test_of_two_fields_with_one_name_the_last_counts(path):
    """What is checked would be another value than what is used."""
    async with house() as (_, client):
        twice = body_of(path)[:-1] + b',"model":5}'
        assert await expect_answer(client, path, twice) == await expect_answer(client, path, body_of(path, model=5))
        assert await expect_answer(client, path, b'{"model":5,' + body_of(path)[1:]) == 200


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
NAMES = ["messages", "input", "prompt", "tools", "tool_choice", "system", "stop", "thinking", "response_format", "text"]


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(values=st.lists(st.tuples(st.sampled_from(NAMES), JSON), min_size=20, max_size=40))
def test_any_json_in_any_field_is_answered(values):
    """Some value of the wrong shape would be a 500."""

    async def run() -> None:
        async with house() as (running, client):
            for name, value in values:
                for path in (*CHATS, "/v1/completions", "/v1/messages/count_tokens", "/v1/embeddings"):
                    body = {**orjson.loads(body_of(path)), name: value}
                    try:
                        content = orjson.dumps(body)
                    except TypeError:  # an integer beyond 64 bits, or a surrogate: the encoder's own limits
                        continue
                    await expect_answer(client, path, content)
            await expect_life(running, client)

    trio.run(run)


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "gzip, gzip", "x"])
async def test_a_compressed_body_is_refused_unopened(coding):
    """A few kilobytes would become gigabytes in the router's memory (a decompression bomb)."""
    bomb = gzip.compress(bytes(50 * 1024 * 1024))
    async with running_router() as running, running.client() as client:
        before = resident_bytes()
        for path in PATHS:
            response = await client.post(path, content=bomb, headers={"content-encoding": coding})
            assert response.status_code == 415
            assert "compressed" in response.json()["error"]["message"]
            assert response.json()["error"]["type"] == "invalid_request_error"
        assert resident_bytes() - before < 20 * 1024 * 1024


@pytest.mark.parametrize("coding", ["identity", "Identity", ""])
async def test_a_body_that_is_said_not_to_be_compressed_is_read(coding):
    """A client that says the obvious would be refused."""
    async with running_router() as running, running.client() as client:
        response = await client.post("/v1/chat/completions", content=b"{}", headers={"content-encoding": coding})
        assert response.status_code == 400
