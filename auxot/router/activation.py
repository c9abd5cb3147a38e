"""Listening sockets that the process was started with: a service manager holds them open across a restart.

    LISTEN_PID    the process that is meant
    LISTEN_FDS    how many there are, from descriptor 3 on

Clients that connect while no router runs wait in the socket's backlog, and the next router takes them. The protocol
is systemd's, sd_listen_fds(3).
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping

from auxot.core.errors import ConfigError

BACKLOG = 2048  # connections that wait to be accepted, of a socket of our own
FIRST_FD = 3
MAX_SOCKETS = 16


def take_sockets(environ: MutableMapping[str, str]) -> list[socket.socket]:
    """Return the sockets that were handed over, and take their variables out of the environment.

    Args:
        environ: the process's environment.

    Raises:
        ConfigError: they are not what a router can listen on.
    """
    pid, n_given = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not n_given.isdecimal():
        return []
    if int(n_given) > MAX_SOCKETS:
        raise ConfigError(f"LISTEN_FDS: at most {MAX_SOCKETS} sockets, got {int(n_given)}")
    return [_listening_socket(fd) for fd in range(FIRST_FD, FIRST_FD + int(n_given))]


def _listening_socket(fd: int) -> socket.socket:
    try:
        os.set_inheritable(fd, False)  # not for llama-server, nor for anything else that we start
        listener = socket.socket(fileno=fd)
    except OSError as exc:
        raise ConfigError(f"LISTEN_FDS: descriptor {fd} is no socket: {exc.strerror}") from exc
    is_tcp = listener.family in (socket.AF_INET, socket.AF_INET6) and listener.type == socket.SOCK_STREAM
    if not is_tcp or not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise ConfigError(f"LISTEN_FDS: descriptor {fd} is not a listening TCP socket")
    return listener
