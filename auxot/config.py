"""Every setting of every daemon, on one page. Read by `cli` and the services; parts get values, not configurations.

Each field names its environment variable, the flag that overrides it, what values it takes and what it means;
`knobs` tells where values are looked up. Names and defaults are those of the original Auxot where it has them.
Durations are seconds (`_s`), written in Go's syntax (`15s`, `5m`, `1h30m`). Key hashes and the URL of Redis have no
flag: the arguments of a process can be read by every user of its machine.

The classes do not check their values, only the `load_...` functions do: tests build them with times that no operator
may set.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import attrs

from auxot import kinds
from auxot.core.errors import ConfigError
from auxot.core.logs import Level
from auxot.knobs import flag_parser, knob, knobs_of, load, read_dotenv

DEFAULT_MODEL = "Qwen3-Coder-30B-A3B"
CLI_WORKERS = "cli"

_DAY_S = 86_400.0

MAX_WARNINGS = 20  # a log that starts with more would hide the first

# Of the tools and agent workers, of `auxot up`, or internal: known, but nobody reads them here.
_OTHER_VARIABLES = frozenset(
    {
        "AUXOT_API_KEY",
        "AUXOT_TOOLS_KEY",
        "AUXOT_BROWSER_MCP_PORT",
        "AUXOT_SERVER_URL",
        "AUXOT_AGENT_KEY",
        "AUXOT_AGENT_DIR",
        "AUXOT_MCP_TOOLS_FILE",
        "AUXOT_MCP_TOOL_PROXY",
        "AUXOT_MCP_JOB_ID",
    }
)
# Settings of the original router that ask for something that this version does not do.
_WITHOUT_EFFECT = frozenset({"AUXOT_ALLOWED_TOOLS", "AUXOT_MCP_EXPOSE_LLM", "AUXOT_REGISTRY_FILE"})
_TOOL_CREDENTIAL = re.compile(r"AUXOT_TOOLS?_[A-Z0-9_]+")

# With CLI workers: what a coding assistant's account takes, and no model of our own.
_CLI_DEFAULTS: Mapping[str, Any] = {"max_parallel": 1, "ctx_size": 200_000, "model": ""}

C = TypeVar("C")


def in_home(folder: str) -> Path:
    """Return a folder of ours in the user's home; ConfigError if there is no home."""
    try:
        return Path.home() / ".auxot" / folder
    except RuntimeError as exc:
        raise ConfigError("there is no home folder: set HOME") from exc


@attrs.frozen(kw_only=True)
class RouterConfig:
    """Settings of `auxot-router`."""

    host: str = attrs.field(
        default="0.0.0.0",  # noqa: S104 - a router is there for other machines
        metadata=knob("AUXOT_HOST", kinds.text(), help="address to listen on"),
    )
    port: int = attrs.field(
        default=8080, metadata=knob("AUXOT_PORT", kinds.integer(0, 65535), help="port to listen on; 0: any free one")
    )
    processes: int = attrs.field(
        default=1,
        metadata=knob(
            "AUXOT_PROCESSES",
            kinds.integer(1, 256),
            help="router processes that share the port, for more than one core; more than 1 need AUXOT_REDIS_URL",
        ),
    )
    redis_url: str | None = attrs.field(
        default=None,
        repr=False,
        metadata=knob(
            "AUXOT_REDIS_URL",
            kinds.url("redis", "rediss", "unix"),
            flag=None,
            is_secret=True,
            help="Redis that keeps the queue; without it the queue lives in the router's memory",
        ),
    )
    admin_key_hash: str = attrs.field(
        repr=False,
        metadata=knob(
            "AUXOT_ADMIN_KEY_HASH",
            kinds.key_hash(),
            flag=None,
            is_secret=True,
            help="hash of the key that GPU workers show; `auxot-router setup` makes one",
        ),
    )
    api_key_hash: str | None = attrs.field(
        default=None,
        repr=False,
        metadata=knob(
            "AUXOT_API_KEY_HASH",
            kinds.key_hash(),
            flag=None,
            is_secret=True,
            help="hash of the key that API callers show; `auxot-router setup` makes one; may be missing where there is "
            "a file of keys",
        ),
    )
    api_keys_file: Path | None = attrs.field(
        default=None,
        metadata=knob(
            "AUXOT_API_KEYS_FILE",
            kinds.path(),
            help="TOML file of further API keys with names and limits, read again when it changes; "
            "`auxot-router setup --new-api-key NAME` makes an entry",
        ),
    )
    tools_key_hash: str | None = attrs.field(
        default=None,
        repr=False,
        metadata=knob(
            "AUXOT_TOOLS_KEY_HASH",
            kinds.key_hash(),
            flag=None,
            is_secret=True,
            help="hash of the key that tools workers show; without it they are refused",
        ),
    )
    model: str = attrs.field(
        default=DEFAULT_MODEL,
        metadata=knob("AUXOT_MODEL", kinds.text(), help="name of the model that the workers serve"),
    )
    model_aliases: tuple[tuple[str, str], ...] = attrs.field(
        default=(),
        metadata=knob(
            "AUXOT_MODEL_ALIASES",
            kinds.aliases(),
            help="other names and patterns of the model, such as `gpt-4o,claude-*`; when set, a request for any other "
            "name is a 404; empty: any name is served",
        ),
    )
    quantization: str = attrs.field(
        default="",
        metadata=knob("AUXOT_QUANTIZATION", kinds.text(), help="quantization of the model; empty: automatic"),
    )
    ctx_size: int = attrs.field(
        default=131_072,
        metadata=knob(
            "AUXOT_CTX_SIZE",
            kinds.integer(256, 16_777_216),
            help="context of one slot in tokens (200000 with CLI workers)",
        ),
    )
    max_parallel: int = attrs.field(
        default=2,
        metadata=knob(
            "AUXOT_MAX_PARALLEL",
            kinds.integer(1, 1024),
            help="slots of a worker: jobs that it runs at once (1 with CLI workers)",
        ),
    )
    worker_type: str = attrs.field(
        default="gpu",
        metadata=knob("AUXOT_WORKER_TYPE", kinds.choice("gpu", CLI_WORKERS), help="what the workers are: gpu or cli"),
    )
    cli_type: str = attrs.field(
        default="claude", metadata=knob("AUXOT_CLI_TYPE", kinds.text(), help="which program CLI workers run")
    )
    cli_tools: tuple[str, ...] = attrs.field(
        default=(),
        metadata=knob("AUXOT_CLI_TOOLS", kinds.names(), help="its own tools that a CLI worker may use; empty: none"),
    )
    heartbeat_interval_s: float = attrs.field(
        default=15.0,
        metadata=knob(
            "AUXOT_HEARTBEAT_INTERVAL", kinds.duration(0.1, 3600), help="how often the router tells Redis that it lives"
        ),
    )
    dead_worker_timeout_s: float = attrs.field(
        default=45.0,
        metadata=knob(
            "AUXOT_DEAD_WORKER_TIMEOUT",
            kinds.duration(0.2, _DAY_S),
            help="silence after which a worker or a router counts as dead",
        ),
    )
    sweep_interval_s: float = attrs.field(
        default=15.0,
        metadata=knob(
            "AUXOT_SWEEP_INTERVAL", kinds.duration(0.1, 3600), help="how often jobs of dead routers are looked for"
        ),
    )
    job_timeout_s: float = attrs.field(
        default=300.0,
        metadata=knob(
            "AUXOT_JOB_TIMEOUT",
            kinds.duration(0.1, 7 * _DAY_S),
            help="how long a job may take, from its request to the end of its answer",
        ),
    )
    queue_timeout_s: float = attrs.field(
        default=300.0,
        metadata=knob(
            "AUXOT_QUEUE_TIMEOUT", kinds.duration(0.1, 7 * _DAY_S), help="how long a job may wait for a free slot"
        ),
    )
    keep_alive_interval_s: float = attrs.field(
        default=15.0,
        metadata=knob(
            "AUXOT_KEEP_ALIVE_INTERVAL",
            kinds.duration(0.1, 3600),
            help="silence after which a stream gets a comment, with its place in the queue or the progress of its "
            "prompt",
        ),
    )
    max_queue: int = attrs.field(
        default=10_000,
        metadata=knob(
            "AUXOT_MAX_QUEUE",
            kinds.integer(1, 1_000_000),
            help="requests that may wait for a free slot; more are refused with 429 (Anthropic's: 529)",
        ),
    )
    max_queue_bytes: int = attrs.field(
        default=1024 * 1024 * 1024,
        metadata=knob(
            "AUXOT_MAX_QUEUE_BYTES",
            kinds.integer(1024 * 1024, 1024**4),
            help="bytes of the requests that wait; the router's memory may grow to three times that",
        ),
    )
    max_attempts: int = attrs.field(
        default=3,
        metadata=knob(
            "AUXOT_MAX_ATTEMPTS",
            kinds.integer(1, 100),
            help="how often a job is given to a worker before it is discarded",
        ),
    )
    affinity: bool = attrs.field(
        default=True,
        metadata=knob(
            "AUXOT_AFFINITY",
            kinds.boolean(),
            help="give a job to the worker that holds most of its prompt; false: always to the least busy",
        ),
    )
    affinity_wait_s: float = attrs.field(
        default=0.0,
        metadata=knob(
            "AUXOT_AFFINITY_WAIT",
            kinds.duration(0, 3600),
            help="how long a job may be held while only busy workers hold its prompt",
        ),
    )
    max_body_bytes: int = attrs.field(
        default=32 * 1024 * 1024,
        metadata=knob("AUXOT_MAX_BODY_BYTES", kinds.integer(1024, 1024 * 1024 * 1024), help="largest request body"),
    )
    allow_private_urls: bool = attrs.field(
        default=False,
        metadata=knob(
            "AUXOT_ALLOW_PRIVATE_URLS",
            kinds.boolean(),
            help="true: images may be fetched from loopback and private networks too; else from the public internet "
            "only",
        ),
    )
    cors_origins: tuple[str, ...] = attrs.field(
        default=(),
        metadata=knob(
            "AUXOT_CORS_ORIGINS",
            kinds.origins(),
            help="web pages that may call from a browser, such as `https://app.example.com`, or `*`; empty: none",
        ),
    )
    keep_billing_header: bool = attrs.field(
        default=False,
        metadata=knob(
            "AUXOT_KEEP_BILLING_HEADER",
            kinds.boolean(),
            help="true: leave the line at the head of the system prompt that Claude Code changes every turn",
        ),
    )
    shutdown_grace_s: float = attrs.field(
        default=30.0,
        metadata=knob(
            "AUXOT_SHUTDOWN_GRACE", kinds.duration(0, 3600), help="how long running answers may go on after SIGTERM"
        ),
    )
    shutdown_delay_s: float = attrs.field(
        default=0.0,
        metadata=knob(
            "AUXOT_SHUTDOWN_DELAY",
            kinds.duration(0, 3600),
            help="how long after SIGTERM requests are still taken, while /health says 503 and connections are closed "
            "with each answer; behind a load balancer: longer than it takes to notice",
        ),
    )
    auth_cache_ttl_s: float = attrs.field(
        default=300.0,
        metadata=knob(
            "AUXOT_AUTH_CACHE_TTL",
            kinds.duration(1, _DAY_S),
            help="how long a wrong key is remembered; a right one is for ever",
        ),
    )
    log_level: Level = attrs.field(
        default=Level.INFO, metadata=knob("AUXOT_LOG_LEVEL", kinds.log_level(), help="debug, info, warn or error")
    )
    warnings: tuple[str, ...] = ()  # for the log: variables that look like ours but are not


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
        metadata=knob("AUXOT_MODEL_FILE", kinds.path(), flag="--model-path", help="the GGUF file of the model"),
    )
    models_dir: Path = attrs.field(
        factory=lambda: in_home("models"),
        metadata=knob("AUXOT_MODELS_DIR", kinds.path(), help="folder for downloaded models"),
    )
    llama_cache_dir: Path = attrs.field(
        factory=lambda: in_home("llama-server"),
        metadata=knob("AUXOT_LLAMA_CACHE_DIR", kinds.path(), help="folder for built llama-servers"),
    )
    llama_binary: Path | None = attrs.field(
        default=None,
        metadata=knob(
            "AUXOT_LLAMA_BINARY",
            kinds.path(),
            flag="--llama-server-path",
            help="the llama-server to run; without it: the one on PATH, then the one in the cache",
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
        metadata=knob("AUXOT_JOB_TIMEOUT", kinds.duration(0.1, 7 * _DAY_S), help="how long a job may run"),
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
    log_level: Level = attrs.field(
        default=Level.INFO, metadata=knob("AUXOT_LOG_LEVEL", kinds.log_level(), help="debug, info, warn or error")
    )
    debug: int = attrs.field(
        default=0,
        metadata=knob(
            None, kinds.integer(0, 2, bare="1"), flag="--debug", help="1: log messages; 2: also what llama-server says"
        ),
    )
    warnings: tuple[str, ...] = ()  # for the log: variables that look like ours but are not


def load_router_config(argv: Sequence[str], environ: Mapping[str, str], cwd: Path) -> RouterConfig:
    """Read the router's configuration.

    Args:
        argv: flags, without program and command.
        environ: the environment.
        cwd: the folder whose `.env` is read.

    Raises:
        ConfigError: unknown flag, missing or bad value, unreadable `.env`.
    """
    config = load_config(RouterConfig, "auxot-router", argv=argv, environ=environ, cwd=cwd)
    if config.worker_type == CLI_WORKERS:
        config = load_config(RouterConfig, "auxot-router", argv=argv, environ=environ, cwd=cwd, **_CLI_DEFAULTS)
    if config.api_key_hash is None and config.api_keys_file is None:
        raise ConfigError(
            "AUXOT_API_KEY_HASH is required, or AUXOT_API_KEYS_FILE: who may call; `auxot-router setup` makes a key"
        )
    if config.processes > 1 and config.redis_url is None:
        raise ConfigError(
            f"AUXOT_PROCESSES={config.processes} needs AUXOT_REDIS_URL: a queue in memory cannot be shared, and one "
            "process is right for it"
        )
    if config.dead_worker_timeout_s <= config.heartbeat_interval_s:
        raise ConfigError("AUXOT_DEAD_WORKER_TIMEOUT must be longer than AUXOT_HEARTBEAT_INTERVAL")
    for alias, model in config.model_aliases:
        if model not in ("", config.model):
            raise ConfigError(f"AUXOT_MODEL_ALIASES: {alias}={model}: the model of this router is {config.model!r}")
    return config


def load_worker_config(argv: Sequence[str], environ: Mapping[str, str], cwd: Path) -> WorkerConfig:
    """Read the GPU worker's configuration; arguments and errors as `load_router_config`."""
    config = load_config(WorkerConfig, "auxot-worker", argv=argv, environ=environ, cwd=cwd)
    if config.reconnect_max_delay_s < config.reconnect_delay_s:
        raise ConfigError("AUXOT_RECONNECT_MAX_DELAY must not be shorter than AUXOT_RECONNECT_DELAY")
    if config.llama_url is None:
        if config.model_path is None:
            raise ConfigError("AUXOT_MODEL_FILE or --model-path is required: the GGUF file of the model")
        check_file(config.model_path)
    return config


def load_config(
    cls: type[C], prog: str, *, argv: Sequence[str], environ: Mapping[str, str], cwd: Path, **defaults: Any
) -> C:
    """Read the configuration of one command; `prog` is its name for errors, the rest as `load_router_config`."""
    flags = vars(flag_parser(cls, prog=prog).parse_args(argv))
    dotenv = read_dotenv(cwd)
    warnings = unknown_variables({**dotenv, **environ})
    return load(cls, flags, environ, dotenv=dotenv, warnings=warnings, **defaults)


def check_file(model_path: Path) -> None:
    """Raise ConfigError if the model's file is not there."""
    if not model_path.is_file():
        raise ConfigError(f"AUXOT_MODEL_FILE or --model-path: there is no file {str(model_path)!r}")


def unknown_variables(names: Iterable[str]) -> tuple[str, ...]:
    """Return one sentence for each AUXOT_ variable that has no effect, at most `MAX_WARNINGS`; values are not shown."""
    known = _known_variables()
    strange = sorted(name for name in names if name.startswith("AUXOT_") and name not in known)
    return tuple(_warning(name, known) for name in strange[:MAX_WARNINGS])


def _known_variables() -> frozenset[str]:
    knobs = [*knobs_of(RouterConfig).values(), *knobs_of(WorkerConfig).values()]
    return _OTHER_VARIABLES | {one.variable for one in knobs if one.variable}


def _warning(name: str, known: Iterable[str]) -> str:
    if name in _WITHOUT_EFFECT or _TOOL_CREDENTIAL.fullmatch(name):
        return f"{name} has no effect in this version"
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
    return f"{name} is not a setting" + (f": is {nearest[0]} meant?" if nearest else "")
