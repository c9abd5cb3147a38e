"""What a service manager is told of a daemon: that it is ready, how it is, that it lives, that it stops.

    NOTIFY_SOCKET                  where to say it; without it nothing is said
    WATCHDOG_USEC, WATCHDOG_PID    how often the manager wants to hear that we live, and who of us is meant

The messages are datagrams to a Unix socket, of `NAME=value` lines, as systemd's sd_notify(3) describes them; other
managers speak the same. Nothing here waits or raises: a manager that does not listen must not hold a daemon up.

The watchdog is fed by a task of the daemon's own event loop: a loop that is stuck does not feed it, and the manager
ends and restarts the process.

Owner: the main of each daemon, which takes the variables out of its environment: its child processes have no part
in this.
"""

from __future__ import annotations

import faulthandler
import os
import socket
import time
from collections.abc import Callable, MutableMapping
from typing import NoReturn

import attrs
import trio

STATUS_INTERVAL_S = 10.0  # how often the status is renewed at least
MAX_STATUS_CHARS = 200


@attrs.frozen(kw_only=True)
class Notifier:
    """Speaks to the service manager, if there is one.

    Attributes:
        address: of its socket; a name that begins with `@` is in the abstract namespace. None: nobody is told.
        watchdog_s: seconds of silence after which it takes us for stuck; None: it does not watch.
    """

    address: str | None = None
    watchdog_s: float | None = None

    def ready(self, status: str) -> None:
        """Say that the daemon serves; also after `reloading`."""
        self._send("READY=1", f"STATUS={_line(status)}")

    def say(self, status: str) -> None:
        """Say how the daemon is, in a few words."""
        self._send(f"STATUS={_line(status)}")

    def reloading(self) -> None:
        """Say that the settings are being read again; `ready` must follow."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, status: str) -> None:
        """Say that the daemon has begun to stop."""
        self._send("STOPPING=1", f"STATUS={_line(status)}")

    async def run(self, status: Callable[[], str]) -> NoReturn:
        """Feed the watchdog, and renew the status where it has changed, for ever.

        Args:
            status: returns the daemon's status; must not wait.
        """
        interval_s = min(STATUS_INTERVAL_S, (self.watchdog_s or 2 * STATUS_INTERVAL_S) / 2)
        told = ""
        if self.watchdog_s is not None:
            faulthandler.enable()  # the watchdog's SIGABRT then shows where each thread stands
        while True:
            text = status()
            lines = ["WATCHDOG=1"] if self.watchdog_s is not None else []
            if text != told:
                lines.append(f"STATUS={_line(text)}")
                told = text
            self._send(*lines)
            await trio.sleep(interval_s)

    def _send(self, *lines: str) -> None:
        if self.address is None or not lines:
            return
        address = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.setblocking(False)
                sender.sendto("\n".join(lines).encode(), address)
        except OSError:  # it is gone or its queue is full: the next message may get through
            pass


def take_notifier(environ: MutableMapping[str, str]) -> Notifier:
    """Return what speaks to the service manager, and take its variables out of the environment.

    Args:
        environ: the process's environment.
    """
    address = environ.pop("NOTIFY_SOCKET", "")
    microseconds = environ.pop("WATCHDOG_USEC", "")
    pid = environ.pop("WATCHDOG_PID", "")
    is_watched = microseconds.isdecimal() and int(microseconds) > 0 and pid in ("", str(os.getpid()))
    return Notifier(
        address=address if address.startswith(("/", "@")) else None,
        watchdog_s=int(microseconds) / 1e6 if is_watched else None,
    )


def _line(text: str) -> str:
    return " ".join(text.split())[:MAX_STATUS_CHARS]
