"""Two routers on one Redis: a job that one accepted runs on a worker of the other."""

from __future__ import annotations

from contextlib import asynccontextmanager

import pytest
import trio

from auxot.router.queue import QueuedJob
from auxot.router.sweeper import is_settled
from tests.daemon.harness import RunningRouter, chat_body, running_router, scripted_worker, sse_events, until
from tests.daemon.test_jobs import abort, answer, ask, text_of
from tests.store.harness import RedisServer, redis_server


@pytest.fixture
def redis():
    with redis_server() as server:
        yield server


@asynccontextmanager
async def two_routers(redis: RedisServer, **changes):
    """Run a router for clients and one for workers."""
    async with running_router(redis_url=redis.url, **changes) as front, running_router(redis_url=redis.url) as back:
        yield front, back


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_crosses_from_router_to_router_whole(redis, path, stream):
    """A client would hang when its job is claimed by another router."""
    tokens = [f"{n} é\n" for n in range(100)]
    async with two_routers(redis) as (front, back), scripted_worker(back) as worker, front.client() as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer, worker, *tokens)
            response = await ask(client, path, stream=stream)
        if stream:
            assert text_of(response) == "".join(tokens)
        else:
            assert response.json()["usage"]
            assert "99 é\\n" in response.text
        await until(lambda: queue_is_empty(front))
        assert (await back.health())["active_jobs"] == 0


async def test_a_router_gives_its_jobs_to_its_own_idle_worker_first(redis):
    """Half of all answers would pass from router to router, which costs four times the CPU."""
    async with (
        two_routers(redis) as (front, back),
        scripted_worker(front) as own,
        scripted_worker(back) as other,
        front.client() as client,
    ):
        n_own = 0
        for _ in range(24):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: ask(client, stream=True))
                worker, job = await first_job(own, other)
                n_own += worker is own
                await worker.complete(job)
        assert n_own >= 18  # the other router may look into the queue at that very moment
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(lambda: ask(client, stream=True))
            job = await own.next_job()
            await other.complete(await other.next_job())  # the own one is busy
            await own.complete(job)
        await until(lambda: queue_is_empty(front))


async def test_many_jobs_of_both_routers_are_not_crossed(redis):
    """Answers would reach the wrong client, or none."""

    async def work(worker):
        async with trio.open_nursery() as nursery:
            while True:
                nursery.start_soon(echo, worker, await worker.next_job())

    async def echo(worker, job):
        await worker.say(job, *(f"{job['messages'][0]['content']}-{n} " for n in range(10)))
        await worker.complete(job)

    async def one(running, n):
        content = f"request{n}"
        async with running.client() as client:
            response = await ask(client, stream=True, messages=[{"role": "user", "content": content}])
        assert text_of(response) == "".join(f"{content}-{k} " for k in range(10))

    async with (
        two_routers(redis) as (front, back),
        scripted_worker(front, slots=4) as first,
        scripted_worker(back, slots=4) as second,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(work, first)
        nursery.start_soon(work, second)
        async with trio.open_nursery() as clients:
            for n in range(40):
                clients.start_soon(one, (front, back)[n % 2], n)
        nursery.cancel_scope.cancel()


async def test_a_hang_up_crosses_to_the_worker(redis):
    """The other router's worker would go on writing for nobody."""
    async with two_routers(redis) as (front, back), scripted_worker(back) as worker, front.client() as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: ask(client, stream=True))
            job = await worker.next_job()
            await worker.say(job, "begin")
            await until(lambda: front.router.pool.relay.find(job["job_id"]).record.attempt == 1)
            nursery.cancel_scope.cancel()
        while (message := await worker.receive())["type"] != "cancel":
            pass
        assert message["job_id"] == job["job_id"]
        await until(lambda: queue_is_empty(front))
        assert (await back.health())["active_jobs"] == 0


async def test_a_lost_worker_of_the_other_router_moves_the_job_while_nothing_was_seen(redis):
    """The client would get an error that nobody needed."""
    async with two_routers(redis) as (front, back), front.client() as client, trio.open_nursery() as nursery:
        responses = []

        async def request():
            responses.append(await ask(client, stream=True))

        async with scripted_worker(back) as first, scripted_worker(front) as second:
            nursery.start_soon(request)
            holder, job = await first_job(first, second)
            other = second if holder is first else first
            abort(holder)
            again = await other.next_job()
            assert (again["job_id"], again["attempt"]) == (job["job_id"], 2)
            await other.say(again, "whole")
            await other.complete(again)
            await until(lambda: bool(responses))
        assert text_of(responses[0]) == "whole"
        await until(lambda: queue_is_empty(front))


async def test_a_lost_worker_of_the_other_router_ends_a_stream_that_has_begun_with_an_error(redis):
    """The client would see a second beginning, or wait for ever."""
    async with two_routers(redis) as (front, back), front.client() as client, trio.open_nursery() as nursery:
        responses = []

        async def request():
            responses.append(await ask(client, stream=True))

        async with scripted_worker(back) as worker:
            nursery.start_soon(request)
            job = await worker.next_job()
            await worker.say(job, "half")
            await until(lambda: front.router.pool.relay.find(job["job_id"]).record.first_event_at is not None)
            abort(worker)
            await until(lambda: bool(responses))
        events = [event for event in sse_events(responses[0].content) if event != "[DONE]"]
        assert text_of(responses[0]) == "half"
        assert "error" in events[-1]
        await until(lambda: queue_is_empty(front))


async def test_a_guest_whose_router_is_gone_is_stopped(redis):
    """A worker would run jobs of a dead router to their end."""
    async with running_router(redis_url=redis.url) as back, scripted_worker(back) as worker:
        async with (
            running_router(redis_url=redis.url, shutdown_grace_s=0.1) as front,
            front.client() as client,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(lambda: ask(client, stream=True))
            job = await worker.next_job()
            front.phases.quiet.set()
            while (message := await worker.receive())["type"] != "cancel":
                pass
            assert message["job_id"] == job["job_id"]
        await until(lambda: queue_is_empty(back))
        assert (await back.health())["active_jobs"] == 0


async def test_a_job_of_a_router_that_is_gone_is_dropped(redis):
    """Workers would be busy with answers that nobody waits for."""
    async with running_router(redis_url=redis.url) as back:
        pool = back.router.pool
        await until(lambda: is_settled(pool.queue))  # before that the other one may only not be back yet
        await pool.queue.enqueue(QueuedJob(job_id="j", data=b"{}", reply_to="dead", meta=b"{}"))
        async with scripted_worker(back):
            await until(lambda: queue_is_empty(back))
            assert (await back.health())["active_jobs"] == 0


async def test_a_job_of_the_other_router_that_is_given_up_ends_there(redis):
    """A job that kills workers would leave its client waiting."""
    async with two_routers(redis, max_attempts=2) as (front, back), front.client() as client:
        responses = []

        async def request():
            responses.append(await client.post("/v1/chat/completions", json=chat_body()))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(request)
            for _ in range(2):
                async with scripted_worker(back) as worker:
                    await worker.next_job()
                    abort(worker)
            await until(lambda: bool(responses))
        assert responses[0].status_code == 502
        await until(lambda: queue_is_empty(front))


async def test_a_guest_that_this_router_gives_up_is_forgotten(redis):
    """A stopping router would wait its whole grace for a job that nobody runs."""
    async with two_routers(redis, max_attempts=9) as (front, back), front.client() as client:
        responses = []

        async def request():
            responses.append(await client.post("/v1/chat/completions", json=chat_body()))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(request)
            for _ in range(4):  # the other router gives up after three
                async with scripted_worker(back) as worker:
                    with trio.move_on_after(2):
                        await worker.next_job()
                    abort(worker)
            await until(lambda: bool(responses))
        assert responses[0].status_code == 502
        await until(lambda: queue_is_empty(front))
        assert not back.router.pool.correspondence.guests


async def test_a_job_that_only_the_other_routers_workers_can_do_is_left_to_them(redis):
    """Whichever router claimed it first would answer that nobody can do it."""
    asked = {"model": "any", "messages": [{"role": "user", "content": "hi"}]}
    async with (
        two_routers(redis) as (front, back),
        scripted_worker(front, slots=4),
        front.client() as client,
        trio.open_nursery() as nursery,
    ):
        assert (await client.post("/v1/messages/count_tokens", json=asked)).status_code == 501
        responses = []

        async def request():
            responses.append(await client.post("/v1/messages/count_tokens", json=asked))

        async with scripted_worker(back, features=("deltas", "count")) as able:
            await until(lambda: front.router.pool.census.others_can("count"))
            for _ in range(5):
                nursery.start_soon(request)
            for _ in range(5):
                job = await able.next_job()
                assert job["attempt"] == 1
                await able.complete(job, input_tokens=7)
            await until(lambda: len(responses) == 5)
        assert [response.json()["input_tokens"] for response in responses] == [7] * 5
        await until(lambda: queue_is_empty(front))


async def first_job(*workers):
    found = []

    async def listen(worker, scope):
        found.append((worker, await worker.next_job()))
        scope.cancel()

    async with trio.open_nursery() as nursery:
        for worker in workers:
            nursery.start_soon(listen, worker, nursery.cancel_scope)
    return found[0]


async def queue_is_empty(running: RunningRouter) -> bool:
    depth = await running.router.pool.queue.depth()
    return (depth.waiting, depth.claimed) == (0, 0)


async def test_a_job_that_was_claimed_when_redis_failed_is_not_forgotten(redis):
    """A job whose router could not be asked for at that moment stays claimed for ever, and its client waits in vain."""
    async with (
        two_routers(redis) as (front, back),
        scripted_worker(back) as worker,
        front.client() as client,
        trio.open_nursery() as nursery,
    ):
        await until(lambda: is_settled(back.router.pool.queue))  # before that a missing router proves nothing
        store = front.router.pool.queue.store
        await store.execute("ACL", "SETUSER", "default", "-mget")  # what tells which routers live
        responses = []

        async def request():
            responses.append(await ask(client, stream=True))

        nursery.start_soon(request)
        await until(lambda: bool(back.router.pool.queue._held))
        await trio.sleep(0.1)  # for the question to fail
        await store.execute("ACL", "SETUSER", "default", "+mget")
        await answer(worker, "at last")
        await until(lambda: bool(responses))
        assert text_of(responses[0]) == "at last"
