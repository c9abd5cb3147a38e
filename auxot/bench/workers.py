"""Made-up workers: they speak the original protocol and answer every job with stamped tokens, at the load's rate."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import attrs
import orjson
import trio
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.uri import parse_uri

from auxot.bench.load import FarTimes, Load, asked_at_us, now_us, token, tokens_asked_for
from auxot.bench.process import BenchError

CONNECT_TIMEOUT_S = 30.0
_READ_BYTES = 256 * 1024


@asynccontextmanager
async def workers(url: str, gpu_key: str, load: Load, times: FarTimes) -> AsyncGenerator[None]:
    """Keep the load's workers connected for the length of the block.

    Args:
        url: `ws://HOST:PORT/ws`.
        gpu_key: what they say hello with.
        load: how many, and how they answer.
        times: gets those of each job.
    """
    async with trio.open_nursery() as nursery:
        for _ in range(load.workers):
            worker = _Worker(url, gpu_key, load, times)
            with trio.fail_after(CONNECT_TIMEOUT_S):
                await nursery.start(worker.run)
        yield
        nursery.cancel_scope.cancel()


@attrs.define(eq=False)
class _Worker:
    """One worker. Jobs run as tasks; each message is one frame and one write, as with a worker of the original."""

    url: str
    gpu_key: str
    load: Load
    times: FarTimes
    _stream: trio.SocketStream = attrs.field(init=False)
    _protocol: ClientProtocol = attrs.field(init=False)
    _writing: trio.Lock = attrs.field(factory=trio.Lock)
    _freed_at_us: deque[int] = attrs.field(factory=deque)  # slots that wait for their next job

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Connect, say hello, and serve jobs for ever."""
        uri = parse_uri(self.url)
        self._protocol = ClientProtocol(uri, max_size=None)
        self._stream = await trio.open_tcp_stream(uri.host, uri.port)
        async with self._stream, trio.open_nursery() as jobs:
            self._protocol.send_request(self._protocol.connect())
            await self._flush()
            await self._receive()
            await self._introduce()
            task_status.started()
            while True:
                for data in await self._receive():
                    message = orjson.loads(data)
                    if message["type"] == "job":
                        self._note(data)
                        n_tokens = tokens_asked_for(data, self.load.tokens)
                        jobs.start_soon(self._answer, message["job_id"], n_tokens)

    def _note(self, job: bytes) -> None:
        now = now_us()
        self.times.dispatch_us.append(now - asked_at_us(job))
        if self.load.has_line and self._freed_at_us:
            self.times.freed_us.append(now - self._freed_at_us.popleft())

    async def _introduce(self) -> None:
        capabilities = {"backend": "bench", "model": "bench", "ctx_size": 4096, "total_slots": self.load.slots}
        await self._send(type="hello", gpu_key=self.gpu_key, capabilities=capabilities)
        await self._receive()
        await self._send(type="config", capabilities=capabilities)
        await self._receive()

    async def _answer(self, job_id: str, n_tokens: int) -> None:
        began = trio.current_time()
        for number in range(n_tokens):
            if self.load.rate:
                await trio.sleep_until(began + number / self.load.rate)
            await self._send(type="token", job_id=job_id, token=token(number))
        counts = {"input_tokens": 1, "output_tokens": n_tokens}
        if self.load.has_line:
            self._freed_at_us.append(now_us())
        await self._send(type="complete", job_id=job_id, full_response="", **counts)

    async def _send(self, **message: object) -> None:
        async with self._writing:
            self._protocol.send_text(orjson.dumps(message))
            await self._flush()

    async def _flush(self) -> None:
        await self._stream.send_all(b"".join(self._protocol.data_to_send()))

    async def _receive(self) -> list[bytes]:
        """Return the text messages of the next read; the answer to the handshake counts as one read."""
        received = await self._stream.receive_some(_READ_BYTES)
        if not received:
            raise BenchError("the router closed a worker's connection")
        self._protocol.receive_data(received)
        if self._protocol.handshake_exc is not None:
            raise BenchError(f"the router refuses workers: {self._protocol.handshake_exc}")
        events = self._protocol.events_received()
        return [bytes(event.data) for event in events if isinstance(event, Frame) and event.opcode is Opcode.TEXT]
