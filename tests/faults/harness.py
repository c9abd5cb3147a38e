"""What tests of faults share: a proxy in front of a unix socket, and what a process holds on to."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import orjson
import trio

from auxot.router.front import FrontPhases
from auxot.router.service import serve
from tests.daemon.harness import RunningRouter, ScriptedWorker, chat_body, router_config, scripted_worker, until
from tests.faults.proxy import Proxy, running
from tests.store.harness import free_port


@attrs.define(eq=False, kw_only=True)
class CuttingProxy(Proxy):
    """A proxy in front of a unix socket."""

    socket_path: Path

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    async def dial(self) -> trio.SocketStream:
        """Connect to the socket."""
        return await trio.open_unix_socket(self.socket_path)


@asynccontextmanager
async def cutting_proxy(socket_path: Path, *, seed: int) -> AsyncIterator[CuttingProxy]:
    """Run a proxy in front of a unix socket for the length of the block."""
    proxy = CuttingProxy(socket_path=socket_path, port=free_port(), rng=random.Random(seed))
    async with running(proxy):
        yield proxy


def n_descriptors() -> int:
    """Return how many descriptors this process has open."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def n_tasks() -> int:
    """Return how many Trio tasks live."""
    return trio.lowlevel.current_statistics().tasks_living


def task_names() -> list[str]:
    """Return where every task of this loop waits, innermost function last."""
    names: list[str] = []
    tasks = [root] if (root := trio.lowlevel.current_root_task()) else []
    while tasks:
        task = tasks.pop()
        names.append(".".join(frame.f_code.co_qualname for frame, _ in task.iter_await_frames()))
        tasks += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
    return names


def resident_bytes() -> int:
    """Return the memory of this process that is in RAM."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@attrs.define(eq=False)
class House:
    """A router with one good worker and one good client, whose stream runs for as long as the house stands.

    `measure` tells what the process holds; `expect_life` that strangers have changed nothing for those two.
    """

    running: RunningRouter
    worker: ScriptedWorker
    job_id: str
    n_said: int = 0
    n_read: int = 0
    _is_over: bool = False

    async def speak(self) -> None:
        while not self._is_over:
            await self.worker.say({"job_id": self.job_id}, f"{self.n_said} ")
            self.n_said += 1
            await trio.sleep(0.005)

    async def listen(self, lines: AsyncIterator[str]) -> None:
        async for line in lines:
            if line.startswith("data: {") and (text := _delta(line)):
                assert text == "".join(f"{n} " for n in range(self.n_read, self.n_read + text.count(" ")))
                self.n_read += text.count(" ")

    async def expect_life(self) -> None:
        """Check that health is answered, and that the stream is exact up to this moment."""
        assert (await self.running.health())["status"] == "ok"
        n_said = self.n_said
        assert n_said
        await until(lambda: self.n_read >= n_said)

    async def measure(self) -> tuple[int, int]:
        """Return how many tasks and descriptors there are, once that is a settled number."""
        await self.expect_life()
        await trio.sleep(0.2)
        return n_tasks(), n_descriptors()

    async def expect_nothing_left(self, before: tuple[int, int]) -> None:
        """Wait until tasks and descriptors are what they were."""
        with trio.move_on_after(15):
            await until(lambda: n_tasks() <= before[0] and n_descriptors() <= before[1])
        after = (n_tasks(), n_descriptors())
        assert after[0] <= before[0], f"{after[0] - before[0]} tasks are left among {task_names()}"
        assert after[1] <= before[1], f"{after[1] - before[1]} descriptors are left"


def _delta(line: str) -> str:
    choices = orjson.loads(line[6:])["choices"]
    text: str = choices[0]["delta"].get("content") or "" if choices else ""
    return text


@asynccontextmanager
async def house(**changes: Any) -> AsyncIterator[House]:
    """Open a house for the length of the block."""
    async with trio.open_nursery() as nursery:
        phases = FrontPhases()
        router = await nursery.start(partial(serve, router_config(**changes), phases=phases))
        running = RunningRouter(router, phases)
        request: dict[str, Any] = {"json": chat_body(stream=True), "timeout": None}
        async with scripted_worker(running) as worker, running.client() as client, trio.open_nursery() as talking:
            begun = trio.Event()
            opened: list[House] = []

            async def ask() -> None:
                async with client.stream("POST", "/v1/chat/completions", **request) as response:
                    await begun.wait()
                    await opened[0].listen(response.aiter_lines())

            talking.start_soon(ask)
            job = await worker.next_job()
            opened.append(House(running, worker, job["job_id"]))
            begun.set()
            talking.start_soon(opened[0].speak)
            await until(lambda: opened[0].n_read > 3)
            yield opened[0]
            talking.cancel_scope.cancel()
        phases.quiet.set()
