"""What a router inherits from the parent that runs several of them.

Listening sockets, a pipe that ends with the parent, and what it shares with its siblings. One variable names their
descriptors, `AUXOT_ROUTER_HERITAGE=3,5:7:8,9,11,13:0`: two sockets, the pipe, what `siblings.Family` names, and the
child's number.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Mapping, MutableMapping, Sequence

import attrs
import trio

from auxot.core.errors import ConfigError
from auxot.router.siblings import Family, Siblings, join_family

VARIABLE = "AUXOT_ROUTER_HERITAGE"


@attrs.frozen(kw_only=True)
class Heritage:
    """What a child has from its parent.

    Attributes:
        sockets: listen already; may be other descriptors of sockets that its siblings have too.
        lifeline: reads the end of a pipe as soon as the parent has gone.
        siblings: the processes that connections can be handed to.
    """

    sockets: tuple[socket.socket, ...]
    lifeline: int
    siblings: Siblings

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
        sockets, pipe, family, number = text.split(":")
        fds, shared, lifeline = _numbers(sockets), _numbers(family), int(pipe)
        for fd in (*fds, *shared, lifeline):
            os.set_inheritable(fd, False)  # not for what this process starts
        return Heritage(
            sockets=tuple(socket.socket(fileno=fd) for fd in fds),
            lifeline=lifeline,
            siblings=join_family(shared, int(number)),
        )
    except (ValueError, OSError) as exc:
        raise ConfigError(f"{VARIABLE} is for routers that another one has started, do not set it") from exc


def with_heritage(
    environ: Mapping[str, str], *, sockets: Sequence[socket.socket], lifeline: int, family: Family, number: int
) -> dict[str, str]:
    """Return the environment of a child that inherits these."""
    fds = [one.fileno() for one in sockets]
    return {**environ, VARIABLE: f"{_joined(fds)}:{lifeline}:{_joined(family.descriptors(number))}:{number}"}


def _numbers(text: str) -> list[int]:
    return [int(fd) for fd in text.split(",")]


def _joined(fds: Sequence[int]) -> str:
    return ",".join(map(str, fds))
