from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio

from auxot.core.errors import LlamaError
from auxot.worker.llama.canary import generate_one_token
from auxot.worker.llama.http import LlamaHttp, parse_llama_url


@asynccontextmanager
async def answering(answer: bytes) -> AsyncGenerator[LlamaHttp]:
    """Serve one answer to whoever asks."""

    async def serve(stream: trio.SocketStream) -> None:
        await stream.receive_some(65_536)
        await stream.send_all(answer)
        await stream.send_eof()

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            [listener] = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
            yield LlamaHttp(parse_llama_url(f"http://127.0.0.1:{listener.socket.getsockname()[1]}"))
            nursery.cancel_scope.cancel()


def http(status: str, body: bytes) -> bytes:
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (http("500 Oops", b'{"error":{"message":"CUDA error: no kernel image"}}'), "status 500 .* no kernel image"),
        (http("200 OK", b'{"content":"","tokens_predicted":0}'), "status 200"),
        (http("200 OK", b"[]"), "status 200"),
        (b"", "broke off at the first token"),
    ],
)
async def test_a_llama_server_that_cannot_generate_is_not_ready(answer: bytes, reason: str) -> None:
    """A llama-server that has loaded its model and computes nothing gets jobs."""
    async with answering(answer) as server:
        with pytest.raises(LlamaError, match=reason):
            await generate_one_token(server)


@pytest.mark.parametrize(
    "answer",
    [http("200 OK", b'{"content":" The","tokens_predicted":1}'), http("501 Not Implemented", b'{"error":{}}')],
)
async def test_one_that_can_is_ready_and_one_for_embeddings_too(answer: bytes) -> None:
    """A llama-server that is not for generating is never ready."""
    async with answering(answer) as server:
        await generate_one_token(server)
