"""The settings of an installed daemon: gathered from where its commands find them, kept in a file that it reads.

flags  >  environment  >  ./.env  >  what is installed under that name
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from pathlib import Path

from auxot.config import RouterConfig, WorkerConfig, load_router_config, load_worker_config
from auxot.core.errors import ConfigError
from auxot.knobs import given_texts, knobs_of, read_dotenv
from auxot.setup import quoted
from auxot.units.unit import Daemon

_CLASSES: Mapping[Daemon, type] = {Daemon.ROUTER: RouterConfig, Daemon.WORKER: WorkerConfig}


def config_class(daemon: Daemon) -> type:
    """Return the class of a daemon's configuration."""
    return _CLASSES[daemon]


def gather(
    daemon: Daemon, flags: Mapping[str, str], *, environ: Mapping[str, str], cwd: Path, settings_dir: Path
) -> dict[str, str]:
    """Return the settings as variables; paths are made absolute.

    Args:
        daemon: whose.
        flags: by field name.
        environ: the environment.
        cwd: the folder whose `.env` counts.
        settings_dir: where an earlier install has left its own.

    Raises:
        ConfigError: a setting that cannot be kept, or a file that cannot be read.
    """
    cls = config_class(daemon)
    for name in flags:
        if knobs_of(cls)[name].variable is None:
            raise ConfigError(f"--{name} cannot be installed")
    nothing: Mapping[str, str] = {}
    installed = given_texts(cls, nothing, nothing, dotenv=read_dotenv(settings_dir))
    return {**installed, **given_texts(cls, flags, environ, dotenv=read_dotenv(cwd))}


def check(daemon: Daemon, settings: Mapping[str, str], nowhere: Path) -> RouterConfig | WorkerConfig:
    """Return the configuration that a daemon will make of its settings; `nowhere`: a folder without `.env`.

    Raises:
        ConfigError: it would not start with them.
    """
    if daemon is Daemon.ROUTER:
        return load_router_config((), settings, nowhere)
    return load_worker_config((), settings, nowhere)


def env_text(settings: Mapping[str, str]) -> str:
    """Return the text of the `.env` file."""
    lines = [f"{variable}={quoted(value)}" for variable, value in sorted(settings.items())]
    return "\n".join(["# Written by Auxot. Only the daemon's user may read this.", *lines, ""])


def listen_address(config: RouterConfig) -> str | None:
    """Return the address of a socket unit for a router; None where it must find a port or an address by itself."""
    try:
        address = ipaddress.ip_address(config.host.strip("[]"))
    except ValueError:
        return None
    if not config.port:
        return None
    return f"[{address}]:{config.port}" if address.version == 6 else f"{address}:{config.port}"
