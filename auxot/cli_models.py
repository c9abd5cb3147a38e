"""`auxot-router models`: the registry as a table or as JSON, with the memory that each model takes.

Memory is that of the context and the slots that this router is configured for; a model that was made for a smaller
context is counted with that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import attrs
import orjson

from auxot.config_models import ModelsConfig
from auxot.core.errors import ConfigError
from auxot.core.models.entries import Model, Registry, Variant, load_registry
from auxot.core.models.fit import Need, Shape, best_variant, memory_need
from auxot.core.models.lookup import choose_variant, nearest
from auxot.core.sizes import show_bytes

_HEAD = ("NAME", "KIND", "PARAMETERS", "CONTEXT", "CAPABILITIES", "QUANTIZATION", "MEMORY")


@attrs.frozen(kw_only=True)
class Line:
    """One line of the list: a model in a quantization, and what that takes."""

    model: Model
    variant: Variant
    need: Need


def show_models(config: ModelsConfig, say: Callable[[str], None]) -> int:
    """Show what was asked for; return the exit code.

    Raises:
        ConfigError: the registry cannot be read, or nothing in it is like this.
    """
    registry = load_registry(config.registry_file)
    lines = list(select(registry, config))
    if not lines:
        raise ConfigError(_why_none(registry, config))
    if config.json:
        say(orjson.dumps([_object(line) for line in lines], option=orjson.OPT_INDENT_2).decode())
        return 0
    for text in _table([_HEAD, *(_cells(line) for line in lines)]):
        say(text)
    say(_footer(config, lines))
    return 0


def _why_none(registry: Registry, config: ModelsConfig) -> str:
    """Say why nothing was found: none is called so, or none of those fits."""
    if config.fits and any(select(registry, attrs.evolve(config, fits=0))):
        shape = f"{config.max_parallel} slots of {config.ctx_size} tokens"
        less = "ask for less with --ctx-size or --max-parallel"
        return f"no such model fits {show_bytes(config.fits)} with {shape}: {less}"
    near = nearest(registry, config.search) if config.search else []
    return "no such model" + (f": is {' or '.join(near)} meant?" if near else "")


def select(registry: Registry, config: ModelsConfig) -> Iterator[Line]:
    """Yield the lines that were asked for, in the order of the registry: the largest models first."""
    for model in registry.models:
        if config.search.lower() in model.name.lower() and set(config.capability) <= set(model.capabilities):
            shape = Shape(
                ctx_tokens=min(config.ctx_size, model.context or config.ctx_size),
                slots=config.max_parallel,
                cache_type=config.cache_type,
            )
            for variant in _variants(model, shape, config):
                yield Line(model=model, variant=variant, need=memory_need(model, variant, shape))


def _variants(model: Model, shape: Shape, config: ModelsConfig) -> Sequence[Variant]:
    if config.all:
        return [one for one in model.variants if not config.fits or _fits(model, one, shape, config.fits)]
    if config.fits:
        best = best_variant(model, config.fits, shape)
        return [best] if best else []
    return [choose_variant(model, "")]


def _fits(model: Model, variant: Variant, shape: Shape, memory_bytes: int) -> bool:
    return memory_need(model, variant, shape).total <= memory_bytes


def _cells(line: Line) -> tuple[str, ...]:
    model = line.model
    return (
        model.name,
        model.kind,
        _count(model.parameters) + (f" ({_count(model.active_parameters)} active)" if model.active_parameters else ""),
        str(model.context),
        ", ".join(model.capabilities),
        line.variant.quantization,
        f"{'~' * line.need.is_estimate}{show_bytes(line.need.total)}{'' if line.need.has_cache else ' + cache'}",
    )


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _footer(config: ModelsConfig, lines: Sequence[Line]) -> str:
    n_models = len({line.model.name for line in lines})
    return (
        f"\n{n_models} models, {len(lines)} lines. Memory: {config.max_parallel} slots of at most {config.ctx_size}"
        f" tokens with a {config.cache_type} KV cache (--max-parallel, --ctx-size, --cache-type);"
        " ~: weights counted from the number of parameters."
    )


def _count(parameters: int) -> str:
    return f"{parameters / 10**9:.3g}B" if parameters >= 10**9 else f"{parameters // 10**6}M"


def _object(line: Line) -> dict[str, object]:
    model, variant = line.model, line.variant
    return {
        "name": model.name,
        "repo": model.repo,
        "kind": model.kind,
        "parameters": model.parameters,
        "active_parameters": model.active_parameters,
        "context": model.context,
        "capabilities": model.capabilities,
        "quantization": variant.quantization,
        "files": [attrs.asdict(file) for file in (*variant.files, *([model.projector] if model.projector else []))],
        "memory_bytes": {**attrs.asdict(line.need), "total": line.need.total},
    }
