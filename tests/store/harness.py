"""A real redis-server for the length of a block, and the few steps that most tests of the store share."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import trio

from auxot.core.errors import StoreError
from auxot.router.queue import ClaimedJob, JobQueue, QueuedJob
from auxot.router.store import Store, open_store

START_S = 10.0


def bounded(test: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """A test that talks to a process fails after 60 s instead of hanging."""

    @wraps(test)
    async def run(*args: Any, **kwargs: Any) -> None:
        with trio.fail_after(60):
            await test(*args, **kwargs)

    return run


class RedisServer:
    """A redis-server on a unix socket in a folder of its own, without persistence: a restart forgets everything."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.socket_path = folder / "redis.sock"
        self.url = f"unix://{self.socket_path}"
        self._argv = ["redis-server", "--port", "0", "--unixsocket", str(self.socket_path), "--dir", str(folder)]
        self._argv += ["--save", "", "--appendonly", "no", *options]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(self._argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + START_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._process.kill()
                output, _ = self._process.communicate()
                raise RuntimeError(f"redis-server does not start: {output.decode()}")
            time.sleep(0.01)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()  # a frozen one as well; woken first, it would answer what it has read
            self._process.communicate()
            self._process = None

    def freeze(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def _answers(self) -> bool:
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(1)
                connection.connect(str(self.socket_path))
                connection.sendall(b"PING\r\n")
                return connection.recv(100)[:1] in (b"+", b"-")  # -NOAUTH is an answer too
        except OSError:
            return False


@contextmanager
def redis_server(*options: str) -> Iterator[RedisServer]:
    """Run a server for the length of the block. `tests/conftest.py` makes a failure of the skip in CI."""
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed")
    folder = Path(tempfile.mkdtemp(prefix="auxot-redis-"))  # short: the path of a unix socket has at most 107 bytes
    server = RedisServer(folder, *options)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def job(number: int, **fields: Any) -> QueuedJob:
    return QueuedJob(job_id=f"job-{number}", data=b'{"n":%d}' % number, reply_to="router-a", **fields)


def numbers(jobs: list[ClaimedJob]) -> list[int]:
    return [int(claimed.job_id.removeprefix("job-")) for claimed in jobs]


async def fill(queue: JobQueue, n_jobs: int) -> list[bytes]:
    return [await queue.enqueue(job(number)) for number in range(n_jobs)]


async def crash(queue: JobQueue) -> None:
    """Leave the queue in Redis as a router does that was killed and whose heartbeat has run out."""
    await queue.store.execute("DEL", f"auxot:router:{queue.router_id}")
    await trio.sleep(0.01)  # its entries have been idle for some time; a real one's for as long as the heartbeat's TTL


@asynccontextmanager
async def router(store: Store, router_id: str, **options: Any) -> AsyncIterator[JobQueue]:
    """An opened queue; it is not closed, as after a crash."""
    queue = JobQueue(store, router_id=router_id, **options)
    await queue.open()
    yield queue


async def eventually(is_so: Callable[[], bool | Awaitable[bool]]) -> None:
    """Wait until something is so; the test's bound is the deadline. A lost store is not so yet."""
    while True:
        with suppress(StoreError):
            answer = is_so()
            if answer if isinstance(answer, bool) else await answer:
                return
        await trio.sleep(0.01)


@asynccontextmanager
async def two_stores(url: str | None) -> AsyncIterator[tuple[Store, Store]]:
    """The stores of two routers on one Redis; embedded there can only be one."""
    async with open_store(url) as first:
        if url is None:
            yield first, first
            return
        async with open_store(url) as second:
            yield first, second
