"""How much memory a model takes, and what of it fits: pure arithmetic.

    weights        the files, or parameters x bits of the quantization where the files' size is not known
    projector      of vision models; 1 GB where its size is not known
    KV cache       slots x context x layers x heads x (key + value) x bytes of the cache's type
    overhead       what llama-server computes in: 512 MiB and 3% of the weights

The worker computes with it before it downloads, the router's list of models shows it. What llama-server really takes
depends on its version and backend; the figures are meant to be a little high.

The bits of a quantization: averages over the tensors of models of 4 to 70 billion parameters, as llama.cpp makes them
(its `quantize` example prints them); small models are a little larger, because their embeddings weigh more.
"""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from auxot.core.models.cache_types import CACHE_TYPE_BYTES, DEFAULT_CACHE_TYPE
from auxot.core.models.entries import Model, Registry, Variant
from auxot.core.models.lookup import Choice, choose_variant
from auxot.core.models.rows import CHAT
from auxot.core.sizes import show_bytes

GIB = 1024**3
MIB = 1024**2
MIN_CTX_TOKENS = 8192  # less is of no use to an agent: a model that leaves no room for that does not fit

_OVERHEAD_BYTES = 512 * MIB
_OVERHEAD_SHARE = 0.03
_PROJECTOR_BYTES = 1_000_000_000
_MAX_SUGGESTIONS = 3

_WEIGHT_BITS = {
    "Q2_K": 3.0,
    "Q3_K_S": 3.6,
    "Q3_K_M": 4.0,
    "Q3_K_L": 4.3,
    "IQ4_XS": 4.4,
    "MXFP4": 4.5,
    "Q4_0": 4.7,
    "Q4_K_S": 4.7,
    "Q4_K_M": 4.9,
    "Q5_0": 5.6,
    "Q5_K_S": 5.6,
    "Q5_K_M": 5.7,
    "Q6_K": 6.6,
    "Q8_0": 8.5,
    "Q8_K": 10.5,  # the "dynamic" files of that name keep some tensors in 16 bits
    "F16": 16.0,
    "BF16": 16.0,
    "F32": 32.0,
}


@attrs.frozen(kw_only=True)
class Shape:
    """What is to be served: tokens of one slot, slots, and the type of the cache's numbers."""

    ctx_tokens: int
    slots: int
    cache_type: str = DEFAULT_CACHE_TYPE


@attrs.frozen(kw_only=True)
class Need:
    """Memory in bytes. `is_estimate`: the files' size is not known; `has_cache`: that of the KV cache is."""

    weights: int
    projector: int
    cache: int
    overhead: int
    is_estimate: bool
    has_cache: bool

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.projector + self.cache + self.overhead


@attrs.frozen(kw_only=True)
class Fit:
    """The outcome of `fit`: `shape` is the largest that has room, None if not even the smallest has."""

    shape: Shape | None
    need: Need


def memory_need(model: Model, variant: Variant, shape: Shape) -> Need:
    """Return what a model takes in that shape; a part that is not known counts as none, and `Need` says so."""
    weights = weight_bytes(model, variant)
    projector = 0 if model.projector is None else model.projector.size_bytes or _PROJECTOR_BYTES
    return Need(
        weights=weights,
        projector=projector,
        cache=round(cache_bytes_per_token(model, shape.cache_type) * shape.ctx_tokens * shape.slots),
        overhead=_OVERHEAD_BYTES + round(_OVERHEAD_SHARE * weights),
        is_estimate=variant.size_bytes is None,
        has_cache=model.attention is not None,
    )


def weight_bytes(model: Model, variant: Variant) -> int:
    """Return the size of the weights: that of the files, else an estimate; 0 if there is nothing to make one of."""
    if variant.size_bytes is not None:
        return variant.size_bytes
    bits = _WEIGHT_BITS.get(variant.quantization.upper(), 0.0)
    if model.weight_bits:
        bits = min(bits, model.weight_bits)
    return round(model.parameters * bits / 8)


def cache_bytes_per_token(model: Model, cache_type: str) -> float:
    """Return the bytes that one token takes in the KV cache; 0 if it is not known."""
    attention = model.attention
    if attention is None:
        return 0.0
    numbers = attention.layers * attention.kv_heads * (attention.key_size + attention.value_size)
    return numbers * CACHE_TYPE_BYTES[cache_type]


def fit(choice: Choice, memory_bytes: int, wanted: Shape) -> Fit:
    """Find the largest shape that fits into the memory, no larger than the wanted one.

    The context is kept as long as one slot can have it, halved after that; then there are as many slots as fit.
    """
    for shape in _shapes(wanted):
        need = memory_need(choice.model, choice.variant, shape)
        if need.total <= memory_bytes:
            return Fit(shape=shape, need=need)
    return Fit(shape=None, need=memory_need(choice.model, choice.variant, smallest_shape(wanted)))


def smallest_shape(wanted: Shape) -> Shape:
    """Return the least that is worth serving."""
    return attrs.evolve(wanted, ctx_tokens=min(MIN_CTX_TOKENS, wanted.ctx_tokens), slots=1)


def _shapes(wanted: Shape) -> Iterator[Shape]:
    """Yield what may be served, the best first."""
    least = smallest_shape(wanted).ctx_tokens
    ctx_tokens = wanted.ctx_tokens
    while True:
        yield from (attrs.evolve(wanted, ctx_tokens=ctx_tokens, slots=slots) for slots in range(wanted.slots, 0, -1))
        if ctx_tokens <= least:
            return
        ctx_tokens = max(least, ctx_tokens // 2)


def refusal(registry: Registry, choice: Choice, memory_bytes: int, wanted: Shape) -> str:
    """Return the sentence for a model that does not fit: the numbers, and what would."""
    smallest = smallest_shape(wanted)
    need = memory_need(choice.model, choice.variant, smallest)
    return (
        f"{choice.model.name} ({choice.variant.quantization}) does not fit: it takes {describe(need)} even with"
        f" one slot of {smallest.ctx_tokens} tokens, and there are {show_bytes(memory_bytes)}"
        f"; {_what_fits(registry, choice, memory_bytes, smallest)}"
    )


def describe(need: Need) -> str:
    """Return a need with its parts, in one phrase."""
    parts = [f"weights {'about ' if need.is_estimate else ''}{show_bytes(need.weights)}"]
    if need.projector:
        parts.append(f"vision projector {show_bytes(need.projector)}")
    parts.append(f"KV cache {show_bytes(need.cache)}" if need.has_cache else "KV cache of unknown size")
    parts.append(f"overhead {show_bytes(need.overhead)}")
    return f"{show_bytes(need.total)} ({', '.join(parts)})"


def best_variant(model: Model, memory_bytes: int, shape: Shape) -> Variant | None:
    """Return the largest quantization of a model that fits in that shape, None if none does."""
    fitting = [one for one in model.variants if memory_need(model, one, shape).total <= memory_bytes]
    return max(fitting, key=lambda one: weight_bytes(model, one), default=None)


def _what_fits(registry: Registry, choice: Choice, memory_bytes: int, shape: Shape) -> str:
    other = best_variant(choice.model, memory_bytes, shape)
    if other is not None:
        return f"AUXOT_QUANTIZATION={other.quantization} would fit"
    alike = _fitting(registry, set(choice.model.capabilities), memory_bytes, shape)
    names = [model.name for model in alike or _fitting(registry, {CHAT}, memory_bytes, shape)]
    return f"{' or '.join(names)} would fit" if names else "no model of the registry would fit"


def _fitting(registry: Registry, capabilities: set[str], memory_bytes: int, shape: Shape) -> list[Model]:
    """Return the largest models that can do this and fit in their usual quantization."""
    able = (model for model in registry.models if capabilities <= set(model.capabilities) and model.parameters)
    fitting = [one for one in able if memory_need(one, choose_variant(one, ""), shape).total <= memory_bytes]
    return sorted(fitting, key=lambda model: -model.parameters)[:_MAX_SUGGESTIONS]
