"""From the router's policy to what llama-server is started with: which model, does it fit, is it here.

    resolve -> fit -> llama-server: found, or a release, or built -> the model's files: found, or downloaded

A file that the operator gives goes before everything, and is not measured: llama-server itself adjusts to memory.
"""

from __future__ import annotations

from pathlib import Path

import attrs
import trio

from auxot.core.errors import ConfigError, LlamaError
from auxot.core.logs import get_logger
from auxot.core.messages import Policy
from auxot.core.models.entries import IMAGE_GENERATION, Registry, shards
from auxot.core.models.fit import Need, Shape, describe, fit, refusal
from auxot.core.models.lookup import Choice, resolve, unknown_model
from auxot.core.sites import NO_RELEASE
from auxot.worker.cache import mark_used
from auxot.worker.fetch.hub import Hub
from auxot.worker.fetch.models import ModelPaths, fetch_model
from auxot.worker.fetch.releases import Release
from auxot.worker.fetch.source import FetchProgress, Report
from auxot.worker.llama.binary import find_llama_server
from auxot.worker.llama.build import Backend, BuildProgress, build_llama_server
from auxot.worker.llama.install import has_release, install_llama_server
from auxot.worker.machine import Machine, look_at_machine

_LOG_EVERY_S = 5.0
_MAX_SHOWN = 5
_BACKENDS = {"cuda": Backend.CUDA, "vulkan": Backend.VULKAN, "metal": Backend.METAL}

_log = get_logger()


@attrs.frozen(kw_only=True)
class Supplies:
    """What the operator has given, and where the rest comes from.

    Attributes:
        model_path: the model's file; None: what the router asks for.
        binary: the llama-server; None: one that is found, or a release.
        registry: of models.
        models_dir, llama_cache_dir: where downloads are kept.
        hub, release: where they come from.
        memory_bytes: what a model may take; 0: what is free.
        cache_type: what the KV cache keeps its numbers in.
    """

    model_path: Path | None = None
    binary: Path | None = None
    registry: Registry
    models_dir: Path
    llama_cache_dir: Path
    hub: Hub
    release: Release
    memory_bytes: int = 0
    cache_type: str


@attrs.frozen(kw_only=True)
class Prepared:
    """What llama-server is started with."""

    binary: Path
    model: ModelPaths
    shape: Shape


async def prepare(supplies: Supplies, policy: Policy) -> Prepared:
    """Get everything ready that a policy takes; may download for hours.

    Cancel-safe: what has come stays, for the next try.

    Raises:
        ConfigError: the model is not known, or does not fit; says what would.
        FetchError: something cannot be downloaded.
        LlamaError: there is no llama-server for this machine.
    """
    wanted = Shape(
        ctx_tokens=max(0, policy.context_size), slots=max(1, policy.max_parallelism), cache_type=supplies.cache_type
    )
    machine = await look_at_machine()
    choice = _choose(supplies, policy)
    shape = wanted if isinstance(choice, Path) else _fitted(supplies, choice, wanted, machine)
    report = log_report()
    binary = await ensure_llama_server(supplies, machine, report)
    if isinstance(choice, Path):
        return Prepared(binary=binary, model=ModelPaths(model=choice), shape=shape)
    paths = await fetch_model(choice, models_dir=supplies.models_dir, hub=supplies.hub, report=report)
    mark_used(paths.model)
    return Prepared(binary=binary, model=paths, shape=shape)


async def ensure_llama_server(supplies: Supplies, machine: Machine, report: Report) -> Path:
    """Return a llama-server: the one that is there, a release, or one built here where there is no release."""
    try:
        return find_llama_server(given=supplies.binary, cache_dir=supplies.llama_cache_dir)
    except LlamaError:
        if supplies.binary is not None or supplies.release.tag == NO_RELEASE:
            raise
    if has_release(machine.gpu):
        return await install_llama_server(
            cache_dir=supplies.llama_cache_dir, release=supplies.release, gpu=machine.gpu, report=report
        )
    backend = _BACKENDS.get(machine.gpu, Backend.CPU)
    return await build_llama_server(
        cache_dir=supplies.llama_cache_dir, backend=backend, report=lambda step: _report_build(report, step)
    )


def log_report() -> Report:
    """Return a report that goes to the log: each step, and every 5 s how far a download is."""
    told_at = -_LOG_EVERY_S

    def report(step: FetchProgress | str) -> None:
        nonlocal told_at
        now = trio.current_time()
        if isinstance(step, str):
            _log.info("prepare.step", message=step)
        elif now - told_at >= _LOG_EVERY_S:
            told_at = now
            _log.info(
                "fetch.progress",
                file=step.name,
                doing=step.doing,
                done_bytes=step.done_bytes,
                total_bytes=step.total_bytes,
                bytes_per_s=round(step.bytes_per_s),
            )

    return report


def _choose(supplies: Supplies, policy: Policy) -> Choice | Path:
    if supplies.model_path is not None:
        return _whole(supplies.model_path)
    choice = resolve(supplies.registry, policy.model_name, policy.quantization)
    if choice is None:
        unknown = unknown_model(supplies.registry, policy.model_name)
        raise ConfigError(
            f"the router asks for a model that this worker has no file of: {unknown}; --model-path gives one"
        )
    if isinstance(choice, Choice) and IMAGE_GENERATION in choice.model.capabilities:
        raise ConfigError(f"{choice.model.name} makes images, which this worker cannot")
    return _whole(choice) if isinstance(choice, Path) else choice


def _whole(path: Path) -> Path:
    """Return the path of a file of this machine, if all parts of it are there."""
    try:
        missing = [name for name in shards(path.name) if not path.with_name(name).is_file()]
    except ValueError as exc:
        raise ConfigError(f"the model's file: {exc}") from exc
    if missing:
        raise ConfigError(f"the model's file is not whole: {path.parent} has no {', '.join(missing[:_MAX_SHOWN])}")
    return path


def _fitted(supplies: Supplies, choice: Choice, wanted: Shape, machine: Machine) -> Shape:
    """Return what of the wanted shape there is room for."""
    memory_bytes = supplies.memory_bytes or machine.free_bytes
    if not memory_bytes:
        return wanted
    outcome = fit(choice, memory_bytes, wanted)
    if outcome.shape is None:
        raise ConfigError(refusal(supplies.registry, choice, memory_bytes, wanted))
    _log_fit(choice, outcome.shape, wanted, outcome.need, memory_bytes)
    return outcome.shape


def _log_fit(choice: Choice, shape: Shape, wanted: Shape, need: Need, memory_bytes: int) -> None:
    log = _log.info if shape == wanted else _log.warning
    log(
        "model.fits" if shape == wanted else "model.dialled_down",
        model=choice.model.name,
        quantization=choice.variant.quantization,
        memory_bytes=memory_bytes,
        need=describe(need),
        ctx_tokens=shape.ctx_tokens,
        slots=shape.slots,
        wanted_ctx_tokens=wanted.ctx_tokens,
        wanted_slots=wanted.slots,
    )


def _report_build(report: Report, step: BuildProgress | str) -> None:
    if isinstance(step, str):
        report(step)
