"""A worker's first message, and what it is answered: 10 s, 64 KiB, a good key, or the connection ends.

A bad key is answered by `hello_ack` with success=false: the original's `error` makes original workers try again for
ever. Then the connection is closed with a code, so that a network trace tells what happened.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import attrs
import trio

from auxot.core.errors import ErrorCode, ProtocolError, RefusedError
from auxot.core.keys import Role
from auxot.core.messages import AUTH_FAILED, ROUTER_FEATURES, Hello, HelloAck
from auxot.core.protocol import decode_worker_message, encode
from auxot.router.session import Session
from auxot.router.websocket import (
    CLOSE_POLICY_VIOLATION,
    CLOSE_TRY_AGAIN_LATER,
    SocketClosedError,
    WorkerSocket,
)

if TYPE_CHECKING:
    from auxot.core.logs import Logger
    from auxot.router.auth import KeyVerifier
    from auxot.router.pool import Pool

HELLO_TIMEOUT_S = 10.0
MAX_MESSAGE_BYTES = 64 * 1024 * 1024  # of a known worker: `complete` may carry images
MIN_OUTGOING_BYTES = 64 * 1024 * 1024  # waiting for a worker that reads slowly
TOOLS_WORKER = "tools"


@attrs.frozen(kw_only=True)
class Doorkeeper:
    """Lets workers into a pool."""

    pool: Pool
    verifier: KeyVerifier
    dead_after_s: float
    max_body_bytes: int
    log: Logger

    async def serve(self, socket: WorkerSocket) -> None:
        """Serve one worker's connection from its first message to its end."""
        try:
            with trio.fail_after(HELLO_TIMEOUT_S):
                hello, early = await _receive_hello(socket)
            await self._admit(hello, socket.address)
        except (trio.TooSlowError, ProtocolError, SocketClosedError):
            self.log.info("worker.no_hello")
            await socket.close(CLOSE_POLICY_VIOLATION, "expected hello")
        except RefusedError as exc:
            await self._refuse(socket, exc)
        else:
            await self._run_session(socket, hello, early)

    async def _admit(self, hello: Hello, address: str) -> None:
        if hello.worker_type == TOOLS_WORKER:
            raise RefusedError(ErrorCode.NOT_IMPLEMENTED, "tools workers not enabled on this router")
        await self.verifier.verify(hello.gpu_key, Role.WORKER, address=address)

    async def _refuse(self, socket: WorkerSocket, exc: RefusedError) -> None:
        """Say why, in the form that stops a worker whose key is bad, and lets one retry when the router is busy."""
        bad_key = exc.code is ErrorCode.UNAUTHENTICATED
        self.log.warning("worker.refused", reason=exc.code.word)
        error = f"{AUTH_FAILED}: invalid GPU key" if bad_key else exc.message
        socket.send(encode(HelloAck(success=False, error=error)))
        await socket.close(CLOSE_POLICY_VIOLATION if bad_key else CLOSE_TRY_AGAIN_LATER, error[:100])

    async def _run_session(self, socket: WorkerSocket, hello: Hello, early: list[bytes]) -> None:
        socket.trust(
            max_message_bytes=MAX_MESSAGE_BYTES,
            max_outgoing_bytes=max(MIN_OUTGOING_BYTES, 4 * self.max_body_bytes),
        )
        worker_id = secrets.token_hex(16)
        session = Session(
            worker_id=worker_id,
            socket=socket,
            fleet=self.pool.fleet,
            settle=self.pool.settle,
            default_slots=self.pool.policy.max_parallelism,
            dead_after_s=self.dead_after_s,
            log=self.log,
            capabilities=hello.capabilities,
        )
        ack = HelloAck(success=True, gpu_id=worker_id, policy=self.pool.policy, features=ROUTER_FEATURES)
        socket.send(encode(ack))
        self.log.info("worker.connected", worker_id=worker_id)
        try:
            await session.run(early)
        finally:
            self.log.info("worker.gone", worker_id=worker_id)


async def _receive_hello(socket: WorkerSocket) -> tuple[Hello, list[bytes]]:
    """Return `hello`, and what came in the same read behind it."""
    while not (messages := await socket.receive()):
        pass
    hello = decode_worker_message(messages[0])
    if not isinstance(hello, Hello):
        raise ProtocolError("expected hello")
    return hello, messages[1:]
