"""Every setting of `auxot-router`, on one page; see `config`."""

from __future__ import annotations

from pathlib import Path

import attrs

from auxot import kinds
from auxot.config_shared import DAY_S, LOG_LEVEL, REGISTRY_FILE
from auxot.core.logs import Level
from auxot.knobs import knob

DEFAULT_MODEL = "Qwen3-Coder-30B-A3B"
CLI_WORKERS = "cli"


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
        metadata=knob(
            "AUXOT_MODEL",
            kinds.text(),
            help="the model that the workers serve: a name that `auxot-router models` lists, "
            "hf:owner/repo:file.gguf, a path on the workers, or any name where workers bring their own file",
        ),
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
    registry_file: Path | None = attrs.field(default=None, metadata=REGISTRY_FILE)
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
            kinds.duration(0.2, DAY_S),
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
            kinds.duration(0.1, 7 * DAY_S),
            help="how long a job may take, from its request to the end of its answer",
        ),
    )
    queue_timeout_s: float = attrs.field(
        default=300.0,
        metadata=knob(
            "AUXOT_QUEUE_TIMEOUT", kinds.duration(0.1, 7 * DAY_S), help="how long a job may wait for a free slot"
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
            kinds.duration(1, DAY_S),
            help="how long a wrong key is remembered; a right one is for ever",
        ),
    )
    log_level: Level = attrs.field(default=Level.INFO, metadata=LOG_LEVEL)
    warnings: tuple[str, ...] = ()  # for the log: variables that look like ours but are not
