"""`auxot-worker doctor`: does this host have everything that a worker needs? Each check says what to do.

The checks do what a start does: the key is shown to the router, llama-server is run. Nothing is changed, and the router
sees a worker that asks for its policy and leaves. All of it takes at most about a minute, whoever does not answer.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import attrs
import trio

from auxot.core.errors import AuxotError, ConfigError, KeyRefusedError, LinkError, LlamaError
from auxot.core.keys import Role, has_key_shape, redact
from auxot.core.link import LinkSettings, normalise_router_url, open_link
from auxot.core.messages import PENDING_BACKEND, Capabilities, Hello, Policy
from auxot.core.sites import NO_RELEASE
from auxot.core.sizes import show_bytes
from auxot.worker.devices import GIB, Device, DeviceKind, Host
from auxot.worker.doctor_model import check_file, check_policy, room_at
from auxot.worker.findings import Finding, Verdict
from auxot.worker.groups import AUTO
from auxot.worker.llama.binary import find_llama_server, llama_server_version
from auxot.worker.llama.devices import LlamaDevice, list_devices
from auxot.worker.llama.http import parse_llama_url
from auxot.worker.llama.install import has_release
from auxot.worker.machine import backend, look_at_host

ROUTER_TIMEOUT_S = 20.0
LLAMA_TIMEOUT_S = 20.0
LOW_DISK_BYTES, LOW_MEMORY_BYTES = 5 * GIB, 2 * GIB
_HOW_TO_BUILD = {
    DeviceKind.CUDA: "cuda",
    DeviceKind.ROCM: "vulkan",  # runs on AMD's GPUs without ROCm's compiler
    DeviceKind.VULKAN: "vulkan",
    DeviceKind.METAL: "metal",
}


@attrs.frozen(kw_only=True)
class Subject:
    """What is examined: the settings of a worker, also those that would not let it start."""

    router_url: str | None
    gpu_key: str | None = attrs.field(repr=False)
    model_path: Path | None
    models_dir: Path
    registry_file: Path | None
    cache_type: str
    memory: int
    llama_cache_dir: Path
    llama_binary: Path | None
    llama_release: str
    llama_url: str | None
    replicas: int = AUTO


async def examine(subject: Subject, tell: Callable[[Finding], None]) -> bool:
    """Make all checks, and `tell` of each as soon as it is made; return whether a worker would start."""
    verdicts: list[Verdict] = []

    def note(*findings: Finding) -> None:
        verdicts.extend(one.verdict for one in findings)
        for one in findings:
            tell(one)

    key = check_key(subject.gpu_key)
    note(key)
    router, policy = await _check_router(subject, has_key=key.verdict is not Verdict.FAIL)
    note(router)
    host = await look_at_host()
    note(*check_gpus(host), check_memory(host), *check_disk(subject))
    if subject.llama_url is not None:
        note(await _check_llama_url(subject.llama_url))
    else:
        note(await _check_binary(subject, host), check_model(subject, policy, host))
    return Verdict.FAIL not in verdicts


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
        there, free = room_at(folder)
        text = f"{folder}: {show_bytes(free)} free"
        if not os.access(there, os.W_OK):
            yield Finding("disk", Verdict.WARN, f"{folder} cannot be written to", "choose another with --models-dir")
        elif free < LOW_DISK_BYTES:
            yield Finding("disk", Verdict.WARN, text, "a model takes 2 GiB to 100 GiB")
        else:
            yield Finding("disk", Verdict.OK, text)


def check_model(subject: Subject, policy: Policy | None, host: Host) -> Finding:
    """Look at the model: the operator's own, or what the router asks for; `policy`: None if it has not told."""
    if policy is None and subject.model_path is not None:
        return check_file(subject.model_path, host)
    if policy is None:
        return Finding("model", Verdict.WARN, "the router says which one, and it has not answered", "see above")
    return check_policy(
        policy,
        host,
        model_path=subject.model_path,
        registry_file=subject.registry_file,
        memory_bytes=subject.memory,
        cache_type=subject.cache_type,
        models_dir=subject.models_dir,
        replicas=subject.replicas,
    )


def devices_listed(listed: Iterable[LlamaDevice]) -> list[Device]:
    """Return what llama-server lists as devices of this host."""
    return [
        Device(kind=_kind_of(one.name), name=one.model, total_bytes=one.total_bytes, free_bytes=one.free_bytes)
        for one in listed
    ]


def _kind_of(device_id: str) -> DeviceKind:
    words = {"CUDA": DeviceKind.CUDA, "ROCm": DeviceKind.ROCM, "Metal": DeviceKind.METAL, "MTL": DeviceKind.METAL}
    return next((kind for word, kind in words.items() if device_id.startswith(word)), DeviceKind.VULKAN)


async def _check_router(subject: Subject, *, has_key: bool) -> tuple[Finding, Policy | None]:
    """Say hello to the router, as a worker that asks for its policy; return that too."""
    if not subject.router_url:
        return Finding(
            "router", Verdict.FAIL, "no address is given", "set AUXOT_ROUTER_URL, or give --router-url"
        ), None
    try:
        link = LinkSettings(url=normalise_router_url(subject.router_url))
    except ConfigError as exc:
        return Finding("router", Verdict.FAIL, str(exc), "correct AUXOT_ROUTER_URL"), None
    if not has_key:
        return Finding("router", Verdict.FAIL, f"{link.url} is not asked without a key", "see above"), None
    return await _ask_router_in_time(link, subject.gpu_key or "")


async def _ask_router_in_time(link: LinkSettings, key: str) -> tuple[Finding, Policy | None]:
    try:
        with trio.fail_after(ROUTER_TIMEOUT_S):
            policy = await _ask_router(link, key)
    except KeyRefusedError:
        return Finding("router", Verdict.FAIL, f"{link.url} refuses the key", "use the worker key of this router"), None
    except LinkError as exc:
        advice = "is it running, and is the address right? wss:// needs TLS"
        return Finding("router", Verdict.FAIL, str(exc), advice), None
    except trio.TooSlowError:
        return Finding("router", Verdict.FAIL, f"{link.url} does not answer within {ROUTER_TIMEOUT_S:g} s"), None
    if policy is not None and policy.worker_type == "cli":
        return Finding("router", Verdict.FAIL, f"{link.url} wants workers that run coding assistants"), None
    return Finding("router", Verdict.OK, f"{link.url} takes the key{_wish(policy)}"), policy


async def _ask_router(settings: LinkSettings, key: str) -> Policy | None:
    pending = Capabilities(backend=PENDING_BACKEND, model=PENDING_BACKEND, ctx_size=0)
    async with open_link(settings, Hello(gpu_key=key, worker_type="gpu", capabilities=pending)) as link:
        return link.ack.policy


def _wish(policy: Policy | None) -> str:
    if policy is None:
        return ""
    return f"; serves {policy.model_name}, {policy.max_parallelism} slots of {policy.context_size} tokens"


async def _check_binary(subject: Subject, host: Host) -> Finding:
    """Find llama-server as a start does, and run it."""
    try:
        binary = find_llama_server(given=subject.llama_binary, cache_dir=subject.llama_cache_dir)
    except LlamaError as exc:
        if subject.llama_binary is not None or subject.llama_release == NO_RELEASE:
            return Finding("llama-server", Verdict.FAIL, str(exc))
        return _without_binary(subject.llama_release, host)
    return await _run_binary(binary, host)


def _without_binary(release: str, host: Host) -> Finding:
    """Tell how a start gets one."""
    if has_release(backend(host).value):
        return Finding("llama-server", Verdict.OK, f"none is here: a start downloads release {release} of llama.cpp")
    text = "none is here, and no release is for this machine: a start builds one"
    return Finding("llama-server", Verdict.WARN, text, "that takes a C++ compiler and some minutes")


async def _run_binary(binary: Path, host: Host) -> Finding:
    """Run llama-server, and see whether it finds the GPUs that are there."""
    try:
        with trio.fail_after(LLAMA_TIMEOUT_S):
            version = await llama_server_version(binary)
            listed = await _devices(binary)
    except LlamaError as exc:
        return Finding("llama-server", Verdict.FAIL, str(exc))
    except trio.TooSlowError:
        return Finding("llama-server", Verdict.FAIL, f"it does not answer within {LLAMA_TIMEOUT_S:g} s")
    text = f"{binary}: {version.release}, build {version.build}"
    if host.gpus and not listed:
        advice = f"`auxot-worker llama build --backend {_HOW_TO_BUILD[backend(host)]}` makes one that does"
        return Finding("llama-server", Verdict.WARN, f"{text}; uses no GPU", advice)
    uses = ", ".join(f"{one.name} ({show_bytes(one.total_bytes)})" for one in listed) or "the processor"
    return Finding("llama-server", Verdict.OK, f"{text}; uses {uses}")


async def _devices(binary: Path) -> list[Device]:
    """Return the GPUs that llama-server would use; none of one that does not say."""
    try:
        return devices_listed(await list_devices(binary))
    except LlamaError:
        return []


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
