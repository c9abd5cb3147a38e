"""Where units and settings stand on this machine, and the commands that tell its service manager of them.

Linux, system    /etc/systemd/system                /etc/auxot/<daemon>-<name>/.env
Linux, user      ~/.config/systemd/user             ~/.config/auxot/<daemon>-<name>/.env
macOS, system    /Library/LaunchDaemons             /Library/Application Support/auxot/<daemon>-<name>/.env
macOS, user      ~/Library/LaunchAgents             ~/Library/Application Support/auxot/<daemon>-<name>/.env
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import attrs

from auxot.core.errors import ConfigError
from auxot.units import launchd, systemd
from auxot.units.unit import Daemon, Scope, Unit

Command = tuple[str, ...]


@attrs.frozen(kw_only=True)
class Places:
    """The folders and the service manager of one scope.

    Attributes:
        scope: whose services.
        is_launchd: launchd, else systemd.
        units_dir, settings_root: folders.
    """

    scope: Scope
    is_launchd: bool
    units_dir: Path
    settings_root: Path

    def settings_dir(self, daemon: Daemon, name: str) -> Path:
        """Return the folder with a daemon's `.env`."""
        return self.settings_root / f"{daemon.value}-{name}"

    def texts(self, unit: Unit) -> dict[Path, str]:
        """Return the unit files of a daemon."""
        texts = launchd.unit_texts(unit) if self.is_launchd else systemd.unit_texts(unit)
        return {self.units_dir / name: text for name, text in texts.items()}

    def files(self, daemon: Daemon, name: str) -> list[Path]:
        """Return the unit files of a daemon that are there."""
        if self.is_launchd:
            candidates = [self.units_dir / f"{launchd.label(daemon, name)}{launchd.SUFFIX}"]
        else:
            unit = systemd.unit_name(daemon, name)
            candidates = [self.units_dir / f"{unit}{systemd.SUFFIX}", self.units_dir / f"{unit}.socket"]
        return [path for path in candidates if path.is_file()]

    def names(self, daemon: Daemon) -> list[str]:
        """Return the names of the daemons that are installed, in order."""
        if self.is_launchd:
            prefix, suffix = launchd.label(daemon, ""), launchd.SUFFIX
        else:
            prefix, suffix = systemd.unit_name(daemon, ""), systemd.SUFFIX
        paths = self.units_dir.glob(f"{prefix}*{suffix}")
        return sorted(path.name.removeprefix(prefix).removesuffix(suffix) for path in paths)

    def start_commands(self, files: Sequence[Path], *, has_changed: bool) -> list[Command]:
        """Return what makes the service manager take over unit files, and start or restart what they describe.

        A socket is started before its service; that a worker is up may take minutes, and is not waited for.
        """
        if self.is_launchd:
            return [("?", *self._bootout(path)) for path in files if has_changed] + [
                ("launchctl", "bootstrap", self._domain(), str(path)) for path in files if has_changed
            ]
        names = [path.name for path in files]
        sockets = [name for name in names if name.endswith(".socket")]
        services = [name for name in names if name.endswith(systemd.SUFFIX)]
        return [
            (*self._systemctl(), "daemon-reload"),
            (*self._systemctl(), "enable", *names),
            *[(*self._systemctl(), "start", name) for name in sockets],
            (*self._systemctl(), "restart" if has_changed else "start", "--no-block", *services),
        ]

    def stop_commands(self, files: Sequence[Path]) -> list[Command]:
        """Return what stops daemons for good; `?` before a command: it may fail."""
        if self.is_launchd:
            return [("?", *self._bootout(path)) for path in files]
        return [("?", *self._systemctl(), "disable", "--now", *[path.name for path in files])]

    def forget_commands(self) -> list[Command]:
        """Return what makes the service manager forget unit files that have been removed."""
        return [] if self.is_launchd else [(*self._systemctl(), "daemon-reload")]

    def status_command(self, daemon: Daemon, name: str) -> Command:
        """Return a command that ends with 0 if a daemon runs."""
        if self.is_launchd:
            return ("launchctl", "print", f"{self._domain()}/{launchd.label(daemon, name)}")
        return (*self._systemctl(), "is-active", "--quiet", f"{systemd.unit_name(daemon, name)}{systemd.SUFFIX}")

    def hints(self, daemon: Daemon, name: str) -> Iterator[str]:
        """Yield what to type to look at a daemon."""
        if self.is_launchd:
            yield f"log:    {self.settings_dir(daemon, name) / f'{daemon.value}.log'}"
            return
        unit, user = systemd.unit_name(daemon, name), " --user" if self.scope is Scope.USER else ""
        yield f"status: systemctl{user} status {unit}"
        yield f"log:    journalctl{user} --unit {unit} --follow"
        if self.scope is Scope.USER:
            yield "It stops when you log out, unless you run once: loginctl enable-linger"

    def _systemctl(self) -> Command:
        return ("systemctl", "--user") if self.scope is Scope.USER else ("systemctl",)

    def _bootout(self, path: Path) -> Command:
        return ("launchctl", "bootout", f"{self._domain()}/{path.stem}")

    def _domain(self) -> str:
        return "system" if self.scope is Scope.SYSTEM else f"gui/{os.getuid()}"


def places(scope: Scope, *, platform: str, environ: Mapping[str, str], root: Path = Path("/")) -> Places:
    """Return the places of a scope.

    Args:
        scope: whose services.
        platform: `sys.platform`.
        environ: HOME and XDG_CONFIG_HOME.
        root: what stands for `/`.

    Raises:
        ConfigError: there is no service manager that we know, or no home.
    """
    is_launchd = platform == "darwin"
    if not is_launchd and not platform.startswith("linux"):
        raise ConfigError(f"services are installed on Linux and macOS, not on {platform}")
    if scope is Scope.SYSTEM:
        units, settings = ("Library/LaunchDaemons", "Library/Application Support/auxot")
        if not is_launchd:
            units, settings = ("etc/systemd/system", "etc/auxot")
        return Places(scope=scope, is_launchd=is_launchd, units_dir=root / units, settings_root=root / settings)
    home = environ.get("HOME", "")
    if not home:
        raise ConfigError("there is no home folder: set HOME")
    config = Path(environ.get("XDG_CONFIG_HOME") or f"{home}/.config")
    units_dir, settings_root = config / "systemd/user", config / "auxot"
    if is_launchd:
        units_dir, settings_root = Path(home, "Library/LaunchAgents"), Path(home, "Library/Application Support/auxot")
    return Places(scope=scope, is_launchd=is_launchd, units_dir=units_dir, settings_root=settings_root)
