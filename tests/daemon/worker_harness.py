"""The router's side of a worker's connection, for tests of workers: real sockets, no router behind them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from functools import partial

import attrs
import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, WebSocketRequest, serve_websocket

from auxot.core.jobs import ChatMessage, Job
from auxot.core.messages import (
    ROUTER_FEATURES,
    Complete,
    Error,
    Heartbeat,
    HeartbeatAck,
    Hello,
    HelloAck,
    Policy,
    RouterMessage,
    WorkerMessage,
)
from auxot.core.protocol import decode_worker_message, encode, split

POLICY = Policy(
    model_name="Tiny", quantization="F32", context_size=4096, max_parallelism=2, capabilities=("chat", "code")
)
WELCOME = HelloAck(success=True, gpu_id="0" * 32, policy=POLICY, features=ROUTER_FEATURES)
ORIGINAL_WELCOME = HelloAck(success=True, gpu_id="0" * 32, policy=POLICY)

Answer = Callable[[Hello], RouterMessage | None]


@attrs.define(eq=False)
class RouterEnd:
    """One accepted connection: `hello`, then everything the worker sends, heartbeats answered unless `is_mute`."""

    hello: Hello
    socket: WebSocketConnection
    is_mute: bool
    _received: trio.MemoryReceiveChannel[WorkerMessage]
    n_frames: int = 0
    closed: trio.Event = attrs.field(factory=trio.Event)
    reads: trio.Event = attrs.field(factory=trio.Event)  # set, unless the test holds the reading up

    def __attrs_post_init__(self) -> None:
        self.reads.set()

    async def receive(self) -> WorkerMessage:
        """Return the next message that is no heartbeat; trio.EndOfChannel after the last."""
        return await self._received.receive()

    def messages(self) -> trio.MemoryReceiveChannel[WorkerMessage]:
        """Return what has come and will come, to iterate over until the connection ends."""
        return self._received

    async def send(self, message: RouterMessage) -> None:
        await self.socket.send_message(encode(message).decode())

    async def answer_to(self, job_id: str) -> list[WorkerMessage]:
        """Return all messages about a job up to its terminal one; those about other jobs are dropped."""
        messages: list[WorkerMessage] = []
        while not (messages and isinstance(messages[-1], Complete | Error)):
            message = await self.receive()
            if getattr(message, "job_id", None) == job_id:
                messages.append(message)
        return messages

    async def drop(self) -> None:
        """Break the TCP connection, as a crash would."""
        await trio.aclose_forcefully(self.socket._stream)


@attrs.define(eq=False)
class StandInRouter:
    """Accepts workers. `answer` says what each hello is answered with; None: nothing."""

    url: str
    answer: Answer
    is_mute: bool
    ends: trio.MemoryReceiveChannel[RouterEnd]
    n_connections: int = 0

    async def next_worker(self) -> RouterEnd:
        """Return the next connection that is not for asking the policy."""
        while True:
            end = await self.ends.receive()
            if end.hello.capabilities is None or end.hello.capabilities.backend != "pending":
                return end


@asynccontextmanager
async def stand_in_router(
    answer: Answer | None = None, *, is_mute: bool = False
) -> AsyncGenerator[StandInRouter, None]:
    """Serve workers on a free port; `answer` defaults to a welcome, `is_mute`: heartbeats are not answered."""
    send_end, ends = trio.open_memory_channel[RouterEnd](100)
    router = StandInRouter("", answer or (lambda _: WELCOME), is_mute, ends)
    async with trio.open_nursery() as nursery:
        handler = partial(_serve_worker, router, send_end)
        server = await nursery.start(partial(serve_websocket, handler, "127.0.0.1", 0, ssl_context=None))
        router.url = f"ws://127.0.0.1:{server.port}/ws"
        yield router
        nursery.cancel_scope.cancel()


async def _serve_worker(
    router: StandInRouter, ends: trio.MemorySendChannel[RouterEnd], request: WebSocketRequest
) -> None:
    socket = await request.accept()
    router.n_connections += 1
    try:
        hello = decode_worker_message(await socket.get_message())
        assert isinstance(hello, Hello)
        answer = router.answer(hello)
        if answer is not None:
            await socket.send_message(encode(answer).decode())
        if not isinstance(answer, HelloAck) or not answer.success:
            await trio.sleep(0.05)  # the original router drops the connection right behind its error
            return
        await _relay(RouterEnd(hello, socket, router.is_mute, trio.open_memory_channel[WorkerMessage](0)[1]), ends)
    except ConnectionClosed:
        pass


async def _relay(end: RouterEnd, ends: trio.MemorySendChannel[RouterEnd]) -> None:
    send, end._received = trio.open_memory_channel[WorkerMessage](100_000)
    await ends.send(end)
    try:
        with send:
            while True:
                await end.reads.wait()
                frame = await end.socket.get_message()
                assert isinstance(frame, str)
                end.n_frames += 1
                for message in map(decode_worker_message, split(frame.encode())):
                    if not isinstance(message, Heartbeat):
                        send.send_nowait(message)
                    elif not end.is_mute:
                        await end.send(HeartbeatAck())
    finally:
        end.closed.set()


def job(job_id: str, content: str = "Hi", **fields: object) -> Job:
    """Return a job with one user message; plain answers unless `params` says otherwise."""
    fields.setdefault("params", {"chat_template_kwargs": {"enable_thinking": False}})
    return Job(job_id=job_id, messages=(ChatMessage(role="user", content=content),), **fields)  # type: ignore[arg-type]
