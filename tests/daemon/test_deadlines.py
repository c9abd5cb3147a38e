"""AUXOT_QUEUE_TIMEOUT and AUXOT_JOB_TIMEOUT, in every dialect and mode: an error, never the end of a whole answer."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import trio

from auxot.core.messages import WORKER_FEATURES
from tests.daemon.harness import chat_body, running_router, scripted_worker, sse_events, until
from tests.daemon.test_two_routers import queue_is_empty

CHAT, COMPLETIONS, RESPONSES, ANTHROPIC = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
INFILL = "/infill"
BODIES: dict[str, dict[str, Any]] = {
    CHAT: chat_body(),
    COMPLETIONS: {"model": "any", "prompt": "hi"},
    RESPONSES: {"model": "any", "input": "hi"},
    ANTHROPIC: chat_body(max_tokens=50),
    INFILL: {"input_prefix": "a", "input_suffix": "b"},
}

FEATURES = (*WORKER_FEATURES, "infill")
UNAVAILABLE = {ANTHROPIC: "overloaded_error"}
TIMEOUT = {ANTHROPIC: "timeout_error"}

in_every_dialect = pytest.mark.parametrize("path", BODIES)
in_every_mode = pytest.mark.parametrize("stream", [False, True], ids=["blocking", "stream"])


async def post(client: httpx.AsyncClient, path: str, *, stream: bool, responses: list[httpx.Response]) -> None:
    responses.append(await client.post(path, json={**BODIES[path], "stream": stream}))


@in_every_mode
@in_every_dialect
async def test_without_any_worker_a_request_is_refused_after_the_queue_timeout(path, stream):
    """A client hangs until it gives up by itself, or is not told that it should try again."""
    async with running_router(queue_timeout_s=0.2) as running, running.client() as client:
        response = await client.post(path, json={**BODIES[path], "stream": stream})
        assert response.status_code == 503
        assert int(response.headers["retry-after"]) > 0
        assert_error(path, response.json(), words="no worker was free within 0.2 s", kinds=UNAVAILABLE)
        await until(lambda: queue_is_empty(running))


@in_every_mode
@in_every_dialect
async def test_a_job_timeout_before_the_first_word_is_a_status(path, stream):
    """A client reads an empty answer as a whole one, or has to look for the error in a 200."""
    responses: list[httpx.Response] = []
    async with (
        running_router(job_timeout_s=0.5) as running,
        scripted_worker(running, features=FEATURES) as worker,
        running.client() as client,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(lambda: post(client, path, stream=stream, responses=responses))
        job = await worker.next_job()
        assert (await worker.receive()) == {"type": "cancel", "job_id": job["job_id"]}
        await until(lambda: bool(responses))
        assert responses[0].status_code == 504
        assert_error(path, responses[0].json(), words="did not end within 0.5 s", kinds=TIMEOUT)
        await until(lambda: queue_is_empty(running))


@pytest.mark.parametrize("path", [path for path in BODIES if path != INFILL])
@in_every_mode
async def test_a_job_timeout_in_mid_answer_ends_it_with_an_error(path, stream):
    """A client takes a part for the whole answer."""
    responses: list[httpx.Response] = []
    async with (
        running_router(job_timeout_s=0.5) as running,
        scripted_worker(running, features=FEATURES) as worker,
        running.client() as client,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(lambda: post(client, path, stream=stream, responses=responses))
        job = await worker.next_job()
        await worker.say(job, "half")
        assert (await worker.receive()) == {"type": "cancel", "job_id": job["job_id"]}
        await worker.complete(job)  # too late
        await until(lambda: bool(responses))
        if stream:
            assert "half" in responses[0].text
            assert_error_event(path, responses[0], words="did not end within 0.5 s", kinds=TIMEOUT)
        else:
            assert responses[0].status_code == 504
            assert_error(path, responses[0].json(), words="did not end within 0.5 s", kinds=TIMEOUT)
        await until(lambda: queue_is_empty(running))


@pytest.mark.parametrize("path", [path for path in BODIES if path != INFILL])
async def test_a_queue_timeout_of_a_stream_that_was_kept_alive_is_an_event(path):
    """A stream whose head has been sent ends without a word, as if the model had nothing to say."""
    settings = {"queue_timeout_s": 0.6, "keep_alive_interval_s": 0.1}
    async with running_router(**settings) as running, running.client() as client:
        response = await client.post(path, json={**BODIES[path], "stream": True})
        assert response.status_code == 200
        assert_error_event(path, response, words="no worker was free within 0.6 s", kinds=UNAVAILABLE)
        await until(lambda: queue_is_empty(running))


async def test_the_job_timeout_counts_from_the_request():
    """A job that has waited may take twice its time; its client has long gone to another server."""
    responses: list[httpx.Response] = []
    limit_s, waits_s = 2.5, 2.0
    async with running_router(job_timeout_s=limit_s) as running, running.client() as client:
        async with trio.open_nursery() as nursery:
            began = trio.current_time()
            nursery.start_soon(lambda: post(client, CHAT, stream=False, responses=responses))
            await trio.sleep(waits_s)
            async with scripted_worker(running) as worker:
                await worker.next_job()
                await until(lambda: bool(responses))
        assert limit_s <= trio.current_time() - began + 0.1 < limit_s + waits_s
        assert responses[0].status_code == 504


def assert_error(path: str, body: dict[str, Any], *, words: str, kinds: dict[str, str]) -> None:
    """Check that a body is the dialect's error."""
    error = body["error"]
    assert words in error["message"]
    assert error["type"] == kinds.get(path, "server_error")
    assert ("type" in body) == (path == ANTHROPIC)


def assert_error_event(path: str, response: httpx.Response, *, words: str, kinds: dict[str, str]) -> None:
    """Check that a stream ends in the dialect's error, and in nothing that means a whole answer."""
    events = sse_events(response.content)
    assert (events[-1] == "[DONE]") == (path in (CHAT, COMPLETIONS))
    last = [event for event in events if event != "[DONE]"][-1]
    if path == RESPONSES:
        assert last["type"] == "response.failed"
        assert last["response"]["status"] == "failed"
        assert words in last["response"]["error"]["message"]
    else:
        assert_error(path, last, words=words, kinds=kinds)
    for end in ('"finish_reason":"', '"stop_reason":"', "message_stop", "response.completed", "response.incomplete"):
        assert end not in response.text
