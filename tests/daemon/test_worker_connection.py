"""A worker's connection when its router is slow to read: what may wait waits, and nothing else is harmed."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
import trio

from auxot.core.errors import LinkError
from auxot.core.link import Link, LinkSettings, open_link
from auxot.core.messages import Error, Hello, Token
from auxot.worker.connection import MAX_REFUSALS, Connection
from auxot.worker.execute import Workplace
from auxot.worker.llama.facts import LlamaFacts
from auxot.worker.llama.http import LlamaHttp, parse_llama_url
from auxot.worker.seats import Seats, Station
from tests.daemon.worker_harness import POLICY, RouterEnd, job, stand_in_router

HELLO = Hello(gpu_key="adm_" + "k" * 43, worker_type="gpu")
NO_SLOT = LlamaFacts(model="m", slot_ctx_tokens=1, slots=0)
CAPABILITIES = NO_SLOT.capabilities(POLICY)
HALF_MIB = 512 * 1024
TIMEOUT_S = 30


@asynccontextmanager
async def held_up() -> AsyncGenerator[tuple[Link, RouterEnd, Connection]]:
    """A full connection without a slot, whose router does not read."""
    with trio.fail_after(TIMEOUT_S):
        async with stand_in_router() as router, open_link(LinkSettings(url=router.url), HELLO) as link:
            end = await router.next_worker()
            end.reads = trio.Event()
            await _fill(link)
            http = LlamaHttp(parse_llama_url("http://127.0.0.1:1"))  # never asked
            seats = Seats()
            seats.add(Station(name="0", http=http, facts=NO_SLOT))
            workplace = Workplace(seats=seats, job_timeout_s=1)
            yield link, end, Connection(link, workplace, capabilities=lambda: CAPABILITIES, on_policy=print)


async def _fill(link: Link) -> None:
    """Send until the socket's buffers and the outbox are full."""
    with trio.CancelScope() as scope:
        while True:
            scope.deadline = trio.current_time() + 0.3
            await link.send(Token(job_id="running", token="x" * HALF_MIB))


async def test_a_surplus_job_is_refused_once_the_router_reads_again() -> None:
    """One job too many on a busy connection costs the worker the connection, and all of its running jobs."""
    async with held_up() as (link, end, connection), trio.open_nursery() as nursery:
        nursery.start_soon(connection.run, CAPABILITIES)
        await end.send(job("surplus"))
        await trio.sleep(0.1)
        end.reads.set()
        while not isinstance(message := await end.receive(), Error) or message.job_id != "surplus":
            pass
        await link.send(Token(job_id="running", token="still here"))
        assert isinstance(await end.receive(), Token | Error)
        nursery.cancel_scope.cancel()


async def test_a_router_that_only_sends_jobs_is_given_up() -> None:
    """Refusals pile up without a bound at a worker whose router never reads."""
    async with held_up() as (_, end, connection):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_send_surplus, end)
            with pytest.raises(LinkError, match="does not read"):
                await connection.run(CAPABILITIES)
        end.reads.set()


async def _send_surplus(end: RouterEnd) -> None:
    for number in range(MAX_REFUSALS + 1):
        await end.send(job(f"surplus-{number}"))
