"""Jobs from an HTTP client to a worker and back, and what happens when one of them goes away."""

from __future__ import annotations

import socket
from functools import partial
from typing import Any

import httpx
import orjson
import pytest
import trio

from tests.daemon.harness import (
    API_KEY,
    ScriptedWorker,
    chat_body,
    running_router,
    scripted_worker,
    sse_events,
    until,
)

OPENAI = "/v1/chat/completions"
ANTHROPIC = "/v1/messages"


async def answer(worker: ScriptedWorker, *tokens: str, **fields) -> dict:
    job = await worker.next_job()
    await worker.say(job, *tokens)
    await worker.complete(job, **fields)
    return job


async def ask(client: httpx.AsyncClient, path: str = OPENAI, **changes) -> httpx.Response:
    if path == ANTHROPIC:
        changes.setdefault("max_tokens", 100)
    return await client.post(path, json=chat_body(**changes))


def text_of(response: httpx.Response) -> str:
    events = [event for event in sse_events(response.content) if event != "[DONE]"]
    if response.request.url.path == ANTHROPIC:
        return "".join(event["delta"].get("text", "") for event in events if event["type"] == "content_block_delta")
    return "".join(event["choices"][0]["delta"].get("content", "") for event in events if event.get("choices"))


@pytest.mark.parametrize("path", [OPENAI, ANTHROPIC])
async def test_a_streamed_answer_is_what_the_worker_wrote(path):
    """Tokens would be lost, doubled or out of order."""
    async with running_router() as running, scripted_worker(running) as worker, running.client() as client:
        tokens = [f"{n} é\n" for n in range(200)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer, worker, *tokens)
            response = await ask(client, path, stream=True)
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        assert text_of(response) == "".join(tokens)


async def test_what_an_original_worker_held_back_reaches_the_stream():
    """Text that an original worker did not stream, and its whole tool calls, would be lost."""
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    async with running_router() as running, scripted_worker(running) as worker, running.client() as client:
        for stream in (True, False):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(
                    lambda: answer(worker, "Hel", full_response="Hello", reasoning_content="why", tool_calls=[call])
                )
                response = await ask(client, stream=stream)
            if stream:
                assert text_of(response) == "Hello"
                choices = [e["choices"][0] for e in sse_events(response.content)[:-1]]
                assert [c["finish_reason"] for c in choices][-1] == "tool_calls"
            else:
                choice = response.json()["choices"][0]
                assert choice["message"]["content"] == "Hello"
                assert choice["message"]["reasoning_content"] == "why"
                assert choice["message"]["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"a":1}'}
                assert choice["finish_reason"] == "tool_calls"


async def test_a_truncated_answer_of_an_original_worker_ends_with_length():
    """A client would take a cut answer for a whole one."""
    async with running_router() as running, scripted_worker(running) as worker, running.client() as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: answer(worker, "a", "b", output_tokens=2))
            response = await ask(client, max_tokens=2)
        assert response.json()["choices"][0]["finish_reason"] == "length"


async def test_usage_counts_cached_prompt_tokens_once():
    """Clients would see only the part of the prompt that was not cached."""
    async with running_router() as running, scripted_worker(running) as worker, running.client() as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: answer(worker, "a", input_tokens=3, cache_tokens=7, output_tokens=1))
            response = await ask(client)
        usage = response.json()["usage"]
        assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (10, 1, 11)
        assert usage["prompt_tokens_details"]["cached_tokens"] == 7


async def test_the_job_carries_the_whole_request():
    """Sampling parameters would be dropped on the way to the worker."""
    async with running_router() as running, scripted_worker(running) as worker, running.client() as client:
        asked: dict[str, Any] = {"top_p": 0.5, "seed": 7, "stop": ["x"], "temperature": 0, "n": 2, "min_p": 0.1}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: ask(client, **asked))
            job = await worker.next_job()
            await worker.complete(job)
        assert job["temperature"] == 0
        assert {name: job["params"][name] for name in ("top_p", "seed", "n", "min_p")} == {
            "top_p": 0.5,
            "seed": 7,
            "n": 2,
            "min_p": 0.1,
        }
        assert job["attempt"] == 1


async def test_all_slots_of_a_worker_are_filled_at_once():
    """A worker would run one job at a time, whatever its slots."""
    async with running_router() as running, scripted_worker(running, slots=4) as worker, running.client() as client:
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(ask, client)
            jobs = [await worker.next_job() for _ in range(4)]
            assert (await running.health())["active_jobs"] == 4
            for job in jobs:
                await worker.complete(job)
        health = await running.health()
        assert (health["active_jobs"], health["total_slots"]) == (0, 4)


async def test_a_job_sent_before_any_worker_waits_for_one():
    """A request would be refused, or lost, because no worker is there yet."""
    async with running_router() as running, running.client() as client, trio.open_nursery() as nursery:
        responses = []
        nursery.start_soon(lambda: _collect(responses, ask(client)))
        await until(lambda: _waiting(running, 1))
        async with scripted_worker(running) as worker:
            await answer(worker, "late")
            await until(lambda: bool(responses))
        assert responses[0].json()["choices"][0]["message"]["content"] == "late"


async def test_jobs_are_served_in_the_order_in_which_they_came():
    """An early request would starve behind later ones."""
    async with running_router() as running, running.client() as client, trio.open_nursery() as nursery:
        for n in range(5):
            nursery.start_soon(partial(ask, client, messages=[{"role": "user", "content": str(n)}]))
            await until(partial(_waiting, running, n + 1))
        async with scripted_worker(running) as worker:
            order = []
            for _ in range(5):
                job = await worker.next_job()
                order.append(job["messages"][0]["content"])
                await worker.complete(job)
        assert order == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", [OPENAI, ANTHROPIC])
async def test_a_client_that_hangs_up_frees_its_slot(path, stream):
    """The worker would go on writing for nobody."""
    async with running_router() as running, scripted_worker(running) as worker, running.client() as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: ask(client, path, stream=stream))
            job = await worker.next_job()
            await worker.say(job, "begin")
            await trio.testing.wait_all_tasks_blocked(0.05)
            nursery.cancel_scope.cancel()
        with trio.fail_after(5):
            while (message := await worker.receive())["type"] != "cancel":
                pass
        assert message["job_id"] == job["job_id"]
        assert (await running.health())["active_jobs"] == 0
        await until(lambda: _queue_is_empty(running))


async def test_a_queued_job_of_a_client_that_left_never_runs():
    """Workers would be busy with answers that nobody waits for."""
    async with running_router() as running, running.client() as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, client)
            await until(lambda: _waiting(running, 1))
            nursery.cancel_scope.cancel()
        await until(lambda: _waiting(running, 0))
        await until(lambda: _queue_is_empty(running))
        async with scripted_worker(running) as worker, trio.open_nursery() as nursery:
            nursery.start_soon(lambda: ask(client, messages=[{"role": "user", "content": "second"}]))
            job = await worker.next_job()
            assert job["messages"][0]["content"] == "second"
            await worker.complete(job)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_job_whose_worker_is_lost_before_any_text_runs_on_another_at_once(stream):
    """The client would wait for a sweep, or get an error that nobody needed."""
    async with running_router() as running, running.client() as client, trio.open_nursery() as nursery:
        responses = []
        async with scripted_worker(running) as first:
            nursery.start_soon(lambda: _collect(responses, ask(client, stream=stream)))
            job = await first.next_job()
            async with scripted_worker(running) as second:
                abort(first)
                with trio.fail_after(2):
                    again = await second.next_job()
                assert again["job_id"] == job["job_id"]
                assert again["attempt"] == 2
                await second.say(again, "whole")
                await second.complete(again)
                await until(lambda: bool(responses))
        assert responses[0].status_code == 200
        assert "whole" in responses[0].text
        await until(lambda: _queue_is_empty(running))


async def test_a_blocking_job_begins_again_also_after_text():
    """A blocking client, who has seen nothing, would get an error or a doubled beginning."""
    async with running_router() as running, running.client() as client, trio.open_nursery() as nursery:
        responses = []
        async with scripted_worker(running) as first, scripted_worker(running, slots=0) as second:
            nursery.start_soon(lambda: _collect(responses, ask(client)))
            workers = [first, second]
            job = await _first_job(workers)
            holder, other = job.pop("_worker"), None
            other = second if holder is first else first
            await holder.say(job, "half")
            await trio.testing.wait_all_tasks_blocked(0.05)
            abort(holder)
            await answer(other, "whole")
            await until(lambda: bool(responses))
        assert responses[0].json()["choices"][0]["message"]["content"] == "whole"


@pytest.mark.parametrize("path", [OPENAI, ANTHROPIC])
async def test_a_stream_whose_worker_is_lost_after_text_ends_with_an_error(path):
    """The client would see a second beginning, or take the part for a whole answer."""
    async with running_router() as running, running.client() as client, trio.open_nursery() as nursery:
        responses = []
        async with scripted_worker(running) as worker:
            nursery.start_soon(lambda: _collect(responses, ask(client, path, stream=True)))
            job = await worker.next_job()
            await worker.say(job, "half")
            await trio.testing.wait_all_tasks_blocked(0.05)
            abort(worker)
            await until(lambda: bool(responses))
        events = sse_events(responses[0].content)
        assert text_of(responses[0]).startswith("half") if path == ANTHROPIC else True
        errors = [event for event in events if event != "[DONE]" and "error" in event]
        assert len(errors) == 1
        assert '"stop"' not in responses[0].text
        assert "end_turn" not in responses[0].text
        await until(lambda: _queue_is_empty(running))


async def test_a_job_that_has_lost_its_workers_too_often_is_given_up():
    """A job that kills workers would kill them all."""
    async with running_router(max_attempts=2) as running, running.client() as client, trio.open_nursery() as nursery:
        responses = []
        nursery.start_soon(lambda: _collect(responses, ask(client)))
        for attempt in (1, 2):
            async with scripted_worker(running) as worker:
                assert (await worker.next_job())["attempt"] == attempt
                abort(worker)
        await until(lambda: bool(responses))
        assert responses[0].status_code == 502
        assert responses[0].json()["error"]["type"] == "server_error"
        await until(lambda: _queue_is_empty(running))


async def test_a_worker_whose_link_breaks_every_time_does_not_use_jobs_up():
    """It would draw job after job, for it is always free, and each would be given up within a second."""
    async with running_router() as running, running.client() as client, trio.open_nursery() as nursery:
        responses = []
        async with scripted_worker(running) as busy:
            nursery.start_soon(lambda: _collect(responses, ask(client)))
            first = await busy.next_job()
            nursery.start_soon(lambda: _collect(responses, ask(client)))
            for _ in range(3):  # as often as a job may run
                async with scripted_worker(running) as flapping:
                    with trio.move_on_after(0.05):
                        await flapping.next_job()
                    abort(flapping)
            await busy.complete(first, full_response="first")
            second = await busy.next_job()
            await busy.complete(second, full_response="second")
            await until(lambda: len(responses) == 2)
        assert [response.status_code for response in responses] == [200, 200]


async def test_a_job_that_a_worker_gives_back_runs_again():
    """A worker that has no room, or whose llama-server has just died, would cost a request."""
    async with running_router() as running, scripted_worker(running) as worker, running.client() as client:
        responses = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: _collect(responses, ask(client)))
            job = await worker.next_job()
            await worker.send("error", job_id=job["job_id"], error="llama-server died", code="worker_lost")
            await answer(worker, "second try")
        assert responses[0].json()["choices"][0]["message"]["content"] == "second try"


async def test_a_worker_that_says_it_is_unavailable_gets_no_more_jobs():
    """Jobs would bounce off a worker that is draining until they are given up."""
    async with running_router() as running, running.client() as client, trio.open_nursery() as nursery:
        responses = []
        async with scripted_worker(running, slots=2) as draining:
            nursery.start_soon(lambda: _collect(responses, ask(client)))
            job = await draining.next_job()
            await draining.send("error", error="this worker is stopping", code="unavailable")
            await until(lambda: _slots(running, 0))
            nursery.start_soon(lambda: _collect(responses, ask(client)))
            await until(lambda: _waiting(running, 2))
            await draining.complete(job, full_response="old")
            await until(lambda: len(responses) == 1)
            async with scripted_worker(running) as fresh:
                await answer(fresh, "new")
                await until(lambda: len(responses) == 2)
        texts = [response.json()["choices"][0]["message"]["content"] for response in responses]
        assert texts == ["old", "new"]


@pytest.mark.parametrize("path", [OPENAI, ANTHROPIC])
async def test_a_worker_error_before_any_text_keeps_its_status_in_a_stream(path):
    """A client would have to read a 200 to find that its prompt was too long."""
    async with running_router() as running, scripted_worker(running) as worker, running.client() as client:
        responses = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: _collect(responses, ask(client, path, stream=True)))
            job = await worker.next_job()
            await worker.send(
                "error",
                job_id=job["job_id"],
                error="too long",
                code="context_length_exceeded",
                n_prompt_tokens=5000,
                n_ctx=4096,
            )
        assert responses[0].status_code == 400
        if path == ANTHROPIC:
            assert "prompt is too long: 5000 tokens > 4096 maximum" in responses[0].json()["error"]["message"]
        else:
            assert responses[0].json()["error"]["code"] == "context_length_exceeded"


async def test_a_job_that_nobody_takes_in_time_is_refused():
    """A client would hang for ever while no worker is connected."""
    async with running_router(queue_timeout_s=0.2) as running, running.client() as client:
        for path, stream in ((OPENAI, False), (OPENAI, True), (ANTHROPIC, False), (ANTHROPIC, True)):
            response = await ask(client, path, stream=stream)
            assert response.status_code == 503
            assert "no worker was free within 0.2 s" in response.json()["error"]["message"]
        await until(lambda: _queue_is_empty(running))


async def test_a_job_that_takes_too_long_ends_in_an_error_and_frees_its_slot():
    """A timeout would be told as a normal end, and the worker would go on."""
    async with (
        running_router(job_timeout_s=0.4) as running,
        scripted_worker(running) as worker,
        running.client() as client,
    ):
        responses = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: _collect(responses, ask(client, stream=True)))
            job = await worker.next_job()
            await worker.say(job, "half")
            while (message := await worker.receive())["type"] != "cancel":
                pass
        assert message["job_id"] == job["job_id"]
        assert "did not end within 0.4 s" in responses[0].text
        assert '"stop"' not in responses[0].text


async def test_a_client_that_reads_slowly_is_dropped_alone():
    """One client that does not read would hold the worker, its memory, or the others' streams."""
    async with running_router() as running, scripted_worker(running, slots=2) as worker, running.client() as client:
        slow = await trio.open_tcp_stream("127.0.0.1", running.port)
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await slow.send_all(raw_request(stream=True))
        slow_job = await worker.next_job()
        responses = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: _collect(responses, ask(client, stream=True)))
            good_job = await worker.next_job()
            cancelled = trio.Event()

            async def listen():
                while (message := await worker.receive())["type"] != "cancel":
                    pass
                assert message["job_id"] == slow_job["job_id"]
                cancelled.set()

            nursery.start_soon(listen)
            while not cancelled.is_set():
                await worker.say(slow_job, "x" * 60_000)
            await worker.say(good_job, "fine")
            await worker.complete(good_job)
        assert text_of(responses[0]) == "fine"
        await slow.aclose()
        assert (await running.health())["active_jobs"] == 0


async def test_many_streams_over_two_workers_are_not_crossed():
    """Answers would reach the wrong client under load."""

    async def work(worker):
        async with trio.open_nursery() as nursery:
            while True:
                nursery.start_soon(echo, worker, await worker.next_job())

    async def echo(worker, job):
        words = [f"{job['messages'][0]['content']}-{n} " for n in range(20)]
        await worker.say(job, *words)
        await worker.complete(job)

    async def one(client, n):
        content = f"request{n}"
        response = await ask(client, stream=True, messages=[{"role": "user", "content": content}])
        assert text_of(response) == "".join(f"{content}-{k} " for k in range(20))

    async with (
        running_router() as running,
        scripted_worker(running, slots=8) as first,
        scripted_worker(running, slots=8) as second,
        running.client() as client,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(work, first)
        nursery.start_soon(work, second)
        async with trio.open_nursery() as clients:
            for n in range(60):
                clients.start_soon(one, client, n)
        nursery.cancel_scope.cancel()


def raw_request(**changes) -> bytes:
    body = orjson.dumps(chat_body(**changes))
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer %b\r\n"
        b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (API_KEY.encode(), len(body), body)
    )


def abort(worker: ScriptedWorker) -> None:
    """Reset the worker's connection, as a crash does."""
    stream = worker.socket._stream
    assert isinstance(stream, trio.SocketStream)
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    stream.socket.close()


async def _collect(results: list, awaitable) -> None:
    results.append(await awaitable)


async def _first_job(workers: list[ScriptedWorker]) -> dict:
    found: list[dict] = []

    async def listen(worker, scope):
        job = await worker.next_job()
        found.append({**job, "_worker": worker})
        scope.cancel()

    async with trio.open_nursery() as nursery:
        for worker in workers:
            nursery.start_soon(listen, worker, nursery.cancel_scope)
    return found[0]


async def _waiting(running, count: int) -> bool:
    return (await running.health())["waiting_requests"] == count


async def _slots(running, count: int) -> bool:
    return (await running.health())["total_slots"] == count


async def _queue_is_empty(running) -> bool:
    depth = await running.router.pool.queue.depth()
    return (depth.waiting, depth.claimed) == (0, 0)
