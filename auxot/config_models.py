"""Settings of the commands about models: `auxot-router models`.

Most are settings of the daemons too, and are read from the same variables.
"""

from __future__ import annotations

from pathlib import Path

import attrs

from auxot import kinds
from auxot.config import CACHE_TYPE, RouterConfig
from auxot.core.models.cache_types import DEFAULT_CACHE_TYPE
from auxot.knobs import knob

# What the same setting is in another command is told once, above.
_ROUTER = attrs.fields_dict(RouterConfig)


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
