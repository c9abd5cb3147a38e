"""HUP: a running router reads its settings again and takes over those that it can.

    HUP -> read, and work out what is offered then -> the catalog, the policy of new jobs and of all workers

Settings that cannot be used change nothing: everything that can fail is done before anything is changed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import attrs
import trio

from auxot.core.errors import ConfigError
from auxot.router.assembly import Router, catalog_of, offer_of

if TYPE_CHECKING:
    from auxot.config import RouterConfig
    from auxot.core.notify import Notifier
    from auxot.router.offer import Offer

# What a running router takes over; anything else needs a restart.
RELOADABLE = ("model", "model_aliases", "quantization", "registry_file", "ctx_size", "max_parallel", "cli_tools")


@attrs.define
class Reloader:
    """Reads the settings again and takes over what a running router can (RELOADABLE); the log tells the rest.

    Changing state: the settings in use, the router once it runs.
    """

    config: RouterConfig
    read_config: Callable[[], RouterConfig] | None
    notifier: Notifier
    router: Router | None = None

    async def reload(self) -> None:
        """Do it; a router that has not started yet has just read them. Cancel-safe: nothing was changed."""
        if self.router is None or self.read_config is None:
            return
        self.notifier.reloading()
        try:
            self._adopt(self.router, *await trio.to_thread.run_sync(_read, self.read_config, self.config))
        except ConfigError as exc:
            self.router.pool.log.warning("config.not_reloaded", error=str(exc))
        self.notifier.ready(self.router.status())

    def _adopt(self, router: Router, read: RouterConfig, wanted: RouterConfig, offer: Offer) -> None:
        log = router.pool.log
        taken, waiting = _changed(self.config, wanted), _changed(wanted, read)
        self.config = wanted
        router.catalog.become(catalog_of(wanted, offer))
        if offer.policy != router.pool.policy:
            router.pool.adopt(offer.policy)
        for warning in offer.warnings:
            log.warning("config.warning", text=warning)
        log.info("config.reloaded", changed=taken, model=offer.name)
        if waiting:
            log.warning("config.restart_needed", settings=waiting)


def _read(read_config: Callable[[], RouterConfig], now: RouterConfig) -> tuple[RouterConfig, RouterConfig, Offer]:
    """Return the settings that there are, those that a running router can have of them, and what it offers then."""
    read = read_config()
    wanted = attrs.evolve(now, **{name: getattr(read, name) for name in RELOADABLE})
    return read, wanted, offer_of(wanted)


def _changed(one: RouterConfig, other: RouterConfig) -> list[str]:
    names = (name for name in attrs.fields_dict(type(one)) if name != "warnings")
    return [name for name in names if getattr(one, name) != getattr(other, name)]
