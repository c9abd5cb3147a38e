"""Settings of the commands that run on one machine: `auxot` up, demo and bench, `auxot-worker` llama and doctor.

Most are settings of the daemons too, and are read from the same variables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs

from auxot import kinds
from auxot.config import RouterConfig, WorkerConfig, check_file, load_config
from auxot.config_shared import in_home
from auxot.core.logs import Level
from auxot.core.models.cache_types import DEFAULT_CACHE_TYPE
from auxot.core.sites import LLAMA_RELEASE, LLAMA_RELEASES
from auxot.knobs import knob

# What the same setting is in another command is told once, above.
_ROUTER = attrs.fields_dict(RouterConfig)
_WORKER = attrs.fields_dict(WorkerConfig)


@attrs.frozen(kw_only=True)
class UpConfig:
    """Settings of `auxot up`: a router and a worker on this machine, for one GGUF file."""

    model_path: Path = attrs.field(
        metadata=knob("AUXOT_MODEL_FILE", kinds.path(), flag="--model-path", help="the GGUF file of the model")
    )
    model: str = attrs.field(
        default="", metadata=knob("AUXOT_MODEL", kinds.text(), help="name of the model; empty: that of its file")
    )
    host: str = attrs.field(default="127.0.0.1", metadata=_ROUTER["host"].metadata)
    port: int = attrs.field(default=8080, metadata=_ROUTER["port"].metadata)
    ctx_size: int = attrs.field(
        default=16_384,
        metadata=knob("AUXOT_CTX_SIZE", kinds.integer(256, 16_777_216), help="context of one slot in tokens"),
    )
    max_parallel: int = attrs.field(
        default=2, metadata=knob("AUXOT_MAX_PARALLEL", kinds.integer(1, 1024), help="jobs that run at once")
    )
    threads: int = attrs.field(default=0, metadata=_WORKER["threads"].metadata)
    gpu_layers: int = attrs.field(default=9999, metadata=_WORKER["gpu_layers"].metadata)
    llama_binary: Path | None = attrs.field(default=None, metadata=_WORKER["llama_binary"].metadata)
    llama_cache_dir: Path = attrs.field(
        factory=lambda: in_home("llama-server"), metadata=_WORKER["llama_cache_dir"].metadata
    )
    log_level: Level = attrs.field(default=Level.WARNING, metadata=_ROUTER["log_level"].metadata)
    warnings: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class DemoConfig:
    """Settings of `auxot demo`. Its port has no variable: it must not meet a router that runs here for real."""

    serve: bool = attrs.field(
        default=False, metadata=knob(None, kinds.boolean(), flag="--serve", help="keep running until Ctrl-C")
    )
    port: int = attrs.field(
        default=0,
        metadata=knob(None, kinds.integer(0, 65535), flag="--port", help="port to listen on; 0: any free one"),
    )
    llama_binary: Path | None = attrs.field(default=None, metadata=_WORKER["llama_binary"].metadata)
    llama_cache_dir: Path = attrs.field(
        factory=lambda: in_home("llama-server"), metadata=_WORKER["llama_cache_dir"].metadata
    )
    log_level: Level = attrs.field(default=Level.WARNING, metadata=_ROUTER["log_level"].metadata)
    warnings: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class LlamaConfig:
    """Settings of `auxot-worker llama install`, `build`, `list` and `find`."""

    backend: str = attrs.field(
        default="",
        metadata=knob(
            None,
            kinds.choice("cpu", "cuda", "vulkan", "metal"),
            flag="--backend",
            help="what computes; without it: for install what this machine has, for build cpu",
        ),
    )
    portable: bool = attrs.field(
        default=False,
        metadata=knob(None, kinds.boolean(), flag="--portable", help="build for any CPU of this architecture"),
    )
    force: bool = attrs.field(
        default=False, metadata=knob(None, kinds.boolean(), flag="--force", help="build also if there is one already")
    )
    llama_binary: Path | None = attrs.field(default=None, metadata=_WORKER["llama_binary"].metadata)
    llama_cache_dir: Path = attrs.field(
        factory=lambda: in_home("llama-server"), metadata=_WORKER["llama_cache_dir"].metadata
    )
    llama_release: str = attrs.field(default=LLAMA_RELEASE, metadata=_WORKER["llama_release"].metadata)
    llama_releases_url: str = attrs.field(default=LLAMA_RELEASES, metadata=_WORKER["llama_releases_url"].metadata)
    github_token: str | None = attrs.field(default=None, repr=False, metadata=_WORKER["github_token"].metadata)
    warnings: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class BenchConfig:
    """Settings of `auxot bench`."""

    only: tuple[str, ...] = attrs.field(
        default=(),
        metadata=knob(
            None,
            kinds.names(),
            flag="--only",
            help="loads to measure: one,64,256,full,slots,queue,blocking; empty: all",
        ),
    )
    quick: bool = attrs.field(
        default=False, metadata=knob(None, kinds.boolean(), flag="--quick", help="a tenth of each load")
    )
    json: bool = attrs.field(
        default=False, metadata=knob(None, kinds.boolean(), flag="--json", help="print JSON in place of the table")
    )
    redis_url: str | None = attrs.field(
        default=None,
        metadata=knob(
            "AUXOT_BENCH_REDIS_URL",
            kinds.url("redis", "rediss", "unix"),
            help="Redis for the measured router; without it the queue is in its memory",
        ),
    )
    compare: str = attrs.field(
        default="",
        metadata=knob(
            None,
            kinds.url("http"),
            flag="--compare",
            help="base URL of another OpenAI-compatible gateway, such as http://127.0.0.1:4000/v1, that forwards to "
            "http://127.0.0.1:BACKEND_PORT/v1, where a made-up back end listens meanwhile",
        ),
    )
    compare_model: str = attrs.field(
        default="bench", metadata=knob(None, kinds.text(), flag="--compare-model", help="the model to ask it for")
    )
    compare_pid: int = attrs.field(
        default=0,
        metadata=knob(
            None, kinds.integer(0, 2**31 - 1), flag="--compare-pid", help="its process, whose CPU is counted"
        ),
    )
    compare_key: str = attrs.field(
        default="", metadata=knob("AUXOT_BENCH_COMPARE_KEY", kinds.text(), help="the key that it asks for")
    )
    backend_port: int = attrs.field(
        default=9900,
        metadata=knob(None, kinds.integer(1, 65535), flag="--backend-port", help="port of the made-up back end"),
    )
    warnings: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class DoctorConfig:
    """Settings of `auxot-worker doctor`: those of the worker, none of them required, and the key not checked yet."""

    router_url: str | None = attrs.field(default=None, metadata=_WORKER["router_url"].metadata)
    gpu_key: str | None = attrs.field(
        default=None,
        repr=False,
        metadata=knob("AUXOT_GPU_KEY", kinds.text(), is_secret=True, help="the router's key for workers"),
    )
    model_path: Path | None = attrs.field(default=None, metadata=_WORKER["model_path"].metadata)
    models_dir: Path = attrs.field(factory=lambda: in_home("models"), metadata=_WORKER["models_dir"].metadata)
    registry_file: Path | None = attrs.field(default=None, metadata=_WORKER["registry_file"].metadata)
    cache_type: str = attrs.field(default=DEFAULT_CACHE_TYPE, metadata=_WORKER["cache_type"].metadata)
    memory: int = attrs.field(default=0, metadata=_WORKER["memory"].metadata)
    llama_cache_dir: Path = attrs.field(
        factory=lambda: in_home("llama-server"), metadata=_WORKER["llama_cache_dir"].metadata
    )
    llama_binary: Path | None = attrs.field(default=None, metadata=_WORKER["llama_binary"].metadata)
    llama_release: str = attrs.field(default=LLAMA_RELEASE, metadata=_WORKER["llama_release"].metadata)
    llama_url: str | None = attrs.field(default=None, metadata=_WORKER["llama_url"].metadata)
    replicas: int = attrs.field(default=0, metadata=_WORKER["replicas"].metadata)
    json: bool = attrs.field(
        default=False, metadata=knob(None, kinds.boolean(), flag="--json", help="tell it all as one JSON object")
    )
    warnings: tuple[str, ...] = ()


def load_up_config(argv: Sequence[str], environ: Mapping[str, str], cwd: Path) -> UpConfig:
    """Read the configuration of `auxot up`; arguments and errors as `config.load_router_config`."""
    config = load_config(UpConfig, "auxot up", argv=argv, environ=environ, cwd=cwd)
    check_file(config.model_path)
    return config
