"""Every setting of `auxot-worker`, on one page; see `config`."""

from __future__ import annotations

from pathlib import Path

import attrs

from auxot import kinds
from auxot.config_shared import CACHE_TYPE, DAY_S, LOG_LEVEL, REGISTRY_FILE, in_home
from auxot.core.logs import Level
from auxot.core.models.cache_types import DEFAULT_CACHE_TYPE
from auxot.core.sites import HUB, LLAMA_RELEASE, LLAMA_RELEASES
from auxot.knobs import knob


@attrs.frozen(kw_only=True)
class WorkerConfig:
    """Settings of `auxot-worker`."""

    router_url: str = attrs.field(
        metadata=knob(
            "AUXOT_ROUTER_URL", kinds.text(), help="the router, such as wss://router.example.com or ws://127.0.0.1:8080"
        )
    )
    gpu_key: str = attrs.field(
        repr=False,
        metadata=knob(
            "AUXOT_GPU_KEY",
            kinds.key(),
            is_secret=True,
            help="the router's key for workers; prefer the variable, other users can read arguments",
        ),
    )
    model_path: Path | None = attrs.field(
        default=None,
        metadata=knob(
            "AUXOT_MODEL_FILE",
            kinds.path(),
            flag="--model-path",
            help="the GGUF file of the model; without it: the router's model, downloaded where it is missing",
        ),
    )
    registry_file: Path | None = attrs.field(default=None, metadata=REGISTRY_FILE)
    cache_type: str = attrs.field(default=DEFAULT_CACHE_TYPE, metadata=CACHE_TYPE)
    memory: int = attrs.field(
        default=0,
        metadata=knob(
            "AUXOT_MEMORY",
            kinds.size(),
            help="memory that the model may take, such as 24GB; 0: what is free, on the GPUs if there are any",
        ),
    )
    hf_endpoint: str = attrs.field(
        default=HUB,
        metadata=knob("HF_ENDPOINT", kinds.url("https", "http"), flag=None, help="Hugging Face, or a mirror of it"),
    )
    hf_token: str | None = attrs.field(
        default=None,
        repr=False,
        metadata=knob(
            "HF_TOKEN",
            kinds.text(),
            flag=None,
            is_secret=True,
            help="token for models on Hugging Face that are not open to everybody",
        ),
    )
    llama_release: str = attrs.field(
        default=LLAMA_RELEASE,
        metadata=knob(
            "AUXOT_LLAMA_RELEASE",
            kinds.tag(),
            help="release of llama.cpp to download where there is no llama-server; none: download no program",
        ),
    )
    llama_releases_url: str = attrs.field(
        default=LLAMA_RELEASES,
        metadata=knob(
            "AUXOT_LLAMA_RELEASES_URL",
            kinds.url("https", "http"),
            help="where releases are listed, in the form of GitHub's API",
        ),
    )
    github_token: str | None = attrs.field(
        default=None,
        repr=False,
        metadata=knob(
            "GITHUB_TOKEN",
            kinds.text(),
            flag=None,
            is_secret=True,
            help="token for the list of releases; strangers may ask 60 times an hour",
        ),
    )
    models_dir: Path = attrs.field(
        factory=lambda: in_home("models"),
        metadata=knob("AUXOT_MODELS_DIR", kinds.path(), help="folder for downloaded models"),
    )
    llama_cache_dir: Path = attrs.field(
        factory=lambda: in_home("llama-server"),
        metadata=knob("AUXOT_LLAMA_CACHE_DIR", kinds.path(), help="folder for llama-servers, downloaded and built"),
    )
    llama_binary: Path | None = attrs.field(
        default=None,
        metadata=knob(
            "AUXOT_LLAMA_BINARY",
            kinds.path(),
            flag="--llama-server-path",
            help="the llama-server to run; without it: the one on PATH, the one in the cache, or a release",
        ),
    )
    llama_url: str | None = attrs.field(
        default=None,
        metadata=knob(
            "AUXOT_LLAMA_URL",
            kinds.url("http", "https"),
            help="a llama-server that runs already, in place of one of our own",
        ),
    )
    heartbeat_interval_s: float = attrs.field(
        default=10.0,
        metadata=knob(
            "AUXOT_HEARTBEAT_INTERVAL",
            kinds.duration(0.1, 3600),
            help="how often the worker tells the router that it lives",
        ),
    )
    reconnect_delay_s: float = attrs.field(
        default=2.0,
        metadata=knob(
            "AUXOT_RECONNECT_DELAY", kinds.duration(0.1, 3600), help="first pause before the next try to connect"
        ),
    )
    reconnect_max_delay_s: float = attrs.field(
        default=60.0,
        metadata=knob("AUXOT_RECONNECT_MAX_DELAY", kinds.duration(0.1, 3600), help="longest pause between two tries"),
    )
    job_timeout_s: float = attrs.field(
        default=1800.0,
        metadata=knob("AUXOT_JOB_TIMEOUT", kinds.duration(0.1, 7 * DAY_S), help="how long a job may run"),
    )
    threads: int = attrs.field(
        default=0,
        metadata=knob("AUXOT_THREADS", kinds.integer(0, 4096), help="CPU threads of llama-server; 0: its own choice"),
    )
    gpu_layers: int = attrs.field(
        default=9999,
        metadata=knob(
            "AUXOT_GPU_LAYERS",
            kinds.integer(-1, 1_000_000),
            help="layers to keep on the GPU; 0 or -1: llama-server's own choice",
        ),
    )
    replicas: int = attrs.field(
        default=0,
        metadata=knob(
            "AUXOT_REPLICAS",
            kinds.integer_or_auto(64),
            help="llama-servers on this host, each with the policy's slots; auto: one a GPU if the model fits on each",
        ),
    )
    wedge_timeout_s: float = attrs.field(
        default=300.0,
        metadata=knob(
            "AUXOT_WEDGE_TIMEOUT",
            kinds.duration(1, 7 * DAY_S),
            help="how long llama-server may write nothing while jobs wait, before it is killed and started again",
        ),
    )
    max_growth: int = attrs.field(
        default=12 * 10**9,
        metadata=knob(
            "AUXOT_MAX_GROWTH",
            kinds.size(),
            help="how much llama-server's memory, or that on its GPUs, may grow before it is replaced when its jobs "
            "have finished; 0: as it likes",
        ),
    )
    log_level: Level = attrs.field(default=Level.INFO, metadata=LOG_LEVEL)
    debug: int = attrs.field(
        default=0,
        metadata=knob(
            None, kinds.integer(0, 2, bare="1"), flag="--debug", help="1: log messages; 2: also what llama-server says"
        ),
    )
    warnings: tuple[str, ...] = ()  # for the log: variables that look like ours but are not
