"""From the router's policy to what llama-server is started with: everything that it takes is here afterwards.

plan -> llama-server: found, or a release, or built -> the model's files: found, or downloaded
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import attrs
import trio

from auxot.core.errors import LlamaError
from auxot.core.logs import get_logger
from auxot.core.messages import Policy
from auxot.core.models.entries import Registry
from auxot.core.models.fit import Shape, describe
from auxot.core.models.lookup import Choice
from auxot.core.sites import NO_RELEASE
from auxot.worker.cache import mark_used
from auxot.worker.devices import DeviceKind, Host
from auxot.worker.fetch.hub import Hub
from auxot.worker.fetch.models import ModelPaths, fetch_model
from auxot.worker.fetch.releases import Release
from auxot.worker.groups import AUTO, named
from auxot.worker.llama.binary import find_llama_server
from auxot.worker.llama.build import Backend, build_llama_server
from auxot.worker.llama.devices import list_devices, names_of
from auxot.worker.llama.install import has_release, install_llama_server
from auxot.worker.machine import backend, computing_gpus
from auxot.worker.plan import Plan, make_plan, refitted
from auxot.worker.progress import Progress

_BUILDS = {DeviceKind.CUDA: Backend.CUDA, DeviceKind.VULKAN: Backend.VULKAN, DeviceKind.METAL: Backend.METAL}

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
        replicas: how many llama-servers; AUTO: worked out.
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
    replicas: int = AUTO


@attrs.frozen(kw_only=True)
class Prepared:
    """What llama-servers are started with; `devices`: the GPUs of each, as it calls them."""

    binary: Path
    model: ModelPaths
    shape: Shape
    devices: tuple[tuple[str, ...], ...] = ((),)


async def prepare(supplies: Supplies, policy: Policy, host: Host) -> Prepared:
    """Get everything ready that a policy takes; may download for hours.

    Cancel-safe: what has come stays, for the next try.

    Args:
        supplies: what there is.
        policy: what the router asks for.
        host: with what is free on it while no llama-server of ours runs.

    Raises:
        ConfigError: the model is not known, or does not fit; says what would.
        FetchError: something cannot be downloaded.
        LlamaError: there is no llama-server for this machine.
    """
    plan = await _planned(supplies, policy, host)
    _log_plan(plan)
    with Progress() as report:
        binary = await ensure_llama_server(supplies, backend(host), report)
        paths = await _model(supplies, plan, report)
    final = await _planned_again(supplies, plan, paths.model, host)
    if final is not plan:
        _log_plan(final)
    devices = await _devices(final, host, binary, replicas=supplies.replicas)
    return Prepared(binary=binary, model=paths, shape=final.shape, devices=devices)


async def _planned(supplies: Supplies, policy: Policy, host: Host) -> Plan:
    """Make the plan, in a thread: a model's header is a matter of some 0.2 s, and of a disk that may be far away."""
    return await trio.to_thread.run_sync(
        partial(
            make_plan,
            policy,
            host,
            registry=supplies.registry,
            model_path=supplies.model_path,
            memory_bytes=supplies.memory_bytes,
            cache_type=supplies.cache_type,
            replicas=supplies.replicas,
        ),
        abandon_on_cancel=True,
    )


async def _planned_again(supplies: Supplies, plan: Plan, path: Path, host: Host) -> Plan:
    """Look into a model that has come: its header may say what the registry did not know."""
    again = partial(
        refitted,
        plan,
        path,
        host,
        registry=supplies.registry,
        memory_bytes=supplies.memory_bytes,
        replicas=supplies.replicas,
    )
    return await trio.to_thread.run_sync(again, abandon_on_cancel=True)


async def ensure_llama_server(supplies: Supplies, kind: DeviceKind, report: Progress) -> Path:
    """Return a llama-server: the one that is there, a release, or one built here where there is no release."""
    try:
        return find_llama_server(given=supplies.binary, cache_dir=supplies.llama_cache_dir)
    except LlamaError:
        if supplies.binary is not None or supplies.release.tag == NO_RELEASE:
            raise
    if has_release(kind.value):
        return await install_llama_server(
            cache_dir=supplies.llama_cache_dir, release=supplies.release, gpu=kind.value, report=report
        )
    return await build_llama_server(
        cache_dir=supplies.llama_cache_dir,
        backend=_BUILDS.get(kind, Backend.CPU),
        report=report,
    )


async def _model(supplies: Supplies, plan: Plan, report: Progress) -> ModelPaths:
    """Return where the model is; downloads what is missing of it."""
    if isinstance(plan.model, Path):
        return ModelPaths(model=plan.model)
    paths = await fetch_model(plan.model, models_dir=supplies.models_dir, hub=supplies.hub, report=report)
    mark_used(paths.model)
    return paths


async def _devices(plan: Plan, host: Host, binary: Path, *, replicas: int) -> tuple[tuple[str, ...], ...]:
    """Return the GPUs of each llama-server, as it calls them; one alone takes all that it finds.

    Raises:
        LlamaError: the operator wants several, and it does not say what it calls them.
    """
    models = [gpu.name for gpu in computing_gpus(host)]
    if len(plan.groups) == 1:
        _log.info("model.spread", replicas=1, gpus=models)
        return ((),)
    try:
        names = names_of(await list_devices(binary), models) if models else ()
    except LlamaError as exc:
        if replicas != AUTO:
            raise
        _log.warning("model.spread", replicas=1, gpus=models, reason=str(exc))
        return ((),)
    devices = named(plan.groups, names)
    _log.info("model.spread", replicas=len(devices), gpus=models, devices=devices)
    return devices


def _log_plan(plan: Plan) -> None:
    if plan.measured is None:
        return
    is_whole = plan.shape == plan.wanted
    log = _log.info if is_whole else _log.warning
    log(
        "model.fits" if is_whole else "model.dialled_down",
        **_names(plan.model),
        memory_bytes=plan.measured.memory_bytes,
        need=describe(plan.measured.need),
        ctx_tokens=plan.shape.ctx_tokens,
        slots=plan.shape.slots,
        wanted_ctx_tokens=plan.wanted.ctx_tokens,
        wanted_slots=plan.wanted.slots,
    )


def _names(model: Choice | Path) -> dict[str, str]:
    if isinstance(model, Path):
        return {"model": model.name}
    return {"model": model.model.name, "quantization": model.variant.quantization}
