from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auxot.core.models.entries import Attention
from auxot.core.models.gguf import GgufError, Header, read_header
from auxot.demo.tiny_model import CONTEXT_LENGTH, tiny_model

TINY = tiny_model()
END_OF_HEADER = TINY.index(b"token_embd.weight") - 8  # where the table of tensors begins


def text(word: str) -> bytes:
    return struct.pack("<Q", len(word.encode())) + word.encode()


def value(one: Any) -> bytes:
    """Return a value with its type, as GGUF writes it."""
    if isinstance(one, bool):
        return struct.pack("<I?", 7, one)
    if isinstance(one, int):
        return struct.pack("<II", 4, one)
    if isinstance(one, float):
        return struct.pack("<If", 6, one)
    if isinstance(one, str):
        return struct.pack("<I", 8) + text(one)
    items = [value(item) for item in one]
    return struct.pack("<I", 9) + items[0][:4] + struct.pack("<Q", len(items)) + b"".join(item[4:] for item in items)


def header(architecture: str, figures: Mapping[str, Any], *, version: int = 3) -> bytes:
    pairs = {"general.architecture": architecture} | {f"{architecture}.{key}": one for key, one in figures.items()}
    head = struct.pack("<4sIQQ", b"GGUF", version, 0, len(pairs))
    return head + b"".join(text(key) + value(one) for key, one in pairs.items())


def attention(architecture: str, figures: Mapping[str, Any]) -> Attention | None:
    return read_header(io.BytesIO(header(architecture, figures))).attention


def full(layers: int, kv_heads: int, size: int) -> Attention:
    return Attention(layers=layers, kv_heads=kv_heads, key_size=size, value_size=size)


def test_a_real_file_tells_what_its_cache_is_made_of() -> None:
    """A model of the user's own is started with a cache that the memory has no room for."""
    found = read_header(io.BytesIO(TINY))
    assert found == Header(architecture="llama", context=CONTEXT_LENGTH, attention=full(1, 1, 64))


BASE = {"block_count": 8, "embedding_length": 1024, "attention.head_count": 16}
HEADS = {**BASE, "attention.head_count_kv": 4}


@pytest.mark.parametrize(
    ("architecture", "figures", "expected"),
    [
        ("llama", BASE, full(8, 16, 64)),  # neither grouped heads nor sizes of their own
        ("llama", HEADS, full(8, 4, 64)),
        ("qwen3", {**HEADS, "attention.key_length": 128, "attention.value_length": 128}, full(8, 4, 128)),
        (  # latent attention: one compressed key and value for all heads
            "deepseek2",
            {**BASE, "attention.head_count_kv": 1, "attention.key_length": 576, "attention.value_length": 512},
            Attention(layers=8, kv_heads=1, key_size=576, value_size=512),
        ),
        ("qwen3next", HEADS, full(2, 4, 64)),  # three of four layers are recurrent
        ("qwen35", {**HEADS, "full_attention_interval": 2}, full(4, 4, 64)),
        ("qwen35", {**HEADS, "attention.recurrent_layers": [True] * 5 + [False] * 3}, full(3, 4, 64)),
        ("granitehybrid", {**BASE, "attention.head_count_kv": [0, 0, 8, 0, 0, 8, 0, 0]}, full(2, 8, 64)),
        ("gemma4", {**HEADS, "attention.shared_kv_layers": 3}, full(5, 4, 64)),
        ("gemma3n", {**HEADS, "block_count": 30}, full(20, 4, 64)),
        ("gemma3", {**HEADS, "attention.sliding_window": 512}, full(8, 4, 64)),  # the cache is whole all the same
        (  # layers that differ: as one that keeps the numbers of all
            "gemma4",
            {
                **BASE,
                "block_count": 3,
                "attention.head_count_kv": [4, 4, 1],
                "attention.key_length": 512,
                "attention.value_length": 512,
                "attention.key_length_swa": 256,
                "attention.value_length_swa": 256,
                "attention.sliding_window_pattern": [True, True, False],
            },
            full(1, 1, 2 * 4 * 256 + 512),
        ),
    ],
)
def test_architectures_keep_what_llama_cpp_keeps(architecture: str, figures: dict[str, Any], expected: object) -> None:
    """The cache of a model is counted many times over, or not at all."""
    assert attention(architecture, figures) == expected


@pytest.mark.parametrize(
    "changes",
    [
        {"block_count": 0},
        {"block_count": 4_000_000_000},
        {"block_count": "8"},
        {"attention.head_count": 0},
        {"attention.head_count": 1.5},
        {"attention.head_count": [16] * 7},
        {"attention.head_count": ["a"] * 8},
        {"embedding_length": 0},
        {"attention.key_length": 4_000_000_000},
        {"attention.head_count": 4_000_000_000},
    ],
)
def test_figures_that_cannot_be_meant_are_not_known(changes: dict[str, Any]) -> None:
    """A broken header has a model refused for a thousand terabytes, or ends the worker."""
    assert attention("llama", {**BASE, **changes}) is None


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "ends within its header"),
        (b"<html><body>", "does not begin as a GGUF file"),
        (b"GGUF" + struct.pack(">I", 3), "version 50331648"),
        (header("llama", {}, version=1), "version 1"),
        (struct.pack("<4sIQQ", b"GGUF", 3, 0, 2**63), "9223372036854775808 entries"),
        (struct.pack("<4sIQQ", b"GGUF", 3, 0, 0), "does not say of which architecture"),
        (struct.pack("<4sIQQQ", b"GGUF", 3, 0, 1, 2**40), "a length in its header is 1099511627776"),
        (struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + text("k") + struct.pack("<I", 77), "type 77"),
        (struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + text("k") + struct.pack("<IIQ", 9, 9, 1), "type 9"),
        (header("llama", {"a": "x" * 20_000_000, "b": "x" * 20_000_000}), "longer than"),
        (header("a\n", {}), "does not say of which architecture"),
    ],
    ids=range(11),
)
def test_what_is_no_header_is_told(content: bytes, reason: str) -> None:
    """An error page that was saved as a model is a traceback, or fills the memory."""
    with pytest.raises(GgufError, match=reason) as caught:
        read_header(io.BytesIO(content))
    assert "\n" not in str(caught.value)


@given(cut=st.integers(0, END_OF_HEADER - 1))
def test_a_header_that_was_cut_is_an_error(cut: int) -> None:
    """A half download is measured as if it were whole."""
    with pytest.raises(GgufError):
        read_header(io.BytesIO(TINY[:cut]))


@given(st.data())
def test_garbage_is_an_error_or_a_header(data: st.DataObject) -> None:
    """A broken file ends the worker with a traceback."""
    content = bytearray(TINY[:END_OF_HEADER])
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 9))
        content[place : place + 8] = data.draw(st.binary(min_size=1, max_size=8))
    try:
        found = read_header(io.BytesIO(content))
    except GgufError:
        return
    assert found.context >= 0
