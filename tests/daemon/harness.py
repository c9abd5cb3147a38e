"""A real router in the test's own event loop, and workers and clients that speak to it over loopback.

`ScriptedWorker` is a real peer of the protocol whose answers the test decides; tests/live uses the real worker.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Protocol

import attrs
import httpx
import orjson
import trio
import trio_websocket

from auxot.config import RouterConfig
from auxot.core.keys import CHEAP, Role, generate_key, hash_key
from auxot.core.logs import Level
from auxot.router.front import FrontPhases
from auxot.router.service import Router, serve
from tests import log_scan

GPU_KEY = generate_key(Role.WORKER)
API_KEY = generate_key(Role.API)
ADMIN_HASH = hash_key(GPU_KEY, CHEAP)
API_HASH = hash_key(API_KEY, CHEAP)
TEST_TIMEOUT_S = 30
MAX_MESSAGE_BYTES = 64 * 1024 * 1024  # what our own worker takes; trio-websocket's default is 1 MiB


def router_config(**changes: Any) -> RouterConfig:
    """Return settings for a router on a free port of loopback."""
    settings: dict[str, Any] = {
        "host": "127.0.0.1",
        "port": 0,
        "admin_key_hash": ADMIN_HASH,
        "api_key_hash": API_HASH,
        "model": "test-model",
        "shutdown_grace_s": 2.0,
        "log_level": Level.DEBUG,
    }
    return RouterConfig(**{**settings, **changes})


class Door(Protocol):
    """What workers need to know of a router."""

    @property
    def worker_url(self) -> str: ...


@attrs.frozen
class RunningRouter:
    """A router that accepts requests, and the handles to stop it."""

    router: Router
    phases: FrontPhases

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self.router.addresses[0][1]

    @property
    def url(self) -> str:
        """Its address for API clients."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def worker_url(self) -> str:
        """Its address for workers."""
        return f"ws://127.0.0.1:{self.port}/ws"

    def client(self, *, key: str | None = API_KEY) -> httpx.AsyncClient:
        """Return an HTTP client that shows the API key."""
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        return httpx.AsyncClient(
            base_url=self.url,
            headers=headers,
            timeout=TEST_TIMEOUT_S,
            trust_env=False,
            event_hooks={"response": [_scan_error]},
        )

    async def health(self) -> dict[str, Any]:
        """Return what /health says."""
        async with self.client(key=None) as client:
            body: dict[str, Any] = (await client.get("/health")).json()
            return body


async def _scan_error(response: httpx.Response) -> None:
    if response.is_error:
        log_scan.collect(f"the answer to {response.request.url.path}", await response.aread())


@asynccontextmanager
async def running_router(**changes: Any) -> AsyncIterator[RunningRouter]:
    """Run a router for the length of the block, and stop it in order."""
    phases = FrontPhases()
    with trio.fail_after(TEST_TIMEOUT_S):
        async with trio.open_nursery() as nursery:
            router = await nursery.start(partial(serve, router_config(**changes), phases=phases))
            yield RunningRouter(router, phases)
            phases.quiet.set()


@attrs.define(eq=False)
class ScriptedWorker:
    """A worker whose words are the test's."""

    socket: trio_websocket.WebSocketConnection
    ack: dict[str, Any]

    async def send(self, kind: str, **fields: Any) -> None:
        """Send one message."""
        await self.socket.send_message(orjson.dumps({"type": kind, **fields}).decode())

    async def receive(self) -> dict[str, Any]:
        """Return the next message."""
        message: dict[str, Any] = orjson.loads(await self.socket.get_message())
        return message

    async def next_job(self) -> dict[str, Any]:
        """Return the next job, skipping everything else."""
        while (message := await self.receive())["type"] != "job":
            pass
        return message

    async def say(self, job: dict[str, Any], *tokens: str) -> None:
        """Stream tokens of a job."""
        for token in tokens:
            await self.send("token", job_id=job["job_id"], token=token)

    async def complete(self, job: dict[str, Any], **fields: Any) -> None:
        """End a job, by default as an original worker does."""
        counts = {"full_response": "", "input_tokens": 10, "output_tokens": 5}
        await self.send("complete", job_id=job["job_id"], **{**counts, **fields})


@asynccontextmanager
async def open_socket(running: Door) -> AsyncIterator[trio_websocket.WebSocketConnection]:
    """Open a WebSocket to the router. trio-websocket 0.12 leaves the stream open when the peer closes first."""
    url, limit = running.worker_url, MAX_MESSAGE_BYTES
    async with trio_websocket.open_websocket_url(url, max_message_size=limit) as socket:
        try:
            yield socket
        finally:
            await trio.aclose_forcefully(socket._stream)


@asynccontextmanager
async def scripted_worker(
    running: Door, *, slots: int = 1, features: tuple[str, ...] = (), key: str = GPU_KEY
) -> AsyncIterator[ScriptedWorker]:
    """Connect a worker that is ready for jobs."""
    async with open_socket(running) as socket:
        capabilities = {"backend": "llama.cpp", "model": "m", "ctx_size": 4096, "total_slots": slots}
        if features:
            capabilities["features"] = list(features)
        await socket.send_message(
            orjson.dumps({"type": "hello", "gpu_key": key, "capabilities": capabilities}).decode()
        )
        ack = orjson.loads(await socket.get_message())
        worker = ScriptedWorker(socket, ack)
        if ack["success"]:
            await worker.send("config", capabilities=capabilities)
            assert (await worker.receive())["type"] == "config_ack"
        yield worker


async def until(condition: Callable[[], Any]) -> None:
    """Wait until an (async or plain) condition holds; the test's own deadline bounds it."""
    while True:
        outcome = condition()
        if not isinstance(outcome, bool):
            outcome = await outcome
        if outcome:
            return
        await trio.sleep(0.005)


def sse_events(body: bytes) -> list[Any]:
    """Return the data of all events of a finished stream, JSON parsed; `[DONE]` as it is."""
    events = []
    for block in body.decode().split("\n\n"):
        data = "\n".join(line[6:] for line in block.split("\n") if line.startswith("data: "))
        if data:
            events.append(data if data == "[DONE]" else orjson.loads(data))
    return events


def chat_body(**changes: Any) -> dict[str, Any]:
    """Return a small chat completion request."""
    return {"model": "any", "messages": [{"role": "user", "content": f"hi {log_scan.CANARY}"}], **changes}
