"""What a router inherits from the parent that runs several of them: listening sockets, and a pipe that ends with it.

The parent names their descriptors in one variable, `AUXOT_ROUTER_HERITAGE=3,5:7`: two sockets and the pipe.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Mapping, MutableMapping, Sequence

import attrs
import trio

from auxot.core.errors import ConfigError

VARIABLE = "AUXOT_ROUTER_HERITAGE"


@attrs.frozen(kw_only=True)
class Heritage:
    """What a child has from its parent.

    Attributes:
        sockets: listen already; may be other descriptors of sockets that its siblings have too.
        lifeline: reads the end of a pipe as soon as the parent has gone.
    """

    sockets: tuple[socket.socket, ...]
    lifeline: int

    async def watch(self) -> None:
        """Wait until the parent has gone, then have this process told to stop."""
        await trio.lowlevel.wait_readable(self.lifeline)
        os.kill(os.getpid(), signal.SIGTERM)


def take_heritage(environ: MutableMapping[str, str]) -> Heritage | None:
    """Return what the parent of this process has left it, and take the variable out of the environment.

    Args:
        environ: the process's environment.

    Returns:
        None: this process has no such parent.

    Raises:
        ConfigError: no parent has set it.
    """
    text = environ.pop(VARIABLE, "")
    if not text:
        return None
    try:
        sockets, _, lifeline = text.partition(":")
        fds = [int(fd) for fd in sockets.split(",")]
        for fd in (*fds, int(lifeline)):
            os.set_inheritable(fd, False)  # not for what this process starts
        return Heritage(sockets=tuple(socket.socket(fileno=fd) for fd in fds), lifeline=int(lifeline))
    except (ValueError, OSError) as exc:
        raise ConfigError(f"{VARIABLE} is for routers that another one has started, do not set it") from exc


def with_heritage(environ: Mapping[str, str], *, sockets: Sequence[socket.socket], lifeline: int) -> dict[str, str]:
    """Return the environment of a child that inherits these."""
    return {**environ, VARIABLE: f"{','.join(str(one.fileno()) for one in sockets)}:{lifeline}"}
