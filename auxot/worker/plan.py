"""From the router's policy to what is to be served on this host: which model, and does it fit.

A file that the operator gives goes before everything; its header says what it takes. It may take all memory that there
is, not only what is free, and that of the processor beside the GPUs': whoever gives a file may know better.

A start and `auxot-worker doctor` both ask here, so that they say the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import attrs

from auxot.core.errors import ConfigError
from auxot.core.messages import Policy
from auxot.core.models.entries import Registry
from auxot.core.models.fit import Need, Shape, fit, refusal
from auxot.core.models.gguf import GgufError
from auxot.core.models.lookup import Choice, resolve, unknown_model
from auxot.core.models.rows import IMAGE_GENERATION, part_paths
from auxot.worker.devices import Device, Host
from auxot.worker.groups import AUTO, Group, groups_of, smallest_room
from auxot.worker.local_model import choice_of_file, completed
from auxot.worker.machine import all_memory, computing_gpus, model_memory

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
        measured: None where nobody knows: files that cannot be read, and hosts that do not tell their memory.
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
    """Work out what of a policy this host serves; reads the header of a file of the operator's.

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
    model = whole(model_path) if model_path is not None else _resolved(registry, policy)
    rooms = _rooms(host, memory_bytes, is_own=isinstance(model, Path))
    return _fitted(model, wanted, rooms, registry=registry, replicas=replicas)


def refitted(
    plan: Plan, path: Path, host: Host, *, registry: Registry, memory_bytes: int, replicas: int = AUTO
) -> Plan:
    """Return the plan for a model that has come meanwhile; it changes only if the registry did not know its cache.

    Args:
        plan: made before the download.
        path: the model's file.
        host: as for `make_plan`, like the rest.
        registry: of models.
        memory_bytes: what the operator lets a model take; 0: what is free.
        replicas: how many llama-servers.

    Raises:
        ConfigError: it does not fit, as is known only now.
    """
    if isinstance(plan.model, Path) or plan.model.model.attention is not None:
        return plan
    rooms = _rooms(host, memory_bytes, is_own=False)
    return _fitted(completed(plan.model, path), plan.wanted, rooms, registry=registry, replicas=replicas)


@attrs.frozen(kw_only=True)
class _Rooms:
    """The bytes that there are for a model, the best first; none if nobody knows. `shared`: not one GPU's alone."""

    gpus: Sequence[Device]
    of_all: Sequence[int]
    is_shared: bool

    def of_each(self, n: int) -> list[int]:
        """Return what each of `n` llama-servers can have."""
        if self.is_shared or n == 1:
            return [room // n for room in self.of_all]
        free, *rest = self.of_all
        return [smallest_room(self.gpus, n, free), *(room // n for room in rest)]


def _rooms(host: Host, memory_bytes: int, *, is_own: bool) -> _Rooms:
    gpus, memory = computing_gpus(host), model_memory(host)
    if memory_bytes or memory is None:
        return _Rooms(gpus=gpus, of_all=[memory_bytes] if memory_bytes else [], is_shared=True)
    of_all = [memory.free_bytes, *([all_memory(host)] if is_own else [])]
    return _Rooms(gpus=gpus, of_all=of_all, is_shared=False)


def _fitted(model: Choice | Path, wanted: Shape, rooms: _Rooms, *, registry: Registry, replicas: int) -> Plan:
    n_gpus = len(rooms.gpus)
    groups = groups_of(n_gpus, replicas or 1)
    choice = _readable(model) if isinstance(model, Path) else model
    if choice is None or not rooms.of_all:
        return Plan(model=model, shape=wanted, wanted=wanted, groups=groups)
    if replicas == AUTO and n_gpus > 1 and fit(choice, rooms.of_each(n_gpus)[0], wanted).shape == wanted:
        groups = groups_of(n_gpus, n_gpus)
    each = rooms.of_each(len(groups))
    for room in each:
        outcome = fit(choice, room, wanted)
        if outcome.shape is not None:
            measured = Measured(need=outcome.need, memory_bytes=room)
            return Plan(model=model, shape=outcome.shape, wanted=wanted, measured=measured, groups=groups)
    raise ConfigError(refusal(registry, choice, each[-1], wanted))


def _readable(path: Path) -> Choice | None:
    """Return what a file holds; None if that cannot be read: llama-server will say what is wrong with it."""
    try:
        return choice_of_file(path)
    except (GgufError, OSError):
        return None


def whole(path: Path) -> Path:
    """Return the path of a file of this machine; ConfigError if not all parts of it are there."""
    try:
        missing = [part.name for part in part_paths(path) if not part.is_file()]
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
