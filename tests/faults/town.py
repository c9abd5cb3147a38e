"""A town of real processes: routers, workers with their llama-servers, and a Redis; a proxy on every link.

    clients --> router --proxy--> redis-server        (or the queue in the one router's memory)
                  ^
                  '--proxy-- worker -- llama-server

Every process keeps its place (port, name, proxy) and can be ended and started again as often as one likes.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import httpx
import orjson
import redis
import trio

from auxot.router.queue import GROUP, RELEASED
from tests.faults.harness import CuttingProxy
from tests.faults.proxy import Proxy, running
from tests.live.processes import (
    API_KEY,
    Daemon,
    children_of,
    is_alive,
    router_variables,
    running_daemon,
    worker_variables,
)
from tests.store.harness import RedisServer, free_port, redis_server

SLOTS = 2  # of a worker
DEAD_AFTER_S = 4  # silence after which a worker or a router is taken for dead
QUEUE_TIMEOUT_S = 20
JOB_TIMEOUT_S = 60
GRACE_S = 5
START_S = 60.0
CALM_S = 60.0  # how long it may take until nothing runs and everybody is back
_LOOK_S = 0.1
_ROUTER = {
    "AUXOT_MAX_PARALLEL": str(SLOTS),
    "AUXOT_CTX_SIZE": "4096",
    "AUXOT_HEARTBEAT_INTERVAL": "1s",
    "AUXOT_DEAD_WORKER_TIMEOUT": f"{DEAD_AFTER_S}s",
    "AUXOT_SWEEP_INTERVAL": "1s",
    "AUXOT_KEEP_ALIVE_INTERVAL": "1s",
    "AUXOT_QUEUE_TIMEOUT": f"{QUEUE_TIMEOUT_S}s",
    "AUXOT_JOB_TIMEOUT": f"{JOB_TIMEOUT_S}s",
    "AUXOT_SHUTDOWN_GRACE": f"{GRACE_S}s",
}
_WORKER = {"AUXOT_HEARTBEAT_INTERVAL": "1s", "AUXOT_RECONNECT_MAX_DELAY": "1s"}


@attrs.define(eq=False)
class Part:
    """A daemon that can be started again and again. Each start has a log of its own."""

    name: str
    program: str
    variables: dict[str, str]
    folder: Path
    stack: ExitStack
    is_in_trouble: bool = False  # a fault has it now
    daemons: list[Daemon] = attrs.field(factory=list)

    @property
    def daemon(self) -> Daemon:
        """The present process, or the last one."""
        return self.daemons[-1]

    @property
    def port(self) -> int:
        """Where a router listens."""
        return int(self.variables["AUXOT_PORT"])

    @property
    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self.daemon.process.poll() is None

    def start(self) -> None:
        """Start a process; it is not ready yet."""
        name = f"{self.name}-{len(self.daemons)}"
        self.daemons.append(self.stack.enter_context(running_daemon(self.folder, name, self.program, **self.variables)))

    async def come_back(self) -> None:
        """Start a router and wait until it listens; one that gives up, because Redis is away, is started again."""
        self.start()
        while not any(line["event"] == "router.ready" for line in self.daemon.log()):
            if not self.is_alive:
                self.start()
            await trio.sleep(_LOOK_S)

    async def ended(self) -> None:
        """Wait for the end of the process."""
        await until(lambda: not self.is_alive, what=f"the end of {self.name}")

    def log(self) -> list[dict[str, Any]]:
        """Return all that its processes have logged."""
        return [line for daemon in self.daemons for line in daemon.log()]


@attrs.define(eq=False)
class Link:
    """A proxy that a fault may have."""

    proxy: Proxy
    is_in_trouble: bool = False


@attrs.define(eq=False)
class RedisPart:
    """The redis-server."""

    server: RedisServer
    is_in_trouble: bool = False


@attrs.define(eq=False, kw_only=True)
class Town:
    """Everything that runs."""

    redis: RedisPart | None
    redis_links: list[Link]  # one a router
    model: Path
    http: httpx.AsyncClient
    routers: list[Part] = attrs.field(factory=list)
    workers: list[Part] = attrs.field(factory=list)
    worker_links: list[Link] = attrs.field(factory=list)

    async def health(self, router: Part) -> dict[str, Any] | None:
        """Return what a router says of itself, None if it says nothing."""
        try:
            response = await self.http.get(f"http://127.0.0.1:{router.port}/health", timeout=5)
        except httpx.TransportError:
            return None
        body: dict[str, Any] = response.json()
        return body

    async def calm(self) -> None:
        """Wait until every worker is back, nothing runs and nothing is queued: within CALM_S."""
        self._start_what_has_given_up()
        unrest: dict[str, Any] = {}

        async def is_calm() -> bool:
            nonlocal unrest
            unrest = await self._unrest()
            return not unrest

        await until(is_calm, what=lambda: f"calm: {unrest}", within_s=CALM_S)

    async def _unrest(self) -> dict[str, Any]:
        """Return what is not as it should be while nobody asks anything."""
        told = {router.name: await self.health(router) for router in self.routers}
        found: dict[str, Any] = {name: "silent" for name, health in told.items() if health is None}
        healths = [health for health in told.values() if health]
        for name, expected in {
            "workers": len(self.workers),
            "available": SLOTS * len(self.workers),
            "active_jobs": 0,
            "waiting_requests": 0,
        }.items():
            if (n := sum(health[name] for health in healths)) != expected:
                found[name] = n
        return found | self._in_redis()

    def _start_what_has_given_up(self) -> None:
        """Start workers anew that have ended by themselves: their llama-server was killed too often."""
        for worker in self.workers:
            if not worker.is_alive:
                assert worker.daemon.process.returncode == 1, worker.daemon.log_path.read_text()[-2000:]
                worker.start()

    def _in_redis(self) -> dict[str, Any]:
        """Return what Redis has of jobs, claims, letters and dead routers."""
        if self.redis is None:
            return {}
        try:
            with redis.Redis(unix_socket_path=str(self.redis.server.socket_path), socket_timeout=2) as client:
                n_claimed = client.xpending("auxot:jobs", GROUP)["pending"]
                n_entries = client.xlen("auxot:jobs")
                members = {row["name"].decode() for row in client.xinfo_consumers("auxot:jobs", GROUP)}
                letters = sum(client.xlen(f"auxot:mail:{name}") for name in members)  # others: gone in 10 minutes
        except redis.RedisError as exc:
            return {"redis": str(exc)}
        n_dead = len(members - {RELEASED}) - len(self.routers)
        found = {"entries": n_entries, "claims": n_claimed, "letters": letters, "dead routers": n_dead}
        return {name: n for name, n in found.items() if n}

    def llama_servers(self) -> list[int]:
        """Return the ids of all llama-servers that run our model."""
        return [pid for pid in _processes() if str(self.model).encode() in _argv(pid)]

    def descriptors(self) -> dict[str, int]:
        """Return how many descriptors each daemon has open."""
        return {
            part.name: len(os.listdir(f"/proc/{part.daemon.pid}/fd"))  # noqa: PTH208 - names only
            for part in [*self.routers, *self.workers]
        }

    def resident_bytes(self, names: Collection[str]) -> dict[str, int]:
        """Return the memory of daemons that is in RAM."""
        pages = {p.name: Path(f"/proc/{p.daemon.pid}/statm") for p in [*self.routers, *self.workers] if p.name in names}
        return {name: int(path.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") for name, path in pages.items()}


def llama_of(worker: Part) -> int | None:
    """Return the process id of a worker's llama-server, if there is one now."""
    with contextlib.suppress(FileNotFoundError):
        return next((pid for pid in children_of(worker.daemon.pid) if is_alive(pid)), None)
    return None


async def until(condition: Callable[[], Any], *, what: str | Callable[[], str], within_s: float = START_S) -> None:
    """Wait until something is so; the condition may be asynchronous."""
    with trio.move_on_after(within_s):
        while True:
            outcome = condition()
            if await outcome if hasattr(outcome, "__await__") else outcome:
                return
            await trio.sleep(_LOOK_S)
    raise AssertionError(f"never came: {what if isinstance(what, str) else what()}")


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208 - names only


def _argv(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@attrs.frozen(kw_only=True)
class Plan:
    """What a town is made of. One router keeps its queue in memory; several share a redis-server."""

    folder: Path
    binary: Path
    model: Path
    n_routers: int = 1
    n_workers: int = 3
    seed: int = 0


@asynccontextmanager
async def open_town(plan: Plan) -> AsyncIterator[Town]:
    """Run a town for the length of the block."""
    chance = random.Random(f"{plan.seed} bytes")
    headers = {"authorization": f"Bearer {API_KEY}"}
    limits = httpx.Limits(max_keepalive_connections=0)
    async with AsyncExitStack() as stack:
        server = stack.enter_context(redis_server()) if plan.n_routers > 1 else None
        town = Town(
            redis=RedisPart(server) if server else None,
            redis_links=[_redis_link(server, chance) for _ in range(plan.n_routers)] if server else [],
            model=plan.model,
            http=httpx.AsyncClient(headers=headers, limits=limits, timeout=None, trust_env=False),
        )
        processes = ExitStack()
        _settle(town, plan, processes=processes, chance=chance)
        links = [*town.redis_links, *town.worker_links]
        await stack.enter_async_context(running(*(link.proxy for link in links)))
        await stack.enter_async_context(town.http)
        stack.push_async_callback(_end_all, processes)  # first of all: proxies and Redis outlive who uses them
        for part in [*town.routers, *town.workers]:
            part.start()
        await town.calm()
        yield town


def _redis_link(server: RedisServer, chance: random.Random) -> Link:
    return Link(CuttingProxy(socket_path=server.socket_path, port=free_port(), rng=chance))


def _settle(town: Town, plan: Plan, *, processes: ExitStack, chance: random.Random) -> None:
    """Give every process its place."""
    for n in range(plan.n_routers):
        variables = router_variables(**_ROUTER, AUXOT_PORT=str(free_port()))
        if town.redis_links:
            variables["AUXOT_REDIS_URL"] = f"redis://127.0.0.1:{town.redis_links[n].proxy.port}"
        town.routers.append(Part(f"router{n}", "auxot-router", variables, plan.folder, processes))
    for n in range(plan.n_workers):
        router_port = town.routers[n % plan.n_routers].port
        link = Link(Proxy(port=free_port(), target_port=router_port, rng=chance))
        town.worker_links.append(link)
        own = {"AUXOT_LLAMA_BINARY": str(plan.binary), "AUXOT_MODEL_FILE": str(plan.model)}
        variables = worker_variables(f"ws://127.0.0.1:{link.proxy.port}", **_WORKER, **own)
        town.workers.append(Part(f"worker{n}", "auxot-worker", variables, plan.folder, processes))


async def _end_all(processes: ExitStack) -> None:
    with trio.CancelScope(shield=True):  # the proxies must go on meanwhile; each process is killed when it is too slow
        await trio.to_thread.run_sync(processes.close)


def logged_ends(routers: list[Part]) -> dict[str, int]:
    """Return how often the routers have logged the end of each request, by its id."""
    ends: dict[str, int] = {}
    for router in routers:
        for line in router.log():
            if line["event"] == "job.finished":
                ends[line["request_id"]] = ends.get(line["request_id"], 0) + 1
    return ends


def figures(**values: Any) -> str:
    """Write figures for people and programs."""
    return orjson.dumps(values, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS).decode()
