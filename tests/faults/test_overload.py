"""Far more than can be served, on a router process of its own: every request ends, and memory stays bounded."""

from __future__ import annotations

import resource
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import orjson
import trio
import trio_websocket

from auxot.core.keys import STANDARD, Role, generate_key, hash_key, key_digest
from auxot.router.auth import Limits
from tests.daemon.harness import ScriptedWorker, scripted_worker
from tests.faults import many_clients
from tests.faults.flood import WRONG_KEYS_PER_S, Peak, ask_models, attack, resident_bytes
from tests.live.processes import API_KEY, GPU_KEY, House, running_router

N_REQUESTS = 10_000
MAX_QUEUE = 2000
MAX_RSS_BYTES = 512 * 1024 * 1024  # of the whole process
SLOTS, JOB_S = 2, 0.05
FLOOD_S = 6
N_LAST = 50  # of the flood, when it is long known who is right
MAX_FLOOD_BYTES = 150 * 1024 * 1024
OTHER = "a single one"
THREADS_OF_A_CHECK = 2 + STANDARD.lanes  # Trio's, the one that gives way, and Argon2's


def n_descriptors(pid: int) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


async def serve_slowly(house: House) -> None:
    """Be a worker that takes its time, for ever."""
    async with (
        trio_websocket.open_websocket_url(f"ws://127.0.0.1:{house.port}/ws") as socket,
        trio.open_nursery() as nursery,
    ):
        worker = ScriptedWorker(socket, {})
        capabilities = {"backend": "llama.cpp", "model": "m", "ctx_size": 4096, "total_slots": SLOTS}
        await worker.send("hello", gpu_key=GPU_KEY, capabilities=capabilities)
        assert (await worker.receive())["success"]
        await worker.send("config", capabilities=capabilities)

        async def serve(job) -> None:
            await trio.sleep(JOB_S)
            await worker.complete(job, full_response="ok")

        while True:
            nursery.start_soon(serve, await worker.next_job())


@asynccontextmanager
async def slow_workers(house: House) -> AsyncIterator[trio.Nursery]:
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(serve_slowly, house)
        await trio.to_thread.run_sync(partial(house.wait_health, workers=2))
        yield nursery
        nursery.cancel_scope.cancel()


async def test_ten_thousand_requests_at_once_all_end_and_memory_is_bounded(tmp_path):
    """Some would hang or be cut off without a word, or the router would be killed for its memory."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    n_requests = N_REQUESTS if hard == resource.RLIM_INFINITY else min(N_REQUESTS, hard - 500)
    settings = {"AUXOT_MAX_QUEUE": str(MAX_QUEUE), "AUXOT_QUEUE_TIMEOUT": "15s"}
    with running_router(tmp_path, **settings) as house:
        before = n_descriptors(house.router.pid)
        peak = Peak(house.router.pid)
        argv = [sys.executable, many_clients.__file__, str(house.port), str(n_requests), API_KEY, "200"]
        async with slow_workers(house) as nursery:
            nursery.start_soon(peak.watch)
            done = await trio.run_process(argv, capture_stdout=True)
            outcomes: dict[str, int] = orjson.loads(done.stdout)
            with trio.fail_after(30):
                while n_descriptors(house.router.pid) > before + 2 + 5:
                    await trio.sleep(0.05)
            health = house.health()
        assert set(outcomes) <= {"200", "429", "503"}, outcomes
        assert sum(outcomes.values()) == n_requests
        assert outcomes["200"] >= SLOTS, outcomes
        assert peak.n_bytes < MAX_RSS_BYTES
        assert (health["status"], health["waiting_requests"]) == ("ok", 0), health


def n_threads(house: House) -> int:
    return sum(1 for _ in Path(f"/proc/{house.router.pid}/task").iterdir())


async def test_a_flood_of_wrong_keys_is_bounded_and_a_right_one_is_served(tmp_path):
    """Strangers could fill memory with keys to be checked, each 64 MiB, or lock the others out."""
    with running_router(tmp_path, AUXOT_API_KEY_HASH=hash_key(API_KEY, STANDARD)) as house:
        pid, idle_threads = house.router.pid, n_threads(house)
        peak, most_threads = Peak(pid, resident_bytes(pid)), 0
        idle_bytes = peak.n_bytes
        statuses: list[int] = []

        async with trio.open_nursery() as watching:
            watching.start_soon(peak.watch)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(attack, house.port, statuses, length_s=FLOOD_S))
                await trio.sleep(FLOOD_S / 2)
                n_before = len(statuses)
                most_threads = n_threads(house)
                assert await ask_models(house.port, API_KEY) == 200  # the first time that it is seen
                assert len(statuses) < FLOOD_S * WRONG_KEYS_PER_S
            watching.cancel_scope.cancel()
        assert len(statuses) == WRONG_KEYS_PER_S * FLOOD_S
        assert set(statuses[:n_before]) == {401, 503}
        assert set(statuses[-N_LAST:]) == {401}  # for nothing: the hash has met its key
        assert peak.n_bytes - idle_bytes < MAX_FLOOD_BYTES
        assert most_threads - idle_threads <= Limits().n_threads * THREADS_OF_A_CHECK + 1


async def serve(worker: ScriptedWorker, order: list[str], *, n_jobs: int) -> None:
    for _ in range(n_jobs):
        job = await worker.next_job()
        order.append(job["messages"][0]["content"])
        await worker.complete(job, full_response="ok")


async def ask_once(house: House, key: str) -> None:
    body = orjson.dumps({"model": "any", "messages": [{"role": "user", "content": OTHER}]})
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\nconnection: close\r\n"
    async with await trio.open_tcp_stream("127.0.0.1", house.port) as stream:
        await stream.send_all(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        while await stream.receive_some():
            pass


async def test_a_thousand_jobs_of_one_key_delay_another_by_a_turn(tmp_path):
    """One key's flood would be everybody's delay."""
    keys = {name: generate_key(Role.API) for name in ("flood", "other")}
    entries = [f'[[key]]\nname = "{name}"\nsha256 = "{key_digest(key).hex()}"\n' for name, key in keys.items()]
    (tmp_path / "keys.toml").write_text("\n".join(entries))
    settings = {"AUXOT_API_KEYS_FILE": "keys.toml", "AUXOT_API_KEY_HASH": ""}
    with running_router(tmp_path, **settings) as house:
        argv = [sys.executable, many_clients.__file__, str(house.port), "1000", keys["flood"], "60"]
        order: list[str] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(trio.run_process, argv, capture_stdout=True))
            await trio.to_thread.run_sync(partial(house.wait_health, waiting_requests=1000))
            async with scripted_worker(house, key=GPU_KEY) as worker:
                await serve(worker, order, n_jobs=10)
                nursery.start_soon(ask_once, house, keys["other"])
                await trio.to_thread.run_sync(partial(house.wait_health, waiting_requests=991))
                await serve(worker, order, n_jobs=4)
            nursery.cancel_scope.cancel()
    assert OTHER in order[10:13], order
