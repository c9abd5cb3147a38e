"""The life of a GPU worker: which policy is served, and what happens when that changes.

    policy connection --> crew --> crew of the next policy --> ...
                            ^                |
                            '----------------'  it cannot be started: back to the one before

Lifetimes nest: job < connection < llama-server < crew < worker. The first connection only asks the router what to
serve; what serves it, and how it ends, is the crew's affair.
"""

from __future__ import annotations

import attrs
import trio

from auxot.core.errors import LinkError, LlamaError
from auxot.core.link import open_link
from auxot.core.logs import get_logger
from auxot.core.messages import Policy
from auxot.worker.crew import Assignment, Crew, CrewSettings, checked

DRAIN_GRACE_S = 12.0

_log = get_logger()


@attrs.frozen(kw_only=True)
class WorkerSettings(CrewSettings):
    """What a worker needs to know.

    Attributes:
        drain_grace_s: how long running jobs may go on when the worker is to stop.
    """

    drain_grace_s: float = DRAIN_GRACE_S


class Worker:
    """A GPU worker; `run` is its life. Changing state: the crew that serves now."""

    def __init__(self, settings: WorkerSettings) -> None:
        self.started = trio.Event()  # it has taken its first connection, and serves
        self.worker_id: str | None = None  # of the latest connection
        self._settings = settings
        self._crew: Crew | None = None
        self._is_stopping = False

    async def run(self) -> None:
        """Ask for the policy, then serve it and those that follow, until `stop_on` ends it.

        Raises:
            ConfigError: the router asks for something that this worker is not, or cannot serve.
            FetchError: model or llama-server cannot be downloaded.
            KeyRefusedError: the router does not accept the key.
            LlamaError: llama-server does not start.
        """
        policy = await self._fetch_policy()
        self._settings.tell("getting llama-server and the model ready")
        assignment = Assignment(policy=policy, starts=await self._settings.prepare(policy))
        previous: Assignment | None = None
        refused: tuple[Policy, str] | None = None
        while True:
            try:
                successor = await self._serve(assignment, refused)
            except LlamaError as exc:
                if self._is_stopping:
                    return
                if previous is None:
                    raise
                _log.error("policy.refused", reason=str(exc))
                refused, assignment, previous = (assignment.policy, str(exc)), previous, None
                continue
            if successor is None:
                return
            previous, assignment, refused = assignment, successor, None

    async def stop_on(self, quiet: trio.Event, scope: trio.CancelScope) -> None:
        """Once `quiet` is set, end `run` in order; `scope` is cancelled where it is around no open connection."""
        await quiet.wait()
        self._is_stopping = True
        crew, grace_s = self._crew, self._settings.drain_grace_s
        if crew is None:
            scope.cancel()
            return
        crew.finish(reason="this worker is stopping", grace_s=grace_s)
        await crew.seats.wait_run_down()
        if not crew.is_connected:
            scope.cancel()

    async def _serve(self, assignment: Assignment, refused: tuple[Policy, str] | None) -> Assignment | None:
        """Serve a policy until another takes its place, which is returned; None when the worker is to stop."""
        self._settings.tell("llama-server loads the model")
        policy, reason = refused or (None, "")
        crew = self._crew = Crew(assignment, self._settings, on_open=self._note_open, refused=policy)
        if reason:
            crew.seats.notify(f"the new policy cannot be served, back to the old one: {reason}")
        await crew.run()
        return None if self._is_stopping else crew.successor

    def _note_open(self, worker_id: str | None) -> None:
        self.worker_id = worker_id
        self.started.set()

    async def _fetch_policy(self) -> Policy:
        """Ask the router what to serve, again and again until it says."""
        self._settings.tell("asking the router what to serve")
        for delay_s in self._settings.reconnect_delays():
            try:
                async with open_link(self._settings.link, self._settings.pending_hello()) as link:
                    return checked(link.ack.policy)
            except LinkError as exc:
                _log.warning("router.unreachable", reason=str(exc), retry_ms=round(delay_s * 1000))
                self._settings.tell(f"router unreachable: {exc}")
            await trio.sleep(delay_s)
        raise AssertionError("the delays have no end")
