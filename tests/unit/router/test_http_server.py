from __future__ import annotations

import trio
import trio.testing

from auxot.router.http_server import MAX_MESSAGES, Messages


def part(n: int) -> dict[str, object]:
    return {"type": "http.request", "body": b"%d" % n, "more_body": True}


async def test_a_body_that_nobody_reads_stops_its_client():
    """A client could fill the memory with a body that the application does not read."""
    messages, n_put = Messages(), 0

    async def upload() -> None:
        nonlocal n_put
        for n in range(3 * MAX_MESSAGES):
            await messages.put(part(n))
            n_put += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(upload)
        await trio.testing.wait_all_tasks_blocked()
        assert n_put == MAX_MESSAGES
        assert [(await messages.receive())["body"] for _ in range(3 * MAX_MESSAGES)] == [
            part(n)["body"] for n in range(3 * MAX_MESSAGES)
        ]
    assert messages.take_now() is None


async def test_a_client_that_leaves_is_noticed_behind_a_full_line_of_messages():
    """The task that reads the connection, and the one that answers, would wait for each other for ever."""
    messages = Messages()
    async with trio.open_nursery() as nursery:
        for n in range(MAX_MESSAGES):
            await messages.put(part(n))
        nursery.start_soon(messages.put, part(-1))
        await trio.testing.wait_all_tasks_blocked()
        await messages.put({"type": "http.disconnect"})
    taken = [(await messages.receive())["type"] for _ in range(MAX_MESSAGES + 1)]
    assert taken[-1] == "http.disconnect"
    assert messages.take_now() is None
