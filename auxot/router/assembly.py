"""From the configuration to the parts of a router: what it offers, its pool, what its application is made of.

Beside `service`, the only place that knows the configuration: the parts get values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import attrs

from auxot.config import CLI_WORKERS
from auxot.core.errors import ConfigError, StoreError
from auxot.core.models.entries import load_registry
from auxot.router.admission import MIN_SHARED_WINDOW, Admission
from auxot.router.census import Census
from auxot.router.cors import Cors
from auxot.router.dialects.anthropic import AnthropicCount, AnthropicMessages
from auxot.router.dialects.openai_chat import OPENAI_CHAT
from auxot.router.exchange import Limits
from auxot.router.fleet import Fleet
from auxot.router.images import Images
from auxot.router.models import Catalog
from auxot.router.offer import Offer, cli_offer, gpu_offer
from auxot.router.pages import Parts
from auxot.router.placement import Placement
from auxot.router.pool import Pool
from auxot.router.queue import JobQueue
from auxot.router.relay import Relay
from auxot.router.timer import Timer

if TYPE_CHECKING:
    import trio

    from auxot.config import RouterConfig
    from auxot.core.logs import Logger
    from auxot.router.auth import KeyVerifier
    from auxot.router.front import FrontPhases
    from auxot.router.session import Session
    from auxot.router.store import Store

MODELS_CREATED = 1_767_225_600  # 2026-01-01 UTC: a fixed date, so that lists of models do not change from call to call


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


def offer_of(config: RouterConfig) -> Offer:
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


def catalog_of(config: RouterConfig, offer: Offer) -> Catalog:
    """Return what clients are told of an offer."""
    return Catalog(
        name=offer.name,
        created=MODELS_CREATED,
        context_size=offer.policy.context_size,
        aliases=tuple(alias for alias, _ in config.model_aliases),
    )


def start_limits(config: RouterConfig, background: trio.Nursery) -> Limits:
    """Return what a request may take, with its timers running in `background`."""
    limits = Limits(
        max_body_bytes=config.max_body_bytes,
        until_started=Timer(config.queue_timeout_s),
        in_all=Timer(config.job_timeout_s),
        keep_alive_s=config.keep_alive_interval_s,
    )
    background.start_soon(limits.until_started.run)
    background.start_soon(limits.in_all.run)
    return limits


def parts_of(
    config: RouterConfig,
    catalog: Catalog,
    *,
    pool: Pool,
    verifier: KeyVerifier,
    limits: Limits,
    phases: FrontPhases,
    log: Logger,
) -> Parts:
    """Return what the application is made of."""
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
        draining=phases.draining,
        refusing=phases.refusing,
        router_id=pool.router_id,
        log=log,
    )


async def open_pool(
    config: RouterConfig, *, offer: Offer, store: Store, router_id: str, log: Logger, quiet: trio.Event
) -> Pool:
    """Open the queue, and make the pool that serves an offer.

    Raises:
        ConfigError: Redis does not let us do what the queue needs.
        StoreError: it does not answer as it should.
    """
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
        policy=offer.policy,
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
