from __future__ import annotations

import re

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from auxot.core.models.entries import Attention, Model, RemoteFile, Variant, packaged_registry
from auxot.core.models.fit import MIN_CTX_TOKENS, Shape, fit, memory_need, refusal
from auxot.core.models.lookup import Choice, resolve
from auxot.core.sizes import parse_bytes, show_bytes

GIB = 1024**3
WANTED = Shape(ctx_tokens=131_072, slots=2)
SMALL = Choice(
    model=Model(
        name="small",
        repo="o/r",
        parameters=10**9,
        attention=Attention(layers=10, kv_heads=4, key_size=64, value_size=64),
        variants=(),
    ),
    variant=Variant(quantization="Q8_0", files=(RemoteFile(path="x.gguf", size_bytes=10**9),)),
)


def coder() -> Choice:
    found = resolve(packaged_registry(), "Qwen3-Coder-30B-A3B")
    assert isinstance(found, Choice)
    return found


def test_cache_is_counted_for_every_slot_layer_and_head() -> None:
    """A model is started that runs out of memory with its first long prompt."""
    need = memory_need(SMALL.model, SMALL.variant, Shape(ctx_tokens=1000, slots=3))
    assert need.cache == 3 * 1000 * 10 * 4 * (64 + 64) * 2
    assert (need.weights, need.is_estimate, need.has_cache) == (10**9, False, True)
    halved = memory_need(SMALL.model, SMALL.variant, Shape(ctx_tokens=1000, slots=3, cache_type="q8_0"))
    assert halved.cache == round(need.cache * 34 / 64)


@pytest.mark.parametrize(
    ("name", "quantization", "gb"),
    [
        ("Qwen3-8B", "Q4_K_M", 5.0),  # the files' real sizes, in 10^9 bytes
        ("Qwen3-8B", "Q8_0", 8.7),
        ("Qwen3-32B", "Q4_K_S", 18.8),
        ("Qwen3-Coder-30B-A3B", "Q4_K_S", 17.5),
        ("gpt-oss-20b", "F16", 13.8),
        ("Llama-3.3-70B", "Q4_K_M", 42.5),
    ],
)
def test_estimates_of_weights_are_near_the_real_files(name: str, quantization: str, gb: float) -> None:
    """A model that fits is refused, or one that does not is downloaded."""
    found = resolve(packaged_registry(), name, quantization)
    assert isinstance(found, Choice)
    need = memory_need(found.model, found.variant, WANTED)
    assert need.weights / 10**9 == pytest.approx(gb, rel=0.1)


def test_the_context_is_kept_before_the_slots() -> None:
    """An agent gets a context too small for its prompt while a second slot stays empty."""
    assert fit(coder(), 80 * GIB, WANTED).shape == WANTED
    assert fit(coder(), 34 * GIB, WANTED).shape == attrs.evolve(WANTED, slots=1)
    assert fit(coder(), 24 * GIB, WANTED).shape == attrs.evolve(WANTED, ctx_tokens=65_536, slots=1)
    assert fit(coder(), 16 * GIB, WANTED).shape is None


@given(memory=st.integers(0, 200 * GIB), ctx=st.integers(256, 300_000), slots=st.integers(1, 64))
def test_what_is_said_to_fit_does(memory: int, ctx: int, slots: int) -> None:
    """A shape is chosen that is larger than the memory or than what was asked for, or none although one fits."""
    outcome = fit(SMALL, memory, Shape(ctx_tokens=ctx, slots=slots))
    if outcome.shape is None:
        least = Shape(ctx_tokens=min(ctx, MIN_CTX_TOKENS), slots=1)
        assert memory_need(SMALL.model, SMALL.variant, least).total > memory
    else:
        assert 1 <= outcome.shape.slots <= slots
        assert min(ctx, MIN_CTX_TOKENS) <= outcome.shape.ctx_tokens <= ctx
        assert outcome.need == memory_need(SMALL.model, SMALL.variant, outcome.shape)
        assert outcome.need.total <= memory


def test_a_refusal_tells_the_numbers_and_what_would_fit() -> None:
    """A user learns that a model is too large, and nothing about what to do."""
    text = refusal(packaged_registry(), coder(), 18 * 10**9, WANTED)
    assert "takes 20.1 GB (weights about 18.2 GB, KV cache 805.3 MB, overhead 1.1 GB)" in text
    assert "there are 18.0 GB; AUXOT_QUANTIZATION=Q3_K_S would fit" in text
    text = refusal(packaged_registry(), coder(), 8 * 10**9, WANTED)
    assert text.endswith(" would fit")
    assert "no model" not in text
    assert refusal(packaged_registry(), coder(), 1000, WANTED).endswith("no model of the registry would fit")


@pytest.mark.parametrize(
    ("text", "n"), [("24GB", 24 * 10**9), ("23.5 GiB", 25_232_932_864), ("512m", 512_000_000), ("7", 7), ("1kib", 1024)]
)
def test_sizes_are_read_as_written(text: str, n: int) -> None:
    """24GB is taken for 24 GiB, or for 24 bytes."""
    assert parse_bytes(text) == n


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "1.GB", "1e9", "24 Gigs", "7i", "9" * 400])
def test_what_is_no_size_is_refused(text: str) -> None:
    """A typing error becomes a size."""
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        parse_bytes(text)


def test_sizes_are_shown_short() -> None:
    """A message holds eleven digits."""
    assert [show_bytes(n) for n in (17_500_000_000, 805_306_368, 1500, 7)] == [
        "17.5 GB",
        "805.3 MB",
        "1.5 kB",
        "7 bytes",
    ]
