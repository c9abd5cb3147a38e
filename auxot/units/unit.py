"""What a unit says, whichever service manager reads it: pure.

A unit starts a daemon in its settings folder, whose `.env` the daemon reads by itself. So keys stand in one file that
only its owner can read, never in the unit, and a router reads them again on HUP.
"""

from __future__ import annotations

import enum
import re
from pathlib import Path

import attrs

from auxot.core.errors import ConfigError

SERVICE_USER = "auxot"
STATE_DIR = Path("/var/lib/auxot")  # the home of SERVICE_USER: models, llama-servers, caches
WORKER_STOP_S = 40  # running jobs 12 s, llama-server 12 s, and some to spare
ROUTER_STOP_SPARE_S = 10  # beside its grace: it ends 5 s after that

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")


class Daemon(enum.Enum):
    """Which program."""

    ROUTER = "router"
    WORKER = "worker"


class Scope(enum.Enum):
    """Whose service it is: the machine's, under a user of its own, or that of the user who installs it."""

    SYSTEM = "system"
    USER = "user"


@attrs.frozen(kw_only=True)
class Unit:
    """One installed daemon.

    Attributes:
        daemon, name, scope: which; several workers on a host have several names.
        program: what runs, without arguments.
        settings_dir: the folder with its `.env`.
        stop_s: seconds that it may take to stop.
        user: whose process it is; None: the service manager's own user.
        groups: further groups of that user, for the devices of GPUs.
        listen: address and port of a socket that the service manager holds open for a router; None: it opens its own.
        needs_home: programs or files of it are in somebody's home folder.
        writable: folders outside of STATE_DIR that it writes to.
    """

    daemon: Daemon
    name: str
    scope: Scope
    program: Path
    settings_dir: Path
    stop_s: int
    user: str | None = None
    groups: tuple[str, ...] = ()
    listen: str | None = None
    needs_home: bool = False
    writable: tuple[Path, ...] = ()

    @property
    def title(self) -> str:
        """What it is called in lists."""
        return f"Auxot {self.daemon.value} ({self.name})"


def check_name(name: str) -> str:
    """Return a name that a unit can have; ConfigError for any other."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"--name: expected small letters, digits and -, at most 40, got {name!r}")
    return name
