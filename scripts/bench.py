"""Measure what the router adds: made-up workers and clients around a real router process, on this machine.

    python scripts/bench.py                          64 streams of 50 tokens/s
    python scripts/bench.py --streams 16 --rate 0    as fast as it goes

Workers speak the original protocol, one slot each; every token carries the moment at which it was written, so that a
client knows how long it was under way. This program is Python too: at saturation it, not the router, is the limit;
CPU a token is the router's own.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import attrs
import httpx
import orjson
import trio
import trio_websocket

from auxot.core.keys import CHEAP, Role, generate_key, hash_key
from auxot.core.sse import SseDecoder

START_TIMEOUT_S = 20.0
TIMEOUT_S = 600.0
TICKS_S = 1 / os.sysconf("SC_CLK_TCK")


@attrs.frozen(kw_only=True)
class Plan:
    """How much load: tokens an answer and tokens a second of each stream, 0 for as fast as it goes."""

    streams: int
    tokens: int
    rate: float


@attrs.define
class Figures:
    """What was seen: delays of later tokens and times to the first one, in ms."""

    delays_ms: list[float] = attrs.field(factory=list)
    first_ms: list[float] = attrs.field(factory=list)
    n_wrong: int = 0


class Router:
    """A router process on a free port."""

    def __init__(self, folder: Path) -> None:
        self.gpu_key, self.api_key = generate_key(Role.WORKER), generate_key(Role.API)
        environ = {
            **os.environ,
            "AUXOT_HOST": "127.0.0.1",
            "AUXOT_PORT": "0",
            "AUXOT_ADMIN_KEY_HASH": hash_key(self.gpu_key, CHEAP),
            "AUXOT_API_KEY_HASH": hash_key(self.api_key, CHEAP),
            "AUXOT_SHUTDOWN_GRACE": "0s",
        }
        self._log = folder / "router.log"
        program = [sys.executable, "-c", "from auxot.cli import auxot_router; auxot_router()"]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(program, env=environ, cwd=folder, stderr=log)
        self.port = self._wait_for_port()

    def _wait_for_port(self) -> int:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline and self.process.poll() is None:
            for line in self._log.read_bytes().splitlines():
                if b'"router.ready"' in line:
                    return int(orjson.loads(line)["addresses"][0].rpartition(":")[2])
            time.sleep(0.02)
        raise SystemExit(f"the router did not start:\n{self._log.read_text()}")

    def cpu_s(self) -> float:
        """Return its CPU time so far, user and system (Linux)."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) * TICKS_S

    def rss_mib(self) -> float:
        """Return its resident memory."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


async def work(router: Router, plan: Plan, *, task_status: trio.TaskStatus[None]) -> None:
    """Be a worker with one slot for ever."""
    async with trio_websocket.open_websocket_url(f"ws://127.0.0.1:{router.port}/ws") as socket:
        capabilities = {"backend": "bench", "model": "bench", "ctx_size": 4096, "total_slots": 1}
        await _send(socket, type="hello", gpu_key=router.gpu_key, capabilities=capabilities)
        await socket.get_message()
        await _send(socket, type="config", capabilities=capabilities)
        await socket.get_message()
        task_status.started()
        while True:
            message = orjson.loads(await socket.get_message())
            if message["type"] == "job":
                await _answer(socket, message["job_id"], plan)


async def _answer(socket: trio_websocket.WebSocketConnection, job_id: str, plan: Plan) -> None:
    began = trio.current_time()
    for n in range(plan.tokens):
        if plan.rate:
            await trio.sleep_until(began + n / plan.rate)
        await _send(socket, type="token", job_id=job_id, token=f"{n}@{time.monotonic()} ")
    await _send(socket, type="complete", job_id=job_id, full_response="", input_tokens=1, output_tokens=plan.tokens)


async def _send(socket: trio_websocket.WebSocketConnection, **message: object) -> None:
    await socket.send_message(orjson.dumps(message).decode())


async def ask(client: httpx.AsyncClient, plan: Plan, figures: Figures) -> None:
    """Be a client: ask once, and check and time every token."""
    body = {"model": "any", "stream": True, "messages": [{"role": "user", "content": "count"}]}
    asked_at, decoder, n_seen = time.monotonic(), SseDecoder(), 0
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        async for piece in response.aiter_raw():
            now = time.monotonic()
            for event in decoder.feed(piece):
                text = _text(event.data)
                if not text:
                    continue
                number, _, written_at = text.partition("@")
                figures.n_wrong += int(number) != n_seen
                (figures.delays_ms if n_seen else figures.first_ms).append(
                    (now - (float(written_at) if n_seen else asked_at)) * 1000
                )
                n_seen += 1
    figures.n_wrong += n_seen != plan.tokens


def _text(data: bytes) -> str:
    if data == b"[DONE]":
        return ""
    choices = orjson.loads(data)["choices"]
    return str(choices[0]["delta"].get("content") or "") if choices else ""


@asynccontextmanager
async def workers(router: Router, plan: Plan) -> AsyncGenerator[None, None]:
    """Keep as many workers connected as there are streams."""
    async with trio.open_nursery() as nursery:
        for _ in range(plan.streams):
            await nursery.start(partial(work, router, plan))
        yield
        nursery.cancel_scope.cancel()


async def measure(router: Router, plan: Plan) -> int:
    """Run the load and print the table; return how many tokens were wrong or missing."""
    figures = Figures()
    async with workers(router, plan):
        limits = httpx.Limits(max_connections=plan.streams)
        headers = {"authorization": f"Bearer {router.api_key}"}
        base_url = f"http://127.0.0.1:{router.port}"
        async with httpx.AsyncClient(base_url=base_url, headers=headers, limits=limits, timeout=TIMEOUT_S) as client:
            began, cpu = time.monotonic(), router.cpu_s()
            async with trio.open_nursery() as nursery:
                for _ in range(plan.streams):
                    nursery.start_soon(ask, client, plan, figures)
            report(plan, figures, elapsed_s=time.monotonic() - began, cpu_s=router.cpu_s() - cpu)
    print(f"router memory       {router.rss_mib():8.1f} MiB")
    return figures.n_wrong


def report(plan: Plan, figures: Figures, *, elapsed_s: float, cpu_s: float) -> None:
    """Print the figures."""
    n_tokens = plan.streams * plan.tokens
    delays = statistics.quantiles(figures.delays_ms, n=100)
    print(f"tokens              {n_tokens / elapsed_s:8.0f} a second")
    print(f"router CPU          {cpu_s / n_tokens * 1e6:8.1f} us a token")
    print(f"added delay         {delays[49]:8.2f} ms p50, {delays[98]:.2f} ms p99 (of later tokens, ours included)")
    print(f"time to first token {statistics.median(figures.first_ms):8.2f} ms p50")
    print(f"wrong or missing    {figures.n_wrong:8d}")


def main() -> int:
    """Run the command line; return the exit code: 1 when a token was wrong."""
    parser = argparse.ArgumentParser(description="Measure what the router adds.")
    parser.add_argument("--streams", type=int, default=64, help="answers at once, and workers")
    parser.add_argument("--tokens", type=int, default=500, help="tokens of an answer, at least 3")
    parser.add_argument("--rate", type=float, default=50, help="tokens a second of each stream; 0: as fast as it goes")
    given = parser.parse_args()
    plan = Plan(streams=max(1, given.streams), tokens=max(3, given.tokens), rate=max(0, given.rate))
    with tempfile.TemporaryDirectory(prefix="auxot-bench-") as folder:
        router = Router(Path(folder))
        try:
            n_wrong = trio.run(measure, router, plan)
        finally:
            router.process.terminate()
            router.process.wait()
    return int(n_wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
