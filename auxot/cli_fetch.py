"""The worker's commands about models and programs, and `auxot bundle`; called from `cli`, which prints and reports.

auxot-worker pull MODEL [flags]
auxot-worker llama install | build | list | find [flags]
auxot-worker cache list | prune [flags]
auxot bundle MODEL [flags]
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from auxot.cli_progress import Progress
from auxot.config import load_config
from auxot.config_local import LlamaConfig
from auxot.config_models import BundleConfig, CacheConfig, PullConfig
from auxot.core.errors import ConfigError
from auxot.core.sizes import show_bytes
from auxot.knobs import flag_parser

if TYPE_CHECKING:
    from auxot.core.models.lookup import Choice

Say = Callable[[object], None]
C = TypeVar("C")

_DAY_S = 86_400


def pull(argv: Sequence[str], say: Say) -> int:
    """Download a model, or find that it is there; show where it is."""
    name, flags = _word(argv, "auxot-worker pull MODEL")
    config = _load(PullConfig, "auxot-worker pull", flags)
    choice = _choice(config, name)
    say(_pulled(config, choice))
    return 0


def pull_help() -> str:
    """Return the text of its --help."""
    return _help(
        PullConfig, "auxot-worker pull MODEL [flags]\n\nMODEL: a name of the registry, or hf:owner/repo:file.gguf"
    )


def llama(argv: Sequence[str], say: Say) -> int:
    """Install, build, list or find llama-servers."""
    actions = {"install": _llama_install, "build": _llama_build, "list": _llama_list, "find": _llama_find}
    return _act(actions, argv, "auxot-worker llama", LlamaConfig, say)


def llama_help() -> str:
    """Return the text of its --help."""
    return _help(
        LlamaConfig,
        "auxot-worker llama install [--llama-release TAG] [--backend cpu|cuda|vulkan|metal] [flags]\n"
        "       auxot-worker llama build [--backend cpu|cuda|vulkan|metal] [--portable] [--force] [flags]\n"
        "       auxot-worker llama list | find [--llama-server-path PATH] [--llama-cache-dir PATH]",
    )


def cache(argv: Sequence[str], say: Say) -> int:
    """List or prune what has been downloaded and built."""
    return _act({"list": _cache_list, "prune": _cache_prune}, argv, "auxot-worker cache", CacheConfig, say)


def cache_help() -> str:
    """Return the text of its --help."""
    return _help(CacheConfig, "auxot-worker cache list | prune [--unused-for TIME] [--dry-run] [flags]")


def bundle(argv: Sequence[str], say: Say) -> int:
    """Write one archive with everything that a worker without a network needs."""
    import trio  # noqa: PLC0415 - see `cli`

    from auxot.worker.bundle import Contents, write_bundle  # noqa: PLC0415

    name, flags = _word(argv, "auxot bundle MODEL")
    config = _load(BundleConfig, "auxot bundle", flags)
    choice = _choice(config, name)
    binary = _any_llama_server(config)
    _pulled(config, choice)
    contents = Contents(
        choice=choice, models_dir=config.models_dir, llama_server=binary, registry_file=config.registry_file
    )
    with Progress() as report:
        say(trio.run(functools.partial(write_bundle, contents, config.output, report=report)))
    return 0


def bundle_help() -> str:
    """Return the text of its --help."""
    return _help(BundleConfig, "auxot bundle MODEL [flags]")


def _pulled(config: PullConfig | BundleConfig, choice: Choice) -> Path:
    import trio  # noqa: PLC0415

    from auxot.worker.fetch.hub import Hub  # noqa: PLC0415
    from auxot.worker.fetch.models import fetch_model  # noqa: PLC0415

    hub = Hub(endpoint=config.hf_endpoint, token=config.hf_token)
    with Progress() as report:
        fetch = functools.partial(fetch_model, choice, models_dir=config.models_dir, hub=hub, report=report)
        return trio.run(fetch).model


def _any_llama_server(config: BundleConfig) -> Path:
    from auxot.core.errors import LlamaError  # noqa: PLC0415
    from auxot.worker.llama.binary import find_llama_server  # noqa: PLC0415

    try:
        return find_llama_server(given=config.llama_binary, cache_dir=config.llama_cache_dir)
    except LlamaError:
        if config.llama_binary is not None:
            raise
        return _installed(config, gpu="")


def _llama_install(config: LlamaConfig, say: Say) -> int:
    say(_installed(config, gpu=config.backend))
    return 0


def _installed(config: LlamaConfig | BundleConfig, *, gpu: str) -> Path:
    import trio  # noqa: PLC0415

    from auxot.worker.fetch.releases import Release  # noqa: PLC0415
    from auxot.worker.llama.install import install_llama_server  # noqa: PLC0415
    from auxot.worker.machine import backend, look_at_host  # noqa: PLC0415

    release = Release(tag=config.llama_release, site=config.llama_releases_url, token=config.github_token)

    async def install() -> Path:
        kind = gpu or backend(await look_at_host()).value
        return await install_llama_server(cache_dir=config.llama_cache_dir, release=release, gpu=kind, report=report)

    with Progress() as report:
        return trio.run(install)


def _llama_build(config: LlamaConfig, say: Say) -> int:
    import trio  # noqa: PLC0415

    from auxot.worker.llama.build import Backend, build_llama_server, default_backend  # noqa: PLC0415

    with Progress() as report:
        build = functools.partial(
            build_llama_server,
            cache_dir=config.llama_cache_dir,
            backend=Backend(config.backend) if config.backend else default_backend(),
            native=not config.portable,
            force=config.force,
            report=report,
        )
        say(trio.run(build))
    return 0


def _llama_list(config: LlamaConfig, say: Say) -> int:
    from auxot.core.errors import LlamaError  # noqa: PLC0415
    from auxot.worker.cache import llama_servers  # noqa: PLC0415
    from auxot.worker.llama.binary import find_llama_server  # noqa: PLC0415

    try:
        taken = find_llama_server(given=config.llama_binary, cache_dir=config.llama_cache_dir)
    except LlamaError:
        taken = None
    cached = [item.path for item in llama_servers(config.llama_cache_dir)]
    for path in dict.fromkeys([*([taken] if taken else []), *(folder / "llama-server" for folder in cached)]):
        say(f"{'*' if path == taken else ' '} {path}")
    if taken is None:
        say("none; `auxot-worker llama install` downloads one, `auxot-worker llama build` makes one")
    return 0


def _llama_find(config: LlamaConfig, say: Say) -> int:
    from auxot.worker.llama.binary import find_llama_server  # noqa: PLC0415

    say(find_llama_server(given=config.llama_binary, cache_dir=config.llama_cache_dir))
    return 0


def _cache_list(config: CacheConfig, say: Say) -> int:
    from auxot.worker.cache import list_cache  # noqa: PLC0415

    items = list_cache(models_dir=config.models_dir, llama_cache_dir=config.llama_cache_dir)
    now = time.time()
    for item in items:
        days = max(0, int((now - item.used_at) // _DAY_S))
        say(f"{show_bytes(item.size_bytes):>10}  {item.kind.value:<12}  used {days:>3} days ago  {item.path}")
    say(f"{show_bytes(sum(item.size_bytes for item in items)):>10}  in all")
    return 0


def _cache_prune(config: CacheConfig, say: Say) -> int:
    from auxot.worker.cache import list_cache, prunable, remove  # noqa: PLC0415

    items = list_cache(models_dir=config.models_dir, llama_cache_dir=config.llama_cache_dir)
    n_bytes = 0
    for item in prunable(items, unused_for_s=config.unused_for_s, now=time.time()):
        if config.dry_run or remove(item):
            n_bytes += item.size_bytes
            say(f"{show_bytes(item.size_bytes):>10}  {item.path}")
    say(f"{show_bytes(n_bytes):>10}  {'would be removed' if config.dry_run else 'removed'}")
    return 0


def _choice(config: PullConfig | BundleConfig, name: str) -> Choice:
    from auxot.core.models.entries import load_registry  # noqa: PLC0415 - takes a moment
    from auxot.core.models.lookup import resolve, unknown_model  # noqa: PLC0415

    registry = load_registry(config.registry_file)
    choice = resolve(registry, name, config.quantization)
    if choice is None:
        raise ConfigError(unknown_model(registry, name))
    if isinstance(choice, Path):
        raise ConfigError(f"{choice} is a file on this machine already")
    return choice


def _act(actions: Mapping[str, Callable[[C, Say], int]], argv: Sequence[str], prog: str, cls: type[C], say: Say) -> int:
    """Run the action that the first argument names."""
    if not argv or argv[0] not in actions:
        words = [f"`{prog} {action}`" for action in actions]
        raise ConfigError(f"expected {', '.join(words[:-1])} or {words[-1]}")
    return actions[argv[0]](_load(cls, f"{prog} {argv[0]}", argv[1:]), say)


def _word(argv: Sequence[str], usage: str) -> tuple[str, Sequence[str]]:
    """Split off the argument that stands before the flags."""
    if not argv or argv[0].startswith("-"):
        raise ConfigError(f"expected `{usage}`")
    return argv[0], argv[1:]


def _load(cls: type[C], prog: str, argv: Sequence[str]) -> C:
    return load_config(cls, prog, argv=argv, environ=os.environ, cwd=Path.cwd())


def _help(cls: type, usage: str) -> str:
    prog = usage.partition("[")[0].strip()
    return flag_parser(cls, prog=prog, usage=usage).format_help()
