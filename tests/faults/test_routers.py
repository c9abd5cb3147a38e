"""Routers that share a Redis, as processes: killed, restarted one after the other, and asked how they all are."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from auxot.router.store import Store, open_store
from auxot.router.sweeper import SETTLE_S
from tests.daemon.harness import until
from tests.faults.routers import TEXT, Crew, Place, RouterProcess, balancer, router_process, stream_of, text_of
from tests.store.harness import RedisServer, redis_server

DEAD_AFTER_S = 4.0  # of `router_process`
TEST_TIMEOUT_S = 90


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


async def collect(place: Place, texts: list[str], **changes: Any) -> None:
    texts.append(text_of(await stream_of(place, **changes)))


async def n_entries(store: Store) -> int:
    return int(await store.execute("XLEN", "auxot:jobs"))


async def is_empty(store: Store) -> bool:
    """Whether nothing waits in the queue, and nobody has anything of it."""
    pending = await store.execute("XPENDING", "auxot:jobs", "workers")
    return await n_entries(store) == 0 and pending[0] == 0


async def test_a_killed_routers_jobs_are_dropped_and_those_of_others_run_again_in_time(
    redis: RedisServer, tmp_path: Path
) -> None:
    """Clients of the other router would wait for the next sweep, and workers would answer clients that are gone."""
    crew = Crew(is_holding=True)
    texts: list[str] = []
    with (
        router_process(tmp_path, "victim", redis.url) as victim,
        router_process(tmp_path, "other", redis.url) as other,
        trio.fail_after(TEST_TIMEOUT_S),
    ):
        async with open_store(redis.url) as store, balancer(victim, other) as place, trio.open_nursery() as nursery:
            place.routers = [victim]
            nursery.start_soon(partial(crew.work, place, slots=2))
            for _ in range(2):
                nursery.start_soon(collect, other, texts)
            await until(lambda: len(crew.given) == 2)  # of the other router, run by workers of the victim
            for _ in range(3):
                nursery.start_soon(_give_up, victim)
            await until(partial(_has_entries, store, 5))
            await trio.sleep(SETTLE_S)
            place.routers = [other, victim]
            victim.daemon.send(signal.SIGKILL)
            killed_at = trio.current_time()
            await until(partial(_has_entries, store, 2))
            dropped_after_s = trio.current_time() - killed_at
            await until(lambda: len(_second_attempts(crew)) == 2)
            again_after_s = trio.current_time() - killed_at
            crew.is_holding = False
            await until(lambda: len(texts) == 2)
            await until(partial(is_empty, store))
            nursery.cancel_scope.cancel()
    assert texts == [TEXT] * 2
    assert {job["job_id"] for job in crew.given[:2]} == set(_second_attempts(crew)) == set(crew.n_done)
    assert crew.most_running == 2  # no more than its slots, however much came back
    assert dropped_after_s < DEAD_AFTER_S + 1
    assert again_after_s < DEAD_AFTER_S + 1


def _second_attempts(crew: Crew) -> list[str]:
    return [job["job_id"] for job in crew.given if job["attempt"] == 2]


async def _give_up(router: RouterProcess) -> None:
    """Ask a router that is going to die."""
    with pytest.raises(httpx.TransportError):
        await stream_of(router)


async def _has_entries(store: Store, expected: int) -> bool:
    return await n_entries(store) == expected


async def test_an_answer_in_the_middle_is_continued_by_workers_of_another_router(
    redis: RedisServer, tmp_path: Path
) -> None:
    """A router that serves clients only would end its streams with the router that runs them."""
    crew = Crew(features=("deltas", "continue"), pause_s=0.1)
    texts: list[str] = []
    with (
        router_process(tmp_path, "clients", redis.url) as clients,
        router_process(tmp_path, "victim", redis.url) as victim,
        router_process(tmp_path, "third", redis.url) as third,
        trio.fail_after(TEST_TIMEOUT_S),
    ):
        async with open_store(redis.url) as store, balancer(victim) as place, trio.open_nursery() as nursery:
            nursery.start_soon(partial(crew.work, place, slots=2))
            await trio.sleep(SETTLE_S)
            for _ in range(2):
                nursery.start_soon(collect, clients, texts)
            await until(lambda: len(crew.given) == 2)
            await trio.sleep(1)  # some words
            place.routers = [third]
            place.healthy = {third}
            victim.daemon.send(signal.SIGKILL)
            await until(lambda: len(texts) == 2)
            await until(partial(is_empty, store))
            nursery.cancel_scope.cancel()
    assert texts == [TEXT] * 2
    rests = [job for job in crew.given if job["messages"][-1]["role"] == "assistant"]
    assert len(rests) == 2
    assert all(job["messages"][-1]["content"] for job in rests)


async def test_health_tells_the_own_fleet_and_the_whole_one(redis: RedisServer, tmp_path: Path) -> None:
    """An operator would have to ask each router, and add up."""
    crew = Crew(is_holding=True)
    texts: list[str] = []
    with (
        router_process(tmp_path, "one", redis.url) as one,
        router_process(tmp_path, "two", redis.url) as two,
        trio.fail_after(TEST_TIMEOUT_S),
    ):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(crew.work, one, slots=2))
            nursery.start_soon(partial(crew.work, two, slots=3))
            nursery.start_soon(collect, one, texts)
            whole = {"routers": 2, "workers": 2, "total_slots": 5, "active_jobs": 1, "available": 4}
            for router in (one, two):
                await until(partial(_all_routers_are, router, {**whole, "waiting_requests": 1}))
            assert [(await one.health())["total_slots"], (await two.health())["total_slots"]] == [2, 3]
            redis.stop()
            await until(partial(_queue_is, one, "unreachable"))
            redis.start()
            await until(partial(_queue_is, one, "ok"))
            crew.is_holding = False
            await until(lambda: len(texts) == 1)
            two.daemon.send(signal.SIGKILL)
            await until(partial(_all_routers_are, one, {"routers": 1, "workers": 1, "total_slots": 2}))
            nursery.cancel_scope.cancel()
    assert texts == [TEXT]


async def _all_routers_are(router: Place, expected: dict[str, int]) -> bool:
    told = (await router.health())["all_routers"]
    return expected.items() <= told.items()


async def _queue_is(router: Place, expected: str) -> bool:
    return bool((await router.health())["queue"] == expected)


async def test_a_rolling_restart_under_load_cuts_no_stream_and_loses_no_request(
    redis: RedisServer, tmp_path: Path
) -> None:
    """Clients would see errors with every update of the routers."""
    crew = Crew(pause_s=0.02)
    texts: list[str] = []
    is_over = False
    variables = {"AUXOT_SHUTDOWN_DELAY": "1500ms", "AUXOT_SHUTDOWN_GRACE": "20s"}

    async def be_a_client(place: Place, n: int) -> None:
        path = ("/v1/chat/completions", "/v1/messages")[n % 2]
        async with place.client() as client:  # it keeps its connections
            while not is_over:
                body = {"model": "any", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 99}
                texts.append(text_of(await client.post(path, json={**body, "stream": True})))

    with (
        trio.fail_after(TEST_TIMEOUT_S),
        router_process(tmp_path, "one", redis.url, **variables) as one,
        router_process(tmp_path, "two", redis.url, **variables) as two,
    ):
        async with open_store(redis.url) as store, balancer(one, two) as place, trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(partial(crew.work, place, slots=2))
            async with trio.open_nursery() as clients:
                for n in range(6):
                    clients.start_soon(be_a_client, place, n)
                await until(lambda: len(texts) > 4)
                with await _restarted(one, tmp_path, "one again", redis, place, variables) as one_again:
                    await _go_on(texts)
                    with await _restarted(two, tmp_path, "two again", redis, place, variables):
                        await _go_on(texts)
                        is_over = True
                        await until(lambda: not clients.child_tasks)
                        await until(partial(is_empty, store))
                        assert (await one_again.health())["all_routers"]["routers"] == 2
            nursery.cancel_scope.cancel()
    assert set(texts) == {TEXT}


async def _go_on(texts: list[str]) -> None:
    n_before = len(texts)
    await until(lambda: len(texts) >= n_before + 6)


async def _restarted(
    old: RouterProcess, folder: Path, name: str, redis: RedisServer, place: Any, variables: dict[str, str]
) -> Any:
    """Stop a router with SIGTERM, and put another one in its place once it has ended in order."""
    old.daemon.send(signal.SIGTERM)
    assert await trio.to_thread.run_sync(old.daemon.wait) == 0
    starting = router_process(folder, name, redis.url, **variables)
    new = await trio.to_thread.run_sync(starting.__enter__)
    place.routers[place.routers.index(old)] = new
    return _Entered(starting, new)


class _Entered:
    """A context manager that was entered in another thread."""

    def __init__(self, manager: Any, value: Any) -> None:
        self.manager, self.value = manager, value

    def __enter__(self) -> Any:
        return self.value

    def __exit__(self, *exc_info: object) -> None:
        self.manager.__exit__(*exc_info)


async def test_a_draining_router_serves_says_so_and_lets_connections_go(redis: RedisServer, tmp_path: Path) -> None:
    """A balancer that has not looked yet would have its requests refused."""
    crew = Crew()
    with (
        router_process(tmp_path, "one", redis.url, AUXOT_SHUTDOWN_DELAY="3s") as one,
        trio.fail_after(TEST_TIMEOUT_S),
    ):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(crew.work, one, slots=2))
            async with one.client() as client:
                assert (await client.get("/health")).status_code == 200
                one.daemon.send(signal.SIGTERM)
                await until(partial(_is_draining, one))
                for path in ("/v1/chat/completions", "/v1/messages"):
                    body = {"model": "any", "max_tokens": 99, "messages": [{"role": "user", "content": "hi"}]}
                    response = await client.post(path, json={**body, "stream": True})
                    assert text_of(response) == TEXT
                    assert response.headers["connection"] == "close"
            assert await trio.to_thread.run_sync(one.daemon.wait) == 0
            nursery.cancel_scope.cancel()


async def _is_draining(router: Place) -> bool:
    return bool((await router.health())["status"] == "draining")
