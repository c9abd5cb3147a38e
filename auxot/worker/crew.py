"""What serves one policy: llama-servers, the connection that offers their slots, and who listens for another policy.

    CREW nursery
    |- replicas: each keeps a llama-server running
    |- successor: gets a new policy ready while the old one is served, then has the connection run down
    '- connections, one at a time, while a llama-server is ready; in quarantine one that takes no jobs

A crew ends in order when its table of seats is closed for good: because the worker stops, or because a successor is
ready to be started. It ends with LlamaError when no llama-server could be started at all.

A policy that cannot be served changes nothing: the router is told why, and the old one is served on. It is not tried
again until the router sends it anew, but for downloads, which a network may have stopped.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterator

import attrs
import trio

from auxot.core.background import background
from auxot.core.errors import AuxotError, ConfigError, FetchError, LinkError, LlamaError
from auxot.core.link import Link, LinkSettings, backoff_delays, open_link
from auxot.core.logs import get_logger
from auxot.core.messages import (
    PENDING_BACKEND,
    WORKER_FEATURES,
    Capabilities,
    Config,
    Error,
    Hello,
    Policy,
    PolicyUpdate,
)
from auxot.worker.connection import Connection
from auxot.worker.execute import Workplace
from auxot.worker.replica import Care, OpenLlama, Replica, Start
from auxot.worker.restarts import Reconnects
from auxot.worker.seats import Seats

FETCH_RETRY_S = 300.0  # after a download of a new policy's model that failed

_WORKER_TYPE = "gpu"
_CLI_POLICY = "cli"
_PENDING = Capabilities(backend=PENDING_BACKEND, model=PENDING_BACKEND, ctx_size=0, features=WORKER_FEATURES)

_log = get_logger()

Prepare = Callable[[Policy], Awaitable[tuple[Start, ...]]]


@attrs.frozen(kw_only=True)
class CrewSettings:
    """What all crews of a worker share.

    Attributes:
        link: where the router is.
        gpu_key: the key for workers.
        prepare: gets everything here that a policy takes; returns what is to be started.
        open_llama: starts (or reaches) one of them.
        care: how they are looked after.
        job_timeout_s: how long a job may take.
        reconnect_delay_s, reconnect_max_delay_s: the shortest and the longest pause between two connections.
        tell: called with what the worker does now, in a few words; must not wait.
    """

    link: LinkSettings
    gpu_key: str = attrs.field(repr=False)
    prepare: Prepare
    open_llama: OpenLlama
    care: Care = attrs.field(factory=Care)
    job_timeout_s: float = 1800.0
    reconnect_delay_s: float = 2.0
    reconnect_max_delay_s: float = 60.0
    tell: Callable[[str], None] = lambda _: None

    def pending_hello(self) -> Hello:
        """Return the first message of a connection that takes no jobs."""
        return self.hello(_PENDING)

    def hello(self, capabilities: Capabilities) -> Hello:
        """Return the first message of a connection."""
        return Hello(gpu_key=self.gpu_key, worker_type=_WORKER_TYPE, capabilities=capabilities)

    def reconnect_delays(self) -> Iterator[float]:
        """Yield the pauses between connections."""
        return backoff_delays(first_s=self.reconnect_delay_s, max_s=self.reconnect_max_delay_s)


@attrs.frozen(kw_only=True)
class Assignment:
    """A policy with what is started for it."""

    policy: Policy
    starts: tuple[Start, ...]


class Crew:
    """The llama-servers and the connection for one policy. `run` is its life.

    Args:
        assignment: what it serves.
        settings: of the worker.
        on_open: called with the worker's id when a connection takes jobs.
        refused: the policy that the router wants and this worker cannot serve, if there is one.
    """

    def __init__(
        self,
        assignment: Assignment,
        settings: CrewSettings,
        *,
        on_open: Callable[[str | None], None],
        refused: Policy | None = None,
    ) -> None:
        self.seats = Seats()
        self.successor: Assignment | None = None
        self._opened_at = math.inf  # when the open connection did
        self._assignment = assignment
        self._settings = settings
        self._on_open = on_open
        self._refused = refused
        self._wish = assignment.policy  # of the router, its latest
        self._wished = trio.Event()
        self._preparing = trio.CancelScope()
        self._unstartable: set[str] = set()  # replicas
        self._failure: LlamaError | None = None
        self._capabilities = _PENDING
        self._replicas = [self._replica(number, start) for number, start in enumerate(assignment.starts)]

    @property
    def is_connected(self) -> bool:
        """Whether a connection is open."""
        return math.isfinite(self._opened_at)

    async def run(self) -> None:
        """Serve until the seats are closed for good; the llama-servers are ended in order.

        Raises:
            KeyRefusedError: the router does not accept the key.
            LlamaError: no llama-server could be started.
        """
        async with background() as crew_nursery:
            for replica in self._replicas:
                crew_nursery.start_soon(replica.run)
            crew_nursery.start_soon(self._follow_policy)
            await self._offer()
        if self._failure is not None:
            raise self._failure

    def finish(self, *, reason: str, grace_s: float) -> None:
        """Take no more jobs, so that `run` ends when those that run have finished, or `grace_s` are over."""
        self.seats.close(reason=reason, grace_s=grace_s)

    def _replica(self, number: int, start: Start) -> Replica:
        return Replica(
            name=str(number),
            start=start,
            open_llama=self._settings.open_llama,
            care=self._settings.care,
            seats=self.seats,
            on_unstartable=self._note_unstartable,
        )

    def _note_unstartable(self, replica: str, exc: LlamaError) -> None:
        """End the crew when not one of its llama-servers has ever worked: trying again would hide why."""
        self._unstartable.add(replica)
        if self.seats.has_opened or len(self._unstartable) < len(self._replicas):
            self.seats.notify(str(exc))
        else:
            self._failure = exc
            self.finish(reason=str(exc), grace_s=0)

    async def _offer(self) -> None:
        """Keep a connection to the router while there is something to tell it."""
        reconnects = Reconnects(self._settings.reconnect_delays)
        while not self.seats.is_over:
            if self.seats.closed.is_set() and not self._is_in_quarantine():
                await self.seats.wait_change()
                continue
            try:
                if self.seats.closed.is_set():
                    await self._explain_quarantine()
                else:
                    await self._serve()
            except LinkError as exc:
                lasted_s = trio.current_time() - self._opened_at
                self._opened_at = math.inf
                await self._pause(exc, reconnects.pause_s(lasted_s=lasted_s))

    async def _pause(self, exc: LinkError, delay_s: float) -> None:
        """Wait before the next connection, if there is to be one."""
        _log.warning("link.lost", reason=str(exc), retry_ms=round(delay_s * 1000))
        self._settings.tell(f"router lost: {exc}")
        with trio.move_on_after(delay_s):
            await self.seats.wait_over()

    async def _serve(self) -> None:
        """Serve jobs over one link until it breaks, or no more are taken and the last has ended."""
        workplace = Workplace(seats=self.seats, job_timeout_s=self._settings.job_timeout_s)
        announced = self._announced()
        hello = self._settings.hello(attrs.evolve(announced, model_capabilities=()))
        async with open_link(self._settings.link, hello) as link:
            self._opened_at = trio.current_time()
            self._note_policy(link)
            connection = Connection(link, workplace, capabilities=self._announced, on_policy=self._wish_for)
            await link.send(Config(capabilities=announced))
            self._report_open(link, announced.total_slots)
            await connection.run(announced)
        self._opened_at = math.inf

    def _report_open(self, link: Link, n_slots: int) -> None:
        _log.info("link.open", worker_id=link.ack.gpu_id, n_slots=n_slots)
        self._settings.tell(f"serving, {n_slots} slots")
        self._on_open(link.ack.gpu_id)

    def _announced(self) -> Capabilities:
        """Return what is offered now; what was offered last, if nothing is."""
        stations = self.seats.stations
        if stations:
            first = stations[0].facts
            facts = attrs.evolve(
                first,
                slots=self.seats.n_slots,
                slot_ctx_tokens=min(station.facts.slot_ctx_tokens for station in stations),
            )
            self._capabilities = facts.capabilities(self._assignment.policy)
        return self._capabilities

    def _is_in_quarantine(self) -> bool:
        return all(replica.quarantined_for for replica in self._replicas)

    async def _explain_quarantine(self) -> None:
        """Tell the router why there is nothing to offer, and hear of new policies, until that has changed."""
        self._settings.tell(f"in quarantine: {self._replicas[0].quarantined_for}")
        async with open_link(self._settings.link, self._settings.pending_hello()) as link:
            self._opened_at = trio.current_time()
            self._note_policy(link)
            async with background() as quarantine_nursery:
                quarantine_nursery.start_soon(self._leave_quarantine, quarantine_nursery.cancel_scope)
                if link.ack.features:  # an original router takes it for a farewell
                    await link.send(Error(error=self._replicas[0].quarantined_for))
                await self._hear_policies(link)
        self._opened_at = math.inf

    async def _hear_policies(self, link: Link) -> None:
        while True:
            message = await link.receive()
            if isinstance(message, PolicyUpdate):
                self._wish_for(message.policy)

    async def _leave_quarantine(self, scope: trio.CancelScope) -> None:
        while self._is_in_quarantine() and not self.seats.is_over:
            await self.seats.wait_change()
        self.seats.notices.clear()  # they told of the quarantine, as this connection did
        scope.cancel()

    def _note_policy(self, link: Link) -> None:
        """Take notice of the policy that came with the answer to hello."""
        told = link.ack.policy
        if told is not None and told not in (self._wish, self._refused):
            self._wish_for(told)

    def _wish_for(self, policy: Policy) -> None:
        self._wish = policy
        self._preparing.cancel()
        self._wished.set()

    async def _follow_policy(self) -> None:
        """Prepare what the router wishes, until it can be started in place of what runs."""
        while self.successor is None:
            await self._wished.wait()
            self._wished = trio.Event()
            policy = self._wish
            if policy == self._assignment.policy:
                continue
            with trio.CancelScope() as self._preparing:  # the next wish ends it
                await self._prepare(policy)

    async def _prepare(self, policy: Policy) -> None:
        """Make a policy the successor, or tell why not; a download is tried again and again."""
        _log.info("policy.preparing", policy=attrs.asdict(policy))
        while True:
            try:
                starts = await self._settings.prepare(checked(policy))
            except FetchError as exc:
                self._refuse(policy, exc)
                await trio.sleep(FETCH_RETRY_S)
            except (ConfigError, LlamaError) as exc:
                self._refuse(policy, exc)
                return
            else:
                self._adopt(Assignment(policy=policy, starts=starts))
                return

    def _adopt(self, successor: Assignment) -> None:
        if successor.starts == self._assignment.starts:  # the same llama-servers, under another name
            self._assignment = successor
            _log.info("policy.changed", is_restart=False)
            self.seats.ring()
            return
        self.successor = successor
        _log.info("policy.changed", is_restart=True)
        self._settings.tell("changing the policy: running jobs may end")
        self.finish(reason="this worker changes to the router's new policy", grace_s=self._settings.job_timeout_s)

    def _refuse(self, policy: Policy, exc: AuxotError) -> None:
        self._refused = policy
        self.seats.notify(f"the new policy cannot be served, the old one goes on: {exc}")
        _log.error("policy.refused", reason=str(exc))


def checked(policy: Policy | None) -> Policy:
    """Return the policy if it is one for this worker.

    Raises:
        ConfigError: it is for another kind of worker.
        LinkError: there is none.
    """
    if policy is None:
        raise LinkError("the router sent no policy")
    if policy.worker_type == _CLI_POLICY:
        raise ConfigError("the router wants CLI workers; this worker runs llama-server")
    return policy
