"""From the router's policy to what is to be served on this host: which model, and does it fit.

A file that the operator gives goes before everything, and is not measured: llama-server itself adjusts to memory.
A start and `auxot-worker doctor` both ask here, so that they say the same.
"""

from __future__ import annotations

from pathlib import Path

import attrs

from auxot.core.errors import ConfigError
from auxot.core.messages import Policy
from auxot.core.models.entries import IMAGE_GENERATION, Registry, shards
from auxot.core.models.fit import Need, Shape, fit, refusal
from auxot.core.models.lookup import Choice, resolve, unknown_model
from auxot.worker.devices import Host
from auxot.worker.groups import AUTO, Group, groups_of, smallest_room
from auxot.worker.machine import computing_gpus, model_memory

_MAX_SHOWN = 5


@attrs.frozen(kw_only=True)
class Measured:
    """How a model fits: what one llama-server takes in the shape that is served, and how many bytes it can have."""

    need: Need
    memory_bytes: int


@attrs.frozen(kw_only=True)
class Plan:
    """What is to be served.

    Attributes:
        model: of the registry or of a site; or a file on this machine, all parts of which are there.
        shape: what is served of the wanted one.
        wanted: what the router asks for.
        measured: None where nobody knows: files of this machine, and hosts that do not tell their memory.
        groups: of each llama-server the places of its GPUs; one without any takes what it finds.
    """

    model: Choice | Path
    shape: Shape
    wanted: Shape
    measured: Measured | None = None
    groups: tuple[Group, ...] = ((),)


def make_plan(
    policy: Policy,
    host: Host,
    *,
    registry: Registry,
    model_path: Path | None,
    memory_bytes: int,
    cache_type: str,
    replicas: int = AUTO,
) -> Plan:
    """Work out what of a policy this host serves.

    Args:
        policy: what the router asks for.
        host: with what is free on it now.
        registry: of models.
        model_path: the operator's file, in place of what the router asks for.
        memory_bytes: what the operator lets a model take; 0: what is free.
        cache_type: what the KV cache keeps its numbers in.
        replicas: how many llama-servers; AUTO: one a GPU if the model, as it is asked for, fits on each, else one.

    Raises:
        ConfigError: the model is not known, or does not fit; says what would.
    """
    wanted = Shape(ctx_tokens=max(0, policy.context_size), slots=max(1, policy.max_parallelism), cache_type=cache_type)
    gpus = computing_gpus(host)
    groups = groups_of(len(gpus), replicas or 1)
    if model_path is not None:
        return Plan(model=whole(model_path), shape=wanted, wanted=wanted, groups=groups)
    model = _resolved(registry, policy)
    memory = model_memory(host)
    if isinstance(model, Path) or (memory is None and not memory_bytes):
        return Plan(model=model, shape=wanted, wanted=wanted, groups=groups)
    room = memory_bytes or (memory.free_bytes if memory else 0)

    def room_of_each(n: int) -> int:
        return room // n if memory_bytes or n == 1 else smallest_room(gpus, n, room)

    if replicas == AUTO and len(gpus) > 1 and fit(model, room_of_each(len(gpus)), wanted).shape == wanted:
        groups = groups_of(len(gpus), len(gpus))
    return _measured(registry, model, wanted, groups=groups, room=room_of_each(len(groups)))


def _measured(registry: Registry, model: Choice, wanted: Shape, *, groups: tuple[Group, ...], room: int) -> Plan:
    outcome = fit(model, room, wanted)
    if outcome.shape is None:
        raise ConfigError(refusal(registry, model, room, wanted))
    measured = Measured(need=outcome.need, memory_bytes=room)
    return Plan(model=model, shape=outcome.shape, wanted=wanted, measured=measured, groups=groups)


def whole(path: Path) -> Path:
    """Return the path of a file of this machine; ConfigError if not all parts of it are there."""
    try:
        missing = [name for name in shards(path.name) if not path.with_name(name).is_file()]
    except ValueError as exc:
        raise ConfigError(f"the model's file: {exc}") from exc
    if missing:
        raise ConfigError(f"the model's file is not whole: {path.parent} has no {', '.join(missing[:_MAX_SHOWN])}")
    return path


def _resolved(registry: Registry, policy: Policy) -> Choice | Path:
    choice = resolve(registry, policy.model_name, policy.quantization)
    if choice is None:
        unknown = unknown_model(registry, policy.model_name)
        raise ConfigError(
            f"the router asks for a model that this worker has no file of: {unknown}; --model-path gives one"
        )
    if isinstance(choice, Choice) and IMAGE_GENERATION in choice.model.capabilities:
        raise ConfigError(f"{choice.model.name} makes images, which this worker cannot")
    return whole(choice) if isinstance(choice, Path) else choice
