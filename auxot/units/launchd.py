"""The text of launchd property lists: pure. Keys are those of launchd.plist(5).

launchd knows neither readiness nor a watchdog, and restarts whatever ends with an error.
"""

from __future__ import annotations

import plistlib

from auxot.units.unit import Daemon, Scope, Unit

SUFFIX = ".plist"


def label(daemon: Daemon, name: str) -> str:
    """Return the label of a job."""
    return f"com.auxot.{daemon.value}.{name}"


def unit_texts(unit: Unit) -> dict[str, str]:
    """Return the property list by its file name."""
    return {f"{label(unit.daemon, unit.name)}{SUFFIX}": _plist(unit)}


def _plist(unit: Unit) -> str:
    log = str(unit.settings_dir / f"{unit.daemon.value}.log")
    job = {
        "Label": label(unit.daemon, unit.name),
        "ProgramArguments": [str(unit.program)],
        "WorkingDirectory": str(unit.settings_dir),
        "RunAtLoad": True,
        "KeepAlive": {"SuccessfulExit": False},
        "ThrottleInterval": 10,
        "ExitTimeOut": unit.stop_s,
        "ProcessType": "Interactive",  # else it is slowed down where nobody sits at the machine
        "SoftResourceLimits": {"NumberOfFiles": 65536},
        "StandardOutPath": log,
        "StandardErrorPath": log,
        "Umask": 0o077,
    }
    if unit.scope is Scope.SYSTEM and unit.user is not None:
        job["UserName"] = unit.user
    return plistlib.dumps(job).decode()
