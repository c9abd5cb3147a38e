"""The types of numbers that llama-server can keep keys and values in: `--cache-type-k` and `--cache-type-v`."""

from __future__ import annotations

DEFAULT_CACHE_TYPE = "f16"

# Bytes of one number in the cache: llama.cpp's blocks of 32 numbers and their scales.
CACHE_TYPE_BYTES = {
    "f32": 4.0,
    "f16": 2.0,
    "bf16": 2.0,
    "q8_0": 34 / 32,
    "q5_1": 24 / 32,
    "q5_0": 22 / 32,
    "q4_1": 20 / 32,
    "q4_0": 18 / 32,
    "iq4_nl": 18 / 32,
}
