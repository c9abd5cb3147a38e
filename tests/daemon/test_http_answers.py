"""What every answer says beside its body: ids, times, keep-alives, permissions for browsers, models."""

from __future__ import annotations

import re
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import httpx
import orjson
import pytest
import trio

from tests.daemon.harness import (
    API_KEY,
    RunningRouter,
    ScriptedWorker,
    chat_body,
    running_router,
    scripted_worker,
    sse_events,
    until,
)

OPENAI = "/v1/chat/completions"
ANTHROPIC = "/v1/messages"
ORIGIN = "https://app.example.com"


async def ask(client: httpx.AsyncClient, path: str = OPENAI, *, headers: Any = None, **changes) -> httpx.Response:
    return await client.post(path, json=chat_body(max_tokens=100, **changes), headers=headers)


@asynccontextmanager
async def answered(worker: ScriptedWorker, **ending: Any):
    """Answer each job of the block with "Hello" and its end, or with an error."""

    async def answer_all() -> None:
        while True:
            job = await worker.next_job()
            if ending:
                await worker.send("error", job_id=job["job_id"], **ending)
            else:
                await worker.say(job, "Hel", "lo")
                await worker.complete(job)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer_all)
        yield
        nursery.cancel_scope.cancel()


async def _waiting(running: RunningRouter, count: int) -> bool:
    return (await running.health())["waiting_requests"] == count


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/health"),
        ("GET", "/v1/models"),
        ("GET", "/api/anthropic/v1/models"),
        ("GET", "/nope"),
        ("PUT", OPENAI),
        ("GET", "/v1/models/nope"),
        ("GET", "/api/anthropic/v1/nope"),
        ("POST", OPENAI),
        ("POST", ANTHROPIC),
    ],
)
@pytest.mark.parametrize("key", [API_KEY, None])
async def test_every_answer_has_the_clients_request_id_or_one_of_ours(method, path, key):
    """An answer could not be found in the log."""
    async with running_router() as running, running.client(key=key) as client:
        named = await client.request(method, path, headers={"x-request-id": "mine-1"})
        unnamed = await client.request(method, path)
        assert named.headers["x-request-id"] == named.headers["request-id"] == "mine-1"
        assert re.fullmatch("req_[0-9a-f]{24}", unnamed.headers["x-request-id"])
        assert named.headers.get_list("x-request-id") == ["mine-1"]
        if named.status_code >= 400 and ("anthropic" in path or path == ANTHROPIC):
            assert named.json()["request_id"] == "mine-1"
            assert unnamed.json()["request_id"] == unnamed.headers["request-id"]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", [OPENAI, ANTHROPIC])
async def test_an_answer_tells_who_made_it_and_how_long_its_steps_took(path, stream, capsys):
    """An operator could not tell a slow queue from a slow worker, or which one it was."""
    async with (
        running_router() as running,
        scripted_worker(running) as worker,
        answered(worker),
        running.client() as client,
    ):
        response = await ask(client, path, stream=stream, headers={"x-request-id": "mine-2"})
    assert response.headers["x-request-id"] == "mine-2"
    steps = dict(step.split(";dur=") for step in response.headers["server-timing"].split(", "))
    assert list(steps) == (["queue", "prompt"] if stream else ["queue", "prompt", "generation", "total"])
    assert all(0 <= float(ms) < 30_000 for ms in steps.values())
    log = [orjson.loads(line) for line in capsys.readouterr().err.splitlines() if line.startswith("{")]
    (finished,) = [line for line in log if line["event"] == "job.finished"]
    assert finished["request_id"] == "mine-2"
    assert finished["worker_id"] == response.headers["x-auxot-worker"]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", [OPENAI, ANTHROPIC])
@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        ({"code": "context_length_exceeded", "n_prompt_tokens": 5000, "n_ctx": 4096}, 400, "invalid_request_error"),
        ({"code": "invalid_request"}, 400, "invalid_request_error"),
        ({"code": "rate_limited"}, 429, "rate_limit_error"),
        ({"code": "not_implemented"}, 501, None),
        ({}, 500, None),
    ],
)
async def test_a_failure_before_the_first_event_has_its_status_and_says_whose_it_is(path, stream, error, status, kind):
    """A client would have to read a 200 to learn that its prompt was too long, and nobody would know the worker."""
    async with (
        running_router() as running,
        scripted_worker(running) as worker,
        answered(worker, error="the template raised", **error),
        running.client() as client,
    ):
        response = await ask(client, path, stream=stream)
        assert response.status_code == status
        assert kind is None or response.json()["error"]["type"] == kind
        if error.get("code") == "invalid_request":
            assert "the template raised" in response.json()["error"]["message"]
        assert response.headers["x-auxot-worker"]
        assert response.headers["server-timing"].startswith("queue;dur=")
        assert ("retry-after" in response.headers) == (status == 429)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", [OPENAI, ANTHROPIC])
async def test_a_job_that_no_worker_takes_in_time_says_when_to_try_again(path, stream):
    """A client would hammer a router that has no workers, or give up for good."""
    async with running_router(queue_timeout_s=0.1) as running, running.client() as client:
        response = await ask(client, path, stream=stream)
        assert response.status_code == 503
        assert int(response.headers["retry-after"]) > 0
        assert "x-auxot-worker" not in response.headers


@pytest.mark.parametrize("path", [OPENAI, ANTHROPIC])
async def test_a_stream_that_waits_tells_its_place_in_the_queue_and_the_progress_of_its_prompt(path):
    """A load balancer would cut a client that waits, and a person would not know what for."""
    async with (
        running_router(keep_alive_interval_s=0.05) as running,
        running.client() as client,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(partial(ask, client, messages=[{"role": "user", "content": "first"}]))
        await until(partial(_waiting, running, 1))
        body = chat_body(max_tokens=5, stream=True)
        async with client.stream("POST", path, json=body) as response:
            lines = response.aiter_lines()
            await _line(lines, ": queued, 1 ahead")
            async with scripted_worker(running, slots=2) as worker:
                first, second = await worker.next_job(), await worker.next_job()
                assert first["messages"][0]["content"] == "first"
                await worker.send("prompt_progress", job_id=second["job_id"], total=50, cached=10, processed=20)
                await _line(lines, ": prompt 40%")
                await worker.say(second, "Hello")
                await worker.complete(first)
                seen = [line async for line in _until_text(lines)]
                assert not any(line.startswith(": queued") for line in seen)
                await worker.complete(second)
                rest = [line async for line in lines]
        assert response.status_code == 200
        assert "x-auxot-worker" not in response.headers  # the keep-alive forced the head out before a worker was known
        assert not any(line.startswith(": prompt") for line in rest[-5:])


async def test_progress_of_the_prompt_does_not_put_off_keep_alives():
    """A client would hear nothing for as long as its prompt is read, although the worker tells of it all the time."""
    async with (
        running_router(keep_alive_interval_s=0.2) as running,
        scripted_worker(running) as worker,
        running.client() as client,
        trio.open_nursery() as nursery,
    ):
        told = trio.Event()

        async def read_prompt() -> None:
            job = await worker.next_job()
            while not told.is_set():
                await worker.send("prompt_progress", job_id=job["job_id"], total=100, cached=0, processed=7)
                await trio.sleep(0.02)
            await worker.complete(job)

        nursery.start_soon(read_prompt)
        with trio.fail_after(5):
            async with client.stream("POST", OPENAI, json=chat_body(stream=True)) as response:
                lines = response.aiter_lines()
                await _line(lines, ": prompt 7%")
                told.set()
                assert [line async for line in lines if line.startswith("data")][-1] == "data: [DONE]"


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_a_silence_in_the_answer_is_broken_too_and_clients_do_not_see_it(version):
    """A model that thinks for long between two tokens would lose its client."""
    async with (
        running_router(keep_alive_interval_s=0.05) as running,
        scripted_worker(running) as worker,
        await trio.open_tcp_stream("127.0.0.1", running.port) as client,
    ):
        body = orjson.dumps(chat_body(stream=True))
        head = f"POST {OPENAI} HTTP/{version}\r\nhost: x\r\nauthorization: Bearer {API_KEY}\r\nconnection: close\r\n"
        await client.send_all(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        job = await worker.next_job()
        await worker.say(job, "Hel")
        received = b""
        while received.count(b"\n: ") < 3 and received.count(b"\n:\n") < 3:
            received += await client.receive_some()
        await worker.say(job, "lo")
        await worker.complete(job)
        async for chunk in client:
            received += chunk
        payload = re.sub(rb"\r\n[0-9a-f]+\r\n", b"", received.partition(b"\r\n\r\n")[2])
        events = sse_events(payload)
        assert "".join(event["choices"][0]["delta"].get("content", "") for event in events[:-1]) == "Hello"


async def _line(lines: Any, wanted: str) -> None:
    async for line in lines:
        if line == wanted:
            return
    raise AssertionError(f"never came: {wanted}")


async def _until_text(lines: Any) -> Any:  # noqa: ASYNC124 -- it awaits in its loop
    async for line in lines:
        if "Hello" in line:
            return
        yield line


@pytest.mark.parametrize("origin", [ORIGIN, "https://evil.example"])
async def test_a_page_of_a_named_origin_and_no_other_may_call(origin):
    """A chat in a browser would not work, or any page could use the router."""
    async with (
        running_router(cors_origins=(ORIGIN,)) as running,
        scripted_worker(running) as worker,
        answered(worker),
        running.client() as client,
    ):
        wanted = {"access-control-request-method": "POST", "access-control-request-headers": "x-stainless-os"}
        async with running.client(key=None) as stranger:
            preflight = await stranger.options(OPENAI, headers={"origin": origin, **wanted})
        assert preflight.status_code == 204
        assert preflight.content == b""
        answers = [
            preflight,
            await ask(client, headers={"origin": origin}),
            await ask(client, headers={"origin": origin}, stream=True),
            await client.get("/health", headers={"origin": origin}),
            await client.get("/nope", headers={"origin": origin}),
            await client.post(ANTHROPIC, headers={"origin": origin}, content=b"{"),
        ]
        assert [answer.status_code for answer in answers[1:]] == [200, 200, 200, 404, 400]
        may_call = origin == ORIGIN
        for answer in answers:
            assert answer.headers.get("access-control-allow-origin") == (ORIGIN if may_call else None)
        assert preflight.headers.get("access-control-allow-headers") == ("x-stainless-os" if may_call else None)


async def test_without_the_setting_no_page_may_call():
    """Every page in the world could use a router that was not set up for it."""
    async with running_router() as running, running.client() as client:
        headers = {"origin": ORIGIN, "access-control-request-method": "POST"}
        response = await client.options(OPENAI, headers=headers)
        assert response.status_code == 405
        assert not any(name.startswith("access-control") for name in response.headers)


async def test_lists_of_models_show_what_connected_workers_announce():
    """An agent would plan with the context of the configuration, not with the one that there is."""
    async with (
        running_router(model_aliases=(("gpt-4o", ""), ("claude-*", "test-model"))) as running,
        running.client() as client,
    ):
        before = (await client.get("/v1/models")).json()["data"]
        assert [(model["id"], model["context_length"]) for model in before] == [
            ("test-model", 131_072),
            ("gpt-4o", 131_072),
        ]
        async with scripted_worker(running):
            after = (await client.get("/v1/models")).json()["data"]
            assert {model["context_length"] for model in after} == {4096}
            assert {model["created"] for model in after} == {model["created"] for model in before}
            shown = (await client.get("/api/anthropic/v1/models/claude-opus-4")).json()
            assert (shown["id"], shown["max_input_tokens"]) == ("claude-opus-4", 4096)


async def test_a_name_that_no_alias_covers_is_refused_in_each_apis_words():
    """A typing error in the model's name would be answered as if it were right."""
    async with (
        running_router(model_aliases=(("claude-*", ""),)) as running,
        scripted_worker(running) as worker,
        answered(worker),
        running.client() as client,
    ):
        for model in ("test-model", "claude-opus-4"):
            assert (await ask(client, model=model)).json()["model"] == model
        openai = await ask(client, model="gpt-4o")
        assert openai.status_code == 404
        error = openai.json()["error"]
        assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", "model_not_found", "model")
        unnamed = await client.post("/v1/responses/input_tokens", json={"input": "hi"})
        assert unnamed.status_code == 501  # this worker counts no tokens, but the model is not what is wrong
        anthropic = await ask(client, ANTHROPIC, model="gpt-4o", stream=True)
        assert anthropic.status_code == 404
        assert anthropic.json()["error"]["type"] == "not_found_error"
