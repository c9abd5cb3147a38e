"""The commands `auxot`, `auxot-router` and `auxot-worker`: the only place that prints, and the last wall.

    auxot-router [serve] [flags] | setup ... | models ... | version | help
    auxot-worker [serve] [flags] | pull ... | llama ... | cache ... | doctor ... | version | help
    auxot demo ... | up ... | bench ... | version | help
    auxot-router, auxot-worker: install ... | list | uninstall ...

Answers go to standard output, errors and progress to standard error. Exit codes: 0 done, 1 failed, 2 bad
configuration, 3 the router refuses the worker's key, 130 interrupted.

Daemons are imported when they are started, so that `help` and `version` answer at once.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import attrs

from auxot import __version__, cli_fetch, cli_setup
from auxot.config import RouterConfig, WorkerConfig, load_config, load_router_config, load_worker_config
from auxot.config_local import BenchConfig, DemoConfig, DoctorConfig, UpConfig, load_up_config
from auxot.config_models import ModelsConfig
from auxot.core import logs
from auxot.core.errors import AuxotError, ConfigError, KeyRefusedError
from auxot.core.logs import Level
from auxot.knobs import flag_parser, rows

EXIT_FAILED = 1
EXIT_BAD_CONFIG = 2
EXIT_KEY_REFUSED = 3
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it

_AUXOT_HELP = """\
usage: auxot demo [--serve]          router, worker and a tiny model on this machine; asks each API one question
       auxot up --model-path FILE    router and worker for your own GGUF file; keys are kept in .env
       auxot bench [--compare URL]   what the router adds to an answer, measured on this machine
       auxot bundle MODEL            one archive for a GPU host without a network: model, llama-server, worker
       auxot version | help

Each command has its own --help. On several machines: auxot-router, auxot-worker."""

_say = functools.partial(print, flush=True)


@attrs.frozen
class Command:
    """One word of a program: what it runs with the arguments after it, and the text of its `--help`."""

    run: Callable[[Sequence[str]], int]
    help: Callable[[], str]


@attrs.frozen(kw_only=True)
class Program:
    """A program with its commands. `default`: the command that runs when the first argument is none."""

    name: str
    commands: Mapping[str, Command]
    default: str | None
    help: Callable[[], str]


def auxot() -> NoReturn:
    """Run `auxot`."""
    sys.exit(run(AUXOT, sys.argv[1:]))


def auxot_router() -> NoReturn:
    """Run `auxot-router`."""
    sys.exit(run(ROUTER, sys.argv[1:]))


def auxot_worker() -> NoReturn:
    """Run `auxot-worker`."""
    sys.exit(run(WORKER, sys.argv[1:]))


def run(program: Program, argv: Sequence[str]) -> int:
    """Run one command line; whatever goes wrong is told on standard error.

    Args:
        program: which program.
        argv: its arguments, without its name.

    Returns:
        the exit code, see the module.
    """
    try:
        return _dispatch(program, argv)
    except BrokenPipeError:  # `... | head`: nobody reads any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # so that the flush at exit does not complain
        return EXIT_FAILED
    except (Exception, KeyboardInterrupt, BaseExceptionGroup) as exc:  # noqa: BLE001 - the last wall
        return _report(program.name, exc)


def _dispatch(program: Program, argv: Sequence[str]) -> int:
    first = argv[0] if argv else ""
    if first in ("help", "--help", "-h") or (not argv and program.default is None):
        _say(program.help().rstrip())
        return 0
    if first in ("version", "--version"):
        _say(f"{program.name} v{__version__}")
        return 0
    name, rest = (program.default, argv) if not first or first.startswith("-") else (first, argv[1:])
    command = program.commands.get(name or "")
    if command is None:
        raise ConfigError(f"unknown command {first!r} (see `{program.name} --help`)")
    if "--help" in rest or "-h" in rest:
        _say(command.help().rstrip())
        return 0
    return command.run(rest)


def _report(name: str, exc: BaseException) -> int:
    """Tell what ended the program, and return its exit code. Several errors at once: the most telling one."""
    leaves = list(_leaves(exc))
    if not all(isinstance(leaf, AuxotError | KeyboardInterrupt) for leaf in leaves):
        logs.get_logger().exception("main.crashed", program=name)
        return EXIT_FAILED
    for kind, code in ((ConfigError, EXIT_BAD_CONFIG), (KeyRefusedError, EXIT_KEY_REFUSED), (AuxotError, EXIT_FAILED)):
        for leaf in leaves:
            if isinstance(leaf, kind):
                _complain(f"{name}: {leaf}")
                return code
    return EXIT_INTERRUPTED


def _leaves(exc: BaseException) -> Iterator[BaseException]:
    """Yield the exceptions in a group, or the one that is none."""
    if isinstance(exc, BaseExceptionGroup):
        for inner in exc.exceptions:
            yield from _leaves(inner)
    else:
        yield exc


def _complain(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _start_logs(level: Level, warnings: Sequence[str]) -> None:
    logs.configure(level=level)
    for sentence in warnings:
        logs.get_logger().warning("config.no_effect", message=sentence)


# --- auxot-router ---------------------------------------------------------------------------------------------------


def _serve_router(argv: Sequence[str]) -> int:
    from auxot.router.heritage import take_heritage  # noqa: PLC0415 - see the module

    heritage = take_heritage(os.environ)
    read_config = functools.partial(load_router_config, argv, os.environ, Path.cwd())
    config = read_config()
    _start_logs(config.log_level, config.warnings)
    import trio  # noqa: PLC0415

    if config.processes > 1 and heritage is None:
        return _serve_routers(config)
    from auxot.router.service import main  # noqa: PLC0415

    return trio.run(functools.partial(main, config, read_config=read_config, heritage=heritage))


def _serve_routers(config: RouterConfig) -> int:
    """Run this same command line in several processes."""
    import trio  # noqa: PLC0415

    from auxot.router.processes import ProcessPlan, run_processes  # noqa: PLC0415

    plan = ProcessPlan(
        n_processes=config.processes,
        program=[sys.executable, *sys.orig_argv[1:]],
        host=config.host,
        port=config.port,
        patience_s=config.shutdown_delay_s + 2 * config.shutdown_grace_s,
    )
    return trio.run(run_processes, plan)


def _router_help() -> str:
    usage = (
        "auxot-router [serve] [flags]\n       auxot-router setup | models | install | list | uninstall [flags]\n"
        "       auxot-router version | help"
    )
    return flag_parser(
        RouterConfig, prog="auxot-router", usage=usage, epilog=_other_variables(RouterConfig)
    ).format_help()


def _models(argv: Sequence[str]) -> int:
    config = load_config(ModelsConfig, "auxot-router models", argv=argv, environ=os.environ, cwd=Path.cwd())
    from auxot.cli_models import show_models  # noqa: PLC0415 - see the module

    return show_models(config, _say)


def _models_help() -> str:
    return flag_parser(ModelsConfig, prog="auxot-router models", usage="auxot-router models [flags]").format_help()


def _unit_commands(daemon: str) -> dict[str, Command]:
    """Return the commands that make a daemon a service of the machine."""

    def run_it(word: str, argv: Sequence[str]) -> int:
        from auxot.units.commands import run_command  # noqa: PLC0415 - see the module

        return run_command(word, daemon, argv, _say)

    def help_of(word: str) -> str:
        from auxot.units.commands import command_help  # noqa: PLC0415

        return command_help(word, daemon)

    words = ("install", "list", "uninstall")
    return {word: Command(functools.partial(run_it, word), functools.partial(help_of, word)) for word in words}


# --- auxot-worker ---------------------------------------------------------------------------------------------------


def _serve_worker(argv: Sequence[str]) -> int:
    config = load_worker_config(argv, os.environ, Path.cwd())
    _start_logs(Level.DEBUG if config.debug else config.log_level, config.warnings)
    import trio  # noqa: PLC0415

    from auxot.worker.service import main  # noqa: PLC0415

    return trio.run(main, config)


def _worker_help() -> str:
    usage = (
        "auxot-worker [serve] [flags]\n       auxot-worker pull MODEL [flags]\n"
        "       auxot-worker llama install | build | list | find [flags]\n"
        "       auxot-worker cache list | prune [flags]\n"
        "       auxot-worker doctor | install | list | uninstall [flags]\n"
        "       auxot-worker version | help"
    )
    return flag_parser(WorkerConfig, prog="auxot-worker", usage=usage).format_help()


def _doctor(argv: Sequence[str]) -> int:
    config = load_config(DoctorConfig, "auxot-worker doctor", argv=argv, environ=os.environ, cwd=Path.cwd())
    _start_logs(Level.WARNING, config.warnings)
    import trio  # noqa: PLC0415

    from auxot.worker.doctor import Subject, examine  # noqa: PLC0415
    from auxot.worker.findings import Finding, report, show  # noqa: PLC0415

    findings: list[Finding] = []
    tell = findings.append if config.json else lambda finding: _say(show(finding))
    subject = Subject(**{name: getattr(config, name) for name in attrs.fields_dict(Subject)})
    is_well = trio.run(examine, subject, tell)
    if config.json:
        _say(report(findings))
    return 0 if is_well else EXIT_FAILED


def _doctor_help() -> str:
    return flag_parser(DoctorConfig, prog="auxot-worker doctor").format_help()


# --- auxot ----------------------------------------------------------------------------------------------------------


def _demo(argv: Sequence[str]) -> int:
    config = load_config(DemoConfig, "auxot demo", argv=argv, environ=os.environ, cwd=Path.cwd())
    _start_logs(config.log_level, config.warnings)
    import trio  # noqa: PLC0415

    from auxot.demo.service import run_demo  # noqa: PLC0415

    return trio.run(functools.partial(run_demo, config, out=_say))


def _up(argv: Sequence[str]) -> int:
    config = load_up_config(argv, os.environ, Path.cwd())
    _start_logs(config.log_level, config.warnings)
    import trio  # noqa: PLC0415

    from auxot.demo.service import run_up  # noqa: PLC0415

    return trio.run(functools.partial(run_up, config, out=_say))


def _bench(argv: Sequence[str]) -> int:
    config = load_config(BenchConfig, "auxot bench", argv=argv, environ=os.environ, cwd=Path.cwd())
    import trio  # noqa: PLC0415

    from auxot.bench.service import run_bench  # noqa: PLC0415

    return trio.run(functools.partial(run_bench, config, out=_say, note=_complain))


def _bench_help() -> str:
    return flag_parser(
        BenchConfig, prog="auxot bench", usage="auxot bench [flags]", epilog=_other_variables(BenchConfig)
    ).format_help()


def _demo_help() -> str:
    return flag_parser(DemoConfig, prog="auxot demo", usage="auxot demo [--serve] [flags]").format_help()


def _up_help() -> str:
    return flag_parser(UpConfig, prog="auxot up", usage="auxot up --model-path FILE [flags]").format_help()


def _quietly(run: Callable[[Sequence[str], Callable[[object], None]], int]) -> Callable[[Sequence[str]], int]:
    """Return a command that shows what it does itself: of the log only what somebody must look at."""

    def command(argv: Sequence[str]) -> int:
        logs.configure(level=Level.WARNING)
        return run(argv, _say)

    return command


def _other_variables(cls: type) -> str:
    """Return the part of a help text that tells the variables without a flag."""
    lines = [f"  {row.variable:<24} {row.help}" for row in rows(cls) if not row.flag]
    return "\n".join(["variables without a flag, in the environment or in ./.env:", *lines])


ROUTER = Program(
    name="auxot-router",
    commands={
        "serve": Command(_serve_router, _router_help),
        "models": Command(_models, _models_help),
        "setup": Command(lambda argv: cli_setup.run_setup(argv, _say), cli_setup.setup_help),
        **_unit_commands("router"),
    },
    default="serve",
    help=_router_help,
)
WORKER = Program(
    name="auxot-worker",
    commands={
        "serve": Command(_serve_worker, _worker_help),
        "pull": Command(_quietly(cli_fetch.pull), cli_fetch.pull_help),
        "llama": Command(_quietly(cli_fetch.llama), cli_fetch.llama_help),
        "cache": Command(_quietly(cli_fetch.cache), cli_fetch.cache_help),
        "doctor": Command(_doctor, _doctor_help),
        **_unit_commands("worker"),
    },
    default="serve",
    help=_worker_help,
)
AUXOT = Program(
    name="auxot",
    commands={
        "demo": Command(_demo, _demo_help),
        "up": Command(_up, _up_help),
        "bundle": Command(_quietly(cli_fetch.bundle), cli_fetch.bundle_help),
        "bench": Command(_bench, _bench_help),
    },
    default=None,
    help=lambda: _AUXOT_HELP,
)
