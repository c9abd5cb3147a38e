"""Far more than can be served, on a router process of its own: every request ends, and memory stays bounded."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import attrs
import orjson
import trio
import trio_websocket

from auxot.core.keys import STANDARD, Role, generate_key, hash_key, key_digest
from auxot.router.auth import Limits
from tests.daemon.harness import ScriptedWorker, scripted_worker
from tests.faults import many_clients
from tests.live.processes import API_KEY, GPU_KEY, House, running_router

N_REQUESTS = 10_000
MAX_QUEUE = 2000
MAX_RSS_BYTES = 512 * 1024 * 1024  # of the whole process
SLOTS, JOB_S = 2, 0.05
WRONG_KEYS_PER_S, FLOOD_S = 200, 4
MAX_FLOOD_BYTES = 150 * 1024 * 1024
OTHER = "a single one"
THREADS_OF_A_CHECK = 2 + STANDARD.lanes  # Trio's, the one that gives way, and Argon2's


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def n_descriptors(pid: int) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


@attrs.define
class Peak:
    """The most memory that a process had."""

    pid: int
    n_bytes: int = 0

    async def watch(self) -> None:
        while True:
            self.n_bytes = max(self.n_bytes, resident_bytes(self.pid))
            await trio.sleep(0.05)


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


async def ask_models(house: House, key: str) -> int:
    """Return the status of a request on a connection of its own."""
    stream = await trio.open_tcp_stream("127.0.0.1", house.port)
    async with stream:
        head = f"GET /v1/models HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\nconnection: close\r\n\r\n"
        await stream.send_all(head.encode())
        received = b""
        while more := await stream.receive_some():
            received += more
    return int(received.split()[1])


def n_threads(house: House) -> int:
    return sum(1 for _ in Path(f"/proc/{house.router.pid}/task").iterdir())


async def test_a_flood_of_wrong_keys_is_bounded_and_a_right_one_is_served(tmp_path):
    """Strangers could fill memory with keys to be checked, each 64 MiB, or lock the others out."""
    with running_router(tmp_path, AUXOT_API_KEY_HASH=hash_key(API_KEY, STANDARD)) as house:
        assert await ask_models(house, API_KEY) == 200
        idle_bytes, idle_threads = resident_bytes(house.router.pid), n_threads(house)
        peak, most_threads = Peak(house.router.pid), 0
        refused: list[int] = []
        n_right = 0

        async def ask_wrong() -> None:
            refused.append(await ask_models(house, generate_key(Role.API)))

        async with trio.open_nursery() as watching:
            watching.start_soon(peak.watch)
            async with trio.open_nursery() as flood:
                for n in range(WRONG_KEYS_PER_S * FLOOD_S):
                    flood.start_soon(ask_wrong)
                    if n % 10 == 0:
                        assert await ask_models(house, API_KEY) == 200
                        n_right += 1
                        most_threads = max(most_threads, n_threads(house))
                    await trio.sleep(1 / WRONG_KEYS_PER_S)
            watching.cancel_scope.cancel()
        assert len(refused) == WRONG_KEYS_PER_S * FLOOD_S
        assert set(refused) == {401, 503}
        assert n_right == len(refused) // 10
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
