from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auxot.router.roster import Roster, RouterStatus, decode_status, encode_status
from auxot.router.store import open_store

COUNT = st.integers(0, 2**31)
STATUS = st.builds(
    RouterStatus,
    workers=COUNT,
    total_slots=COUNT,
    active_jobs=COUNT,
    waiting_requests=COUNT,
    features=st.lists(st.text()).map(tuple),
)


@given(STATUS)
def test_what_is_written_is_read(status: RouterStatus) -> None:
    """/health would tell other figures of the other routers than they do themselves."""
    assert decode_status(encode_status(status)) == status


@pytest.mark.parametrize("value", [b"1", b"", b"{", b"[]", b"\xff", b'{"workers":-1,"total_slots":"x","features":[1]}'])
def test_what_cannot_be_read_counts_nothing(value: bytes) -> None:
    """A router of another version would break /health, or be taken for dead."""
    assert decode_status(value) == RouterStatus()


async def test_the_first_expiry_is_that_of_the_router_heard_of_least_lately() -> None:
    """Dead routers would be noticed too late, or looked for all the time."""
    async with open_store(None) as store:
        old, new = (Roster(store, router_id=name, ttl_s=ttl_s) for name, ttl_s in (("old", 20), ("new", 40)))
        for roster in (old, new):
            await store.execute(*roster.heartbeat())
        assert 19 < await old.first_expiry_s({"old", "new"}) <= 20
        assert 39 < await old.first_expiry_s({"new"}) <= 40
        assert await old.first_expiry_s({"new", "never seen"}) == 0
        assert await old.first_expiry_s(set()) == math.inf


async def test_a_heartbeat_tells_whether_it_had_run_out() -> None:
    """A router that was taken for dead would not learn that its jobs were dropped."""
    async with open_store(None) as store:
        roster = Roster(store, router_id="a", ttl_s=20)
        replies = [await store.execute(*roster.heartbeat()) for _ in range(2)]
        await store.execute("DEL", "auxot:router:a")
        replies.append(await store.execute(*roster.heartbeat()))
        assert [reply is None for reply in replies] == [True, False, True]
