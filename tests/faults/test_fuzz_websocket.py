"""WebSocket framing that no honest worker sends, before and after the handshake, before and after hello.

AUXOT_TEST_EXAMPLES=5000 runs more of it, with other cases each time.
"""

from __future__ import annotations

import struct
from contextlib import suppress
from functools import partial

import orjson
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from auxot.core import logs
from tests.daemon.harness import API_KEY, GPU_KEY
from tests.faults.harness import House, house
from tests.faults.test_fuzz_http import BROKEN, N_REPEATED, SETTINGS, attack, expect_bounded, garbled
from tests.store.loop import Loop

HANDSHAKE = (
    b"GET /ws HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: Upgrade\r\n"
    b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n"
)
CAPABILITIES = {"backend": "llama.cpp", "model": "m", "ctx_size": 4096, "total_slots": 1}
HELLO = orjson.dumps({"type": "hello", "gpu_key": GPU_KEY, "capabilities": CAPABILITIES})
STAGES = ("before the handshake", "before hello", "after hello")


def messages(job_id: str) -> st.SearchStrategy[bytes]:
    """Return what may stand in a frame: rubbish, and words about the job of the house's good worker."""
    about = {"job_id": job_id}
    said: list[bytes] = [
        HELLO,
        orjson.dumps({"type": "hello", "gpu_key": API_KEY, "capabilities": CAPABILITIES}),
        orjson.dumps({"type": "config", "capabilities": CAPABILITIES}),
        b'{"type":"config","capabilities":{"total_slots":-5}}',
        b'{"type":"config","capabilities":null}',
        b'{"type":"heartbeat"}',
        orjson.dumps({"type": "token", "token": "lie", **about}),
        orjson.dumps({"type": "complete", "full_response": "lie", "input_tokens": 1, "output_tokens": 1, **about}),
        orjson.dumps({"type": "error", "error": "lie", **about}),
        b'{"type":"error","error":"\xff"}',
        b'{"type":"token","job_id":7,"token":null}',
        b'{"type":"' + b"x" * 70_000 + b'"}',
        b"[" * 3000,
        b"\xc0\xaf\xed\xa0\x80",
    ]
    return st.one_of(st.binary(max_size=30), st.sampled_from(said))


@st.composite
def frames(draw: st.DrawFn, job_id: str) -> bytes:
    """Return a frame: any opcode and reserved bits, a length that may lie, in any of its forms, masked or not."""
    payload = draw(messages(job_id))
    opcode = draw(st.sampled_from([1, 1, 1, 2, 0, 0, 8, 9, 10, 3, 7, 11, 15]))
    first = draw(st.sampled_from([0x80, 0x80, 0x80, 0, 0xC0, 0x90, 0xF0])) | opcode
    length = len(payload) + draw(st.sampled_from([0, 0, 0, 0, 1, 65_536, 2**40, 2**62]))
    masked = draw(st.sampled_from([0x80, 0x80, 0x80, 0x80, 0]))
    match draw(st.integers(0, 4)):
        case 0:
            head = struct.pack("!BBH", first, masked | 126, length & 0xFFFF)
        case 1:
            head = struct.pack("!BBQ", first, masked | 127, length)
        case 2:
            head = struct.pack("!BBQ", first, masked | 127, 2**63 | length)
        case _:
            head = _shortest(first, masked, length)
    mask = draw(st.binary(min_size=4, max_size=4)) if masked else b""
    body = bytes(byte ^ mask[n % 4] for n, byte in enumerate(payload)) if mask else payload
    return head + mask + body


def _shortest(first: int, masked: int, length: int) -> bytes:
    if length < 126:
        return struct.pack("!BB", first, masked | length)
    if length < 65_536:
        return struct.pack("!BBH", first, masked | 126, length)
    return struct.pack("!BBQ", first, masked | 127, length)


FLOODS = st.sampled_from([b"\x00\x80\0\0\0\0", b"\x89\x80\0\0\0\0", b"\x81\x80\0\0\0\0", b"\x00\x81\0\0\0\0x"]).map(
    lambda frame: b"\x01\x80\0\0\0\0" + frame * 20_000
)
EXTENSIONS = st.sampled_from(
    [b"", b"sec-websocket-extensions: permessage-deflate\r\n", b"sec-websocket-protocol: x\r\n"]
)
ENDINGS = st.sampled_from(["close", "reset", "half-close", "wait"])


def masked_frame(payload: bytes) -> bytes:
    return _shortest(0x81, 0x80, len(payload)) + b"\0\0\0\0" + payload


async def shake_hands(stream: trio.SocketStream, head: bytes) -> None:
    await stream.send_all(head)
    received = b""
    while b"\r\n\r\n" not in received:
        more = await stream.receive_some()
        if not more:
            return
        received += more


async def attack_socket(house: House, stage: str, attacks: list[tuple[bytes, bytes, int, str]]) -> None:
    async with trio.open_nursery() as nursery:
        for handshake_end, content, n_pieces, ending in attacks:
            stream = await trio.open_tcp_stream("127.0.0.1", house.running.port)
            head = HANDSHAKE + handshake_end + b"\r\n"
            if stage == "before the handshake":
                cut = len(content) % len(head)
                content = head[:cut] + content[:200] + head[cut:]  # noqa: PLW2901
            else:
                with suppress(*BROKEN), trio.move_on_after(2):
                    await shake_hands(stream, head)
                    if stage == "after hello":
                        await stream.send_all(masked_frame(HELLO))
                        await stream.receive_some()
            nursery.start_soon(attack, stream, content, n_pieces, ending)


@pytest.mark.parametrize("stage", STAGES)
def test_whatever_is_sent_as_a_websocket_harms_nobody_else(stage: str) -> None:
    """A stranger, or a worker gone mad, would end the router, write into a stream of others, or fill its memory."""
    logs.configure(level=logs.Level.ERROR)
    try:
        with Loop().running() as loop, loop.holding(house()) as opened:
            fuzz_house(loop, opened, stage)
    finally:
        logs.configure()


def fuzz_house(loop: Loop, opened: House, stage: str) -> None:
    before = loop.run(opened.measure)
    cases: list[list[tuple[bytes, bytes, int, str]]] = []

    clean = st.lists(frames(opened.job_id), min_size=1, max_size=8).map(b"".join)
    content = st.one_of(garbled(clean), garbled(clean), FLOODS)

    @given(st.lists(st.tuples(EXTENSIONS, content, st.integers(1, 5), ENDINGS), min_size=1, max_size=3))
    @SETTINGS
    def fuzz(attacks: list[tuple[bytes, bytes, int, str]]) -> None:
        loop.run(attack_socket, opened, stage, attacks)
        if len(cases) < N_REPEATED:
            cases.append(attacks)

    fuzz()
    expect_bounded(loop, opened, before, [partial(attack_socket, opened, stage, attacks) for attacks in cases])
