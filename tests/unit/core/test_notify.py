from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import trio

from auxot.core.notify import MAX_STATUS_CHARS, Notifier, take_notifier


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path):
    """A service manager's socket, and its name."""
    name = f"@auxot-test-{os.getpid()}" if request.param == "abstract" else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(name.replace("@", "\0"))
        listening.settimeout(10)
        yield listening, name


def test_each_message_arrives_as_lines(manager):
    """A service manager would wait for a readiness that was said in another form, and give the daemon up."""
    listening, name = manager
    notifier = Notifier(address=name)
    notifier.say("loads\nthe model")
    notifier.ready("serves")
    notifier.reloading()
    notifier.stopping("x" * 1000)
    assert listening.recv(4096) == b"STATUS=loads the model"
    assert listening.recv(4096) == b"READY=1\nSTATUS=serves"
    assert listening.recv(4096).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
    assert listening.recv(4096) == b"STOPPING=1\nSTATUS=" + b"x" * MAX_STATUS_CHARS


async def test_the_watchdog_is_fed_twice_in_its_time(manager, autojump_clock):  # noqa: ARG001 - is at work
    """A service manager would kill a daemon that lives."""
    listening, name = manager
    statuses = iter(["a", "a", "b"])
    notifier = Notifier(address=name, watchdog_s=3.0)
    with trio.move_on_after(4):  # 0 s, 1.5 s, 3 s
        await notifier.run(lambda: next(statuses))
    fed = [listening.recv(4096) for _ in range(3)]
    assert fed == [b"WATCHDOG=1\nSTATUS=a", b"WATCHDOG=1", b"WATCHDOG=1\nSTATUS=b"]


def test_nobody_listens(tmp_path: Path):
    """A daemon would not start because its manager is gone, or wait for one that does not read."""
    Notifier().ready("serves")
    Notifier(address=str(tmp_path / "nobody")).ready("serves")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "full"))
        for _ in range(5000):
            Notifier(address=str(tmp_path / "full")).say("status")


def test_variables_are_taken_out_of_the_environment():
    """llama-server would speak to the manager in the daemon's name."""
    environ = {"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid()), "A": "b"}
    assert take_notifier(environ) == Notifier(address="/run/x", watchdog_s=30.0)
    assert environ == {"A": "b"}


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"NOTIFY_SOCKET": "vsock:2:1234"},
        {"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "soon"},
    ],
)
def test_what_is_not_meant_for_us_is_passed_over(environ):
    """A daemon that was started by another service would speak for it."""
    assert take_notifier(environ) == Notifier()
