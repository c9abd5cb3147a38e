"""Workers that say what no honest worker says: it harms their own jobs only, and they are disconnected."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import httpx
import pytest
import trio
import trio_websocket

from auxot.core.errors import ProtocolError
from auxot.router.attempt import MAX_TOKENS
from auxot.router.conduct import (
    FREE_MESSAGES,
    MAX_ANSWER_BYTES,
    MAX_BAD_MESSAGES,
    MAX_PAST_JOBS,
    Allowance,
    Conduct,
    EndlessAnswerError,
)
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
from tests.daemon.test_handshake import CAPABILITIES, raw_socket
from tests.faults.harness import House, house, resident_bytes
from tests.faults.test_fuzz_websocket import HELLO, masked_frame

CHAT = "/v1/chat/completions"
CONFIG = {"type": "config", "capabilities": CAPABILITIES}
COMPLETE = {"full_response": "lie", "input_tokens": 1, "output_tokens": 1}
Words = Callable[[ScriptedWorker, dict[str, Any]], Awaitable[None]]


async def n_workers(running: RunningRouter) -> int:
    count: int = (await running.health())["workers"]
    return count


async def say_without_end(worker: ScriptedWorker, message: dict[str, Any]) -> int:
    """Say something until the router hangs up; return how often it was said."""
    n_said = 0
    with suppress(trio_websocket.ConnectionClosed):
        while True:
            await worker.send(**{"kind" if name == "type" else name: value for name, value in message.items()})
            n_said += 1
    return n_said


@asynccontextmanager
async def liar_beside(house: House, **capabilities: Any) -> AsyncIterator[ScriptedWorker]:
    async with scripted_worker(house.running, **capabilities) as liar:
        await until(lambda: _has_workers(house.running, 2))
        yield liar


async def _has_workers(running: RunningRouter, count: int) -> bool:
    return await n_workers(running) == count


@pytest.mark.parametrize(
    "words",
    [
        {"type": "token", "token": "lie"},
        {"type": "token", "token": "lie", "choice": 3},
        {"type": "complete", **COMPLETE},
        {"type": "error", "error": "lie"},
        {"type": "prompt_progress", "total": 1, "cached": 0, "processed": 1},
        {"type": "forward_body", "data": "AAAA"},
        {"type": "job.overload"},
        {"type": "tool_generating"},
        {"type": "job.tool.call.request", "call_id": "1", "tool_name": "x", "arguments": "{}"},
    ],
    ids=lambda words: words["type"],
)
@pytest.mark.parametrize("is_invented", [False, True])
async def test_a_worker_that_speaks_for_the_job_of_another_is_disconnected(words, is_invented):
    """A worker could write into other people's answers, or try to for ever."""
    async with house() as opened, liar_beside(opened) as liar:
        job_id = "chatcmpl-0" if is_invented else opened.job_id
        with trio.fail_after(20):
            await say_without_end(liar, {**words, "job_id": job_id})
            await until(lambda: _has_workers(opened.running, 1))
        await opened.expect_life()


async def test_a_worker_that_goes_on_after_the_end_is_disconnected():
    """Words without end about jobs that are over would be read for ever."""
    async with running_router() as running, running.client() as client, trio.open_nursery() as nursery:
        async with scripted_worker(running) as liar:
            responses: list[httpx.Response] = []

            async def ask() -> None:
                responses.append(await client.post(CHAT, json=chat_body()))

            nursery.start_soon(ask)
            job = await liar.next_job()
            await liar.complete(job, full_response="truth")
            await until(lambda: bool(responses))
            await say_without_end(liar, {"type": "token", "token": "lie", "job_id": job["job_id"]})
            await until(lambda: _has_workers(running, 0))
        assert responses[0].json()["choices"][0]["message"]["content"] == "truth"


async def test_late_words_about_a_cancelled_job_cost_a_worker_nothing():
    """An original worker that hears of a hang-up late would lose its connection, and its other jobs."""
    async with running_router() as running, scripted_worker(running) as worker:
        async with running.client() as client, trio.open_nursery() as nursery:
            nursery.start_soon(partial(client.post, CHAT, json=chat_body(stream=True)))
            job = await worker.next_job()
            nursery.cancel_scope.cancel()
        while (await worker.receive())["type"] != "cancel":
            pass
        await worker.say(job, *["late"] * 5 * MAX_BAD_MESSAGES)
        await worker.complete(job)
        await worker.send("heartbeat")
        assert (await worker.receive())["type"] == "heartbeat_ack"
        assert await n_workers(running) == 1


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_without_end_is_cut_off_with_an_error_and_its_worker_with_it(stream):
    """One worker could fill the router's memory through a client that waits for the whole."""
    async with house() as opened, opened.running.client() as client, trio.open_nursery() as nursery:
        before = resident_bytes()
        responses: list[httpx.Response] = []

        async def ask() -> None:
            responses.append(await client.post(CHAT, json=chat_body(stream=stream, max_tokens=5)))

        async with liar_beside(opened) as liar:
            nursery.start_soon(ask)
            job = await liar.next_job()
            message = {"type": "token", "token": "and " * 50, "job_id": job["job_id"]}
            assert await say_without_end(liar, message) >= FREE_MESSAGES
            await until(lambda: _has_workers(opened.running, 1))
            await until(lambda: bool(responses))
        [response] = responses
        if stream:
            [error] = [event["error"] for event in sse_events(response.content) if "error" in event]
            assert error["type"] == "server_error"
        else:
            assert response.status_code == 500
        assert "more than an answer can have" in response.text
        await opened.expect_life()
        assert resident_bytes() - before < 100 * 1024 * 1024


@pytest.mark.parametrize(
    "words",
    [
        {"type": "hello", "gpu_key": API_KEY, "capabilities": CAPABILITIES},
        CONFIG,
        {"type": "heartbeat"},
        {"type": "error", "error": "something"},
        {
            "type": "tool_result",
            "job_id": "1",
            "tool_name": "x",
            "result": {},
            "parent_job_id": "1",
            "tool_call_id": "1",
        },
    ],
    ids=lambda words: words["type"],
)
async def test_a_flood_of_announcements_ends_the_connection(words):
    """A worker could keep the router busy, and fill its log, with words about nothing."""
    async with house() as opened:
        async with liar_beside(opened) as liar, trio.open_nursery() as nursery:
            nursery.start_soon(_read_all, liar)
            with trio.fail_after(20):
                await say_without_end(liar, words)
        await until(lambda: _has_workers(opened.running, 1))
        await opened.expect_life()


async def _read_all(worker: ScriptedWorker) -> None:
    with suppress(trio_websocket.ConnectionClosed):
        while True:
            await worker.receive()


async def test_a_message_beyond_the_bound_ends_the_connection_and_no_other():
    """One huge token would have to fit into the router's memory."""
    async with house() as opened:
        before = resident_bytes()
        stream = await raw_socket(opened.running)
        await stream.send_all(masked_frame(HELLO))
        await stream.receive_some()
        with trio.fail_after(20), suppress(trio.BrokenResourceError):
            head = b"\x81\xff" + (10**9).to_bytes(8, "big") + b"\0\0\0\0"
            await stream.send_all(head)
            while True:
                await stream.send_all(bytes(1024 * 1024))
        await stream.aclose()
        await opened.expect_life()
        assert resident_bytes() - before < 100 * 1024 * 1024


async def test_counts_and_places_that_cannot_be_are_not_passed_on():
    """A client would be billed for minus ten tokens, or get a choice that it did not ask for."""
    async with running_router() as running, running.client() as client, scripted_worker(running) as liar:
        responses: list[httpx.Response] = []

        async def ask() -> None:
            responses.append(await client.post(CHAT, json=chat_body()))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            job = await liar.next_job()
            for choice in (-1, 10**9):
                await liar.send("token", job_id=job["job_id"], token="lie", choice=choice)
                await liar.send("tool_call_delta", job_id=job["job_id"], index=choice, name="lie", id="1")
            await liar.complete(job, full_response="truth", input_tokens=-10, output_tokens=10**15)
        answer = responses[0].json()
        assert [choice["message"]["content"] for choice in answer["choices"]] == ["truth"]
        assert "tool_calls" not in answer["choices"][0]["message"]
        assert (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]) == (0, MAX_TOKENS)


def test_the_bytes_of_an_answer_are_bounded_too():
    """An answer without a limit of tokens would have no bound at all."""
    allowance = Allowance.of(None)
    for _ in range(6):
        allowance.spend(MAX_ANSWER_BYTES // 6, choice=0)
    with pytest.raises(EndlessAnswerError):
        allowance.spend(MAX_ANSWER_BYTES // 6, choice=1)


def test_of_jobs_that_are_over_only_so_many_are_remembered():
    """A worker's jobs of months would be kept for as long as it is connected."""
    conduct = Conduct()
    for n in range(MAX_PAST_JOBS + 1):
        conduct.job_is_over(str(n), is_cancelled=True)
    conduct.check_late_words("1", is_end=True)
    for job_id in ("0", "1"):
        with pytest.raises(ProtocolError):
            conduct.check_late_words(job_id, is_end=False)


def test_remarks_are_allowed_at_their_rate():
    """An honest worker would be dropped after some time for its heartbeats."""
    conduct = Conduct()
    for n in range(5000):
        conduct.check_remark(n * 0.1)
    with pytest.raises(ProtocolError):  # noqa: PT012 -- some of them pass
        for _ in range(5000):
            conduct.check_remark(500.0)
