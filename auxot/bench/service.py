"""`auxot bench`: run the loads against a router of its own, and against another gateway, and print the table.

    this process: clients  -->  router process   -->  far end process: made-up workers
                           -->  the other gateway -->  far end process: made-up OpenAI back end

Three processes, so that what is measured is not disturbed by what measures it; on fewer cores than that trust the CPU
time more than the delays.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import orjson

from auxot.bench.clients import run_clients
from auxot.bench.far_end import far_end
from auxot.bench.load import LOADS, Figures, Load, Samples, figures, table
from auxot.bench.process import BenchError, Target, cpu_s, rss_mib, running_router
from auxot.config_local import BenchConfig
from auxot.core.errors import ConfigError, first_error

EXIT_WRONG = 1
_QUICK = 0.1
_NO_GATEWAY = "--compare: expected http://HOST:PORT[/PATH]; the gateway's key is AUXOT_BENCH_COMPARE_KEY"

Out = Callable[[str], None]


async def run_bench(config: BenchConfig, *, out: Out, note: Out) -> int:
    """Measure, print, and return the exit code: 1 when a token or an answer was missing.

    Args:
        config: what to measure.
        out: prints the outcome.
        note: tells what goes on meanwhile.

    Raises:
        ConfigError: a load that is unknown, or a gateway's address that is none.
        BenchError: it cannot be measured.
    """
    loads = chosen_loads(config.only, share=_QUICK if config.quick else 1.0)
    other = gateway(config) if config.compare else None
    rows = [await _measure_own(config, load, note) for load in loads]
    other_rows = [await _measure(other, load, note) for load in loads] if other else []
    if config.json:
        out(orjson.dumps(_report(rows, other_rows), option=orjson.OPT_INDENT_2).decode())
    else:
        out(table(rows))
        if other_rows:
            out(f"\n{config.compare}\n{table(other_rows)}")
    return EXIT_WRONG if any(row.n_wrong or row.n_failed for row in [*rows, *other_rows]) else 0


def chosen_loads(names: Sequence[str], *, share: float) -> list[Load]:
    """Return the loads of these names, or all.

    Raises:
        ConfigError: there is none of that name.
    """
    known = {load.name: load for load in LOADS}
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(f"--only: unknown load {unknown[0]!r}; there are {', '.join(known)}")
    return [known[name].shortened(share) for name in names or known]


def gateway(config: BenchConfig) -> Target:
    """Return the other gateway as a target.

    Raises:
        ConfigError: its address is none, or needs TLS.
    """
    try:
        parts = urlsplit(config.compare)
        host, port, path = parts.hostname, parts.port or 80, parts.path.rstrip("/") or "/v1"
    except ValueError as exc:
        raise ConfigError(_NO_GATEWAY) from exc
    if not host or parts.username:
        raise ConfigError(_NO_GATEWAY)
    return Target(
        host=host,
        port=port,
        path=f"{path}/chat/completions",
        model=config.compare_model,
        api_key=config.compare_key,
        backend=("127.0.0.1", config.backend_port),
        pid=config.compare_pid or None,
    )


async def _measure_own(config: BenchConfig, load: Load, note: Out) -> Figures:
    """Measure a load with a fresh router: one may remember what it has seen."""
    environ = {"AUXOT_REDIS_URL": config.redis_url} if config.redis_url else {}
    with tempfile.TemporaryDirectory(prefix="auxot-bench-") as folder:
        async with running_router(Path(folder), environ) as target:
            return await _measure(target, load, note)


async def _measure(target: Target, load: Load, note: Out) -> Figures:
    note(f"measuring {'a gateway' if target.backend else 'auxot-router'}: {load.title}")
    samples = Samples()
    try:
        async with far_end(target, load, samples.far):
            await run_clients(target, load.warm_up(), Samples())
            began, before_s = time.monotonic(), _cpu_s(target)
            await run_clients(target, load, samples)
            elapsed_s, after_s = time.monotonic() - began, _cpu_s(target)
            memory = rss_mib(target.pid) if target.pid else None
    except* BenchError as group:
        raise BenchError(str(first_error(group))) from group
    del samples.far.dispatch_us[: load.warm_up().requests]
    return figures(
        load,
        samples,
        elapsed_s=elapsed_s,
        cpu_s=None if before_s is None or after_s is None else after_s - before_s,
        rss_mib=memory,
    )


def _cpu_s(target: Target) -> float | None:
    return cpu_s(target.pid) if target.pid else None


def _report(rows: Sequence[Figures], other_rows: Sequence[Figures]) -> dict[str, object]:
    report: dict[str, object] = {"auxot": [row.as_dict() for row in rows]}
    return report | ({"other": [row.as_dict() for row in other_rows]} if other_rows else {})
