"""What the header of a GGUF file says of the memory that its model takes; nothing else of the file is read.

    magic  version  number of tensors  number of pairs  { key  type  value }*  ...

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian. A file comes from
anywhere: what is read and how long it takes are bounded, and a header that makes no sense is an error, never a guess.

Which layers have a KV cache is llama.cpp's: not those that are recurrent, nor those that share the cache of others.
Sliding windows do not count, since llama-server is started with `--swa-full`.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import BinaryIO, TypeAlias, TypeGuard

import attrs

from auxot.core.models.entries import Attention

MAX_HEADER_BYTES = 32 * 1024 * 1024  # tokenizers of 260,000 words take 15 MB
MAX_PAIRS = 10_000
MAX_ITEMS = 2_000_000  # of an array
MAX_LAYERS = 1_000

_MAX_NUMBER = 1 << 20  # of heads, of numbers in one: what a model may be thought to have
_MAX_KEY_BYTES = 1024
_MAX_WORD_BYTES = 256
_FORMATS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_FLOATS, _STRING, _ARRAY = (6, 12), 8, 9
_ENDS_EARLY = "it ends within its header"
_ARCHITECTURE = "general.architecture"
# Keys of the architecture that are kept, without its name.
_WANTED = frozenset(
    {
        *("context_length", "embedding_length", "block_count", "full_attention_interval"),
        *("attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length"),
        *("attention.key_length_swa", "attention.value_length_swa", "attention.sliding_window_pattern"),
        *("attention.shared_kv_layers", "attention.recurrent_layers"),
    }
)
# Figures that llama.cpp knows of an architecture where the file does not tell them.
_DEFAULTS: Mapping[str, Mapping[str, int]] = {
    "gemma3n": {"attention.shared_kv_layers": -20},  # below zero: so many have a cache of their own
    "qwen3next": {"full_attention_interval": 4},
    "qwen35": {"full_attention_interval": 4},
    "qwen35moe": {"full_attention_interval": 4},
}

_Value: TypeAlias = "int | str | tuple[int, ...]"


class GgufError(ValueError):
    """A file that is not GGUF, or whose header is broken; the text says what is wrong with it."""


@attrs.frozen(kw_only=True)
class Header:
    """What is known of a model.

    Attributes:
        architecture: llama.cpp's word for it, such as "qwen3".
        context: the longest that it was made for, in tokens; 0: not told.
        attention: None where the header does not tell.
    """

    architecture: str
    context: int
    attention: Attention | None


def read_header(stream: BinaryIO) -> Header:
    """Read the header of a file, from its beginning.

    Args:
        stream: the file (of a split one the first part), which can be sought in.

    Raises:
        GgufError: it is none, or not one that can be understood.
        OSError: it cannot be read.
    """
    reader = _Reader(stream)
    if reader.take(4) != b"GGUF":
        raise GgufError("it does not begin as a GGUF file does")
    version = reader.number("<I")
    if version not in (2, 3):
        raise GgufError(f"its version {version} of the format is not known")
    reader.number("<Q")  # tensors: not looked at
    n_pairs = reader.number("<Q")
    if n_pairs > MAX_PAIRS:
        raise GgufError(f"it says that it has {n_pairs} entries")
    return _header(dict(_pairs(reader, n_pairs)))


@attrs.define
class _Reader:
    """Reads forward only, and no more than MAX_HEADER_BYTES in all."""

    _stream: BinaryIO
    _n_bytes: int = attrs.field(init=False)
    _position: int = 0

    def __attrs_post_init__(self) -> None:
        self._n_bytes = self._stream.seek(0, os.SEEK_END)
        self._stream.seek(0)

    def take(self, n: int) -> bytes:
        self._spend(n)
        found = self._stream.read(n)
        if len(found) < n:
            raise GgufError(_ENDS_EARLY)  # somebody cuts the file meanwhile
        return found

    def skip(self, n: int) -> None:
        self._spend(n)
        self._stream.seek(n, os.SEEK_CUR)

    def number(self, form: str) -> int:
        (number,) = struct.unpack(form, self.take(struct.calcsize(form)))
        return int(number)

    def length(self, limit: int) -> int:
        n = self.number("<Q")
        if n > limit:
            raise GgufError(f"a length in its header is {n}")
        return n

    def text(self, limit: int) -> str:
        return self.take(self.length(limit)).decode(errors="replace")

    def _spend(self, n: int) -> None:
        self._position += n
        if self._position > self._n_bytes:
            raise GgufError(_ENDS_EARLY)
        if self._position > MAX_HEADER_BYTES:
            raise GgufError(f"its header is longer than {MAX_HEADER_BYTES} bytes")


def _pairs(reader: _Reader, n_pairs: int) -> Iterator[tuple[str, _Value]]:
    """Yield the pairs that are wanted; the others are passed over."""
    for _ in range(n_pairs):
        key = reader.text(_MAX_KEY_BYTES)
        kind = reader.number("<I")
        is_wanted = key == _ARCHITECTURE or key.partition(".")[2] in _WANTED
        value = _value(reader, kind, is_wanted=is_wanted)
        if is_wanted and value is not None:
            yield key, value


def _value(reader: _Reader, kind: int, *, is_wanted: bool) -> _Value | None:
    """Read a value; None for one that is not wanted, or that is not of whole numbers or text."""
    if kind == _STRING:
        if is_wanted:
            return reader.text(_MAX_WORD_BYTES)
        reader.skip(reader.length(MAX_HEADER_BYTES))
        return None
    if kind == _ARRAY:
        return _array(reader, is_wanted=is_wanted)
    if is_wanted and kind not in _FLOATS:
        return reader.number(_form(kind))
    reader.skip(struct.calcsize(_form(kind)))
    return None


def _array(reader: _Reader, *, is_wanted: bool) -> tuple[int, ...] | None:
    kind, n_items = reader.number("<I"), reader.length(MAX_ITEMS)
    if kind == _STRING:
        for _ in range(n_items):
            reader.skip(reader.length(MAX_HEADER_BYTES))
        return None
    form = _form(kind)
    if is_wanted and kind not in _FLOATS and n_items <= MAX_LAYERS:
        return tuple(reader.number(form) for _ in range(n_items))
    reader.skip(n_items * struct.calcsize(form))
    return None


def _form(kind: int) -> str:
    if kind not in _FORMATS:
        raise GgufError(f"a value in its header has the type {kind}, which is not known")
    return _FORMATS[kind]


def _header(pairs: Mapping[str, _Value]) -> Header:
    architecture = pairs.get(_ARCHITECTURE)
    if not isinstance(architecture, str) or not architecture.isprintable():
        raise GgufError("it does not say of which architecture it is")
    prefix = f"{architecture}."
    ours = {key.removeprefix(prefix): value for key, value in pairs.items() if key.startswith(prefix)}
    figures: dict[str, _Value] = {**_DEFAULTS.get(architecture, {}), **ours}
    context = figures.get("context_length")
    return Header(
        architecture=architecture,
        context=context if isinstance(context, int) and context > 0 else 0,
        attention=_attention(figures),
    )


def _attention(figures: Mapping[str, _Value]) -> Attention | None:
    """Return what the KV cache is made of; None where a figure is missing or cannot be meant."""
    n_layers = figures.get("block_count")
    if not isinstance(n_layers, int) or not 0 < n_layers <= MAX_LAYERS:
        return None
    heads = _by_layer(figures, "attention.head_count", n_layers)
    if heads is None:
        return None
    kv_heads = _by_layer(figures, "attention.head_count_kv", n_layers) or heads
    sizes = [_sizes(figures, what, n_layers, heads) for what in ("key", "value")]
    if sizes[0] is None or sizes[1] is None:
        return None
    rows = zip(kv_heads, sizes[0], sizes[1], _keeps(figures, n_layers), strict=True)
    return _together([(n, key, value) for n, key, value, keeps in rows if keeps and n])


def _sizes(figures: Mapping[str, _Value], what: str, n_layers: int, heads: Sequence[int]) -> list[int] | None:
    """Return the size of a key or of a value for each layer; those with a window may have their own."""
    width = figures.get("embedding_length")
    even = width // max(heads) if isinstance(width, int) and max(heads) else 0
    full = figures.get(f"attention.{what}_length", even)
    near = figures.get(f"attention.{what}_length_swa", full)
    windows = figures.get("attention.sliding_window_pattern")
    if not (_is_count(full) and _is_count(near)):
        return None
    if full == near:
        return [full] * n_layers
    if not isinstance(windows, tuple) or len(windows) < n_layers:
        return [max(full, near)] * n_layers
    return [near if window else full for window in windows[:n_layers]]


def _keeps(figures: Mapping[str, _Value], n_layers: int) -> list[bool]:
    """Tell for each layer whether it has a KV cache of its own."""
    shared, interval = figures.get("attention.shared_kv_layers"), figures.get("full_attention_interval")
    recurrent = figures.get("attention.recurrent_layers")
    n_own = n_layers
    if isinstance(shared, int):
        n_own = n_layers - shared if shared >= 0 else -shared
    if isinstance(recurrent, tuple) and len(recurrent) >= n_layers:
        return [i < n_own and not recurrent[i] for i in range(n_layers)]
    step = interval if isinstance(interval, int) and interval > 0 else 1
    return [i < n_own and (i + 1) % step == 0 for i in range(n_layers)]


def _together(rows: Sequence[tuple[int, int, int]]) -> Attention | None:
    """Return the layers as one figure; where they differ, as a single layer that keeps the numbers of all."""
    if not rows:
        return None
    if len(set(rows)) == 1:
        return Attention(layers=len(rows), kv_heads=rows[0][0], key_size=rows[0][1], value_size=rows[0][2])
    keys, values = sum(n * key for n, key, _ in rows), sum(n * value for n, _, value in rows)
    return Attention(layers=1, kv_heads=1, key_size=keys, value_size=values)


def _by_layer(figures: Mapping[str, _Value], name: str, n_layers: int) -> list[int] | None:
    """Return a figure for each layer: files have one for all, or as many as layers."""
    value = figures.get(name)
    if isinstance(value, int):
        value = (value,) * n_layers
    if not isinstance(value, tuple) or len(value) < n_layers:
        return None
    numbers = value[:n_layers]
    return list(numbers) if all(0 <= n <= _MAX_NUMBER for n in numbers) and any(numbers) else None


def _is_count(value: _Value) -> TypeGuard[int]:
    return isinstance(value, int) and 0 < value <= _MAX_NUMBER
