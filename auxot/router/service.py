"""auxot-router's main: the nursery tree, readiness, signals, and the stages of shutdown.

    store                              outermost: closed last
    |- BACKGROUND: dispatcher, releaser, sweeper, the file of keys, this router's heartbeat
    '- FRONT: listeners and connections; its bound addresses are readiness

    TERM -> draining, if there is a delay: /health 503, requests are served, each answer closes its connection
         -> quiet: new requests 503, listeners closed; jobs already accepted are still served
         -> the answers end, or the grace is over: workers are told, connections get a moment
         -> front, then background, then store

A second signal cancels everything at once. HUP reads the settings again, see `reload`; from a terminal that has
closed it means TERM. Under a service manager that listens, readiness, status and liveness are told to it, and the
sockets that it holds open are listened on.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import trio

from auxot.core.errors import AuxotError, BindError, StoreError, first_error
from auxot.core.keys import Role
from auxot.core.logs import get_logger
from auxot.core.notify import take_notifier
from auxot.router import garbage, sweeper
from auxot.router.activation import take_sockets
from auxot.router.app import App
from auxot.router.assembly import Router, catalog_of, offer_of, open_pool, parts_of, start_limits
from auxot.router.auth import KeyVerifier
from auxot.router.crowd import raise_descriptor_limit
from auxot.router.front import FrontPhases, Site, serve_front
from auxot.router.handshake import Doorkeeper
from auxot.router.heritage import Heritage
from auxot.router.key_file import KeyFile
from auxot.router.mailbox import Mailbox
from auxot.router.recount import Recount
from auxot.router.reload import Reloader
from auxot.router.stopping import Terminal, be_quiet_after_draining, drain
from auxot.router.store import Store, open_store

if TYPE_CHECKING:
    from pathlib import Path

    from auxot.config import RouterConfig
    from auxot.router.keyring import NamedKey
    from auxot.router.pages import Parts
    from auxot.router.pool import Pool
    from auxot.router.siblings import Siblings

__all__ = ["BindError", "FrontPhases", "Router", "main", "serve"]  # FrontPhases: what `serve` is steered by

CLOSE_TIMEOUT_S = 2.0  # for the last words to Redis, once the front is closed


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
    reloader = Reloader(config, read_config, notifier)
    error: AuxotError | None = None
    try:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            async with trio.open_nursery() as main_nursery:
                main_nursery.start_soon(_obey, signals, phases, reloader, main_nursery.cancel_scope)
                if heritage is not None:
                    main_nursery.start_soon(heritage.watch)
                async with trio.open_nursery() as serving:
                    siblings = heritage.siblings if heritage is not None else None
                    start = partial(serve, config, phases=phases, sockets=sockets, siblings=siblings)
                    reloader.router = router = await serving.start(start)
                    garbage.set_up()
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
    siblings: Siblings | None = None,
    task_status: trio.TaskStatus[Router] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a router until `phases.quiet` is set and its answers have ended.

    Args:
        config: every setting.
        phases: the caller sets `quiet` to stop it.
        sockets: listens already, in place of the address of the settings.
        siblings: processes that connections are handed to and come from.
        task_status: started when it accepts requests.

    Raises:
        ConfigError: a setting that cannot be used.
        StoreLostError: no Redis at the start.
        BindError: the address cannot be listened on.
    """
    router_id = secrets.token_hex(8)
    log = get_logger(router_id=router_id)
    offer = offer_of(config)
    for warning in (*config.warnings, *offer.warnings):
        log.warning("config.warning", text=warning)
    verifier = KeyVerifier(
        {Role.WORKER: config.admin_key_hash, Role.API: config.api_key_hash, Role.TOOLS: config.tools_key_hash},
        ttl_s=config.auth_cache_ttl_s,
    )
    async with open_store(config.redis_url) as store:
        pool = await open_pool(config, offer=offer, store=store, router_id=router_id, log=log, quiet=phases.quiet)
        async with trio.open_nursery() as background:
            if config.api_keys_file is not None:
                await _open_key_file(config.api_keys_file, pool=pool, verifier=verifier, background=background)
            background.start_soon(pool.dispatcher.run)
            background.start_soon(pool.dispatcher.run_poll)
            background.start_soon(pool.run_releaser)
            background.start_soon(garbage.run_collector, lambda: not len(pool.relay))
            delay_s, grace_s = config.shutdown_delay_s, config.shutdown_grace_s
            draining = partial(be_quiet_after_draining, pool, phases, delay_s=delay_s, grace_s=grace_s)
            background.start_soon(draining)
            beat_s = min(config.heartbeat_interval_s, config.dead_worker_timeout_s / 3)
            background.start_soon(partial(sweeper.run, pool.queue, interval_s=config.sweep_interval_s))
            background.start_soon(partial(sweeper.keep_alive, pool.queue, interval_s=beat_s))
            if config.redis_url is not None:
                _start_mail(pool, store, background)
            limits = start_limits(config, background)
            catalog = catalog_of(config, offer)
            parts = parts_of(config, catalog, pool=pool, verifier=verifier, limits=limits, phases=phases, log=log)
            if siblings is not None:
                pool.fleet.on_slots = siblings.note_slots
            site = Site(host=config.host, port=config.port, sockets=sockets, siblings=siblings)
            await _serve_front(config, parts, site, phases=phases, task_status=task_status)
            if pool.correspondence.mailbox is not None:
                with trio.move_on_after(CLOSE_TIMEOUT_S / 2):
                    await pool.correspondence.mailbox.wait_written()
            background.cancel_scope.cancel()
        with trio.move_on_after(CLOSE_TIMEOUT_S / 2), suppress(StoreError):
            await pool.queue.close()
    log.info("router.stopped")


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


async def _serve_front(
    config: RouterConfig,
    parts: Parts,
    site: Site,
    *,
    phases: FrontPhases,
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
        site=site,
        phases=phases,
        log=log,
    )
    async with trio.open_nursery() as front_nursery:
        try:
            addresses = await front_nursery.start(front)
        except OSError as exc:
            raise BindError(f"cannot listen on {config.host}:{config.port}: {exc.strerror or exc}") from exc
        log.info("router.ready", addresses=[f"{host}:{port}" for host, port in addresses], model=parts.catalog.name)
        task_status.started(Router(addresses=addresses, pool=pool, catalog=parts.catalog, stop=phases.quiet.set))
        await phases.quiet.wait()
        if not site.sockets:
            phases.refusing.set()
        await drain(pool, phases, grace_s=config.shutdown_grace_s)
        phases.closing.set()


async def _open_key_file(path: Path, *, pool: Pool, verifier: KeyVerifier, background: trio.Nursery) -> None:
    """Read the file of API keys, and watch it from then on."""

    def on_keys(keys: tuple[NamedKey, ...]) -> None:
        verifier.replace_keys(keys)
        pool.admission.know_keys(key.principal.name for key in keys)

    key_file = KeyFile(path=path, on_keys=on_keys, log=pool.log)
    await key_file.load()
    background.start_soon(key_file.watch)


async def _obey(
    signals: AsyncIterator[int], phases: FrontPhases, reloader: Reloader, main_scope: trio.CancelScope
) -> None:
    """Turn the first TERM or INT into `draining`, the second into the end, HUP into a reload."""
    terminal = Terminal()
    async for number in signals:
        if terminal.asks_for_reload(number):
            await reloader.reload()
        elif phases.draining.is_set():
            main_scope.cancel()
            return
        else:
            phases.draining.set()
            reloader.notifier.stopping("answers in progress may end")
