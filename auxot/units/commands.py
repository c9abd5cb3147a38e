"""The commands `install`, `list` and `uninstall` of `auxot-router` and `auxot-worker`.

Installing is idempotent: what is there already under that name is renewed, settings that are not given again are
kept, and the daemon is restarted if anything has changed. Texts go to `out`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import attrs

from auxot.config import RouterConfig, WorkerConfig
from auxot.core.errors import AuxotError, ConfigError, LlamaError
from auxot.core.keys import redact
from auxot.knobs import DOTENV, Parser, flag_parser, knobs_of, read_dotenv
from auxot.units import disk
from auxot.units import settings as settings_of
from auxot.units.places import Places, places
from auxot.units.unit import (
    ROUTER_STOP_SPARE_S,
    SERVICE_USER,
    STATE_DIR,
    WORKER_STOP_S,
    Daemon,
    Scope,
    Unit,
    check_name,
)

Out = Callable[[str], None]
_HOMES = ("/home/", "/root/", "/run/user/", "/Users/")


@attrs.frozen(kw_only=True)
class _Order:
    """What an `install` is to do."""

    daemon: Daemon
    name: str
    scope: Scope
    root: Path
    is_dry_run: bool
    is_started: bool
    flags: Mapping[str, str]

    @property
    def is_elsewhere(self) -> bool:
        """Whether files are written for another machine, or for an image."""
        return self.root != Path("/")


def run_command(word: str, daemon: str, argv: Sequence[str], out: Out) -> int:
    """Run `install`, `list` or `uninstall` for a daemon, "router" or "worker"; return the exit code."""
    commands = {"install": install, "list": list_installed, "uninstall": uninstall}
    return commands[word](Daemon(daemon), argv, out)


def command_help(word: str, daemon: str) -> str:
    """Return the help of one of these commands."""
    one = Daemon(daemon)
    return (_install_parser(one) if word == "install" else _parser(one, word)).format_help()


def install(daemon: Daemon, argv: Sequence[str], out: Out) -> int:
    """Install a daemon and start it; return the exit code.

    Raises:
        ConfigError: it would not start with these settings.
        AuxotError: the machine does not let us.
    """
    order = _parse_install(daemon, argv)
    spots = places(order.scope, platform=sys.platform, environ=os.environ, root=order.root)
    settings_dir = spots.settings_dir(daemon, order.name)
    settings = settings_of.gather(daemon, order.flags, environ=os.environ, cwd=Path.cwd(), settings_dir=settings_dir)
    config = settings_of.check(daemon, settings, settings_dir)
    if isinstance(config, WorkerConfig):
        settings.update(_llama_setting(config))
    unit = _unit(order, spots, config)
    texts = spots.texts(unit)
    commands = spots.start_commands(list(texts), has_changed=True)
    if order.is_dry_run:
        for line in _plan(texts, settings_dir / DOTENV, settings):
            out(line)
        _tell_commands(commands, out)
        return 0
    has_changed = _write(order, unit, texts, settings)
    for path in [*texts, settings_dir / DOTENV]:
        out(f"wrote {path}")
    if order.is_elsewhere or not order.is_started:
        _tell_commands(commands, out)
        return 0
    disk.run(spots.start_commands(list(texts), has_changed=has_changed))
    for line in [*_warnings(unit, config), *spots.hints(daemon, order.name)]:
        out(line)
    return 0


def uninstall(daemon: Daemon, argv: Sequence[str], out: Out) -> int:
    """Stop a daemon and remove what `install` has written; models and the user stay. Return the exit code.

    Raises:
        AuxotError: there is none of that name, or it cannot be removed.
    """
    parser = _parser(daemon, "uninstall")
    parser.add_argument("name", nargs="?", default="default", metavar="NAME")
    options = parser.parse_args(argv)
    name, root = check_name(options.name), Path(options.root)
    n_found = 0
    for spots in _all_places(options, root):
        if not (files := spots.files(daemon, name)):
            continue
        n_found += 1
        if root == Path("/"):
            disk.run(spots.stop_commands(files))
        disk.remove([*files, spots.settings_dir(daemon, name)])
        if root == Path("/"):
            disk.run(spots.forget_commands())
        out(f"removed the {daemon.value} {name!r} ({spots.scope.value})")
    if not n_found:
        raise AuxotError(f"no {daemon.value} is installed under the name {name!r}")
    return 0


def list_installed(daemon: Daemon, argv: Sequence[str], out: Out) -> int:
    """Show what is installed, a line each; return the exit code."""
    options = _parser(daemon, "list").parse_args(argv)
    rows = [_HEADS[daemon]]
    for spots in _all_places(options, Path(options.root)):
        rows += [_row(daemon, name, spots) for name in spots.names(daemon)]
    if len(rows) == 1:
        out(f"nothing is installed: `auxot-{daemon.value} install` does it")
        return 0
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        out("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    return 0


def _parser(daemon: Daemon, command: str) -> Parser:
    argument = " [NAME]" if command == "uninstall" else ""
    program = f"auxot-{daemon.value} {command}"
    parser = Parser(prog=program, usage=f"{program}{argument} [--user | --system]")
    _add_places(parser)
    return parser


def _install_parser(daemon: Daemon) -> Parser:
    program = f"auxot-{daemon.value} install"
    usage = f"{program} [--name NAME] [--user | --system] [--dry-run] [settings]"
    parser = flag_parser(settings_of.config_class(daemon), prog=program, usage=usage)
    _add_places(parser)
    parser.add_argument(
        "--name", dest="install_name", default="default", help="several on one machine have several names"
    )
    parser.add_argument("--dry-run", action="store_true", help="show what would be written and run, and do nothing")
    parser.add_argument("--no-start", action="store_true", help="write the files, and run nothing")
    return parser


def _add_places(parser: Parser) -> None:
    scope = parser.add_mutually_exclusive_group()
    scope.add_argument("--user", action="store_true", help="as your own service; the default unless you are root")
    scope.add_argument("--system", action="store_true", help="as the machine's service, under a user of its own")
    parser.add_argument(
        "--root", metavar="PATH", default="/", help="write below this folder, for an image; run nothing"
    )


def _parse_install(daemon: Daemon, argv: Sequence[str]) -> _Order:
    options = _install_parser(daemon).parse_args(argv)
    knobs = knobs_of(settings_of.config_class(daemon))
    scope = _scope(options)
    root = Path(options.root).absolute()
    if root != Path("/") and scope is Scope.USER:
        raise ConfigError("--root goes with --system")
    return _Order(
        daemon=daemon,
        name=check_name(options.install_name),
        scope=scope,
        root=root,
        is_dry_run=options.dry_run,
        is_started=not options.no_start,
        flags={name: value for name, value in vars(options).items() if name in knobs},
    )


def _scope(options: argparse.Namespace) -> Scope:
    return Scope.SYSTEM if options.system or (os.geteuid() == 0 and not options.user) else Scope.USER


def _all_places(options: argparse.Namespace, root: Path) -> Iterator[Places]:
    """Yield the places that a command looks at: both, unless one is named."""
    scopes = [_scope(options)] if options.user or options.system or root != Path("/") else list(Scope)
    for scope in scopes:
        yield places(scope, platform=sys.platform, environ=os.environ, root=root)


def _unit(order: _Order, spots: Places, config: RouterConfig | WorkerConfig) -> Unit:
    is_system, is_router = order.scope is Scope.SYSTEM, isinstance(config, RouterConfig)
    program = _program(f"auxot-{order.daemon.value}")
    settings_dir = Path("/") / spots.settings_dir(order.daemon, order.name).relative_to(order.root)
    used = [program, Path(sys.executable).resolve(), *_files_of(config)]
    stop_s = round(config.shutdown_grace_s) + ROUTER_STOP_SPARE_S if isinstance(config, RouterConfig) else WORKER_STOP_S
    return Unit(
        daemon=order.daemon,
        name=order.name,
        scope=order.scope,
        program=program,
        settings_dir=settings_dir,
        stop_s=stop_s,
        user=_user(spots) if is_system else None,
        groups=disk.gpu_groups() if is_system and not is_router else (),
        listen=settings_of.listen_address(config) if isinstance(config, RouterConfig) else None,
        needs_home=any(str(path).startswith(_HOMES) for path in used),
        writable=_writable(config) if is_system else (),
    )


def _user(spots: Places) -> str:
    """Return whose process a system service is: on macOS, where users are not made lightly, whoever installs it."""
    return os.environ.get("SUDO_USER", "root") if spots.is_launchd else SERVICE_USER


def _program(name: str) -> Path:
    """Return the path of a program of ours: beside the running Python, else where PATH has it."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        raise AuxotError(f"{name} is not installed: there is none beside {sys.executable}, nor on PATH")
    return Path(found).absolute()


def _llama_setting(config: WorkerConfig) -> dict[str, str]:
    """Return the llama-server that is found now: the service looks in other places. Nothing if there is none yet."""
    from auxot.worker.llama.binary import find_llama_server  # noqa: PLC0415 - not for a router

    if config.llama_url is not None:
        return {}
    try:
        return {
            "AUXOT_LLAMA_BINARY": str(find_llama_server(given=config.llama_binary, cache_dir=config.llama_cache_dir))
        }
    except LlamaError as exc:
        if config.llama_binary is not None:
            raise ConfigError(str(exc)) from exc
        return {}


def _files_of(config: RouterConfig | WorkerConfig) -> list[Path]:
    """Return the files that a daemon must be able to read."""
    if isinstance(config, RouterConfig):
        return [config.api_keys_file] if config.api_keys_file is not None else []
    return [path for path in (config.model_path, config.llama_binary) if path is not None]


def _writable(config: RouterConfig | WorkerConfig) -> tuple[Path, ...]:
    if isinstance(config, RouterConfig):
        return ()
    home = Path.home()
    folders = (config.models_dir, config.llama_cache_dir)
    return tuple(path for path in folders if not path.is_relative_to(home) and not path.is_relative_to(STATE_DIR))


def _write(order: _Order, unit: Unit, texts: Mapping[Path, str], settings: Mapping[str, str]) -> bool:
    owner = unit.user if order.scope is Scope.SYSTEM and not order.is_elsewhere else None
    if owner == SERVICE_USER:
        disk.make_user(owner)
    settings_dir = order.root / unit.settings_dir.relative_to("/")
    disk.make_folder(settings_dir.parent, mode=0o755)
    disk.make_folder(settings_dir, mode=0o700, owner=owner)
    text = settings_of.env_text(settings)
    changes = [disk.write(settings_dir / DOTENV, text, mode=disk.SECRET_MODE, owner=owner)]
    for path, unit_text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        changes.append(disk.write(path, unit_text, mode=disk.UNIT_MODE))
    return any(changes)


def _plan(texts: Mapping[Path, str], env_file: Path, settings: Mapping[str, str]) -> Iterator[str]:
    for path, text in texts.items():
        yield f"--- {path}\n{text}"
    shown = {name: _shown(name, value) for name, value in settings.items()}
    yield f"--- {env_file} (mode 0600)\n{settings_of.env_text(shown)}"


def _shown(variable: str, value: str) -> str:
    """Return a setting as it may be shown: a key by its beginning, another secret not at all."""
    knobs = [*knobs_of(RouterConfig).values(), *knobs_of(WorkerConfig).values()]
    if not any(one.is_secret for one in knobs if one.variable == variable):
        return value
    return redact(value) if variable == "AUXOT_GPU_KEY" else "***"


def _tell_commands(commands: Sequence[tuple[str, ...]], out: Out) -> None:
    out("--- then:")
    for command in commands:
        out(" ".join(word for word in command if word != "?"))


def _warnings(unit: Unit, config: RouterConfig | WorkerConfig) -> Iterator[str]:
    """Yield what may keep a service from starting."""
    if isinstance(config, WorkerConfig) and config.llama_url is None and config.llama_binary is None:
        yield "warning: there is no llama-server yet: `auxot-worker llama build` makes one; then install again"
    if unit.user != SERVICE_USER:
        return
    for path in [unit.program, *_files_of(config)]:
        if not disk.is_open_to_all(path):
            yield f"warning: the user {SERVICE_USER} may not be able to read {path}"


_HEADS: Mapping[Daemon, tuple[str, ...]] = {
    Daemon.WORKER: ("NAME", "MODE", "STATUS", "KEY", "ROUTER"),
    Daemon.ROUTER: ("NAME", "MODE", "STATUS", "MODEL", "ADDRESS"),
}


def _row(daemon: Daemon, name: str, spots: Places) -> tuple[str, ...]:
    status = "running" if disk.succeeds(spots.status_command(daemon, name)) else "stopped"
    try:
        settings = read_dotenv(spots.settings_dir(daemon, name))
    except ConfigError:  # somebody else's
        return (name, spots.scope.value, status, "?", "?")
    if daemon is Daemon.WORKER:
        return (
            name,
            spots.scope.value,
            status,
            redact(settings.get("AUXOT_GPU_KEY", "")),
            settings.get("AUXOT_ROUTER_URL", ""),
        )
    address = f"{settings.get('AUXOT_HOST', '0.0.0.0')}:{settings.get('AUXOT_PORT', '8080')}"  # noqa: S104 - shown
    return (name, spots.scope.value, status, settings.get("AUXOT_MODEL", ""), address)
