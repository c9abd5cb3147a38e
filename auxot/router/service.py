"""auxot-router's main: the nursery tree, readiness, signals, and the stages of shutdown.

    store                              outermost: closed last
    |- BACKGROUND: dispatcher, releaser, sweeper, the file of keys, this router's heartbeat
    '- FRONT: listeners and connections; its bound addresses are readiness

    TERM -> quiet: /health and new requests 503, listeners closed; jobs already accepted are still served
         -> the answers end, or the grace is over: workers are told, connections get a moment
         -> front, then background, then store

A second signal cancels everything at once.
"""

from __future__ import annotations

import secrets
import signal
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import attrs
import trio

from auxot.config import CLI_WORKERS
from auxot.core.errors import AuxotError, ErrorCode, StoreError, first_error
from auxot.core.jobs import Failed
from auxot.core.keys import Role
from auxot.core.logs import Logger, get_logger
from auxot.core.models.entries import load_registry
from auxot.router import sweeper
from auxot.router.admission import MIN_SHARED_WINDOW, Admission
from auxot.router.app import App
from auxot.router.auth import KeyVerifier
from auxot.router.cors import Cors
from auxot.router.crowd import raise_descriptor_limit
from auxot.router.dialects.anthropic import AnthropicCount, AnthropicMessages
from auxot.router.dialects.openai_chat import OPENAI_CHAT
from auxot.router.exchange import Limits
from auxot.router.fleet import Fleet
from auxot.router.front import FrontPhases, serve_front
from auxot.router.handshake import Doorkeeper
from auxot.router.images import Images
from auxot.router.key_file import KeyFile
from auxot.router.mailbox import Mailbox
from auxot.router.models import Catalog
from auxot.router.offer import Offer, cli_offer, gpu_offer
from auxot.router.pages import Parts
from auxot.router.pool import Pool
from auxot.router.queue import JobQueue
from auxot.router.relay import Relay
from auxot.router.store import Store, open_store

if TYPE_CHECKING:
    from pathlib import Path

    from auxot.config import RouterConfig
    from auxot.router.keyring import NamedKey
    from auxot.router.session import Session

__all__ = ["BindError", "FrontPhases", "Router", "main", "serve"]  # FrontPhases: what `serve` is steered by

MODELS_CREATED = 1_767_225_600  # 2026-01-01 UTC: a fixed date, so that lists of models do not change from call to call
CLOSE_TIMEOUT_S = 4.0  # from the end of the grace to the end of the process


class BindError(AuxotError):
    """The address cannot be listened on."""


@attrs.frozen(kw_only=True)
class Router:
    """A running router, for whoever started it in its own process."""

    addresses: list[tuple[str, int]]
    pool: Pool
    stop: Callable[[], None]


async def main(config: RouterConfig) -> int:
    """Run the router until it is told to stop; return the exit code.

    Raises:
        AuxotError: it could not start, or lost what it cannot run without; one line for the operator.
    """
    raise_descriptor_limit()
    phases = FrontPhases()
    error: AuxotError | None = None
    try:
        async with trio.open_nursery() as main_nursery:
            main_nursery.start_soon(_watch_signals, phases, main_nursery.cancel_scope)
            await serve(config, phases=phases)
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
    task_status: trio.TaskStatus[Router] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a router until `phases.quiet` is set and its answers have ended.

    Args:
        config: every setting.
        phases: the caller sets `quiet` to stop it.
        task_status: started when it accepts requests.

    Raises:
        ConfigError: a setting that cannot be used.
        StoreLostError: no Redis at the start.
        BindError: the address cannot be listened on.
    """
    router_id = secrets.token_hex(8)
    log = get_logger(router_id=router_id)
    offer = _offer(config)
    for warning in (*config.warnings, *offer.warnings):
        log.warning("config.warning", text=warning)
    verifier = KeyVerifier(
        {Role.WORKER: config.admin_key_hash, Role.API: config.api_key_hash, Role.TOOLS: config.tools_key_hash},
        ttl_s=config.auth_cache_ttl_s,
    )
    async with open_store(config.redis_url) as store:
        pool = await _open_pool(config, offer=offer, store=store, router_id=router_id, log=log, quiet=phases.quiet)
        async with trio.open_nursery() as background:
            if config.api_keys_file is not None:
                await _open_key_file(config.api_keys_file, pool=pool, verifier=verifier, background=background)
            background.start_soon(pool.run_dispatcher)
            background.start_soon(pool.run_releaser)
            beat_s = min(config.heartbeat_interval_s, config.dead_worker_timeout_s / 3)
            background.start_soon(partial(sweeper.run, pool.queue, interval_s=config.sweep_interval_s))
            background.start_soon(partial(sweeper.keep_alive, pool.queue, interval_s=beat_s))
            if config.redis_url is not None:
                _start_mail(pool, store, background)
            await _serve_front(
                config, offer=offer, pool=pool, verifier=verifier, phases=phases, log=log, task_status=task_status
            )
            background.cancel_scope.cancel()
        with trio.move_on_after(CLOSE_TIMEOUT_S), suppress(StoreError):
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


async def _open_pool(
    config: RouterConfig, *, offer: Offer, store: Store, router_id: str, log: Logger, quiet: trio.Event
) -> Pool:
    queue = JobQueue(
        store,
        router_id=router_id,
        max_attempts=config.max_attempts,
        heartbeat_ttl_s=config.dead_worker_timeout_s,
    )
    await queue.open()
    fleet: Fleet[Session] = Fleet(queue.bell)
    admission = Admission(
        max_jobs=config.max_queue,
        max_bytes=config.max_queue_bytes,
        n_slots=lambda: fleet.count().total_slots,
        min_window=1 if config.redis_url is None else MIN_SHARED_WINDOW,
    )
    return Pool(
        policy=offer.policy,
        queue=queue,
        fleet=fleet,
        relay=Relay(),
        admission=admission,
        router_id=router_id,
        max_attempts=config.max_attempts,
        log=log,
        quiet=quiet,
    )


def _offer(config: RouterConfig) -> Offer:
    """Find out what the workers are to serve; ConfigError if no worker could."""
    if config.worker_type == CLI_WORKERS:
        return cli_offer(
            model=config.model,
            cli_type=config.cli_type,
            tools=config.cli_tools,
            ctx_tokens=config.ctx_size,
            slots=config.max_parallel,
        )
    return gpu_offer(
        load_registry(config.registry_file),
        model=config.model,
        quantization=config.quantization,
        ctx_tokens=config.ctx_size,
        slots=config.max_parallel,
    )


async def _serve_front(
    config: RouterConfig,
    *,
    offer: Offer,
    pool: Pool,
    verifier: KeyVerifier,
    phases: FrontPhases,
    log: Logger,
    task_status: trio.TaskStatus[Router],
) -> None:
    """Serve until told to be quiet, let the answers end within the grace, then close everything."""
    doorkeeper = Doorkeeper(
        pool=pool,
        verifier=verifier,
        dead_after_s=config.dead_worker_timeout_s,
        max_body_bytes=config.max_body_bytes,
        log=log,
    )
    front = partial(
        serve_front,
        app=App(_parts(config, offer=offer, pool=pool, verifier=verifier, phases=phases, log=log)),
        serve_worker=doorkeeper.serve,
        host=config.host,
        port=config.port,
        phases=phases,
        log=log,
    )
    async with trio.open_nursery() as front_nursery:
        try:
            addresses = await front_nursery.start(front)
        except OSError as exc:
            raise BindError(f"cannot listen on {config.host}:{config.port}: {exc.strerror or exc}") from exc
        log.info("router.ready", addresses=[f"{host}:{port}" for host, port in addresses], model=offer.name)
        task_status.started(Router(addresses=addresses, pool=pool, stop=phases.quiet.set))
        await phases.quiet.wait()
        await _drain(pool, grace_s=config.shutdown_grace_s, log=log)
        phases.closing.set()


async def _drain(pool: Pool, *, grace_s: float, log: Logger) -> None:
    """Wait for the answers to end; tell the clients of those that do not, and all workers."""
    log.info("router.quiet", waiting_requests=len(pool.relay), grace_s=grace_s)
    with trio.move_on_after(grace_s):
        await pool.relay.wait_idle()
        await pool.correspondence.wait_idle()
    pool.relay.fail_all(Failed(ErrorCode.UNAVAILABLE, "the router is shutting down"))
    async with trio.open_nursery() as closing:
        for session in pool.fleet.members():
            closing.start_soon(session.close)


def _parts(
    config: RouterConfig, *, offer: Offer, pool: Pool, verifier: KeyVerifier, phases: FrontPhases, log: Logger
) -> Parts:
    limits = Limits(
        max_body_bytes=config.max_body_bytes,
        queue_timeout_s=config.queue_timeout_s,
        job_timeout_s=config.job_timeout_s,
        keep_alive_s=config.keep_alive_interval_s,
    )
    catalog = Catalog(
        name=offer.name,
        created=MODELS_CREATED,
        context_size=offer.policy.context_size,
        aliases=tuple(alias for alias, _ in config.model_aliases),
    )
    return Parts(
        pool=pool,
        verifier=verifier,
        images=Images(allows_private=config.allow_private_urls, max_bytes=config.max_body_bytes),
        limits=limits,
        openai=OPENAI_CHAT,
        anthropic=AnthropicMessages(keep_billing_header=config.keep_billing_header),
        anthropic_count=AnthropicCount(keep_billing_header=config.keep_billing_header),
        catalog=catalog,
        cors=Cors(frozenset(config.cors_origins)) if config.cors_origins else None,
        quiet=phases.quiet,
        router_id=pool.router_id,
        log=log,
    )


async def _watch_signals(phases: FrontPhases, main_scope: trio.CancelScope) -> None:
    """Turn the first TERM or INT into `quiet`, the second into the end."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            if phases.quiet.is_set():
                main_scope.cancel()
                return
            phases.quiet.set()
