"""The doctor's look at the model: is it known, does it fit, is it here or is there room for it?

What the router asks for is planned as a start does it; nothing is downloaded.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from auxot.core.errors import ConfigError
from auxot.core.messages import Policy
from auxot.core.models.entries import load_registry
from auxot.core.models.fit import describe, weight_bytes
from auxot.core.models.lookup import Choice
from auxot.core.models.rows import part_paths
from auxot.core.sizes import show_bytes
from auxot.worker.devices import Host
from auxot.worker.fetch.models import folder_of, missing_files
from auxot.worker.fetch.part_file import allocated_bytes
from auxot.worker.findings import Finding, Verdict
from auxot.worker.groups import AUTO
from auxot.worker.machine import computing_gpus, model_memory
from auxot.worker.plan import Plan, make_plan, whole

_GGUF = b"GGUF"
_OTHER_FILE = "correct --model-path, or take a smaller quantization"


def check_file(path: Path, host: Host) -> Finding:
    """Look at a model's files on this machine, and whether there is the memory for them, whatever is served."""
    try:
        n_bytes = sum(part.stat().st_size for part in part_paths(whole(path)))
        with path.open("rb") as stream:
            is_gguf = stream.read(len(_GGUF)) == _GGUF
    except ConfigError as exc:
        return Finding("model", Verdict.FAIL, str(exc), "correct --model-path")
    except OSError as exc:
        return Finding("model", Verdict.FAIL, f"{exc.filename or path}: {exc.strerror}", "correct --model-path")
    if not is_gguf:
        return Finding("model", Verdict.FAIL, f"{path} is no GGUF file", "download it again, or convert it")
    return _fit_of_file(path, n_bytes, host)


def check_policy(
    policy: Policy,
    host: Host,
    *,
    model_path: Path | None,
    registry_file: Path | None,
    memory_bytes: int,
    cache_type: str,
    models_dir: Path,
    replicas: int = AUTO,
) -> Finding:
    """Look at what is served for the router's policy; arguments as `make_plan`."""
    try:
        plan = make_plan(
            policy,
            host,
            registry=load_registry(registry_file),
            model_path=model_path,
            memory_bytes=memory_bytes,
            cache_type=cache_type,
            replicas=replicas,
        )
    except ConfigError as exc:
        advice = "change AUXOT_MODEL or AUXOT_QUANTIZATION of the router" if model_path is None else _OTHER_FILE
        return Finding("model", Verdict.FAIL, str(exc), advice)
    if not isinstance(plan.model, Path):
        return _of_choice(plan, plan.model, models_dir)
    return check_file(plan.model, host) if plan.measured is None else _of_file(plan, plan.model, host)


def room_at(folder: Path) -> tuple[Path, int]:
    """Return the folder, or of those above it the first that is there, and the bytes that are free on its disk."""
    there = next((path for path in (folder, *folder.parents) if path.exists()), Path("/"))
    return there, shutil.disk_usage(there).free


def _of_choice(plan: Plan, choice: Choice, models_dir: Path) -> Finding:
    text = f"{choice.model.name} {choice.variant.quantization}".rstrip() + _measure(plan)
    n_bytes, download = _download(choice, models_dir)
    _, free = room_at(models_dir)
    if n_bytes > free:
        text += f"; {download}, {models_dir} has room for {show_bytes(free)}"
        return Finding("model", Verdict.FAIL, text, "make room, or choose another disk with --models-dir")
    return _served(plan, f"{text}; {download}" if download else text)


def _of_file(plan: Plan, path: Path, host: Host) -> Finding:
    text, free = path.name + _measure(plan), model_memory(host)
    if plan.measured and computing_gpus(host) and free and plan.measured.need.total > free.free_bytes:
        text += f"; {show_bytes(free.free_bytes)} are free on GPUs"
        return Finding("model", Verdict.WARN, text, "a part runs on the processor, and is slow")
    return _served(plan, text)


def _measure(plan: Plan) -> str:
    if plan.measured is None:
        return ""
    return f": {describe(plan.measured.need)} of {show_bytes(plan.measured.memory_bytes)}"


def _served(plan: Plan, text: str) -> Finding:
    """Tell whether all is served that the router asks for."""
    if plan.shape == plan.wanted:
        return Finding("model", Verdict.OK, text)
    text += (
        f"; slots that there is room for: {plan.shape.slots} of {plan.shape.ctx_tokens} tokens,"
        f" that the router asks for: {plan.wanted.slots} of {plan.wanted.ctx_tokens}"
    )
    advice = "AUXOT_CACHE_TYPE=q8_0 halves the KV cache; a smaller AUXOT_QUANTIZATION leaves more room"
    return Finding("model", Verdict.WARN, text, advice)


def _download(choice: Choice, models_dir: Path) -> tuple[int, str]:
    """Return how many bytes of a model are still to come (where sizes are not known: about), and words for it."""
    missing = missing_files(choice, models_dir)
    if not missing:
        return 0, ""
    folder = folder_of(choice, models_dir)
    n_bytes = sum(max(0, (file.size_bytes or 0) - allocated_bytes(folder / file.path)) for file in missing)
    if all(file.size_bytes for file in missing):
        return n_bytes, f"to be downloaded: {show_bytes(n_bytes)}"
    estimate = max(n_bytes, weight_bytes(choice.model, choice.variant))
    return estimate, f"to be downloaded: about {show_bytes(estimate)}" if estimate else "to be downloaded"


def _fit_of_file(path: Path, n_bytes: int, host: Host) -> Finding:
    gpus = computing_gpus(host)
    own = sum(gpu.total_bytes for gpu in gpus if not gpu.is_shared)
    on_gpus, everything = sum(gpu.total_bytes for gpu in gpus), own + host.cpu.total_bytes
    text = f"{path.name}: {show_bytes(n_bytes)} of weights"
    if n_bytes > everything > 0:
        text += f", {show_bytes(everything)} of memory"
        return Finding("model", Verdict.FAIL, text, "take a smaller quantization")
    if n_bytes > on_gpus > 0:
        text += f", {show_bytes(on_gpus)} on GPUs"
        return Finding("model", Verdict.WARN, text, "a part runs on the processor, and is slow")
    return Finding("model", Verdict.OK, text)
