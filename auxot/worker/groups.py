"""Which GPUs each llama-server of a host gets: one over all of them, or several beside each other. Pure.

    one over all         a model that does not fit on one GPU: its layers are spread
    one a GPU            a model that does: as many times the slots, and no step waits for another GPU
    several on the CPU   where the operator wants that; they share its threads

GPUs are dealt out by their places among those that compute. What llama-server calls them depends on what it was built
for: see `llama.devices`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import attrs

from auxot.worker.devices import Device
from auxot.worker.llama.argv import LlamaSettings

AUTO = 0  # replicas: worked out from the memory

Group = tuple[int, ...]


def groups_of(n_gpus: int, n: int) -> tuple[Group, ...]:
    """Deal GPUs out to `n` llama-servers; where there are fewer, they are shared. Without GPUs all groups are empty."""
    if n <= n_gpus:
        return tuple(tuple(range(first, n_gpus, n)) for first in range(n))
    return tuple((number % n_gpus,) if n_gpus else () for number in range(n))


def named(groups: Sequence[Group], names: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Return the groups with the GPUs' names; llama-server may know of fewer GPUs than their drivers, or of none."""
    if not names:
        return ((),) * len(groups)
    return tuple(tuple(dict.fromkeys(names[place % len(names)] for place in group)) for group in groups)


def smallest_room(gpus: Sequence[Device], n: int, memory_bytes: int) -> int:
    """Return the bytes that each of `n` llama-servers can have; of unequal GPUs the smallest counts.

    Args:
        gpus: those that compute.
        n: how many llama-servers.
        memory_bytes: of the host, for those that share it.
    """
    if not gpus or any(gpu.is_shared or not gpu.total_bytes for gpu in gpus):
        return memory_bytes // n
    n_on_one = math.ceil(n / len(gpus))
    return min(sum(gpus[place].free_bytes for place in group) // n_on_one for group in groups_of(len(gpus), n))


def start_of(settings: LlamaSettings, devices: tuple[str, ...], *, n_groups: int, n_cpus: int) -> LlamaSettings:
    """Return what one of several llama-servers is started with.

    Args:
        settings: what all of them have in common.
        devices: its GPUs, as llama-server calls them; none: it is to take what it finds.
        n_groups: how many there are.
        n_cpus: of the host; shared if the operator says nothing and there is no GPU.
    """
    if n_groups == 1:
        return settings
    if devices:
        return attrs.evolve(settings, devices=devices)
    return attrs.evolve(settings, threads=settings.threads or max(1, n_cpus // n_groups))
