"""Settings that several programs have, and what such settings are made of."""

from __future__ import annotations

from pathlib import Path

from auxot import kinds
from auxot.core.errors import ConfigError
from auxot.core.models.cache_types import CACHE_TYPE_BYTES
from auxot.knobs import knob

DAY_S = 86_400.0

CACHE_TYPE = knob(
    "AUXOT_CACHE_TYPE",
    kinds.choice(*CACHE_TYPE_BYTES),
    help="what the KV cache keeps its numbers in; q8_0 takes half the memory of f16",
)
REGISTRY_FILE = knob(
    "AUXOT_REGISTRY_FILE", kinds.path(), help="a registry of models in place of the one that comes with Auxot"
)
LOG_LEVEL = knob("AUXOT_LOG_LEVEL", kinds.log_level(), help="debug, info, warn or error")


def in_home(folder: str) -> Path:
    """Return a folder of ours in the user's home; ConfigError if there is no home."""
    try:
        return Path.home() / ".auxot" / folder
    except RuntimeError as exc:
        raise ConfigError("there is no home folder: set HOME") from exc
