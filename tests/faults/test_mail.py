"""The mail between routers while Redis is cut off, restarted, emptied, or taken for something that it is not."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import attrs
import httpx
import pytest
import trio
import trio.testing

from auxot.router import mailbox as mailbox_module
from auxot.router.letters import Cancel, Letter
from auxot.router.mailbox import Mailbox
from auxot.router.store import Store, open_store
from tests.daemon.harness import RunningRouter, ScriptedWorker, running_router, scripted_worker, until
from tests.daemon.test_jobs import ask, text_of
from tests.faults.harness import CuttingProxy, cutting_proxy
from tests.store.harness import RedisServer, redis_server
from tests.store.stepped_store import SteppedStore

TOKENS = [f"{n} é\n" for n in range(300)]
TEXT = "".join(TOKENS)


@attrs.define
class Reader:
    """What a mailbox was told."""

    job_ids: list[str] = attrs.field(factory=list)
    n_gaps: int = 0

    def on_letter(self, _sender: str, letter: Letter) -> None:
        self.job_ids.append(letter.job_id)

    def on_gap(self, _sender: str) -> None:
        self.n_gaps += 1


def open_mailbox(store: Any, router_id: str) -> tuple[Mailbox, Reader]:
    reader = Reader()
    return Mailbox(store, router_id=router_id, on_letter=reader.on_letter, on_gap=reader.on_gap), reader


async def post_all(mailbox: Mailbox, *numbers: int) -> None:
    for number in numbers:
        mailbox.post("b", Cancel(job_id=str(number)))
        await trio.testing.wait_all_tasks_blocked()


async def test_letters_that_did_not_fit_are_told_as_a_gap(autojump_clock):  # noqa: ARG001 -- pytest-trio wants it here
    """A text that was too long for the outbox would reach the client with a hole in it."""
    async with open_store(None) as store, trio.open_nursery() as nursery:
        sender, _ = open_mailbox(store, "a")
        receiver, reader = open_mailbox(store, "b")
        for number in range(mailbox_module.MAX_WAITING_LETTERS + 3):
            sender.post("b", Cancel(job_id=str(number)))
        nursery.start_soon(sender.run_writer)
        nursery.start_soon(receiver.run_reader)
        await until(lambda: len(reader.job_ids) == mailbox_module.MAX_WAITING_LETTERS)
        assert reader.n_gaps == 1
        sender.post("b", Cancel(job_id="later"))
        await until(lambda: reader.job_ids[-1] == "later")
        assert reader.n_gaps == 1
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("n_read", [0, 1])
async def test_the_loss_of_the_last_letters_is_noticed(n_read, autojump_clock):  # noqa: ARG001 -- pytest-trio wants it here
    """A client would wait for the end of an answer whose end Redis has forgotten."""
    async with open_store(None) as store, trio.open_nursery() as nursery:
        sender, _ = open_mailbox(store, "a")
        receiver, reader = open_mailbox(store, "b")
        nursery.start_soon(sender.run_writer)
        if n_read:
            await post_all(sender, 0)
            with trio.move_on_after(2):
                await receiver.run_reader()
        await post_all(sender, 1, 2)
        await store.execute("FLUSHALL")
        nursery.start_soon(receiver.run_reader)
        with trio.fail_after(20):
            await until(lambda: reader.n_gaps == 1)
        assert reader.job_ids == ["0"][:n_read]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("seed", range(20))
async def test_letters_arrive_once_and_in_order_whatever_is_cut(seed, autojump_clock):  # noqa: ARG001 -- pytest-trio wants it here
    """Pieces of a text would be doubled, lost or out of order after a lost connection."""
    rng = random.Random(seed)
    async with open_store(None) as store, trio.open_nursery() as nursery:
        stores = [SteppedStore(store), SteppedStore(store)]
        sender, _ = open_mailbox(stores[0], "a")
        receiver, reader = open_mailbox(stores[1], "b")
        for stepped in stores:
            stepped.is_free = False
        nursery.start_soon(sender.run_writer)
        nursery.start_soon(receiver.run_reader)
        n_posted = 0
        while len(reader.job_ids) < 40:
            stepped = rng.choice(stores)
            match rng.randrange(12):
                case 0 if n_posted < 40:
                    sender.post("b", Cancel(job_id=str(n_posted)))
                    n_posted += 1
                case 1:
                    if rng.random() < 0.3:
                        stepped.cut()
                case 2 | 3 | 4 | 5:
                    await stepped.run_next()
                case 6 | 7 | 8 | 9:
                    await stepped.deliver_next()
            await trio.sleep(0.05)
        assert reader.job_ids == [str(n) for n in range(40)]
        assert reader.n_gaps == 0
        nursery.cancel_scope.cancel()


@pytest.fixture
def redis():
    with redis_server() as server:
        yield server


@attrs.frozen
class Setup:
    """A router for clients and one for workers, on one Redis behind a proxy each."""

    redis: RedisServer
    front: RunningRouter
    back: RunningRouter
    worker: ScriptedWorker
    client: httpx.AsyncClient
    proxies: tuple[CuttingProxy, CuttingProxy]


@asynccontextmanager
async def two_routers(redis: RedisServer, *, seed: int = 0, slots: int = 1, **changes: Any) -> AsyncIterator[Setup]:
    async with (
        cutting_proxy(redis.socket_path, seed=seed) as front_proxy,
        cutting_proxy(redis.socket_path, seed=seed + 1) as back_proxy,
        running_router(redis_url=front_proxy.url, **changes) as front,
        running_router(redis_url=back_proxy.url, **changes) as back,
        scripted_worker(back, slots=slots) as worker,
        front.client() as client,
    ):
        yield Setup(redis, front, back, worker, client, (front_proxy, back_proxy))


async def answer_for_ever(worker: ScriptedWorker, *, pause_s: float) -> None:
    """Write the text for every job, also for those that were cancelled."""
    async with trio.open_nursery() as nursery:
        while True:
            message = await worker.receive()
            if message["type"] == "job":
                nursery.start_soon(_write, worker, message, pause_s)


async def _write(worker: ScriptedWorker, job: dict[str, Any], pause_s: float) -> None:
    for start in range(0, len(TOKENS), 10):
        await worker.say(job, *TOKENS[start : start + 10])
        await trio.sleep(pause_s)
    await worker.complete(job)


def check(response: httpx.Response) -> bool:
    """Whether the answer is whole; else it is a beginning of the text, and says that it failed."""
    if response.status_code != 200:
        assert response.json()["error"]["message"]
        return False
    text = text_of(response)
    assert TEXT.startswith(text), f"a hole, or a doubled piece, at {_first_difference(text)}"
    if "[DONE]" in response.text and "error" not in response.text:
        assert text == TEXT
        return True
    assert "error" in response.text
    return False


def _first_difference(text: str) -> str:
    at = next(n for n, (got, meant) in enumerate(zip(text, TEXT, strict=False)) if got != meant)
    return repr(text[at - 10 : at + 20])


@pytest.mark.parametrize("seed", range(4))
async def test_a_stream_from_router_to_router_is_exact_whatever_is_cut(redis, seed):
    """A client would get a text with a hole or a doubled piece, and no word of it."""
    outcomes: list[bool] = []

    async def one(setup: Setup) -> None:
        outcomes.append(check(await ask(setup.client, stream=True)))

    async with two_routers(redis, seed=seed * 2, slots=8) as setup, trio.open_nursery() as nursery:
        nursery.start_soon(partial(answer_for_ever, setup.worker, pause_s=0.02))
        async with trio.open_nursery() as clients:
            for proxy in setup.proxies:
                proxy.max_bytes = 300_000
                proxy.cut()
            for _ in range(8):
                clients.start_soon(one, setup)
                await trio.sleep(0.03)
        for proxy in setup.proxies:
            proxy.max_bytes = None
        assert sum(proxy.n_cut for proxy in setup.proxies) > 3
        await one(setup)
        assert outcomes[-1]  # as if nothing had been
        await until(partial(is_empty, setup.back))
        nursery.cancel_scope.cancel()


async def test_a_running_stream_survives_a_restart_of_redis(redis):
    """Whatever runs would be stopped because Redis, or a router, had forgotten who lives."""
    async with two_routers(redis) as setup, trio.open_nursery() as nursery:
        responses: list[httpx.Response] = []
        nursery.start_soon(partial(_collect, setup, responses))
        job = await setup.worker.next_job()
        await setup.worker.say(job, *TOKENS[:100])
        await until(lambda: record(setup, job).first_event_at is not None)
        await setup.worker.send("heartbeat")
        while (await setup.worker.receive())["type"] != "heartbeat_ack":
            pass  # then the router has read the words before it
        async with open_store(redis.url) as store:
            await until(partial(_has_read_its_mail, store, setup))
        redis.stop()
        await setup.worker.say(job, *TOKENS[100:200])
        await trio.sleep(0.5)
        redis.start()
        await setup.worker.say(job, *TOKENS[200:])
        await trio.sleep(3)  # the time in which a router looks who lives
        await setup.worker.complete(job)
        await until(lambda: bool(responses))
        assert check(responses[0])
        again = partial(_collect, setup, responses)
        nursery.start_soon(again)
        job = await setup.worker.next_job()
        await setup.worker.say(job, *TOKENS)
        await setup.worker.complete(job)
        await until(lambda: len(responses) == 2)
        assert check(responses[1])


async def test_a_stream_whose_end_redis_forgot_ends_with_an_error(redis):
    """The client would wait until the time limit of the job."""
    async with two_routers(redis) as setup, trio.open_nursery() as nursery:
        responses: list[httpx.Response] = []
        nursery.start_soon(partial(_collect, setup, responses))
        job = await setup.worker.next_job()
        await setup.worker.say(job, *TOKENS[:100])
        await until(lambda: record(setup, job).first_event_at is not None)
        setup.proxies[0].socket_path = redis.socket_path.with_name("nowhere")  # the reader is away for a moment
        setup.proxies[0].cut()
        await setup.worker.say(job, *TOKENS[100:])
        await setup.worker.complete(job)
        await until(partial(is_empty, setup.back))
        async with open_store(redis.url) as store:
            await until(partial(_has_mail, store, setup))
            await store.execute("FLUSHALL")
        setup.proxies[0].socket_path = redis.socket_path
        await until(lambda: bool(responses))
        assert not check(responses[0])


async def test_a_router_that_was_taken_for_dead_tells_its_clients(redis):
    """A client would wait for an answer that the other router has given up."""
    async with two_routers(redis) as setup, trio.open_nursery() as nursery:
        responses: list[httpx.Response] = []
        nursery.start_soon(partial(_collect, setup, responses))
        job = await setup.worker.next_job()
        await setup.worker.say(job, *TOKENS[:100])
        async with open_store(redis.url) as store:
            while not responses:
                await store.execute("DEL", f"auxot:router:{setup.front.router.pool.router_id}")
                await trio.sleep(0.05)
        assert not check(responses[0])


async def test_a_job_that_was_taken_away_by_mistake_and_comes_back_is_not_run_twice():
    """Two attempts of one router would write into one answer."""
    async with running_router() as running, scripted_worker(running, slots=2) as worker, running.client() as client:
        async with trio.open_nursery() as nursery:
            responses: list[httpx.Response] = []

            async def one() -> None:
                responses.append(await ask(client, stream=True))

            nursery.start_soon(one)
            job = await worker.next_job()
            await worker.say(job, *TOKENS[:100])
            pool = running.router.pool
            await pool.queue.release_all_of(pool.router_id)
            await until(partial(_is_claimed_again, running))
            await worker.say(job, *TOKENS[100:])
            await worker.complete(job)
            await until(lambda: bool(responses))
        assert check(responses[0])
        await until(partial(is_empty, running))


async def test_a_job_that_another_router_took_over_by_mistake_is_stopped_here(redis):
    """Two routers would write into one answer."""
    async with (
        running_router(redis_url=redis.url) as front,
        running_router(redis_url=redis.url) as back,
        scripted_worker(front) as own,
        front.client() as client,
        trio.open_nursery() as nursery,
    ):
        responses: list[httpx.Response] = []

        async def one() -> None:
            responses.append(await ask(client, stream=True))

        nursery.start_soon(one)
        old = await own.next_job()
        while not await back.router.pool.queue.release_all_of(front.router.pool.router_id):
            await trio.sleep(0.01)  # it must have been idle for a millisecond
        async with scripted_worker(back) as other:
            new = await other.next_job()
            assert new["attempt"] == old["attempt"] + 1
            while (await own.receive())["type"] != "cancel":
                pass
            await own.say(old, "words of the old attempt")
            await own.complete(old)
            await other.say(new, *TOKENS)
            await other.complete(new)
            await until(lambda: bool(responses))
        assert check(responses[0])
        await until(partial(is_empty, front))


async def _collect(setup: Setup, responses: list[httpx.Response]) -> None:
    responses.append(await ask(setup.client, stream=True))


def record(setup: Setup, job: dict[str, Any]) -> Any:
    open_job = setup.front.router.pool.relay.find(job["job_id"])
    assert open_job is not None
    return open_job.record


async def is_empty(running: RunningRouter) -> bool:
    depth = await running.router.pool.queue.depth()
    return (depth.waiting, depth.claimed) == (0, 0)


async def _has_mail(store: Store, setup: Setup) -> bool:
    n_batches: int = await store.execute("XLEN", f"auxot:mail:{setup.front.router.pool.router_id}")
    return n_batches > 0


async def _has_read_its_mail(store: Store, setup: Setup) -> bool:
    mailbox = setup.back.router.pool.correspondence.mailbox
    assert mailbox is not None
    is_written = not any(outgoing.letters or outgoing.batch for outgoing in mailbox._outgoing.values())
    return is_written and not await _has_mail(store, setup)


async def _is_claimed_again(running: RunningRouter) -> bool:
    queue = running.router.pool.queue
    return {consumer.name: consumer.n_pending for consumer in await queue.consumers()}.get(queue.router_id) == 1
