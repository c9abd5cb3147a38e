"""Faults drawn at random: what they do, how they are repaired, and when they were.

Each fault takes a part of the town that no other one has, harms it, and repairs it after a while; so the town can
always recover. What is drawn depends on the seed alone, but for parts that are still in trouble.
"""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from typing import Any

import attrs
import trio

from tests.faults.town import DEAD_AFTER_S, GRACE_S, Link, Part, RedisPart, Town, llama_of

AFTERMATH_S = 20.0  # a fault may explain errors for so long after its repair
GAP_S = (0.3, 2.0)  # between two faults
SHORT_S = (0.2, DEAD_AFTER_S * 0.7)  # nobody is taken for dead
LONG_S = (0.2, DEAD_AFTER_S * 2.5)

Victim = Part | Link | RedisPart


@attrs.define
class Strike:
    """One fault that happened. Times are Trio's; `ended` is when it was repaired."""

    fault: str
    victim: Victim
    began: float
    ended: float = float("inf")

    def overlaps(self, began: float, ended: float, *, aftermath_s: float) -> bool:
        """Whether it was in that time, or had been that shortly before."""
        return self.began <= ended and began <= self.ended + aftermath_s


@attrs.define(eq=False, kw_only=True)
class Storm:
    """Strikes a town, seeded; `strikes` is its history."""

    town: Town
    chance: random.Random
    faults: Sequence[Fault]
    gap_s: tuple[float, float] = GAP_S
    strikes: list[Strike] = attrs.field(factory=list)

    async def rage(self, length_s: float) -> None:
        """Strike again and again for that long; returns when everything is repaired."""
        deadline = trio.current_time() + length_s
        async with trio.open_nursery() as mending:
            while trio.current_time() < deadline:
                await trio.sleep(self.chance.uniform(*self.gap_s))
                fault = self.chance.choice(self.faults)
                own_chance = random.Random(self.chance.random())
                victims = [victim for victim in fault.victims(self.town) if not victim.is_in_trouble]
                if victims:
                    mending.start_soon(self._strike, fault, own_chance.choice(victims), own_chance)

    async def _strike(self, fault: Fault, victim: Victim, chance: random.Random) -> None:
        strike = Strike(fault.name, victim, trio.current_time())
        self.strikes.append(strike)
        victim.is_in_trouble = True
        try:
            await fault.harm(victim, chance)
        finally:
            victim.is_in_trouble = False
            strike.ended = trio.current_time()

    def explains(self, began: float, ended: float) -> bool:
        """Whether an error in that time has a fault for its cause."""
        return any(strike.overlaps(began, ended, aftermath_s=AFTERMATH_S) for strike in self.strikes)

    def had(self, faults: Collection[str], victim: Victim | None, *, began: float, ended: float) -> bool:
        """Whether one of those faults had that victim in that time."""
        return any(
            strike.fault in faults and strike.victim is victim and strike.overlaps(began, ended, aftermath_s=0)
            for strike in self.strikes
        )

    def counts(self) -> dict[str, int]:
        """Return how many faults there were of each kind."""
        return dict(Counter(strike.fault for strike in self.strikes))


async def kill(part: Part, chance: random.Random) -> None:
    """Kill a worker; start it again after a while."""
    part.daemon.send(signal.SIGKILL)
    await part.ended()
    await trio.sleep(chance.uniform(*LONG_S))
    part.start()


async def kill_router(part: Part, chance: random.Random) -> None:
    """Kill a router; start it again after a while."""
    part.daemon.send(signal.SIGKILL)
    await part.ended()
    await trio.sleep(chance.uniform(*LONG_S))
    await part.come_back()


async def stop_router(part: Part, chance: random.Random) -> None:
    """End a router in order; start it again."""
    part.daemon.send(signal.SIGTERM)
    with trio.fail_after(GRACE_S + 10):  # promised are 5 s beyond the grace; the machine may be busy
        await part.ended()
    assert part.daemon.process.returncode == 0, part.daemon.log_path.read_text()[-3000:]
    await trio.sleep(chance.uniform(*SHORT_S))
    await part.come_back()


async def restart_worker(part: Part, chance: random.Random) -> None:
    """End a worker in order; start it again."""
    part.daemon.send(signal.SIGTERM)
    await part.ended()
    await trio.sleep(chance.uniform(*SHORT_S))
    part.start()


async def freeze(part: Part, chance: random.Random) -> None:
    """Stop a daemon for a while, as when its machine sleeps."""
    part.daemon.send(signal.SIGSTOP)
    await trio.sleep(chance.uniform(*LONG_S))
    part.daemon.send(signal.SIGCONT)


async def kill_llama(part: Part, _chance: random.Random) -> None:
    """Kill a worker's llama-server; the worker starts it again, or gives up in the end."""
    _send(llama_of(part), signal.SIGKILL)
    await trio.sleep(1)
    if not part.is_alive:
        part.start()


async def freeze_llama(part: Part, chance: random.Random) -> None:
    """Stop a worker's llama-server for a while."""
    pid = llama_of(part)
    _send(pid, signal.SIGSTOP)
    await trio.sleep(chance.uniform(*LONG_S))
    _send(pid, signal.SIGCONT)


async def cut(link: Link, chance: random.Random) -> None:
    """Cut a link, several times."""
    for _ in range(chance.choice((1, 1, 3))):
        link.proxy.cut()
        await trio.sleep(chance.uniform(0, 1))


async def cut_in_the_middle(link: Link, chance: random.Random) -> None:
    """Cut every connection after some bytes, for a while."""
    link.proxy.max_bytes = chance.choice((2_000, 50_000))
    link.proxy.cut()
    await trio.sleep(chance.uniform(*LONG_S))
    link.proxy.max_bytes = None
    link.proxy.cut()


async def half_close(link: Link, chance: random.Random) -> None:
    """Close one direction of a link."""
    link.proxy.half_close(towards_server=chance.random() < 0.5)
    await trio.sleep(chance.uniform(*SHORT_S))


async def delay(link: Link, chance: random.Random) -> None:
    """Slow a link down for a while."""
    link.proxy.delay_s = chance.uniform(0.01, 0.5)
    await trio.sleep(chance.uniform(*LONG_S))
    link.proxy.delay_s = 0.0


async def stand_still(link: Link, chance: random.Random) -> None:
    """Let nothing through for a while, without a word."""
    link.proxy.stand_still()
    await trio.sleep(chance.uniform(*LONG_S))
    link.proxy.move()


async def restart_redis(redis: RedisPart, chance: random.Random) -> None:
    """Kill Redis, which forgets everything, and start it again."""
    redis.server.stop()
    await trio.sleep(chance.uniform(*LONG_S))
    await trio.to_thread.run_sync(redis.server.start)


async def freeze_redis(redis: RedisPart, chance: random.Random) -> None:
    """Stop Redis for a while."""
    redis.server.freeze()
    await trio.sleep(chance.uniform(*LONG_S))
    redis.server.thaw()


def _send(pid: int | None, number: signal.Signals) -> None:
    """Send a signal to a process that may be gone."""
    if pid is not None:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _one_router(town: Town) -> list[Part]:
    """Return the routers, while all of them are well."""
    return [] if any(router.is_in_trouble for router in town.routers) else town.routers


def _redis(town: Town) -> list[RedisPart]:
    return [town.redis] if town.redis is not None else []


@attrs.frozen(kw_only=True)
class Fault:
    """A kind of fault: whom it can strike, and what it does until it is repaired."""

    name: str
    victims: Callable[[Town], Sequence[Victim]]
    harm: Callable[[Any, random.Random], Awaitable[None]]


def _faults(
    of_whom: str, victims: Callable[[Town], Sequence[Victim]], *harms: Callable[[Any, random.Random], Awaitable[None]]
) -> list[Fault]:
    return [Fault(name=f"{harm.__name__} {of_whom}".strip(), victims=victims, harm=harm) for harm in harms]


WORKER_RESTARTS = _faults("", lambda town: town.workers[1:], restart_worker)
ALL_FAULTS = [
    *_faults("worker", lambda town: town.workers, kill, freeze),
    *_faults("", lambda town: town.workers, kill_llama, freeze_llama, restart_worker),
    *_faults("worker link", lambda town: town.worker_links, cut, cut_in_the_middle, half_close, delay, stand_still),
    *_faults("redis link", lambda town: town.redis_links, cut, cut_in_the_middle, half_close, delay, stand_still),
    *_faults("", _redis, restart_redis, freeze_redis),
    *_faults("router", _one_router, freeze),
    *_faults("", _one_router, kill_router, stop_router),
]
