"""Reads the settings of every daemon and command: the pages are `config_router`, `config_worker` and their like.

Read by `cli` and the services; parts get values, not configurations. Each field of a page names its environment
variable, the flag that overrides it, what values it takes and what it means; `knobs` tells where values are looked up.
Names and defaults are those of the original Auxot where it has them. Durations are seconds (`_s`), written in Go's
syntax (`15s`, `5m`, `1h30m`). Key hashes and the URL of Redis have no flag: the arguments of a process can be read by
every user of its machine.

The classes do not check their values, only the `load_...` functions do: tests build them with times that no operator
may set.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from auxot.config_router import CLI_WORKERS, DEFAULT_MODEL, RouterConfig
from auxot.config_worker import WorkerConfig
from auxot.core.errors import ConfigError
from auxot.knobs import flag_parser, knobs_of, load, read_dotenv

__all__ = [
    "CLI_WORKERS",
    "DEFAULT_MODEL",
    "RouterConfig",
    "WorkerConfig",
    "check_file",
    "load_config",
    "load_router_config",
    "load_worker_config",
    "unknown_variables",
]

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
_WITHOUT_EFFECT = frozenset({"AUXOT_ALLOWED_TOOLS", "AUXOT_MCP_EXPOSE_LLM"})
_TOOL_CREDENTIAL = re.compile(r"AUXOT_TOOLS?_[A-Z0-9_]+")

# With CLI workers: what a coding assistant's account takes, and no model of our own.
_CLI_DEFAULTS: Mapping[str, Any] = {"max_parallel": 1, "ctx_size": 200_000, "model": ""}

C = TypeVar("C")


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
    if config.llama_url is None and config.model_path is not None:
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
