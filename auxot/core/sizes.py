"""Sizes in bytes, as people write and read them. Pure."""

from __future__ import annotations

import re

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,6})?)\s*([kmgt]?i?)b?", re.IGNORECASE)


def parse_bytes(text: str) -> int:
    """Return the bytes of a size such as 24GB (10^9), 23.5GiB (2^30) or 512M.

    Raises:
        ValueError: it is none.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None or match[2].lower() == "i":
        raise ValueError(text)
    return round(float(match[1]) * _UNITS[match[2].lower()])


def show_bytes(n: int) -> str:
    """Write bytes for people, in GB (10^9), MB or kB, as disks and downloads have them."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if n >= size:
            return f"{n / size:.1f} {unit}"
    return f"{n} bytes"
