"""What of this host a model can use: which devices llama-server will compute on, and how much memory they have free.

Where there is a GPU with memory of its own, those that share the processor's are left out, as llama.cpp does; GPUs of
two makers cannot work together, so the first kind counts, in the order of `gpus.detect`.
"""

from __future__ import annotations

import attrs
import trio

from auxot.core.logs import get_logger
from auxot.worker.devices import Device, DeviceKind, Host
from auxot.worker.gpus import detect, this_machine
from auxot.worker.memory import processor

DETECT_LIMIT_S = 15.0

_log = get_logger()


async def look_at_host() -> Host:
    """Find out what there is, within DETECT_LIMIT_S: a driver that hangs is a problem of the host like others.

    Cancel-safe; a thread that a driver holds is left to itself.
    """
    with trio.move_on_after(DETECT_LIMIT_S):
        host = await trio.to_thread.run_sync(detect, abandon_on_cancel=True)
        for problem in host.problems:
            _log.warning("gpu.unknown", reason=problem)
        return host
    problem = f"the drivers of the GPUs do not answer within {DETECT_LIMIT_S:g} s"
    _log.warning("gpu.unknown", reason=problem)
    machine = this_machine()
    return Host(gpus=(), cpu=processor(machine), n_cpus=machine.n_cpus, problems=(problem,))


def computing_gpus(host: Host) -> tuple[Device, ...]:
    """Return the GPUs that llama-server computes on together; none: it is the processor."""
    candidates = [gpu for gpu in host.gpus if not gpu.is_shared] or host.gpus
    return tuple(gpu for gpu in candidates if gpu.kind is candidates[0].kind)


def backend(host: Host) -> DeviceKind:
    """Return what llama-server has to be made for."""
    gpus = computing_gpus(host)
    return gpus[0].kind if gpus else DeviceKind.CPU


def model_memory(host: Host) -> Device | None:
    """Return the memory that a model can take, as one device; None if nobody says how much there is."""
    gpus = computing_gpus(host)
    own = [gpu for gpu in gpus if not gpu.is_shared and gpu.total_bytes]
    if own:
        total, free = sum(gpu.total_bytes for gpu in own), sum(gpu.free_bytes for gpu in own)
        return attrs.evolve(own[0], total_bytes=total, free_bytes=free)
    cpu = host.cpu if host.cpu.total_bytes else None
    shared = max((gpu for gpu in gpus if gpu.total_bytes), key=lambda gpu: gpu.total_bytes, default=None)
    if shared is None or cpu is None:
        return shared or cpu
    return attrs.evolve(shared, free_bytes=min(shared.free_bytes, cpu.free_bytes))


def all_memory(host: Host) -> int:
    """Return the bytes of all memory, used or not: the processor's, and that of the GPUs that have their own."""
    return host.cpu.total_bytes + sum(gpu.total_bytes for gpu in computing_gpus(host) if not gpu.is_shared)
