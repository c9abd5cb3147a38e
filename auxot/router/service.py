"""auxot-router's main: the nursery tree, readiness, signals, and the stages of shutdown.

    store                              outermost: closed last
    |- BACKGROUND: dispatcher, releaser, sweeper, the file of keys, this router's heartbeat
    '- FRONT: listeners and connections; its bound addresses are readiness

    TERM -> draining, if there is a delay: /health 503, requests are served, each answer closes its connection
         -> quiet: new requests 503, listeners closed; jobs already accepted are still served
         -> the answers end, or the grace is over: workers are told, connections get a moment
         -> front, then background, then store

A second signal cancels everything at once. HUP reads the settings again, see `_Reloader`; from a terminal that has
closed it means TERM. Under a service manager that listens, readiness, status and liveness are told to it, and the
sockets that it holds open are listened on.
"""

from __future__ import annotations

import gc
import os
import secrets
import signal
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import attrs
import trio

from auxot.core.errors import AuxotError, BindError, ConfigError, ErrorCode, StoreError, first_error
from auxot.core.jobs import Failed
from auxot.core.keys import Role
from auxot.core.logs import Logger, get_logger
from auxot.core.messages import Policy
from auxot.core.notify import Notifier, take_notifier
from auxot.router import sweeper
from auxot.router.activation import take_sockets
from auxot.router.admission import MIN_SHARED_WINDOW, Admission
from auxot.router.app import App
from auxot.router.auth import KeyVerifier
from auxot.router.census import Census
from auxot.router.cors import Cors
from auxot.router.crowd import raise_descriptor_limit
from auxot.router.dialects.anthropic import AnthropicCount, AnthropicMessages
from auxot.router.dialects.openai_chat import OPENAI_CHAT
from auxot.router.exchange import Limits
from auxot.router.fleet import Fleet
from auxot.router.front import FrontPhases, serve_front
from auxot.router.handshake import Doorkeeper
from auxot.router.heritage import Heritage
from auxot.router.images import Images
from auxot.router.key_file import KeyFile
from auxot.router.mailbox import Mailbox
from auxot.router.models import Catalog
from auxot.router.pages import Parts
from auxot.router.placement import Placement
from auxot.router.pool import Pool
from auxot.router.queue import JobQueue
from auxot.router.recount import Recount
from auxot.router.relay import Relay
from auxot.router.store import Store, open_store
from auxot.router.timer import Timer

if TYPE_CHECKING:
    from pathlib import Path

    from auxot.config import RouterConfig
    from auxot.router.keyring import NamedKey
    from auxot.router.session import Session

__all__ = ["BindError", "FrontPhases", "Router", "main", "serve"]  # FrontPhases: what `serve` is steered by

MODELS_CREATED = 1_767_225_600  # 2026-01-01 UTC: a fixed date, so that lists of models do not change from call to call
LINGER_S = 0.5  # in which a client that has its answer uses the connection again, or does not
CLOSE_TIMEOUT_S = 2.0  # for the last words to Redis, once the front is closed
# What a running router takes over when it reads its settings again; anything else needs a restart.
RELOADABLE = ("model", "model_aliases", "quantization", "ctx_size", "max_parallel", "cli_tools")


@attrs.frozen(kw_only=True)
class Router:
    """A running router, for whoever started it in its own process."""

    addresses: list[tuple[str, int]]
    pool: Pool
    catalog: Catalog
    stop: Callable[[], None]

    def status(self) -> str:
        """Say how the router is, for a service manager."""
        count = self.pool.fleet.count()
        return f"{count.workers} workers, {count.active_jobs} of {count.total_slots} slots busy"


async def main(
    config: RouterConfig,
    *,
    read_config: Callable[[], RouterConfig] | None = None,
    heritage: Heritage | None = None,
) -> int:
    """Run the router until it is told to stop; return the exit code.

    Args:
        config: every setting.
        read_config: reads the settings again, for HUP.
        heritage: what the parent of several routers has left this one.

    Raises:
        AuxotError: it could not start, or lost what it cannot run without; one line for the operator.
    """
    raise_descriptor_limit()
    phases, notifier = FrontPhases(), take_notifier(os.environ)
    sockets = heritage.sockets if heritage is not None else take_sockets(os.environ)
    reloader = _Reloader(config, read_config, notifier)
    error: AuxotError | None = None
    try:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            async with trio.open_nursery() as main_nursery:
                main_nursery.start_soon(_obey, signals, phases, reloader, main_nursery.cancel_scope)
                if heritage is not None:
                    main_nursery.start_soon(heritage.watch)
                async with trio.open_nursery() as serving:
                    start = partial(serve, config, phases=phases, sockets=sockets)
                    reloader.router = router = await serving.start(start)
                    gc.freeze()  # what was imported stays: looking through it again and again costs pauses of 50 ms
                    main_nursery.start_soon(notifier.run, router.status)
                    notifier.ready(router.status())
                main_nursery.cancel_scope.cancel()
    except* AuxotError as group:
        error = first_error(group)
    if error is not None:
        raise error
    return 0


async def serve(
    config: RouterConfig,
    *,
    phases: FrontPhases,
    sockets: Sequence[socket.socket] = (),
    task_status: trio.TaskStatus[Router] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a router until `phases.quiet` is set and its answers have ended.

    Args:
        config: every setting.
        phases: the caller sets `quiet` to stop it.
        sockets: listens already, in place of the address of the settings.
        task_status: started when it accepts requests.

    Raises:
        ConfigError: a setting that cannot be used.
        StoreLostError: no Redis at the start.
        BindError: the address cannot be listened on.
    """
    router_id = secrets.token_hex(8)
    log = get_logger(router_id=router_id)
    for warning in config.warnings:
        log.warning("config.warning", text=warning)
    verifier = KeyVerifier(
        {Role.WORKER: config.admin_key_hash, Role.API: config.api_key_hash, Role.TOOLS: config.tools_key_hash},
        ttl_s=config.auth_cache_ttl_s,
    )
    async with open_store(config.redis_url) as store:
        pool = await _open_pool(config, store=store, router_id=router_id, log=log, quiet=phases.quiet)
        async with trio.open_nursery() as background:
            if config.api_keys_file is not None:
                await _open_key_file(config.api_keys_file, pool=pool, verifier=verifier, background=background)
            background.start_soon(pool.run_dispatcher)
            background.start_soon(pool.run_poll)
            background.start_soon(pool.run_releaser)
            delay_s, grace_s = config.shutdown_delay_s, config.shutdown_grace_s
            draining = partial(_be_quiet_after_draining, pool, phases, delay_s=delay_s, grace_s=grace_s)
            background.start_soon(draining)
            beat_s = min(config.heartbeat_interval_s, config.dead_worker_timeout_s / 3)
            background.start_soon(partial(sweeper.run, pool.queue, interval_s=config.sweep_interval_s))
            background.start_soon(partial(sweeper.keep_alive, pool.queue, interval_s=beat_s))
            if config.redis_url is not None:
                _start_mail(pool, store, background)
            limits = _limits(config, background)
            parts = _parts(config, pool=pool, verifier=verifier, limits=limits, phases=phases, log=log)
            await _serve_front(config, parts, phases=phases, sockets=sockets, task_status=task_status)
            if pool.correspondence.mailbox is not None:
                with trio.move_on_after(CLOSE_TIMEOUT_S / 2):
                    await pool.correspondence.mailbox.wait_written()
            background.cancel_scope.cancel()
        with trio.move_on_after(CLOSE_TIMEOUT_S / 2), suppress(StoreError):
            await pool.queue.close()
    log.info("router.stopped")


async def _open_key_file(path: Path, *, pool: Pool, verifier: KeyVerifier, background: trio.Nursery) -> None:
    """Read the file of API keys, and watch it from then on."""

    def on_keys(keys: tuple[NamedKey, ...]) -> None:
        verifier.replace_keys(keys)
        pool.admission.know_keys(key.principal.name for key in keys)

    key_file = KeyFile(path=path, on_keys=on_keys, log=pool.log)
    await key_file.load()
    background.start_soon(key_file.watch)


def _start_mail(pool: Pool, store: Store, background: trio.Nursery) -> None:
    """Open this router's mailbox: others may use the same Redis."""
    correspondence = pool.correspondence
    mailbox = Mailbox(store, router_id=pool.router_id, on_letter=correspondence.on_letter, on_gap=correspondence.on_gap)
    correspondence.mailbox = mailbox
    background.start_soon(mailbox.run_writer)
    background.start_soon(mailbox.run_reader)
    background.start_soon(correspondence.watch_acceptors, pool.queue)
    background.start_soon(pool.census.run)
    background.start_soon(Recount(pool, pool.log).run)


async def _open_pool(config: RouterConfig, *, store: Store, router_id: str, log: Logger, quiet: trio.Event) -> Pool:
    queue = JobQueue(
        store,
        router_id=router_id,
        max_attempts=config.max_attempts,
        heartbeat_ttl_s=config.dead_worker_timeout_s,
    )
    await _open_queue(queue)
    fleet: Fleet[Session] = Fleet(queue.bell)
    admission = Admission(
        max_jobs=config.max_queue,
        max_bytes=config.max_queue_bytes,
        n_slots=lambda: fleet.count().total_slots,
        min_window=1 if config.redis_url is None else MIN_SHARED_WINDOW,
    )
    relay = Relay()
    return Pool(
        policy=_policy(config),
        queue=queue,
        fleet=fleet,
        placement=Placement(fleet=fleet, is_on=config.affinity, wait_s=config.affinity_wait_s),
        relay=relay,
        admission=admission,
        census=Census(queue, fleet, relay),
        router_id=router_id,
        max_attempts=config.max_attempts,
        log=log,
        quiet=quiet,
    )


async def _open_queue(queue: JobQueue) -> None:
    try:
        await queue.open()
    except StoreError as exc:
        word, _, reason = str(exc).partition(" ")
        if word == "NOPERM":  # its text names a command, key or channel of ours
            raise ConfigError(f"the user of AUXOT_REDIS_URL may not do what the queue needs: {reason}") from exc
        raise


def _policy(config: RouterConfig) -> Policy:
    is_cli = config.worker_type == "cli"
    return Policy(
        worker_type="cli" if is_cli else None,
        cli_type=config.cli_type if is_cli else None,
        builtin_tools=config.cli_tools if is_cli else (),
        model_name=config.model,
        quantization=config.quantization,
        context_size=config.ctx_size,
        max_parallelism=config.max_parallel,
        capabilities=("chat",),
    )


async def _serve_front(
    config: RouterConfig,
    parts: Parts,
    *,
    phases: FrontPhases,
    sockets: Sequence[socket.socket],
    task_status: trio.TaskStatus[Router],
) -> None:
    """Serve until told to be quiet, let the answers end within the grace, then close everything."""
    pool, log = parts.pool, parts.log
    doorkeeper = Doorkeeper(
        pool=pool,
        verifier=parts.verifier,
        dead_after_s=config.dead_worker_timeout_s,
        max_body_bytes=config.max_body_bytes,
        log=log,
    )
    front = partial(
        serve_front,
        app=App(parts),
        serve_worker=doorkeeper.serve,
        host=config.host,
        port=config.port,
        phases=phases,
        log=log,
        sockets=sockets,
    )
    async with trio.open_nursery() as front_nursery:
        try:
            addresses = await front_nursery.start(front)
        except OSError as exc:
            raise BindError(f"cannot listen on {config.host}:{config.port}: {exc.strerror or exc}") from exc
        log.info("router.ready", addresses=[f"{host}:{port}" for host, port in addresses], model=config.model)
        task_status.started(Router(addresses=addresses, pool=pool, catalog=parts.catalog, stop=phases.quiet.set))
        await phases.quiet.wait()
        if not sockets:
            phases.refusing.set()
        await _drain(pool, grace_s=config.shutdown_grace_s, log=log, phases=phases)
        phases.closing.set()


async def _drain(pool: Pool, *, grace_s: float, log: Logger, phases: FrontPhases) -> None:
    """Wait for the answers to end; tell the clients of those that do not, and all workers."""
    log.info("router.quiet", waiting_requests=len(pool.relay), grace_s=grace_s)
    with trio.move_on_after(grace_s):
        if not phases.refusing.is_set():
            await trio.sleep(2 * LINGER_S)  # a request more may come, and start a job
        await pool.relay.wait_idle()
        await pool.correspondence.wait_idle()
    phases.refusing.set()
    pool.relay.fail_all(Failed(ErrorCode.UNAVAILABLE, "the router is shutting down"))
    async with trio.open_nursery() as closing:
        for session in pool.fleet.members():
            closing.start_soon(session.close)


def _catalog(config: RouterConfig) -> Catalog:
    return Catalog(
        name=config.model,
        created=MODELS_CREATED,
        context_size=config.ctx_size,
        aliases=tuple(alias for alias, _ in config.model_aliases),
    )


def _limits(config: RouterConfig, background: trio.Nursery) -> Limits:
    """Return what a request may take, with its timers running."""
    limits = Limits(
        max_body_bytes=config.max_body_bytes,
        until_started=Timer(config.queue_timeout_s),
        in_all=Timer(config.job_timeout_s),
        keep_alive_s=config.keep_alive_interval_s,
    )
    background.start_soon(limits.until_started.run)
    background.start_soon(limits.in_all.run)
    return limits


def _parts(
    config: RouterConfig, *, pool: Pool, verifier: KeyVerifier, limits: Limits, phases: FrontPhases, log: Logger
) -> Parts:
    return Parts(
        pool=pool,
        verifier=verifier,
        images=Images(allows_private=config.allow_private_urls, max_bytes=config.max_body_bytes),
        limits=limits,
        openai=OPENAI_CHAT,
        anthropic=AnthropicMessages(keep_billing_header=config.keep_billing_header),
        anthropic_count=AnthropicCount(keep_billing_header=config.keep_billing_header),
        catalog=_catalog(config),
        cors=Cors(frozenset(config.cors_origins)) if config.cors_origins else None,
        quiet=phases.quiet,
        draining=phases.draining,
        refusing=phases.refusing,
        router_id=pool.router_id,
        log=log,
    )


async def _be_quiet_after_draining(pool: Pool, phases: FrontPhases, *, delay_s: float, grace_s: float) -> None:
    """Go from `draining` to `quiet`: after the delay, and when the answers that had begun before have ended.

    Those did not say that their connection is going to be closed: it is kept until its client has had time to use it
    once more, which is answered and says so.
    """
    await phases.draining.wait()
    if delay_s:
        pool.log.info("router.draining", delay_s=delay_s)
        began = [open_job.record.job_id for open_job in pool.relay]
        await trio.sleep(delay_s)
        with trio.move_on_after(grace_s):
            while any(pool.relay.find(job_id) for job_id in began):  # noqa: ASYNC110 -- once in a router's life
                await trio.sleep(LINGER_S / 5)
            await trio.sleep(LINGER_S)
    phases.quiet.set()


@attrs.define
class _Reloader:
    """Reads the settings again and takes over what a running router can (RELOADABLE); the log tells the rest.

    Settings that cannot be used change nothing. Changing state: the settings in use, the router once it runs.
    """

    config: RouterConfig
    read_config: Callable[[], RouterConfig] | None
    notifier: Notifier
    router: Router | None = None

    def reload(self) -> None:
        """Do it; a router that has not started yet has just read them."""
        if self.router is None or self.read_config is None:
            return
        self.notifier.reloading()
        try:
            self._adopt(self.read_config(), self.router)
        except ConfigError as exc:
            self.router.pool.log.warning("config.not_reloaded", error=str(exc))
        self.notifier.ready(self.router.status())

    def _adopt(self, config: RouterConfig, router: Router) -> None:
        changed = [
            name for name in attrs.fields_dict(type(config)) if getattr(config, name) != getattr(self.config, name)
        ]
        taken = [name for name in changed if name in RELOADABLE]
        waiting = [name for name in changed if name not in (*RELOADABLE, "warnings")]
        self.config = attrs.evolve(self.config, **{name: getattr(config, name) for name in taken})
        router.catalog.become(_catalog(self.config))
        if (policy := _policy(self.config)) != router.pool.policy:
            router.pool.adopt(policy)
        router.pool.log.info("config.reloaded", changed=taken, model=self.config.model)
        if waiting:
            router.pool.log.warning("config.restart_needed", settings=waiting)


async def _obey(
    signals: AsyncIterator[int], phases: FrontPhases, reloader: _Reloader, main_scope: trio.CancelScope
) -> None:
    """Turn the first TERM or INT into `draining`, the second into the end, HUP into a reload."""
    has_terminal = os.isatty(0)
    async for number in signals:
        if number == signal.SIGHUP and not (has_terminal and not os.isatty(0)):  # its terminal has closed: that is TERM
            reloader.reload()
        elif phases.draining.is_set():
            main_scope.cancel()
            return
        else:
            phases.draining.set()
            reloader.notifier.stopping("answers in progress may end")
