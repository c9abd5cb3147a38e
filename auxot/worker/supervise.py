"""The life of a GPU worker: policy, llama-server, connections, and how each of them ends.

    policy connection --> llama-server --> ready --> permanent connection, again and again
                              ^                            |
                              '-- restart, with back-off --'-- llama-server died

Lifetimes nest: job < connection < llama-server < worker. The first connection only asks the router what to serve; the
permanent one opens when llama-server is ready and announces what really runs. When llama-server dies, its jobs fail
(the router may run them elsewhere), the connection closes, and the next one announces the new llama-server.

Two things end a block in order, the wish to stop and the death of llama-server: no more jobs are taken and the router
is told so, the running jobs may end, then the connection is finished. Where no connection is open, nothing is in
order yet, and the block is cancelled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager

import attrs
import trio

from auxot.core.background import background
from auxot.core.errors import ConfigError, LinkError, LlamaError
from auxot.core.link import Link, LinkSettings, backoff_delays, open_link
from auxot.core.logs import get_logger
from auxot.core.messages import PENDING_BACKEND, WORKER_FEATURES, Capabilities, Config, Hello, Policy
from auxot.worker.connection import Connection
from auxot.worker.execute import Workplace
from auxot.worker.llama.facts import LlamaFacts
from auxot.worker.llama.server import LlamaServer
from auxot.worker.restarts import DeathLog, Reconnects, RestartPolicy
from auxot.worker.seats import Seats

DRAIN_GRACE_S = 12.0
DEATH_GRACE_S = 2.0  # how long the jobs of a dead llama-server may take to say so
READY_TIMEOUT_S = 600.0  # the original's; a large model on a slow disk takes minutes

_WORKER_TYPE = "gpu"
_CLI_POLICY = "cli"
_PENDING = Capabilities(backend=PENDING_BACKEND, model=PENDING_BACKEND, ctx_size=0, features=WORKER_FEATURES)

_log = get_logger()


@attrs.frozen(kw_only=True)
class WorkerSettings:
    """What a worker needs to know.

    Attributes:
        link: where the router is.
        gpu_key: the key for workers.
        open_llama: starts (or reaches) the llama-server for a policy, as a context manager.
        is_external: somebody else runs that llama-server: wait for it however long it takes.
        job_timeout_s: how long a job may take.
        reconnect_delay_s, reconnect_max_delay_s: the shortest and the longest pause between two connections.
        restarts: how often llama-server may die.
        ready_timeout_s: how long it may take to load its model.
        drain_grace_s: how long running jobs may go on when the worker is to stop.
        tell: called with what the worker does now, in a few words; must not wait.
    """

    link: LinkSettings
    gpu_key: str = attrs.field(repr=False)
    open_llama: Callable[[Policy], AbstractAsyncContextManager[LlamaServer]]
    is_external: bool = False
    job_timeout_s: float = 1800.0
    reconnect_delay_s: float = 2.0
    reconnect_max_delay_s: float = 60.0
    restarts: RestartPolicy = attrs.field(factory=RestartPolicy)
    ready_timeout_s: float = READY_TIMEOUT_S
    drain_grace_s: float = DRAIN_GRACE_S
    tell: Callable[[str], None] = lambda _: None


class Worker:
    """A GPU worker; `run` is its life. Changing state: the seats, and the connection that is open now."""

    def __init__(self, settings: WorkerSettings) -> None:
        self.started = trio.Event()  # it has taken its first connection, and serves
        self.worker_id: str | None = None  # of the latest connection
        self._settings = settings
        self._seats = Seats()
        self._connection: Connection | None = None
        self._is_stopping = False

    async def run(self) -> None:
        """Ask for the policy, then keep a llama-server running and serve its slots, until `stop_on` ends it.

        Raises:
            ConfigError: the router asks for something that this worker is not.
            KeyRefusedError: the router does not accept the key.
            LlamaError: llama-server does not start, or died too often.
        """
        policy = await self._fetch_policy()
        restarts = self._settings.restarts
        deaths = DeathLog(restarts)
        delays = _restart_delays(restarts)
        while True:
            reason = await self._live(policy)
            if self._is_stopping:
                return
            now = trio.current_time()
            if deaths.note(now) and not self._settings.is_external:
                raise LlamaError(f"llama-server died {restarts.max_deaths} times in a row, at last with {reason}")
            if deaths.is_alone(now):
                delays = _restart_delays(restarts)
            await trio.sleep(next(delays))

    async def stop_on(self, quiet: trio.Event, scope: trio.CancelScope) -> None:
        """Once `quiet` is set, end `run` in order; `scope` is cancelled where it is around no open connection."""
        await quiet.wait()
        self._is_stopping = True
        await self._end(scope, reason="this worker is stopping", grace_s=self._settings.drain_grace_s)

    async def _end(self, scope: trio.CancelScope, *, reason: str, grace_s: float) -> None:
        self._seats.close(reason)
        with trio.move_on_after(grace_s):
            await self._seats.wait_idle()
        if self._connection is not None:
            self._connection.finish()
        else:
            scope.cancel()

    async def _fetch_policy(self) -> Policy:
        """Ask the router what to serve, again and again until it says."""
        hello = Hello(gpu_key=self._settings.gpu_key, worker_type=_WORKER_TYPE, capabilities=_PENDING)
        self._settings.tell("asking the router what to serve")
        for delay_s in self._reconnect_delays():
            try:
                async with open_link(self._settings.link, hello) as link:
                    return _checked(link.ack.policy)
            except LinkError as exc:
                _log.warning("router.unreachable", reason=str(exc), retry_ms=round(delay_s * 1000))
                self._settings.tell(f"router unreachable: {exc}")
            await trio.sleep(delay_s)
        raise AssertionError("the delays have no end")

    async def _live(self, policy: Policy) -> str:
        """Run one llama-server from start to end; return how it died."""
        self._settings.tell("llama-server loads the model")
        async with self._settings.open_llama(policy) as server:
            try:
                facts = await self._become_ready(server)
            except LlamaError as exc:
                if self.started.is_set() or self._settings.is_external:
                    _log.error("llama.unready", reason=str(exc))
                    return str(exc)
                raise  # it has never worked: trying again would hide why
            _log.info("llama.ready", pid=server.pid, **attrs.asdict(facts))
            self._seats.open(facts.slots)
            async with background() as llama_nursery:
                llama_nursery.start_soon(self._end_on_death, server, llama_nursery.cancel_scope)
                await self._stay_connected(server, facts, policy)
            return server.last_words()

    async def _become_ready(self, server: LlamaServer) -> LlamaFacts:
        try:
            with trio.fail_after(self._settings.ready_timeout_s):
                await server.wait_ready()
        except trio.TooSlowError as exc:
            raise LlamaError(f"llama-server was not ready after {self._settings.ready_timeout_s:g} s") from exc
        return await server.facts()

    async def _end_on_death(self, server: LlamaServer, scope: trio.CancelScope) -> None:
        await server.died.wait()
        await self._end(scope, reason="llama-server died and is being restarted", grace_s=DEATH_GRACE_S)

    async def _stay_connected(self, server: LlamaServer, facts: LlamaFacts, policy: Policy) -> None:
        """Keep a connection to the router and serve jobs, until no more jobs are taken."""
        capabilities = facts.capabilities(policy)
        hello = Hello(
            gpu_key=self._settings.gpu_key,
            worker_type=_WORKER_TYPE,
            capabilities=attrs.evolve(capabilities, model_capabilities=()),
        )
        workplace = Workplace(
            http=server.http,
            slot_ctx_tokens=facts.slot_ctx_tokens,
            seats=self._seats,
            job_timeout_s=self._settings.job_timeout_s,
            on_loss=server.doubt,
        )
        reconnects = Reconnects(self._reconnect_delays)
        while not self._seats.closed.is_set():
            opened_at = math.inf
            try:
                async with open_link(self._settings.link, hello) as link:
                    opened_at = trio.current_time()
                    await self._serve(link, capabilities, workplace)
                    _warn_of_change(policy, link.ack.policy)
            except LinkError as exc:
                await self._pause(exc, reconnects.pause_s(lasted_s=trio.current_time() - opened_at))

    async def _pause(self, exc: LinkError, delay_s: float) -> None:
        """Wait before the next connection, if there is to be one."""
        _log.warning("link.lost", reason=str(exc), retry_ms=round(delay_s * 1000))
        self._settings.tell(f"router lost: {exc}")
        if not self._seats.closed.is_set():
            await trio.sleep(delay_s)

    async def _serve(self, link: Link, capabilities: Capabilities, workplace: Workplace) -> None:
        """Serve jobs over one link until it breaks or the connection is finished."""
        self._connection = Connection(link, workplace)
        try:
            await link.send(Config(capabilities=capabilities))
            self.worker_id = link.ack.gpu_id
            _log.info("link.open", worker_id=self.worker_id, n_slots=capabilities.total_slots)
            self._settings.tell(f"serving, {capabilities.total_slots} slots")
            self.started.set()
            await self._connection.run()
        finally:
            self._connection = None

    def _reconnect_delays(self) -> Iterator[float]:
        return backoff_delays(first_s=self._settings.reconnect_delay_s, max_s=self._settings.reconnect_max_delay_s)


def _restart_delays(restarts: RestartPolicy) -> Iterator[float]:
    return backoff_delays(first_s=restarts.first_delay_s, max_s=restarts.max_delay_s)


def _checked(policy: Policy | None) -> Policy:
    """Return the policy if it is one for this worker."""
    if policy is None:
        raise LinkError("the router sent no policy")
    if policy.worker_type == _CLI_POLICY:
        raise ConfigError("the router wants CLI workers; this worker runs llama-server")
    return policy


def _warn_of_change(served: Policy, told: Policy | None) -> None:
    """Say so when the router has another policy by now: it is applied at the next start."""
    if told is not None and told != served:
        _log.warning("policy.changed", served=attrs.asdict(served), told=attrs.asdict(told))
