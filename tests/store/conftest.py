"""Every conformance test runs on both stores: the embedded one and a real redis-server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from auxot.router.store import Store
from tests.store.harness import RedisServer, redis_server, two_stores


@pytest.fixture(scope="session")
def shared_server() -> Iterator[RedisServer]:
    """One server for all tests that leave it running; each finds it empty."""
    with redis_server() as server:
        yield server


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """A server that the test may stop and restart."""
    with redis_server() as server:
        yield server


@pytest.fixture(params=["embedded", "redis"])
def url(request: pytest.FixtureRequest) -> str | None:
    """What AUXOT_REDIS_URL would hold."""
    if request.param == "embedded":
        return None
    shared: RedisServer = request.getfixturevalue("shared_server")
    return shared.url


@pytest.fixture
async def stores(url: str | None) -> AsyncIterator[tuple[Store, Store]]:
    """The stores of two routers, empty."""
    async with two_stores(url) as both:
        await both[0].execute("FLUSHALL")
        yield both


@pytest.fixture
def store(stores: tuple[Store, Store]) -> Store:
    """One store, empty."""
    return stores[0]
