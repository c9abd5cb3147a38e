from __future__ import annotations

import itertools

import pytest
import trio

from auxot.core.errors import ErrorCode, RefusedError
from auxot.router.asgi import BODY_CHUNK_TIMEOUT_S, BODY_TIMEOUT_S, read_body

SCOPE = {"headers": []}


@pytest.mark.parametrize("pause_s", [BODY_CHUNK_TIMEOUT_S + 1, BODY_CHUNK_TIMEOUT_S - 1])
async def test_a_body_that_comes_too_slowly_is_refused(pause_s, autojump_clock):
    """A client that says a byte now and then would hold its place in line for ever."""

    async def dripping():
        await trio.sleep(pause_s)
        return {"type": "http.request", "body": b"x", "more_body": True}

    with pytest.raises(RefusedError) as refused:
        await read_body(SCOPE, dripping, limit_bytes=10**6)
    assert refused.value.code is ErrorCode.REQUEST_TIMEOUT
    assert autojump_clock.current_time() <= BODY_TIMEOUT_S


async def test_a_body_in_many_pieces_that_come_in_time_is_read(autojump_clock):  # noqa: ARG001 -- Trio's clock
    """An honest client behind a slow line would be refused."""
    pieces = itertools.count(1)

    async def steady():
        await trio.sleep(1)
        return {"type": "http.request", "body": b"x", "more_body": next(pieces) < 100}

    assert await read_body(SCOPE, steady, limit_bytes=100) == b"x" * 100
