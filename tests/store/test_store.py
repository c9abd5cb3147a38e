"""What a store promises, the same for both kinds."""

from __future__ import annotations

import pytest
import trio

from auxot.core.errors import StoreError
from auxot.router.bell import Bell
from auxot.router.store import Store
from tests.store.harness import bounded


@bounded
async def test_replies_have_the_same_shapes(store: Store) -> None:
    """The queue reads a reply wrongly on one of the stores."""
    assert await store.execute("SET", "key", b"\x00value") in (b"OK", "OK")
    assert await store.execute("GET", "key") == b"\x00value"
    assert await store.execute("GET", "missing") is None
    assert await store.execute("EXISTS", "key", "missing") == 1
    assert await store.execute("MGET", "key", "missing") == [b"\x00value", None]
    await store.execute("XGROUP", "CREATE", "stream", "group", 0, "MKSTREAM")
    entry_id = await store.execute("XADD", "stream", "*", "name", 7)
    read = ("XREADGROUP", "GROUP", "group", "me", "COUNT", 5, "STREAMS", "stream", ">")
    assert await store.execute(*read) == {b"stream": [[entry_id, [b"name", b"7"]]]}
    assert not await store.execute(*read)


@bounded
async def test_an_error_reply_leaves_the_other_commands_of_a_pipeline_done(store: Store) -> None:
    """An error reply breaks the order of replies, or stops what came after it."""
    with pytest.raises(StoreError, match="WRONGTYPE"):
        await store.pipeline((("SET", "text", "x"), ("XADD", "text", "*", "a", "b"), ("SET", "after", "y")))
    assert await store.execute("GET", "after") == b"y"


@bounded
async def test_a_transaction_gives_the_replies_of_its_commands(store: Store) -> None:
    """The replies of a transaction are not those of its commands."""
    assert await store.transaction((("INCR", "n"), ("INCR", "n"), ("GET", "n"))) == [1, 2, b"2"]
    with pytest.raises(StoreError, match="WRONGTYPE"):
        await store.transaction((("INCR", "n"), ("XADD", "n", "*", "a", "b")))
    assert await store.execute("GET", "n") == b"3"


@bounded
async def test_an_unknown_command_is_not_quoted_in_the_error(store: Store) -> None:
    """A prompt or a password comes into the logs with an error's text."""
    with pytest.raises(StoreError) as caught:
        await store.execute("NOSUCHCOMMAND", "a secret")
    assert "secret" not in str(caught.value)


@bounded
async def test_no_commands_need_no_reply(store: Store) -> None:
    """A pipeline without commands waits for a reply that never comes."""
    assert await store.pipeline(()) == []


@bounded
async def test_a_large_value_goes_there_and_back(store: Store) -> None:
    """A job with images does not fit."""
    value = bytes(range(256)) * (20 * 4096)
    await store.execute("SET", "large", value)
    assert await store.execute("GET", "large") == value


@bounded
async def test_replies_stay_matched_through_a_storm_of_cancellations(store: Store) -> None:
    """A cancelled caller's reply is given to somebody else."""

    async def ask(number: int, deadline_s: float) -> None:
        with trio.move_on_after(deadline_s):
            for turn in range(10):
                assert await store.execute("ECHO", f"{number}-{turn}") == f"{number}-{turn}".encode()

    async with trio.open_nursery() as nursery:
        for number in range(300):
            nursery.start_soon(ask, number, number * 0.000_1)
        for number in range(300, 350):
            nursery.start_soon(ask, number, 50)
    assert await store.execute("ECHO", "last") == b"last"


@bounded
async def test_a_caller_that_is_cancelled_already_sends_nothing(store: Store) -> None:
    """A command runs although its caller was cancelled before."""
    with trio.CancelScope() as scope:
        scope.cancel()
        await store.execute("SET", "key", "value")
    assert scope.cancelled_caught
    assert await store.execute("GET", "key") is None


@bounded
async def test_publishing_rings_the_bells_of_the_channel_on_all_stores(stores: tuple[Store, Store]) -> None:
    """A router does not hear what another one, or itself, publishes."""
    bells = [Bell(), Bell(), Bell()]
    for store, bell in zip((*stores, stores[0]), bells, strict=True):
        await store.subscribe("channel", bell)
        await bell.wait()  # rung once when it is hung up
    await stores[0].execute("PUBLISH", "elsewhere", "x")
    for bell in bells:
        with trio.move_on_after(0.05) as scope:
            await bell.wait()
        assert scope.cancelled_caught
    for store in stores:
        await store.execute("PUBLISH", "channel", "x")
        for bell in bells:
            await bell.wait()


@bounded
async def test_calls_in_a_loop_let_other_tasks_run(store: Store) -> None:
    """A task that talks to the store in a loop starves the others."""
    n_turns = 0

    async def count() -> None:
        nonlocal n_turns
        while True:
            n_turns += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count)
        for _ in range(100):
            await store.execute("PING")
        nursery.cancel_scope.cancel()
    assert n_turns >= 10  # the embedded store gives a turn every few calls
