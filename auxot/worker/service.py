"""The GPU worker as a program: its configuration becomes a `Worker`, which runs until it is told to stop.

    worker main
    |- signals: the first TERM or INT sets `quiet`, the second cancels everything
    '- Worker.run: see `supervise`

A service manager that listens is told when the worker serves for the first time, what it does, and that it lives.

Stopping in order takes at most DRAIN_GRACE_S for the running jobs and 12 s more, also when llama-server ignores TERM.
"""

from __future__ import annotations

import math
import os
import signal
from collections.abc import AsyncIterator

import attrs
import trio

from auxot.config import WorkerConfig
from auxot.core.background import background
from auxot.core.errors import ConfigError, LlamaError
from auxot.core.link import LinkSettings, normalise_router_url
from auxot.core.logs import get_logger
from auxot.core.messages import Policy
from auxot.core.models.cache_types import DEFAULT_CACHE_TYPE
from auxot.core.models.entries import load_registry
from auxot.core.notify import Notifier, take_notifier
from auxot.core.sites import NO_RELEASE
from auxot.worker.crew import Prepare
from auxot.worker.devices import Host
from auxot.worker.fetch.hub import Hub
from auxot.worker.fetch.releases import Release
from auxot.worker.groups import start_of
from auxot.worker.llama.argv import LlamaSettings
from auxot.worker.llama.binary import find_llama_server
from auxot.worker.llama.http import parse_llama_url
from auxot.worker.llama.server import open_llama
from auxot.worker.llama.socket_folder import socket_in_folder
from auxot.worker.machine import look_at_host
from auxot.worker.prepare import Prepared, Supplies, prepare
from auxot.worker.replica import READY_TIMEOUT_S, Care, Start
from auxot.worker.supervise import Worker, WorkerSettings

_SHOW_LLAMA_OUTPUT = 2  # the value of --debug

_log = get_logger()


async def main(config: WorkerConfig) -> int:
    """Serve until a signal: the first TERM or INT stops in order, the second at once.

    Returns:
        The exit code: 0 after an orderly stop, 1 after a second signal.

    Raises:
        ConfigError, KeyRefusedError, LlamaError: as `serve`.
    """
    quiet, report = trio.Event(), Report(take_notifier(os.environ))
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals, trio.CancelScope() as serving:
        async with background() as main_nursery:
            main_nursery.start_soon(_obey_signals, signals, quiet, serving)
            main_nursery.start_soon(report.notifier.run, lambda: report.status)
            await serve(config, quiet=quiet, report=report)
    return 1 if serving.cancelled_caught else 0


async def serve(
    config: WorkerConfig,
    *,
    quiet: trio.Event | None = None,
    report: Report | None = None,
    task_status: trio.TaskStatus[str | None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Be a GPU worker until `quiet` is set. Cancelling stops at once; llama-server is still ended in order.

    Args:
        config: the worker's settings.
        quiet: set it to stop in order.
        report: tells a service manager.
        task_status: `started` is called with the worker's id when it takes jobs for the first time.

    Raises:
        ConfigError: the settings, or what the router asks for, cannot work.
        KeyRefusedError: the router does not accept the key.
        FetchError: model or llama-server cannot be downloaded.
        LlamaError: there is no llama-server, it does not start, or it died too often.
    """
    report = report or Report(Notifier())
    worker = Worker(attrs.evolve(worker_settings(config), tell=report.tell))

    async def report_start() -> None:
        await worker.started.wait()
        report.notifier.ready(report.status)
        task_status.started(worker.worker_id)

    async with background() as worker_nursery:
        worker_nursery.start_soon(report_start)
        if quiet is not None:
            worker_nursery.start_soon(report.stopping_on, quiet)
            worker_nursery.start_soon(worker.stop_on, quiet, worker_nursery.cancel_scope)
        await worker.run()
    _log.info("worker.stopped")


@attrs.define
class Report:
    """What the worker does now, and who is told of it: a service manager, if there is one."""

    notifier: Notifier
    status: str = "starting"

    def tell(self, status: str) -> None:
        """Note what the worker does now, and say it at once."""
        self.status = status
        self.notifier.say(status)

    async def stopping_on(self, quiet: trio.Event) -> None:
        """Say that the worker has begun to stop, when it does."""
        await quiet.wait()
        self.status = "running jobs may end"
        self.notifier.stopping(self.status)


def worker_settings(config: WorkerConfig) -> WorkerSettings:
    """Turn the configuration into what the worker's parts take; everything that can be checked now is checked.

    Raises:
        ConfigError: a router URL or a registry that is none, or no folder for llama-server's socket.
        LlamaError: there is no llama-server, and none is to be downloaded.
    """
    link = LinkSettings(url=normalise_router_url(config.router_url), heartbeat_interval_s=config.heartbeat_interval_s)
    return WorkerSettings(
        link=link,
        gpu_key=config.gpu_key,
        prepare=_preparer(config),
        open_llama=open_llama,
        care=_care(config),
        job_timeout_s=config.job_timeout_s,
        reconnect_delay_s=config.reconnect_delay_s,
        reconnect_max_delay_s=config.reconnect_max_delay_s,
    )


def _care(config: WorkerConfig) -> Care:
    return Care(
        ready_timeout_s=math.inf if config.llama_url is not None else READY_TIMEOUT_S,
        wedge_timeout_s=config.wedge_timeout_s,
        max_growth_bytes=config.max_growth,
        recycle_grace_s=config.job_timeout_s,
    )


def _preparer(config: WorkerConfig) -> Prepare:
    """Return what gets everything ready for a policy: nothing for an external llama-server."""
    if config.llama_url is not None:
        address = parse_llama_url(config.llama_url)

        async def use_external(_: Policy) -> tuple[Start, ...]:
            await trio.lowlevel.checkpoint()
            return (address,)

        return use_external
    supplies = _supplies(config)
    host: Host | None = None

    async def get_ready(policy: Policy) -> tuple[Start, ...]:
        nonlocal host  # as it is before the first llama-server: the next one gets the memory of the one before
        host = host or await look_at_host()
        prepared = await prepare(supplies, policy, host)
        return _starts(config, prepared, host)

    return get_ready


def _supplies(config: WorkerConfig) -> Supplies:
    """Gather what `prepare` needs; what is wrong with it now is found now."""
    _require_socket_folder()
    if config.llama_binary is not None or config.llama_release == NO_RELEASE:
        find_llama_server(given=config.llama_binary, cache_dir=config.llama_cache_dir)
    return Supplies(
        model_path=config.model_path,
        binary=config.llama_binary,
        registry=load_registry(config.registry_file),
        models_dir=config.models_dir,
        llama_cache_dir=config.llama_cache_dir,
        hub=Hub(endpoint=config.hf_endpoint, token=config.hf_token),
        release=Release(tag=config.llama_release, site=config.llama_releases_url, token=config.github_token),
        memory_bytes=config.memory,
        cache_type=config.cache_type,
        replicas=config.replicas,
    )


def _require_socket_folder() -> None:
    try:
        with socket_in_folder():
            pass
    except LlamaError as exc:  # nothing that another try would mend
        raise ConfigError(str(exc)) from exc


def _starts(config: WorkerConfig, prepared: Prepared, host: Host) -> tuple[LlamaSettings, ...]:
    settings, n_groups = _llama_settings(config, prepared), len(prepared.devices)
    return tuple(start_of(settings, devices, n_groups=n_groups, n_cpus=host.n_cpus) for devices in prepared.devices)


def _llama_settings(config: WorkerConfig, prepared: Prepared) -> LlamaSettings:
    return LlamaSettings(
        binary=prepared.binary,
        model=prepared.model.model,
        mmproj=prepared.model.projector,
        slot_ctx_tokens=prepared.shape.ctx_tokens,
        slots=prepared.shape.slots,
        threads=config.threads,
        gpu_layers=config.gpu_layers,
        cache_type="" if config.cache_type == DEFAULT_CACHE_TYPE else config.cache_type,
        shows_output=config.debug >= _SHOW_LLAMA_OUTPUT,
    )


async def _obey_signals(signals: AsyncIterator[int], quiet: trio.Event, serving: trio.CancelScope) -> None:
    async for number in signals:
        _log.info("worker.signal", signal=signal.Signals(number).name, is_second=quiet.is_set())
        if quiet.is_set():
            serving.cancel()
        quiet.set()
