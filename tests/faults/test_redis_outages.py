"""Redis restarted with and without its data, frozen, and not there, under two routers that are processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx
import pytest
import trio

from auxot.router.store import open_store
from auxot.router.sweeper import SETTLE_S
from tests.daemon.harness import until
from tests.faults.harness import CuttingProxy, cutting_proxy
from tests.faults.routers import TEXT, Crew, Place, RouterProcess, router_process, stream_of
from tests.faults.test_routers import collect, is_empty
from tests.store.harness import RedisServer, redis_server

OUTAGE_S = 10.0
TEST_TIMEOUT_S = 120
PATHS = ("/v1/chat/completions", "/v1/messages")


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture
def durable_redis() -> Iterator[RedisServer]:
    with redis_server("--appendonly", "yes", "--appendfsync", "always") as server:
        yield server


async def refusals_of(place: Place) -> list[httpx.Response]:
    """Ask in each dialect, while the queue cannot be reached."""
    return [await stream_of(place, path=path) for path in PATHS]


def check_refusals(responses: list[httpx.Response]) -> None:
    for response in responses:
        assert response.status_code == 503, response.text
        assert int(response.headers["retry-after"]) > 0
        assert "queue cannot be reached" in response.json()["error"]["message"]
    assert responses[1].json()["type"] == "error"


Act = Callable[[CuttingProxy], None]


@contextmanager
def two_routers(folder: Path, redis_url: str) -> Iterator[tuple[RouterProcess, RouterProcess]]:
    with router_process(folder, "one", redis_url) as one, router_process(folder, "two", redis_url) as two:
        yield one, two


async def live_through(server: RedisServer, folder: Path, *, go: Act, come_back: Act) -> None:
    """Run two routers and their workers through an outage, with one job running and four waiting.

    What runs on the router that accepted it must go on, what waits must wait, and who comes must be told.
    """
    crew, others = Crew(pause_s=0.2), Crew()
    texts: list[str] = []
    async with cutting_proxy(server.socket_path, seed=1) as proxy:
        entering = two_routers(folder, proxy.url)
        one, two = await trio.to_thread.run_sync(entering.__enter__)  # they need the proxy, which is a task of ours
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(crew.work, one, slots=1))
                nursery.start_soon(collect, one, texts)
                await until(lambda: len(crew.given) == 1)
                for place in (one, two, one, two):
                    nursery.start_soon(collect, place, texts)
                await until(partial(_has_waiting, server, 5))
                await trio.sleep(SETTLE_S)
                go(proxy)
                back_at = trio.current_time() + OUTAGE_S
                crew.pause_s = 0.01
                await until(lambda: len(texts) == 1)
                check_refusals(await refusals_of(one) + await refusals_of(two))
                assert len(texts) == 1
                await trio.sleep_until(back_at)
                come_back(proxy)
                nursery.start_soon(partial(others.work, two, slots=2))
                await until(lambda: len(texts) == 5)
                await collect(one, texts)
                async with open_store(server.url) as store:
                    await until(partial(is_empty, store))
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(entering.__exit__, None, None, None)
    assert texts == [TEXT] * 6
    n_done = [*crew.n_done.values(), *others.n_done.values()]
    assert n_done == [1] * 6  # nothing was run twice
    assert not set(crew.n_done) & set(others.n_done)


async def _has_waiting(server: RedisServer, n_entries: int) -> bool:
    async with open_store(server.url) as store:
        return bool(await store.execute("XLEN", "auxot:jobs") == n_entries)


async def test_a_restart_that_forgets_everything_loses_no_job(redis: RedisServer, tmp_path: Path) -> None:
    """Whoever waited would wait until the time limit: the entry is gone."""
    with trio.fail_after(TEST_TIMEOUT_S):
        await live_through(redis, tmp_path, go=lambda _: redis.stop(), come_back=lambda _: redis.start())


async def test_a_restart_that_keeps_everything_doubles_no_job(durable_redis: RedisServer, tmp_path: Path) -> None:
    """What was queued before would be queued again."""
    redis = durable_redis
    with trio.fail_after(TEST_TIMEOUT_S):
        await live_through(redis, tmp_path, go=lambda _: redis.stop(), come_back=lambda _: redis.start())


async def test_a_frozen_redis_holds_nothing_for_good(redis: RedisServer, tmp_path: Path) -> None:
    """Requests would hang, or routers take each other for dead when it wakes up."""
    with trio.fail_after(TEST_TIMEOUT_S):
        await live_through(redis, tmp_path, go=lambda _: redis.freeze(), come_back=lambda _: redis.thaw())


async def test_a_redis_that_cannot_be_reached_for_a_while_needs_no_restart(redis: RedisServer, tmp_path: Path) -> None:
    """Routers would have to be restarted after a broken network."""

    def go(proxy: CuttingProxy) -> None:
        proxy.socket_path = redis.socket_path.with_name("nowhere")
        proxy.cut()

    def come_back(proxy: CuttingProxy) -> None:
        proxy.socket_path = redis.socket_path

    with trio.fail_after(TEST_TIMEOUT_S):
        await live_through(redis, tmp_path, go=go, come_back=come_back)
