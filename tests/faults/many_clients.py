"""A program: many clients at once, each with a connection of its own, and how each of them ended, as JSON.

    python many_clients.py PORT N_CLIENTS KEY TIMEOUT_S

A process of its own, so that neither its descriptors nor its memory are the router's or the test's.
"""

from __future__ import annotations

import resource
import sys
from collections import Counter

import orjson
import trio

MAX_CONNECTING = 300  # a router waits 5 s for the first line, and this program may be short of processor time


async def one_client(port: int, request: bytes, connecting: trio.CapacityLimiter) -> str:
    """Ask once; return the status, `no retry-after` where one is missing, or how it broke off."""
    try:
        async with connecting:
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            await stream.send_all(request)
        async with stream:
            received = b""
            while more := await stream.receive_some():
                received += more
    except (OSError, trio.BrokenResourceError) as exc:
        return f"broken: {exc}"
    head, _, body = received.partition(b"\r\n\r\n")
    if not body:
        return "cut off"
    status = int(head.split()[1])
    if status != 200 and b"\r\nretry-after: " not in head.lower():
        return f"no retry-after: {status}"
    expected = "choices" if status == 200 else "error"
    return str(status) if expected in orjson.loads(body) else f"wrong body: {status}"


async def main(port: int, n_clients: int, key: str, timeout_s: float) -> Counter[str]:
    """Let all of them ask at once; return how many ended how, `hung` among them."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    body = b'{"model":"any","messages":[{"role":"user","content":"hi"}]}'
    request = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\nconnection: close\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    ).encode() + body
    outcomes: Counter[str] = Counter(hung=n_clients)
    connecting = trio.CapacityLimiter(MAX_CONNECTING)

    async def ask() -> None:
        outcomes[await one_client(port, request, connecting)] += 1
        outcomes["hung"] -= 1

    with trio.move_on_after(timeout_s):
        async with trio.open_nursery() as nursery:
            for _ in range(n_clients):
                nursery.start_soon(ask)
    return +outcomes


if __name__ == "__main__":
    _, port_, n_clients_, key_, timeout_ = sys.argv
    print(orjson.dumps(trio.run(main, int(port_), int(n_clients_), key_, float(timeout_))).decode())  # noqa: T201
