"""Settings of the commands about models: `auxot-router models`, `auxot-worker pull` and `cache`, `auxot bundle`.

Most are settings of the daemons too, and are read from the same variables.
"""

from __future__ import annotations

from pathlib import Path

import attrs

from auxot import kinds
from auxot.config import RouterConfig, WorkerConfig
from auxot.config_shared import CACHE_TYPE, in_home
from auxot.core.models.cache_types import DEFAULT_CACHE_TYPE
from auxot.core.sites import HUB, LLAMA_RELEASE, LLAMA_RELEASES
from auxot.knobs import knob

# What the same setting is in another command is told once, above.
_ROUTER = attrs.fields_dict(RouterConfig)
_WORKER = attrs.fields_dict(WorkerConfig)
_YEAR_S = 366 * 86_400


@attrs.frozen(kw_only=True)
class ModelsConfig:
    """Settings of `auxot-router models`; what the router itself is set to is what memory is computed for."""

    search: str = attrs.field(
        default="", metadata=knob(None, kinds.text(), flag="--search", help="only models with this in their name")
    )
    capability: tuple[str, ...] = attrs.field(
        default=(),
        metadata=knob(None, kinds.names(), flag="--capability", help="only models that can do this, such as vision"),
    )
    fits: int = attrs.field(
        default=0,
        metadata=knob(
            None,
            kinds.size(),
            flag="--fits",
            help="only models that fit into this much memory, such as 24GB, each in its best quantization that does",
        ),
    )
    all: bool = attrs.field(
        default=False, metadata=knob(None, kinds.boolean(), flag="--all", help="a line for each quantization")
    )
    json: bool = attrs.field(
        default=False, metadata=knob(None, kinds.boolean(), flag="--json", help="everything, for programs")
    )
    ctx_size: int = attrs.field(default=131_072, metadata=_ROUTER["ctx_size"].metadata)
    max_parallel: int = attrs.field(default=2, metadata=_ROUTER["max_parallel"].metadata)
    cache_type: str = attrs.field(default=DEFAULT_CACHE_TYPE, metadata=CACHE_TYPE)
    registry_file: Path | None = attrs.field(default=None, metadata=_ROUTER["registry_file"].metadata)
    warnings: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class PullConfig:
    """Settings of `auxot-worker pull`."""

    quantization: str = attrs.field(default="", metadata=_ROUTER["quantization"].metadata)
    models_dir: Path = attrs.field(factory=lambda: in_home("models"), metadata=_WORKER["models_dir"].metadata)
    registry_file: Path | None = attrs.field(default=None, metadata=_ROUTER["registry_file"].metadata)
    hf_endpoint: str = attrs.field(default=HUB, metadata=_WORKER["hf_endpoint"].metadata)
    hf_token: str | None = attrs.field(default=None, repr=False, metadata=_WORKER["hf_token"].metadata)
    warnings: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class BundleConfig:
    """Settings of `auxot bundle`."""

    output: Path | None = attrs.field(
        default=None,
        metadata=knob(None, kinds.path(), flag="--output", help="the archive; without it: auxot-MODEL-....tar here"),
    )
    quantization: str = attrs.field(default="", metadata=_ROUTER["quantization"].metadata)
    models_dir: Path = attrs.field(factory=lambda: in_home("models"), metadata=_WORKER["models_dir"].metadata)
    registry_file: Path | None = attrs.field(default=None, metadata=_ROUTER["registry_file"].metadata)
    hf_endpoint: str = attrs.field(default=HUB, metadata=_WORKER["hf_endpoint"].metadata)
    hf_token: str | None = attrs.field(default=None, repr=False, metadata=_WORKER["hf_token"].metadata)
    llama_binary: Path | None = attrs.field(default=None, metadata=_WORKER["llama_binary"].metadata)
    llama_cache_dir: Path = attrs.field(
        factory=lambda: in_home("llama-server"), metadata=_WORKER["llama_cache_dir"].metadata
    )
    llama_release: str = attrs.field(default=LLAMA_RELEASE, metadata=_WORKER["llama_release"].metadata)
    llama_releases_url: str = attrs.field(default=LLAMA_RELEASES, metadata=_WORKER["llama_releases_url"].metadata)
    github_token: str | None = attrs.field(default=None, repr=False, metadata=_WORKER["github_token"].metadata)
    warnings: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class CacheConfig:
    """Settings of `auxot-worker cache`."""

    unused_for_s: float = attrs.field(
        default=0.0,
        metadata=knob(
            None,
            kinds.duration(0, _YEAR_S),
            flag="--unused-for",
            help="prune also models that no worker has started with for so long, such as 720h; 0: none",
        ),
    )
    dry_run: bool = attrs.field(
        default=False, metadata=knob(None, kinds.boolean(), flag="--dry-run", help="only show what prune would remove")
    )
    models_dir: Path = attrs.field(factory=lambda: in_home("models"), metadata=_WORKER["models_dir"].metadata)
    llama_cache_dir: Path = attrs.field(
        factory=lambda: in_home("llama-server"), metadata=_WORKER["llama_cache_dir"].metadata
    )
    warnings: tuple[str, ...] = ()
