"""The text of systemd units: pure. Options are those of systemd.service(5), systemd.socket(5) and systemd.exec(5).

The service is ready when it says so, is restarted when it dies or stops feeding its watchdog, and is not restarted
when its settings are wrong (exit code 2) or its key is refused (3). TERM goes to the daemon alone, which ends
llama-server by itself; what is left is killed. A system service can write to its state folder and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from auxot.units.unit import STATE_DIR, Daemon, Scope, Unit

WATCHDOG_S = 30
SUFFIX = ".service"

_RESTRICTED = (
    "NoNewPrivileges=yes",
    "CapabilityBoundingSet=",
    "ProtectSystem=strict",
    "PrivateTmp=yes",
    "ProtectClock=yes",
    "ProtectHostname=yes",
    "ProtectKernelLogs=yes",
    "ProtectKernelModules=yes",
    "ProtectKernelTunables=yes",
    "ProtectControlGroups=yes",
    "RestrictNamespaces=yes",
    "RestrictRealtime=yes",
    "RestrictSUIDSGID=yes",
    "LockPersonality=yes",
    "SystemCallArchitectures=native",
    "UMask=0077",
)
# A worker needs the devices of GPUs, and what their drivers ask of the kernel is not for us to list.
_ROUTER_ONLY = (
    "PrivateDevices=yes",
    "ProtectProc=invisible",
    "RemoveIPC=yes",
    "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX",
    "SystemCallFilter=@system-service",
    "SystemCallErrorNumber=EPERM",
)
_WORKER_ONLY = ("RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK", "LimitMEMLOCK=infinity")


def unit_name(daemon: Daemon, name: str) -> str:
    """Return the name of the unit, without `.service`."""
    return f"auxot-{daemon.value}-{name}"


def unit_texts(unit: Unit) -> dict[str, str]:
    """Return the unit files by name: the service, and the socket that is held open for a router."""
    name = unit_name(unit.daemon, unit.name)
    texts = {f"{name}{SUFFIX}": _service(unit)}
    if unit.listen is not None:
        texts[f"{name}.socket"] = _socket(unit, unit.listen)
    return texts


def _service(unit: Unit) -> str:
    return "\n".join(
        [
            "# Written by Auxot: another install of the same name writes it anew. Own lines: systemctl edit.",
            *_unit_section(unit),
            "",
            *_service_section(unit),
            *(_hardening(unit) if unit.scope is Scope.SYSTEM else ["NoNewPrivileges=yes"]),
            "",
            "[Install]",
            f"WantedBy={'multi-user.target' if unit.scope is Scope.SYSTEM else 'default.target'}",
            "",
        ]
    )


def _unit_section(unit: Unit) -> Iterator[str]:
    yield "[Unit]"
    yield f"Description={unit.title}"
    yield "StartLimitIntervalSec=0"
    if unit.scope is Scope.SYSTEM:
        yield "Wants=network-online.target"
        yield "After=network-online.target"
    if unit.listen is not None:
        socket = f"{unit_name(unit.daemon, unit.name)}.socket"
        yield f"Requires={socket}"
        yield f"After={socket}"


def _service_section(unit: Unit) -> Iterator[str]:
    yield "[Service]"
    yield "Type=notify"
    yield "NotifyAccess=main"
    yield f"WorkingDirectory={_escaped(str(unit.settings_dir))}"
    yield f"ExecStart={_word(unit.program)}"
    if unit.daemon is Daemon.ROUTER:
        yield "ExecReload=/bin/kill -HUP $MAINPID"
        yield "RestartPreventExitStatus=2"
        yield "LimitNOFILE=65536"
    else:
        yield "RestartPreventExitStatus=2 3"
        yield "TimeoutStartSec=infinity"  # a large model loads for minutes, and the router may not be there yet
        yield "OOMPolicy=continue"  # where llama-server is killed for its memory the worker starts it again
    yield "Restart=always"
    yield "RestartSec=5"
    yield f"WatchdogSec={WATCHDOG_S}"
    yield f"TimeoutStopSec={unit.stop_s}"
    yield "TimeoutAbortSec=10"
    yield "KillMode=mixed"


def _hardening(unit: Unit) -> Iterator[str]:
    if unit.user is not None:
        yield f"User={unit.user}"
        yield f"Group={unit.user}"
    if unit.groups:
        yield f"SupplementaryGroups={' '.join(unit.groups)}"
    yield f"StateDirectory={STATE_DIR.name}"
    yield "StateDirectoryMode=0750"
    yield f"Environment=HOME={STATE_DIR}"
    yield f"ProtectHome={'read-only' if unit.needs_home else 'yes'}"
    yield from (f"ReadWritePaths=-{_word(path)}" for path in unit.writable)
    yield from _RESTRICTED
    yield from _ROUTER_ONLY if unit.daemon is Daemon.ROUTER else _WORKER_ONLY


def _socket(unit: Unit, listen: str) -> str:
    return "\n".join(
        [
            "# Written by Auxot. Clients that connect while the router restarts wait here.",
            "[Unit]",
            f"Description={unit.title}: its socket",
            "",
            "[Socket]",
            f"ListenStream={listen}",
            "NoDelay=yes",
            "Backlog=2048",
            "",
            "[Install]",
            "WantedBy=sockets.target",
            "",
        ]
    )


def _word(path: Path) -> str:
    """Return a path as one word of a command line."""
    text = _escaped(str(path)).replace("$", "$$")
    if not any(char in text for char in " \t\"'\\;"):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _escaped(text: str) -> str:
    """Return a text without specifiers such as %h in it."""
    return text.replace("%", "%%")
