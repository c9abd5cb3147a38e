"""Answers whose worker is lost in the middle, and what another worker makes of them."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio

from auxot.router.relay import OpenJob
from tests.daemon.harness import RunningRouter, chat_body, running_router, scripted_worker, sse_events, until
from tests.daemon.test_jobs import abort, ask, text_of
from tests.daemon.test_two_routers import queue_is_empty, two_routers
from tests.store.harness import redis_server

OPENAI = "/v1/chat/completions"
ANTHROPIC = "/v1/messages"
RESPONSES = "/v1/responses"
OURS = ("deltas", "params", "continue")


def written(path: str, response: Any) -> str:
    if path != RESPONSES:
        return text_of(response)
    events = sse_events(response.content)
    return "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")


def usage_of(path: str, response: Any) -> tuple[int, int]:
    events = [event for event in sse_events(response.content) if event != "[DONE]"]
    if path == OPENAI:
        usage = next(event["usage"] for event in reversed(events) if event.get("usage"))
        return usage["prompt_tokens"], usage["completion_tokens"]
    usage = events[-1]["response"]["usage"] if path == RESPONSES else events[-2]["usage"]
    prompt = usage["input_tokens"] if path == RESPONSES else 20
    return prompt, usage["output_tokens"]


def stream(path: str, **changes: Any) -> dict[str, Any]:
    if path == RESPONSES:
        return {"model": "any", "input": "hi", "stream": True, "max_output_tokens": 50, **changes}
    changes = {"max_tokens": 50, **changes}
    if path == OPENAI:
        changes["stream_options"] = {"include_usage": True}
    return chat_body(stream=True, **changes)


def errors_of(response: Any) -> list[Any]:
    events = [event for event in sse_events(response.content) if event != "[DONE]"]
    return [event for event in events if "error" in event or event.get("type") == "error"]


@asynccontextmanager
async def posted(running: RunningRouter, path: str, body: dict[str, Any]):
    """Send a request; yields a list that gets the response."""
    responses: list[Any] = []

    async def post(client: Any) -> None:
        responses.append(await client.post(path, json=body))

    async with running.client() as client, trio.open_nursery() as nursery:
        nursery.start_soon(post, client)
        yield responses
        await until(lambda: bool(responses))


def open_job_of(running: RunningRouter, job: dict[str, Any]) -> OpenJob:
    open_job = running.router.pool.relay.find(job["job_id"])
    assert open_job is not None
    return open_job


async def seen(running: RunningRouter, job: dict[str, Any], n_tokens: int) -> None:
    """Wait until the client has got so many tokens of a job."""
    draft = open_job_of(running, job).draft
    assert draft is not None
    await until(lambda: draft.n_tokens == n_tokens)


@pytest.mark.parametrize("path", [OPENAI, ANTHROPIC, RESPONSES])
async def test_another_worker_writes_the_rest_without_a_seam(path):
    """The client would see an error, a gap or a second beginning, and usage of a part."""
    async with running_router() as running:
        async with scripted_worker(running, features=OURS) as first, posted(running, path, stream(path)) as responses:
            job = await first.next_job()
            await first.send("prompt_progress", job_id=job["job_id"], total=20, cached=5, processed=20)
            await first.say(job, "The", " quick")
            await seen(running, job, 2)
            async with scripted_worker(running, features=OURS) as second:
                abort(first)
                rest = await second.next_job()
                assert (rest["job_id"], rest["attempt"], rest["max_tokens"]) == (job["job_id"], 2, 48)
                assert rest["messages"] == [*job["messages"], {"role": "assistant", "content": "The quick"}]
                await second.send("prompt_progress", job_id=job["job_id"], total=22, cached=0, processed=22)
                await second.say(rest, " brown", " fox")
                await second.complete(rest, input_tokens=22, output_tokens=3)
                await until(lambda: bool(responses))
        [response] = responses
        assert written(path, response) == "The quick brown fox"
        assert errors_of(response) == []
        assert usage_of(path, response) == (20, 5)
        await until(lambda: queue_is_empty(running))


def blocking(path: str) -> dict[str, Any]:
    return {name: value for name, value in stream(path).items() if name not in ("stream", "stream_options")}


def whole_of(path: str, body: dict[str, Any]) -> tuple[str, tuple[int, int]]:
    usage = body["usage"]
    if path == OPENAI:
        return body["choices"][0]["message"]["content"], (usage["prompt_tokens"], usage["completion_tokens"])
    content = body["content"] if path == ANTHROPIC else body["output"][0]["content"]
    n_prompt = usage["input_tokens"] + usage.get("cache_read_input_tokens", 0)
    return content[0]["text"], (n_prompt, usage["output_tokens"])


@pytest.mark.parametrize("path", [OPENAI, ANTHROPIC, RESPONSES])
async def test_a_blocking_answer_is_continued_too(path):
    """Minutes of work are done twice, and the client's time limit runs out; or tokens are counted twice."""
    async with running_router() as running, scripted_worker(running, features=OURS) as first:
        async with posted(running, path, blocking(path)) as responses:
            job = await first.next_job()
            await first.send("prompt_progress", job_id=job["job_id"], total=20, cached=5, processed=20)
            await first.say(job, "The", " quick")
            await seen(running, job, 2)
            async with scripted_worker(running, features=OURS) as second:
                abort(first)
                rest = await second.next_job()
                assert (rest["attempt"], rest["max_tokens"]) == (2, 48)
                assert rest["messages"][-1] == {"role": "assistant", "content": "The quick"}
                await second.say(rest, " fox")
                await second.complete(rest, input_tokens=22, output_tokens=2)
                await until(lambda: bool(responses))
        assert whole_of(path, responses[0].json()) == ("The quick fox", (20, 4))
        await until(lambda: queue_is_empty(running))


@pytest.mark.parametrize("code", ["invalid_request", "context_length_exceeded"])
async def test_a_blocking_answer_whose_rest_is_refused_begins_again(code):
    """A client that has seen nothing gets an error because a chat template takes no message to go on with."""
    async with running_router() as running, scripted_worker(running, features=OURS) as first:
        async with posted(running, OPENAI, blocking(OPENAI)) as responses:
            job = await first.next_job()
            await first.say(job, "The", " quick")
            await seen(running, job, 2)
            async with scripted_worker(running, features=OURS) as second:
                abort(first)
                rest = await second.next_job()
                await second.send("error", job_id=rest["job_id"], error="no prefill", code=code)
                again = await second.next_job()
                assert (again["messages"], again["max_tokens"], again["attempt"]) == (job["messages"], 50, 3)
                await second.say(again, "A", " slow", " ox")
                await second.complete(again, input_tokens=9, output_tokens=3)
                await until(lambda: bool(responses))
        assert whole_of(OPENAI, responses[0].json()) == ("A slow ox", (9, 3))
        await until(lambda: queue_is_empty(running))


async def test_a_blocking_answer_begins_again_at_a_worker_that_can_only_do_that():
    """A client that has seen nothing gets an error, or waits for a kind of worker that never comes."""
    async with running_router() as running, scripted_worker(running, features=OURS) as first:
        async with posted(running, OPENAI, blocking(OPENAI)) as responses:
            job = await first.next_job()
            await first.say(job, "The", " quick")
            await seen(running, job, 2)
            async with scripted_worker(running, features=("deltas", "params")) as original:
                abort(first)
                again = await original.next_job()  # after CONTINUE_WAIT_S
                assert (again["messages"], again["attempt"]) == (job["messages"], 2)
                await original.say(again, "A", " slow", " ox")
                await original.complete(again, input_tokens=9, output_tokens=3)
                await until(lambda: bool(responses))
        assert whole_of(OPENAI, responses[0].json()) == ("A slow ox", (9, 3))
        await until(lambda: queue_is_empty(running))


async def test_a_blocking_answer_goes_back_into_the_queue_where_only_another_router_has_workers():
    """It waits at a router without workers while those of the other one are free."""
    with redis_server() as redis:
        async with two_routers(redis) as (front, back), scripted_worker(front, features=OURS) as first:
            async with posted(front, OPENAI, blocking(OPENAI)) as responses:
                job = await first.next_job()
                await first.say(job, "The", " quick")
                await seen(front, job, 2)
                async with scripted_worker(back, features=OURS) as second:
                    abort(first)
                    again = await second.next_job()
                    assert (again["messages"], again["attempt"]) == (job["messages"], 2)
                    await second.say(again, "A", " slow", " ox")
                    await second.complete(again, input_tokens=9, output_tokens=3)
                    await until(lambda: bool(responses))
            assert whole_of(OPENAI, responses[0].json()) == ("A slow ox", (9, 3))
            await until(lambda: queue_is_empty(front))


async def test_original_workers_get_no_continuations():
    """They would write the answer from the beginning, behind its first half."""
    async with running_router() as running, scripted_worker(running, features=OURS) as first:
        async with posted(running, OPENAI, stream(OPENAI)) as responses:
            job = await first.next_job()
            await first.say(job, "half")
            await seen(running, job, 1)
            async with (
                scripted_worker(running, features=("deltas", "params")) as original,
                trio.open_nursery() as nursery,
            ):
                nursery.start_soon(partial(_must_get_nothing, original))
                abort(first)
                await trio.sleep(0.2)
                assert not responses
                async with scripted_worker(running, features=OURS) as second:  # comes while the client waits
                    rest = await second.next_job()
                    await second.say(rest, " full")
                    await second.complete(rest)
                    await until(lambda: bool(responses))
                nursery.cancel_scope.cancel()
        assert written(OPENAI, responses[0]) == "half full"


async def _must_get_nothing(worker) -> None:
    job = await worker.next_job()
    raise AssertionError(job)


async def test_a_stream_ends_with_an_error_when_nobody_comes_to_continue_it():
    """The client would wait for the end of its time."""
    async with running_router() as running, scripted_worker(running, features=OURS) as first:
        async with posted(running, OPENAI, stream(OPENAI)) as responses:
            job = await first.next_job()
            await first.say(job, "half")
            await seen(running, job, 1)
            abort(first)
        assert written(OPENAI, responses[0]) == "half"
        assert len(errors_of(responses[0])) == 1
        await until(lambda: queue_is_empty(running))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, {"type": "tool_call_delta", "index": 0, "id": "c", "name": "f", "arguments": "{"}),
        ({}, {"type": "token", "token": "Hm", "reasoning": True}),
        ({"n": 2}, {"type": "token", "token": "a"}),
        ({"response_format": {"type": "json_object"}}, {"type": "token", "token": "{"}),
        ({"logprobs": True}, {"type": "token", "token": "a"}),
    ],
)
async def test_what_cannot_be_continued_ends_with_an_error_at_once(changes, message):
    """A call or an object would be cut in two, and look whole."""
    async with (
        running_router() as running,
        scripted_worker(running, features=OURS) as first,
        posted(running, OPENAI, stream(OPENAI, **changes)) as responses,
    ):
        job = await first.next_job()
        async with scripted_worker(running, features=OURS) as second, trio.open_nursery() as nursery:
            nursery.start_soon(_must_get_nothing, second)
            record = open_job_of(running, job).record
            await first.send(message.pop("type"), job_id=job["job_id"], **message)
            await until(lambda: record.first_event_at is not None)
            abort(first)
            await until(lambda: bool(responses))
            nursery.cancel_scope.cancel()
        assert len(errors_of(responses[0])) == 1
        await until(lambda: queue_is_empty(running))


async def test_an_answer_that_kills_its_workers_is_given_up():
    """A job that kills workers would kill them all, a part of its answer at a time."""
    async with running_router(max_attempts=2) as running:
        async with posted(running, OPENAI, stream(OPENAI)) as responses:
            for n, text in enumerate(("a", "b"), start=1):
                async with scripted_worker(running, features=OURS) as worker:
                    job = await worker.next_job()
                    assert job["attempt"] == n
                    await worker.say(job, text)
                    await seen(running, job, n)
                    abort(worker)
        assert written(OPENAI, responses[0]) == "ab"
        assert "given up" in str(errors_of(responses[0]))
        await until(lambda: queue_is_empty(running))


async def test_an_answer_that_lacks_only_its_end_ends_with_length():
    """Another worker would be asked for nothing, or write more than was asked for."""
    async with running_router() as running, scripted_worker(running, features=OURS) as first:
        async with posted(running, OPENAI, stream(OPENAI, max_tokens=2)) as responses:
            job = await first.next_job()
            await first.say(job, "a", "b")
            await seen(running, job, 2)
            abort(first)
        assert '"finish_reason":"length"' in responses[0].text
        assert usage_of(OPENAI, responses[0])[1] == 2
        await until(lambda: queue_is_empty(running))


async def test_the_worker_that_gave_an_answer_back_is_not_the_first_choice():
    """A worker whose llama-server has just died would get the rest before it has said so."""
    async with running_router() as running, scripted_worker(running, features=OURS) as first:
        async with posted(running, OPENAI, stream(OPENAI)) as responses:
            job = await first.next_job()
            await first.say(job, "half")
            await seen(running, job, 1)
            async with scripted_worker(running, features=OURS) as second, trio.open_nursery() as nursery:
                nursery.start_soon(_must_get_nothing, first)
                await first.send("error", job_id=job["job_id"], error="llama-server died", code="worker_lost")
                rest = await second.next_job()
                await second.say(rest, " full")
                await second.complete(rest)
                await until(lambda: bool(responses))
                nursery.cancel_scope.cancel()
        assert written(OPENAI, responses[0]) == "half full"


async def test_a_client_that_leaves_between_two_workers_is_forgotten():
    """The rest of its answer would be written for nobody."""
    async with running_router() as running, scripted_worker(running, features=OURS) as first:
        async with running.client() as client, trio.open_nursery() as nursery:
            nursery.start_soon(lambda: ask(client, stream=True))
            job = await first.next_job()
            await first.say(job, "half")
            await seen(running, job, 1)
            open_job = open_job_of(running, job)
            abort(first)
            await until(lambda: open_job.is_continued)
            nursery.cancel_scope.cancel()
        async with scripted_worker(running, features=OURS) as second, trio.open_nursery() as nursery:
            nursery.start_soon(_must_get_nothing, second)
            await trio.sleep(0.1)
            nursery.cancel_scope.cancel()
        await until(lambda: queue_is_empty(running))


async def test_an_answer_that_began_at_another_routers_worker_is_continued_by_one_of_ours():
    """With two routers a lost worker would end the stream of every second client."""
    with redis_server() as redis:
        async with two_routers(redis) as (front, back), posted(front, OPENAI, stream(OPENAI)) as responses:
            async with scripted_worker(back, features=OURS) as first:
                job = await first.next_job()
                await first.say(job, "half")
                await seen(front, job, 1)
                async with scripted_worker(front, features=OURS) as second:
                    abort(first)
                    rest = await second.next_job()
                    assert (rest["attempt"], rest["messages"][-1]["content"]) == (2, "half")
                    await second.say(rest, " full")
                    await second.complete(rest)
                    await until(lambda: bool(responses))
            assert written(OPENAI, responses[0]) == "half full"
            await until(lambda: queue_is_empty(front))
