"""Routers as processes on one Redis, workers that come back, and a load balancer in front of both, for fault tests."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import httpx
import trio
import trio_websocket

from tests.daemon.harness import ADMIN_HASH, API_HASH, API_KEY, ScriptedWorker, chat_body, scripted_worker, sse_events
from tests.live.processes import Daemon, running_router
from tests.store.harness import free_port

TOKENS = [f"{n} é\n" for n in range(60)]
TEXT = "".join(TOKENS)
_BROKEN = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)
_GONE = (OSError, trio_websocket.ConnectionClosed, trio_websocket.HandshakeError, AssertionError)


@attrs.define(eq=False)
class Place:
    """A port at which a router, or a balancer before several, is found."""

    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def worker_url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/ws"

    def client(self, **settings: Any) -> httpx.AsyncClient:
        headers = {"authorization": f"Bearer {API_KEY}", "anthropic-version": "2023-06-01"}
        return httpx.AsyncClient(base_url=self.url, headers=headers, timeout=60, trust_env=False, **settings)

    async def health(self) -> dict[str, Any]:
        async with self.client() as client:
            body: dict[str, Any] = (await client.get("/health")).json()
            return body


@attrs.define(eq=False)
class RouterProcess(Place):
    """A router's process."""

    daemon: Daemon

    @property
    def router_id(self) -> str:
        router_id: str = self.daemon.wait_for("router.ready")["router_id"]
        return router_id


@contextmanager
def router_process(folder: Path, name: str, redis_url: str, **variables: str) -> Iterator[RouterProcess]:
    """Run a router for the length of the block."""
    own_folder = folder / name
    own_folder.mkdir()
    settings = {
        "AUXOT_ADMIN_KEY_HASH": ADMIN_HASH,
        "AUXOT_API_KEY_HASH": API_HASH,
        "AUXOT_REDIS_URL": redis_url,
        "AUXOT_HEARTBEAT_INTERVAL": "1s",
        "AUXOT_DEAD_WORKER_TIMEOUT": "4s",
        "AUXOT_LOG_LEVEL": "debug",
        **variables,
    }
    with running_router(own_folder, **settings) as house:
        yield RouterProcess(house.port, house.router)


def refused_start(folder: Path, redis_url: str) -> tuple[int, str]:
    """Start a router that should not start; return its exit code and all that it wrote."""
    environ = {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": ":".join(filter(None, sys.path)),
        "HOME": str(folder),
        "AUXOT_PORT": "0",
        "AUXOT_ADMIN_KEY_HASH": ADMIN_HASH,
        "AUXOT_API_KEY_HASH": API_HASH,
        "AUXOT_REDIS_URL": redis_url,
    }
    program = [str(Path(sys.executable).with_name("auxot-router"))]
    done = subprocess.run(program, env=environ, cwd=folder, capture_output=True, timeout=30, check=False)
    return done.returncode, (done.stdout + done.stderr).decode()


@attrs.define(eq=False)
class Crew:
    """Workers that connect again when they have lost their router, and what they were given.

    Attributes:
        pause_s: between two words.
        is_holding: jobs wait, without a word.
        n_done: jobs answered to the end, by job id.
        most_running: at once.
    """

    pause_s: float = 0.005
    is_holding: bool = False
    features: tuple[str, ...] = ()
    given: list[dict[str, Any]] = attrs.field(factory=list)
    n_done: dict[str, int] = attrs.field(factory=dict)
    n_cancelled: int = 0
    n_running: int = 0
    most_running: int = 0

    async def work(self, place: Place, *, slots: int) -> None:
        """Be a worker for ever."""
        while True:
            with suppress(*_GONE):
                try:
                    async with scripted_worker(place, slots=slots, features=self.features) as worker:
                        await self._serve(worker)
                except* _GONE:
                    pass
            await trio.sleep(0.1)

    async def _serve(self, worker: ScriptedWorker) -> None:
        scopes: dict[str, trio.CancelScope] = {}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_beat, worker)
            while True:
                message = await worker.receive()
                if message["type"] == "job":
                    self.given.append(message)
                    scope = scopes[message["job_id"]] = trio.CancelScope()
                    nursery.start_soon(self._answer, worker, message, scope)
                elif message["type"] == "cancel" and message["job_id"] in scopes:
                    self.n_cancelled += 1
                    scopes.pop(message["job_id"]).cancel()

    async def _answer(self, worker: ScriptedWorker, job: dict[str, Any], scope: trio.CancelScope) -> None:
        with scope, self._running():
            while self.is_holding:
                await trio.sleep(0.02)
            for token in TOKENS[_n_written(job) :]:
                await worker.say(job, token)
                await trio.sleep(self.pause_s)
            await worker.complete(job, output_tokens=len(TOKENS))
            self.n_done[job["job_id"]] = self.n_done.get(job["job_id"], 0) + 1

    @contextmanager
    def _running(self) -> Iterator[None]:
        self.n_running += 1
        self.most_running = max(self.most_running, self.n_running)
        try:
            yield
        finally:
            self.n_running -= 1


def _n_written(job: dict[str, Any]) -> int:
    """Return how many words an answer has already, when the rest of it is asked for."""
    last = job["messages"][-1]
    return str(last["content"]).count("\n") if last["role"] == "assistant" else 0


async def _beat(worker: ScriptedWorker) -> None:
    while True:
        await trio.sleep(0.5)
        await worker.send("heartbeat")


async def stream_of(place: Place, *, path: str = "/v1/chat/completions", **changes: Any) -> httpx.Response:
    """Ask for a stream and read it to its end."""
    async with place.client() as client:
        limits = {"max_tokens": 1000} if path == "/v1/messages" else {}
        return await client.post(path, json=chat_body(stream=True, **limits, **changes))


def text_of(response: httpx.Response) -> str:
    """Return the text of a stream that ended as it should."""
    assert response.status_code == 200, response.text
    events = [event for event in sse_events(response.content) if event != "[DONE]"]
    assert not [event for event in events if "error" in event], response.text[-500:]
    if "messages" in str(response.url):
        return "".join(event["delta"].get("text", "") for event in events if event["type"] == "content_block_delta")
    assert "[DONE]" in response.text
    return "".join(event["choices"][0]["delta"].get("content") or "" for event in events if event["choices"])


@attrs.define(eq=False)
class Balancer(Place):
    """Passes connections on to routers in turn: to those whose /health says 200, and past one that refuses."""

    routers: list[Place] = attrs.field(factory=list)
    healthy: set[Place] = attrs.field(factory=set)
    _n: int = 0

    async def serve(self, client: trio.SocketStream) -> None:
        server = await self._connect()
        if server is None:
            await trio.aclose_forcefully(client)
            return
        async with trio.open_nursery() as nursery:
            for source, sink in ((client, server), (server, client)):
                nursery.start_soon(_pass_on, source, sink, nursery.cancel_scope)
        for stream in (client, server):
            await trio.aclose_forcefully(stream)

    async def _connect(self) -> trio.SocketStream | None:
        self._n += 1
        ordered = self.routers[self._n % len(self.routers) :] + self.routers[: self._n % len(self.routers)]
        for router in [one for one in ordered if one in self.healthy]:
            with suppress(OSError):
                return await trio.open_tcp_stream("127.0.0.1", router.port)
        return None

    async def watch(self) -> None:
        while True:
            for router in list(self.routers):
                is_healthy = False
                with suppress(httpx.TransportError):
                    async with router.client() as client:
                        is_healthy = (await client.get("/health", timeout=2)).status_code == 200
                (self.healthy.add if is_healthy else self.healthy.discard)(router)
            await trio.sleep(0.2)


async def _pass_on(source: trio.SocketStream, sink: trio.SocketStream, scope: trio.CancelScope) -> None:
    with suppress(*_BROKEN):
        async for received in source:
            await sink.send_all(received)
    scope.cancel()


@asynccontextmanager
async def balancer(*routers: Place) -> AsyncIterator[Balancer]:
    """Run a load balancer for the length of the block."""
    balancing = Balancer(free_port(), list(routers), set(routers))
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(balancing.port, host="127.0.0.1")
        await nursery.start(partial(trio.serve_listeners, balancing.serve, listeners))
        nursery.start_soon(balancing.watch)
        yield balancing
        nursery.cancel_scope.cancel()
