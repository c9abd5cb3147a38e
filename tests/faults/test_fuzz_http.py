"""HTTP that no honest client sends: cut, spliced, flooded, garbled, slow. It harms whoever sends it, and nobody else.

AUXOT_TEST_EXAMPLES=5000 runs more of it, with other cases each time.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

import trio
import trio.lowlevel
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from auxot.core import logs
from tests.daemon.harness import API_KEY
from tests.faults.harness import House, house, resident_bytes
from tests.store.loop import Loop

N_EXAMPLES = int(os.environ.get("AUXOT_TEST_EXAMPLES", "0"))
SETTINGS = settings(
    max_examples=N_EXAMPLES or 150,
    derandomize=not N_EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
MAX_GROWTH_BYTES = 20 * 1024 * 1024
N_REPEATED = 150  # cases that come again while memory is watched: hypothesis itself remembers what it drew
BROKEN = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)

METHODS = st.sampled_from([b"GET", b"POST", b"PUT", b"HEAD", b"OPTIONS", b"CONNECT", b"TRACE", b"get", b"P\x00ST", b""])
PATHS = st.sampled_from(
    [
        b"/health",
        b"/v1/chat/completions",
        b"/v1/messages",
        b"/v1/models",
        b"/ws",
        b"*",
        b"http://x/health",
        b"//",
        b"/%00%ff%zz",
        b"/../../etc",
        b"/" + b"a" * 9000,
        b"/v1/models/\xff\xfe",
    ]
)
VERSIONS = st.sampled_from([b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/9.9", b"HTTP/1", b""])
HEADERS = st.lists(
    st.sampled_from(
        [
            b"host: x",
            b"host:",
            b"connection: close",
            b"connection: upgrade, keep-alive",
            b"upgrade: websocket",
            b"upgrade: h2c",
            b"http2-settings: AAMAAABkAAQAAP__",
            b"expect: 100-continue",
            b"authorization: Bearer " + API_KEY.encode(),
            b"authorization: Bearer \xff\xfe",
            b"x-api-key: " + b"k" * 5000,
            b"transfer-encoding: chunked",
            b"transfer-encoding: gzip, chunked",
            b"transfer-encoding: \x00",
            b"content-length: 5",
            b"content-length: 5, 5",
            b"content-length: -1",
            b"content-length: 18446744073709551616",
            b"content-encoding: gzip",
            b" folded: line",
            b"no colon",
            b"x: \x00\x01",
            b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==",
            b"sec-websocket-version: 13",
            b"x: " + b"a" * 40_000,
            b"\r\n".join(b"x%d: y" % n for n in range(3000)),
        ]
    ),
    max_size=6,
)
CHAT = b'{"model":"m","messages":[{"role":"user","content":"hi"}],"max_tokens":1,"stream":'
BODIES = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([b"", b"{}", CHAT + b"\xff}", b"[" * 5000, b"x" * 200_000]),
)
CHUNK_SIZES = st.sampled_from([b"%x", b"%x;ext=1", b"%x\t", b"-%x", b"0x%x", b"fffffffffffffff%x", b"%x\r", b"\x00%x"])


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """Return a request with a body in one of the codings, right or wrong."""
    head = [b" ".join((draw(METHODS), draw(PATHS), draw(VERSIONS))), *draw(HEADERS)]
    body = draw(BODIES)
    match draw(st.integers(0, 3)):
        case 0:
            head.append(b"content-length: %d" % (len(body) + draw(st.sampled_from([0, 0, -1, 1, 10**9]))))
        case 1:
            head.append(b"transfer-encoding: chunked")
            chunks = [(draw(CHUNK_SIZES) % len(piece)) + b"\r\n" + piece + b"\r\n" for piece in (body[:9], body[9:])]
            body = b"".join(chunks) + draw(st.sampled_from([b"0\r\n\r\n", b"0\r\nx: y\r\n\r\n", b"0\r\n", b""]))
    eol = draw(st.sampled_from([b"\r\n", b"\r\n", b"\n", b"\r"]))
    return eol.join(head) + eol + eol + body


H2_FRAME = st.builds(
    lambda length, kind, flags, stream, payload: (
        (length or len(payload)).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload
    ),
    st.sampled_from([0, 0, 0, 2**24 - 1]),
    st.integers(0, 10),
    st.integers(0, 255),
    st.sampled_from([0, 1, 3, 2, 2**31 - 1]),
    st.binary(max_size=30),
)
H2_HEADERS = b"\x00\x00\x0b\x01\x05\x00\x00\x00\x01\x82\x84\x86\x41\x01x\x0f\x00\x01x\x01y"
HTTP2 = st.lists(H2_FRAME | st.just(H2_HEADERS), max_size=8).map(
    lambda frames: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00" + b"".join(frames)
)


@st.composite
def garbled(draw: st.DrawFn, clean: st.SearchStrategy[bytes]) -> bytes:
    """Return bytes that were cut, spliced, doubled or flipped somewhere."""
    content = draw(clean)
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(content)))
        match draw(st.integers(0, 3)):
            case 0:
                content = content[:at]
            case 1:
                content = content[:at] + draw(st.binary(min_size=1, max_size=8)) + content[at:]
            case 2:
                content = content[:at] + content[at // 2 :]
            case 3:
                content = content[:at] + bytes(byte ^ 0x20 for byte in content[at : at + 1]) + content[at + 1 :]
    return content


STREAMS = st.one_of(garbled(st.lists(requests(), min_size=1, max_size=4).map(b"".join)), garbled(HTTP2))
ENDINGS = st.sampled_from(["close", "reset", "half-close", "wait"])
ATTACKS = st.lists(st.tuples(STREAMS, st.integers(1, 5), ENDINGS), min_size=1, max_size=4)


async def attack(stream: trio.SocketStream, content: bytes, n_pieces: int, ending: str) -> None:
    """Send some bytes in pieces, and leave in one way or another."""
    with suppress(*BROKEN), trio.move_on_after(2):
        size = len(content) // n_pieces + 1
        for start in range(0, len(content), size):
            await stream.send_all(content[start : start + size])
            await trio.lowlevel.checkpoint()
        if ending == "half-close":
            await stream.send_eof()
        if ending in ("half-close", "wait"):
            with trio.move_on_after(0.05):
                while await stream.receive_some():
                    pass
    if ending == "reset":
        stream.socket.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    stream.socket.close()


async def attack_together(house: House, attacks: list[tuple[bytes, int, str]]) -> None:
    async with trio.open_nursery() as nursery:
        for content, n_pieces, ending in attacks:
            stream = await trio.open_tcp_stream("127.0.0.1", house.running.port)
            nursery.start_soon(attack, stream, content, n_pieces, ending)


def test_whatever_is_sent_as_http_harms_nobody_else() -> None:
    """Garbage of a stranger would end the router, change another client's stream, or fill memory and descriptors."""
    logs.configure(level=logs.Level.ERROR)
    try:
        with Loop().running() as loop, loop.holding(house(max_body_bytes=100_000)) as opened:
            fuzz_house(loop, opened)
    finally:
        logs.configure()


def fuzz_house(loop: Loop, opened: House) -> None:
    before = loop.run(opened.measure)
    cases: list[list[tuple[bytes, int, str]]] = []

    @given(ATTACKS)
    @SETTINGS
    def fuzz(attacks: list[tuple[bytes, int, str]]) -> None:
        loop.run(attack_together, opened, attacks)
        if len(cases) < N_REPEATED:
            cases.append(attacks)

    fuzz()
    expect_bounded(loop, opened, before, [partial(attack_together, opened, attacks) for attacks in cases])


def expect_bounded(
    loop: Loop, opened: House, before: tuple[int, int], attacks: list[Callable[[], Awaitable[None]]]
) -> None:
    """Let all that come again; the house stands, and neither memory nor anything else has piled up."""
    memory = resident_bytes()
    for once_more in attacks:
        loop.run(once_more)
    assert resident_bytes() - memory < MAX_GROWTH_BYTES
    loop.run(opened.expect_life)
    loop.run(opened.expect_nothing_left, before)
