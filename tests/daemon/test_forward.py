"""Forwarded endpoints, completions and counts through a real router, with a worker whose words are the test's."""

from __future__ import annotations

import base64
from typing import Any

import httpx
import pytest
import trio

from auxot.core.messages import WORKER_FEATURES
from tests.daemon.harness import ScriptedWorker, running_router, scripted_worker, sse_events, until

ABLE = (*WORKER_FEATURES, "embeddings", "infill")
EMBED = {"model": "any", "input": "hi"}
INFILL = {"input_prefix": "a", "input_suffix": "b"}
JSON = "application/json; charset=utf-8"
SSE = "text/event-stream"
ENDPOINTS = [
    ("/v1/embeddings", EMBED),
    ("/v1/completions", {"model": "any", "prompt": "hi"}),
    ("/tokenize", {"content": "hi"}),
    ("/v1/chat/completions/input_tokens", {"messages": [{"role": "user", "content": "hi"}]}),
]


async def head(worker: ScriptedWorker, job: dict[str, Any], *, status: int = 200, kind: str = JSON) -> None:
    await worker.send("forward_head", job_id=job["job_id"], status=status, content_type=kind)


async def body(worker: ScriptedWorker, job: dict[str, Any], *pieces: bytes) -> None:
    for piece in pieces:
        await worker.send("forward_body", job_id=job["job_id"], data=base64.b64encode(piece).decode())


async def end(worker: ScriptedWorker, job: dict[str, Any]) -> None:
    await worker.complete(job, finishes=[{"finish_reason": "stop"}], input_tokens=0, output_tokens=0)


async def post(client: httpx.AsyncClient, path: str, json: Any, answers: list[httpx.Response]) -> None:
    answers.append(await client.post(path, json=json))


async def test_answer_comes_as_it_is() -> None:
    """The bytes, the status or the type of an answer are changed, or the worker gets another request."""
    answers: list[httpx.Response] = []
    async with running_router() as router, scripted_worker(router, features=ABLE) as worker, router.client() as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(post, client, "/v1/embeddings", EMBED, answers)
            job = await worker.next_job()
            assert job["messages"] == []
            assert job["forward"] == {
                "method": "POST",
                "path": "/v1/embeddings",
                "body": '{"model":"any","input":"hi"}',
            }
            await head(worker, job, status=201)
            await body(worker, job, b'{"da', b'ta":[]}')
            await end(worker, job)
        [answer] = answers
        assert (answer.status_code, answer.content, answer.headers["content-type"]) == (201, b'{"data":[]}', JSON)
        assert answer.headers["content-length"] == "11"
        assert answer.headers["x-request-id"]


async def test_stream_comes_piece_by_piece() -> None:
    """A client waits for the end of a stream before it sees its beginning."""
    begun = trio.Event()

    async def read(client: httpx.AsyncClient) -> None:
        async with client.stream("POST", "/infill", json={**INFILL, "stream": True}) as answer:
            assert (answer.status_code, answer.headers["content-type"].split(";")[0]) == (200, SSE)
            async for _ in answer.aiter_bytes():
                begun.set()

    async with (
        running_router() as router,
        scripted_worker(router, features=ABLE) as worker,
        router.client() as client,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(read, client)
        job = await worker.next_job()
        await head(worker, job, kind=SSE)
        await body(worker, job, b'data: {"content":"a"}\n\n')
        await begun.wait()
        await end(worker, job)


@pytest.mark.parametrize("stream", [True, False])
async def test_refusal_of_llama_server(stream: bool) -> None:
    """An error loses its status, or comes in another shape than OpenAI's."""
    answers: list[httpx.Response] = []
    async with running_router() as router, scripted_worker(router, features=ABLE) as worker, router.client() as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(post, client, "/infill", {**INFILL, "stream": stream}, answers)
            job = await worker.next_job()
            await worker.send("error", job_id=job["job_id"], error="bad grammar", code="invalid_request")
        [answer] = answers
        assert answer.status_code == 400
        assert answer.json()["error"] == {
            "message": "bad grammar",
            "type": "invalid_request_error",
            "param": None,
            "code": None,
        }


async def test_failure_in_the_middle_of_a_stream() -> None:
    """A stream that broke off looks like one that has ended."""
    answers: list[httpx.Response] = []
    async with running_router() as router, scripted_worker(router, features=ABLE) as worker, router.client() as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(post, client, "/infill", {**INFILL, "stream": True}, answers)
            job = await worker.next_job()
            await head(worker, job, kind=SSE)
            await body(worker, job, b'data: {"content":"a"}\n\ndata: {"cont')
            await worker.send("error", job_id=job["job_id"], error="oops", code="worker_failed")
        first, *_, last = answers[0].text.strip().split("\n\n")
        assert first == 'data: {"content":"a"}'
        assert '"oops"' in last


async def test_lost_worker_is_replaced() -> None:
    """A client gets an error although another worker could have answered, or the first worker's half beside it."""
    answers: list[httpx.Response] = []
    async with running_router() as router, router.client() as client:
        async with trio.open_nursery() as nursery:
            async with scripted_worker(router, features=ABLE) as first:
                nursery.start_soon(post, client, "/v1/embeddings", EMBED, answers)
                job = await first.next_job()
                await head(first, job)
                await body(first, job, b"half")
            async with scripted_worker(router, features=ABLE) as second:
                job = await second.next_job()
                await head(second, job)
                await body(second, job, b"{}")
                await end(second, job)
                await until(lambda: bool(answers))
        assert answers[0].content == b"{}"


@pytest.mark.parametrize(("path", "request_body"), ENDPOINTS)
async def test_original_workers(path: str, request_body: dict[str, Any]) -> None:
    """A worker that cannot do this is given the job, or its client waits in vain."""
    async with running_router() as router, scripted_worker(router), router.client() as client:
        answer = await client.post(path, json=request_body)
        assert answer.status_code == 501
        error = answer.json()["error"]
        assert (error["type"], error["code"]) == ("not_implemented", "not_implemented")


async def test_counting_with_original_workers() -> None:
    """An Anthropic client is told in another API's form that nobody can count."""
    request = {"model": "any", "messages": [{"role": "user", "content": "hi"}]}
    async with running_router() as router, scripted_worker(router), router.client() as client:
        answer = await client.post("/v1/messages/count_tokens", json=request)
        assert (answer.status_code, answer.json()["type"]) == (501, "error")


async def test_able_worker_gets_the_job() -> None:
    """In a fleet of several kinds a job goes to a worker that cannot do it, or waits although one that can is free."""
    answers: list[httpx.Response] = []
    async with (
        running_router() as router,
        scripted_worker(router, features=WORKER_FEATURES, slots=8),
        scripted_worker(router, features=ABLE) as able,
        router.client() as client,
        trio.open_nursery() as nursery,
    ):
        for _ in range(2):  # the second one waits for the one slot
            nursery.start_soon(post, client, "/v1/embeddings", EMBED, answers)
        for _ in range(2):
            job = await able.next_job()
            await head(able, job)
            await end(able, job)
    assert [answer.status_code for answer in answers] == [200, 200]


async def test_leaving_cancels_the_job() -> None:
    """A worker goes on with the request of a client that has left."""
    async with running_router() as router, scripted_worker(router, features=ABLE) as worker, router.client() as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(post, client, "/v1/embeddings", EMBED, [])
            job = await worker.next_job()
            nursery.cancel_scope.cancel()
        while (message := await worker.receive())["type"] != "cancel":
            pass
        assert message["job_id"] == job["job_id"]
        await until(lambda: len(router.router.pool.relay) == 0)


async def test_doors() -> None:
    """A forwarded endpoint is open to everybody, takes other methods, bodies without bound, or names of its own."""
    async with running_router(max_body_bytes=1000, model_aliases=(("gpt-*", "test-model"),)) as router:
        async with router.client(key="rtr_wrong") as client:
            assert (await client.post("/v1/embeddings", json=EMBED)).status_code == 401
        async with router.client() as client:
            for path in ("/v1/embeddings", "/tokenize", "/api/openai/v1/tokenize", "/v1/rerank"):
                answer = await client.get(path)
                assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
            assert (await client.post("/tokenize", content=b"x" * 2000)).status_code == 413
            unknown = await client.post("/v1/embeddings", json=EMBED)
            assert (unknown.status_code, unknown.json()["error"]["param"]) == (404, "model")
            assert (await client.post("/slots/0", json={})).status_code == 404


async def test_count_and_completion_jobs() -> None:
    """A worker is asked to answer what is to be counted, or a raw prompt does not reach it."""
    answers: list[httpx.Response] = []
    async with running_router() as router, scripted_worker(router, features=ABLE) as worker, router.client() as client:
        async with trio.open_nursery() as nursery:
            chat = {"messages": [{"role": "user", "content": "hi"}]}
            nursery.start_soon(post, client, "/v1/chat/completions/input_tokens", chat, answers)
            job = await worker.next_job()
            assert job["count_only"] is True
            await worker.complete(job, input_tokens=7, output_tokens=0)
        assert answers.pop().json() == {"object": "response.input_tokens", "input_tokens": 7}
        async with trio.open_nursery() as nursery:
            raw = {"model": "any", "prompt": ["a", "b"], "stream": True}
            nursery.start_soon(post, client, "/v1/completions", raw, answers)
            job = await worker.next_job()
            assert job["prompt"] == ["a", "b"]
            await worker.send("token", job_id=job["job_id"], token="y", choice=1)
            await end(worker, job)
        chunks = sse_events(answers.pop().content)
        assert [choice["text"] for chunk in chunks[:-1] for choice in chunk["choices"] if choice["text"]] == ["y"]
