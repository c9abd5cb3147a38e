"""`auxot-worker doctor`: does this host have everything that a worker needs? Each check says what to do.

The checks do what a start does: the key is shown to the router, llama-server is run. Nothing is changed, and the router
sees a worker that asks for its policy and leaves. All of it takes at most about a minute, whoever does not answer.
"""

from __future__ import annotations

import enum
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import attrs
import orjson
import trio

from auxot.core.errors import AuxotError, ConfigError, KeyRefusedError, LinkError, LlamaError
from auxot.core.keys import Role, has_key_shape, redact
from auxot.core.link import LinkSettings, normalise_router_url, open_link
from auxot.core.messages import PENDING_BACKEND, Capabilities, Hello, Policy
from auxot.worker.devices import GIB, Device, DeviceKind, Host, show_bytes
from auxot.worker.gpus import detect
from auxot.worker.llama.binary import find_llama_server, llama_server_version
from auxot.worker.llama.http import parse_llama_url

ROUTER_TIMEOUT_S = 20.0
LLAMA_TIMEOUT_S = 20.0
LOW_DISK_BYTES, LOW_MEMORY_BYTES = 5 * GIB, 2 * GIB
_GGUF = b"GGUF"
_SHARD = re.compile(r"(?P<stem>.+)-\d{5}-of-(?P<n>\d{5})\.gguf")
_LISTED = re.compile(r"^  (?P<id>\w+): (?P<name>.+) \((?P<total>\d+) MiB, (?P<free>\d+) MiB free\)$", re.MULTILINE)
_HOW_TO_BUILD = {
    DeviceKind.CUDA: "cuda",
    DeviceKind.ROCM: "vulkan",  # runs on AMD's GPUs without ROCm's compiler
    DeviceKind.VULKAN: "vulkan",
    DeviceKind.METAL: "metal",
}


class Verdict(enum.Enum):
    """What a check found. A start works with warnings; it does not with a failure."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@attrs.frozen
class Finding:
    """What one check found: `text` tells it, `advice` what to do."""

    check: str
    verdict: Verdict
    text: str
    advice: str = ""


@attrs.frozen(kw_only=True)
class Subject:
    """What is examined: the settings of a worker, also those that would not let it start."""

    router_url: str | None
    gpu_key: str | None = attrs.field(repr=False)
    model_path: Path | None
    models_dir: Path
    llama_cache_dir: Path
    llama_binary: Path | None
    llama_url: str | None


async def examine(subject: Subject, tell: Callable[[Finding], None]) -> bool:
    """Make all checks, and `tell` of each as soon as it is made; return whether a worker would start."""
    verdicts: list[Verdict] = []

    def note(*findings: Finding) -> None:
        verdicts.extend(one.verdict for one in findings)
        for one in findings:
            tell(one)

    key = check_key(subject.gpu_key)
    note(key)
    note(await _check_router(subject, has_key=key.verdict is not Verdict.FAIL))
    host = await trio.to_thread.run_sync(detect)
    note(*check_gpus(host), check_memory(host), *check_disk(subject))
    if subject.llama_url is not None:
        note(await _check_llama_url(subject.llama_url))
    else:
        note(await _check_binary(subject, host), check_model(subject.model_path, host))
    return Verdict.FAIL not in verdicts


def show(finding: Finding) -> str:
    """Return a finding as a line, with a second one for what to do."""
    line = f"{finding.verdict.value:<5} {finding.check:<13} {finding.text}"
    return f"{line}\n{'':<19} -> {finding.advice}" if finding.advice else line


def report(findings: Sequence[Finding]) -> str:
    """Return all findings as a JSON object."""
    rows = [{**attrs.asdict(one), "verdict": one.verdict.value} for one in findings]
    is_well = all(one.verdict is not Verdict.FAIL for one in findings)
    return orjson.dumps({"ok": is_well, "findings": rows}, option=orjson.OPT_INDENT_2).decode()


def check_key(key: str | None) -> Finding:
    """Look at the form of the key; only the router knows whether it opens anything."""
    if not key:
        advice = "set AUXOT_GPU_KEY to the worker key that `auxot-router setup` printed"
        return Finding("key", Verdict.FAIL, "there is none", advice)
    if not has_key_shape(key):
        return Finding("key", Verdict.FAIL, "it is no key", "a key is a prefix such as adm_ and 43 characters")
    for role in (Role.API, Role.TOOLS):
        if key.startswith(f"{role.value}_"):
            return Finding("key", Verdict.FAIL, f"{redact(key)}... is not a worker's key", "use the one with adm_")
    return Finding("key", Verdict.OK, f"{redact(key)}...")


def check_gpus(host: Host) -> Iterator[Finding]:
    """Tell the GPUs, and what kept a driver from telling its own."""
    for problem in host.problems:
        yield Finding("gpu", Verdict.WARN, problem, "restart the machine, or install the driver again")
    for gpu in host.gpus:
        memory = f", {show_bytes(gpu.free_bytes)} of {show_bytes(gpu.total_bytes)} free" if gpu.total_bytes else ""
        shared = ", shared with the processor" if gpu.is_shared else ""
        yield Finding("gpu", Verdict.OK, f"{gpu.name} ({gpu.kind.value}){memory}{shared}")
    if not host.gpus:
        yield Finding("gpu", Verdict.WARN, "none is found", "models run on the processor: only small ones are fast")


def check_memory(host: Host) -> Finding:
    """Tell the processor's memory."""
    cpu = host.cpu
    text = f"{show_bytes(cpu.free_bytes)} of {show_bytes(cpu.total_bytes)} free, {host.n_cpus} processors ({cpu.name})"
    if cpu.free_bytes < LOW_MEMORY_BYTES:
        return Finding("memory", Verdict.WARN, text, "end other programs, or raise the container's limit")
    return Finding("memory", Verdict.OK, text)


def check_disk(subject: Subject) -> Iterator[Finding]:
    """Tell the room for models and for llama-servers."""
    for folder in dict.fromkeys((subject.models_dir, subject.llama_cache_dir)):
        there = next((path for path in (folder, *folder.parents) if path.exists()), Path("/"))
        free = shutil.disk_usage(there).free
        text = f"{folder}: {show_bytes(free)} free"
        if not os.access(there, os.W_OK):
            yield Finding("disk", Verdict.WARN, f"{folder} cannot be written to", "choose another with --models-dir")
        elif free < LOW_DISK_BYTES:
            yield Finding("disk", Verdict.WARN, text, "a model takes 2 GiB to 100 GiB")
        else:
            yield Finding("disk", Verdict.OK, text)


def check_model(path: Path | None, host: Host) -> Finding:
    """Look at the model's files, and whether this host has the memory for them."""
    if path is None:
        return Finding("model", Verdict.FAIL, "there is none", "give a GGUF file with --model-path")
    try:
        files = shards(path)
        n_bytes = sum(file.stat().st_size for file in files)
        with path.open("rb") as stream:
            is_gguf = stream.read(len(_GGUF)) == _GGUF
    except OSError as exc:
        return Finding("model", Verdict.FAIL, f"{exc.filename or path}: {exc.strerror}", "correct --model-path")
    if not is_gguf:
        return Finding("model", Verdict.FAIL, f"{path} is no GGUF file", "download it again, or convert it")
    return _fit(path, n_bytes, host)


def shards(path: Path) -> list[Path]:
    """Return the files of a model: all parts where the name says that it is the first of several."""
    match = _SHARD.fullmatch(path.name)
    if match is None:
        return [path]
    n = match["n"]
    return [path.with_name(f"{match['stem']}-{part:05d}-of-{n}.gguf") for part in range(1, int(n) + 1)]


def devices_listed(text: str) -> list[Device]:
    """Read the output of `llama-server --list-devices`: `  CUDA0: NVIDIA H200 (143167 MiB, 142600 MiB free)`."""
    return [
        Device(
            kind=_kind_of(match["id"]),
            name=match["name"],
            total_bytes=int(match["total"]) * 1024**2,
            free_bytes=int(match["free"]) * 1024**2,
        )
        for match in _LISTED.finditer(text)
    ]


def _kind_of(device_id: str) -> DeviceKind:
    words = {"CUDA": DeviceKind.CUDA, "ROCm": DeviceKind.ROCM, "Metal": DeviceKind.METAL, "MTL": DeviceKind.METAL}
    return next((kind for word, kind in words.items() if device_id.startswith(word)), DeviceKind.VULKAN)


def _fit(path: Path, n_bytes: int, host: Host) -> Finding:
    own = sum(gpu.total_bytes for gpu in host.gpus if not gpu.is_shared)
    gpu, everything = show_bytes(host.gpu_bytes), own + host.cpu.total_bytes
    text = f"{path.name}: {show_bytes(n_bytes)} of weights"
    if n_bytes > everything:
        return Finding(
            "model", Verdict.FAIL, f"{text}, {show_bytes(everything)} of memory", "take a smaller quantization"
        )
    if host.gpus and n_bytes > host.gpu_bytes > 0:
        return Finding("model", Verdict.WARN, f"{text}, {gpu} on GPUs", "a part runs on the processor, and is slow")
    return Finding("model", Verdict.OK, text)


async def _check_router(subject: Subject, *, has_key: bool) -> Finding:
    """Say hello to the router, as a worker that asks for its policy."""
    if not subject.router_url:
        return Finding("router", Verdict.FAIL, "no address is given", "set AUXOT_ROUTER_URL, or give --router-url")
    try:
        link = LinkSettings(url=normalise_router_url(subject.router_url))
    except ConfigError as exc:
        return Finding("router", Verdict.FAIL, str(exc), "correct AUXOT_ROUTER_URL")
    if not has_key:
        return Finding("router", Verdict.FAIL, f"{link.url} is not asked without a key", "see above")
    return await _ask_router_in_time(link, subject.gpu_key or "")


async def _ask_router_in_time(link: LinkSettings, key: str) -> Finding:
    try:
        with trio.fail_after(ROUTER_TIMEOUT_S):
            return await _ask_router(link, key)
    except KeyRefusedError:
        return Finding("router", Verdict.FAIL, f"{link.url} refuses the key", "use the worker key of this router")
    except LinkError as exc:
        return Finding("router", Verdict.FAIL, str(exc), "is it running, and is the address right? wss:// needs TLS")
    except trio.TooSlowError:
        return Finding("router", Verdict.FAIL, f"{link.url} does not answer within {ROUTER_TIMEOUT_S:g} s")


async def _ask_router(settings: LinkSettings, key: str) -> Finding:
    pending = Capabilities(backend=PENDING_BACKEND, model=PENDING_BACKEND, ctx_size=0)
    async with open_link(settings, Hello(gpu_key=key, worker_type="gpu", capabilities=pending)) as link:
        policy = link.ack.policy
    if policy is not None and policy.worker_type == "cli":
        return Finding("router", Verdict.FAIL, f"{settings.url} wants workers that run coding assistants")
    return Finding("router", Verdict.OK, f"{settings.url} takes the key{_wish(policy)}")


def _wish(policy: Policy | None) -> str:
    if policy is None:
        return ""
    return f"; serves {policy.model_name}, {policy.max_parallelism} slots of {policy.context_size} tokens"


async def _check_binary(subject: Subject, host: Host) -> Finding:
    """Run llama-server, and see whether it finds the GPUs that are there."""
    try:
        binary = find_llama_server(given=subject.llama_binary, cache_dir=subject.llama_cache_dir)
        with trio.fail_after(LLAMA_TIMEOUT_S):
            version = await llama_server_version(binary)
            done = await trio.run_process(
                [str(binary), "--list-devices"], capture_stdout=True, stderr=subprocess.DEVNULL, check=False, stdin=b""
            )
    except LlamaError as exc:
        return Finding("llama-server", Verdict.FAIL, str(exc))
    except trio.TooSlowError:
        return Finding("llama-server", Verdict.FAIL, f"it does not answer within {LLAMA_TIMEOUT_S:g} s")
    text = f"{binary}: {version.release}, build {version.build}"
    listed = devices_listed(done.stdout.decode(errors="replace"))
    if host.gpus and not listed:
        advice = f"`auxot-worker llama build --backend {_HOW_TO_BUILD[host.gpus[0].kind]}` makes one that does"
        return Finding("llama-server", Verdict.WARN, f"{text}; uses no GPU", advice)
    uses = ", ".join(f"{one.name} ({show_bytes(one.total_bytes)})" for one in listed) or "the processor"
    return Finding("llama-server", Verdict.OK, f"{text}; uses {uses}")


async def _check_llama_url(url: str) -> Finding:
    try:
        address = parse_llama_url(url)
        with trio.fail_after(LLAMA_TIMEOUT_S):
            stream = await trio.open_tcp_stream(address.host, address.port)
            await trio.aclose_forcefully(stream)
    except (AuxotError, OSError, trio.TooSlowError) as exc:
        return Finding(
            "llama-server", Verdict.FAIL, f"{url} cannot be reached: {exc}", "start it; is the address right?"
        )
    return Finding("llama-server", Verdict.OK, f"{url} accepts connections")
