"""What a router does with more than it can serve: refusals, keys with limits, fair share."""

from __future__ import annotations

import os
from pathlib import Path

import httpx
import orjson
import pytest
import trio
import trio.testing

from auxot.core.errors import ConfigError
from auxot.core.keys import CHEAP, Role, generate_key, hash_key, key_digest
from auxot.router import key_file
from tests.daemon.harness import API_KEY, RunningRouter, chat_body, running_router, scripted_worker, until

OPENAI, ANTHROPIC = "/v1/chat/completions", "/v1/messages"
KEY_A, KEY_B = generate_key(Role.API), generate_key(Role.API)


def write_keys(file: Path, keys: dict[str, str], **fields: str) -> Path:
    """Write a file of keys by name; `fields` are further lines of a key's entry."""
    entries = [
        f'[[key]]\nname = "{name}"\nsha256 = "{key_digest(key).hex()}"\n{fields.get(name, "")}'
        for name, key in keys.items()
    ]
    file.write_text("\n".join(entries))
    return file


async def post(running: RunningRouter, key: str, path: str = OPENAI, text: str = "hi") -> httpx.Response:
    async with running.client(key=key) as client:
        body = chat_body(messages=[{"role": "user", "content": text}], max_tokens=5)
        return await client.post(path, json=body)


async def serve_all(worker, order: list[str], n_jobs: int) -> None:
    for _ in range(n_jobs):
        job = await worker.next_job()
        order.append(job["messages"][0]["content"])
        await worker.complete(job, full_response="ok")


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def n_waiting_of(running: RunningRouter, name: str) -> int:
    load = running.router.pool.admission.by_key.get(name)
    return load.n_jobs if load else 0


def n_waiting(running: RunningRouter) -> int:
    return running.router.pool.admission.waiting.n_jobs


@pytest.mark.parametrize(
    ("path", "status", "kind"), [(OPENAI, 429, "rate_limit_error"), (ANTHROPIC, 529, "overloaded_error")]
)
async def test_beyond_the_bound_a_request_is_refused_in_the_dialects_words(path, status, kind):
    """Requests would wait without bound, or a client would not know that it may try again."""
    async with running_router(max_queue=3) as running, running.client() as client, trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(lambda: client.post(OPENAI, json=chat_body()))
        await until(lambda: n_waiting(running) == 3)
        refused = await client.post(path, json=chat_body(max_tokens=1))
        assert (refused.status_code, refused.json()["error"]["type"]) == (status, kind)
        assert 1 <= int(refused.headers["retry-after"]) <= 300
        nursery.cancel_scope.cancel()


async def test_bytes_that_wait_are_bounded():
    """Memory would grow with what clients send while no worker is free."""
    mib = 1024 * 1024
    async with running_router(max_queue_bytes=8 * mib) as running, running.client() as client:
        statuses: list[int] = []

        async def send() -> None:
            response = await client.post(OPENAI, json=chat_body(messages=[{"role": "user", "content": "x" * mib}]))
            statuses.append(response.status_code)

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(send)
            await until(lambda: len(statuses) == 13)
            assert set(statuses) == {429}
            assert running.router.pool.admission.waiting.n_bytes <= 8 * mib
            nursery.cancel_scope.cancel()
        await until(lambda: n_waiting(running) == 0)


async def test_memory_stays_under_three_times_the_bytes_that_may_wait():
    """The bound of the bytes would say nothing of the memory."""
    mib = 1024 * 1024
    body = orjson.dumps(chat_body(messages=[{"role": "user", "content": "x" * mib}]))
    head = (
        f"POST {OPENAI} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {API_KEY}\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    refused: list[bytes] = []
    async with running_router(max_queue_bytes=32 * mib) as running, trio.open_nursery() as nursery:

        async def send() -> None:
            stream = await trio.open_tcp_stream("127.0.0.1", running.port)
            async with stream:
                await stream.send_all(head.encode() + body)
                refused.append(await stream.receive_some(12))

        before = resident_bytes()
        for _ in range(100):
            nursery.start_soon(send)
        await until(lambda: len(refused) == 69)
        assert set(refused) == {b"HTTP/1.1 429"}
        assert resident_bytes() - before < (3 * 32 + 32) * mib
        nursery.cancel_scope.cancel()


async def test_one_job_of_a_key_is_not_behind_a_thousand_of_another(tmp_path):
    """One key's flood would be everybody's delay."""
    file = write_keys(tmp_path / "keys.toml", {"a": KEY_A, "b": KEY_B})
    order: list[str] = []

    async def send(n: int) -> None:
        body = chat_body(messages=[{"role": "user", "content": f"a{n}"}])
        await client.post(OPENAI, json=body, timeout=None)

    async with (
        running_router(api_keys_file=file) as running,
        running.client(key=KEY_A) as client,
        trio.open_nursery() as nursery,
    ):
        for n in range(300):
            nursery.start_soon(send, n)
        await until(lambda: n_waiting(running) >= 90)  # httpx sends a hundred at once
        async with scripted_worker(running) as worker:
            await serve_all(worker, order, 10)
            nursery.start_soon(post, running, KEY_B, OPENAI, "b")
            await until(lambda: n_waiting_of(running, "b") == 1)
            await trio.testing.wait_all_tasks_blocked(0.01)
            await serve_all(worker, order, 4)
        nursery.cancel_scope.cancel()
    assert "b" in order[10:13]


async def test_batch_jobs_wait_for_interactive_ones(tmp_path):
    """People would wait for a batch."""
    file = write_keys(tmp_path / "keys.toml", {"a": KEY_A, "b": KEY_B}, a='priority = "batch"')
    order: list[str] = []
    async with running_router(api_keys_file=file) as running, trio.open_nursery() as nursery:
        for n in range(6):
            nursery.start_soon(post, running, KEY_A, OPENAI, f"batch{n}")
        await until(lambda: n_waiting(running) == 6)
        for n in range(3):
            nursery.start_soon(post, running, KEY_B, ANTHROPIC, f"person{n}")
        await until(lambda: n_waiting(running) == 9)
        async with scripted_worker(running) as worker:
            await serve_all(worker, order, 9)
    assert all(text.startswith("person") for text in order[1:4])  # the first stood in the queue already
    assert len(order) == 9


async def test_a_keys_own_limits_are_told_as_rate_limits(tmp_path):
    """A limit would not be held, or look like an overload of the router."""
    limits = {"a": "max_concurrent = 1", "b": "requests_per_minute = 2"}
    file = write_keys(tmp_path / "keys.toml", {"a": KEY_A, "b": KEY_B}, **limits)
    async with running_router(api_keys_file=file) as running, scripted_worker(running, slots=4) as worker:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(post, running, KEY_A)
            job = await worker.next_job()
            for path in (OPENAI, ANTHROPIC):
                refused = await post(running, KEY_A, path)
                assert (refused.status_code, refused.json()["error"]["type"]) == (429, "rate_limit_error")
                assert int(refused.headers["retry-after"]) >= 1
            await worker.complete(job)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_all, worker, [], 2)
            for _ in range(2):
                assert (await post(running, KEY_B)).status_code == 200
        refused = await post(running, KEY_B)
        assert refused.status_code == 429
        assert 20 <= int(refused.headers["retry-after"]) <= 30


async def test_keys_come_and_go_without_a_restart(tmp_path):
    """A stolen key could not be shut out without cutting every stream."""
    file = write_keys(tmp_path / "keys.toml", {"a": KEY_A})
    slow_key = generate_key(Role.API)

    async def status(key: str) -> int:
        async with running.client(key=key) as client:
            return (await client.get("/v1/models")).status_code

    async def comes_to(expected: dict[str, int]) -> None:
        async def holds() -> bool:
            return {key: await status(key) for key in expected} == expected

        await until(holds)

    async with running_router(api_keys_file=file) as running:
        assert [await status(key) for key in (KEY_A, KEY_B, slow_key)] == [200, 401, 401]
        with file.open("a") as stream:
            stream.write(f"\n[[key]]\nname = 'slow'\nhash = '{hash_key(slow_key, CHEAP)}'\n")
        await comes_to({KEY_A: 200, slow_key: 200})
        write_keys(file, {"b": KEY_B})
        await comes_to({KEY_A: 401, KEY_B: 200, slow_key: 401})
        file.write_text("[[key]")  # broken: the last good one holds
        await trio.sleep(key_file.POLL_S + 0.5)
        assert await status(KEY_B) == 200
        file.unlink()
        await trio.sleep(key_file.POLL_S + 0.5)
        assert await status(KEY_B) == 200
        write_keys(file, {"a": KEY_A})
        await comes_to({KEY_A: 200, KEY_B: 401})


async def test_a_broken_file_of_keys_is_told_at_the_start(tmp_path):
    """A router would start and let nobody in."""
    for file in (tmp_path / "none.toml", write_keys(tmp_path / "bad.toml", {"a b": KEY_A})):
        with pytest.RaisesGroup(ConfigError, flatten_subgroups=True, allow_unwrapped=True) as excinfo:
            async with running_router(api_keys_file=file):
                pass
        assert excinfo.value is not None
