"""The kinds of values that settings have: how text becomes a value, and what is allowed.

A kind is strict: it takes what it says and turns nothing silently into something else. Durations have Go's syntax,
because the variables of the original Auxot have it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import attrs

from auxot.core.errors import InvalidKeyError
from auxot.core.keys import has_key_shape, parse_hash
from auxot.core.logs import Level
from auxot.core.sizes import parse_bytes

_UNIT_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|s|m|h)")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")  # as browsers send it
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
N = TypeVar("N", int, float)

_TRUE, _FALSE = ("true", "yes", "1", "on"), ("false", "no", "0", "off")


@attrs.frozen(kw_only=True)
class Kind:
    """What values a knob takes.

    Attributes:
        parse: text to value; raises ValueError (its text is not shown).
        allowed: what is allowed, completes "expected ...".
        metavar: the value's name in the help of a flag.
        bare: what a flag without a value means, as text; None: it needs one.
        show: value to text; None: as `str` does it.
    """

    parse: Callable[[str], Any]
    allowed: str
    metavar: str
    bare: str | None = None
    show: Callable[[Any], str] | None = None


def text() -> Kind:
    """A line of text."""
    return Kind(parse=_parse_text, allowed="a text without control characters", metavar="TEXT")


def tag() -> Kind:
    """The name of a release, which becomes part of addresses and file names."""
    return Kind(parse=_parse_tag, allowed="the name of a release, such as b1234", metavar="TAG")


def names() -> Kind:
    """A list of names with commas between them, as a tuple."""
    return Kind(parse=_parse_names, allowed="names with commas between them", metavar="NAMES")


def aliases() -> Kind:
    """Other names of a model, as pairs of the name and what stands after its `=`; "" if nothing does."""
    allowed = "names or patterns with commas between them, such as gpt-4o,claude-*=my-model"
    return Kind(parse=_parse_aliases, allowed=allowed, metavar="NAMES")


def origins() -> Kind:
    """Origins of web pages, in lower case, or `*` for all of them."""
    allowed = "origins such as https://app.example.com with commas between them, or *"
    return Kind(parse=_parse_origins, allowed=allowed, metavar="ORIGINS")


def choice(*words: str) -> Kind:
    """One of some words, in any case."""
    return Kind(parse=lambda given: words[words.index(given.lower())], allowed=" or ".join(words), metavar="WORD")


def integer(least: int, most: int, *, bare: str | None = None) -> Kind:
    """A whole number in a range, ends included."""

    def parse(given: str) -> int:
        if not _INTEGER.fullmatch(given):
            raise ValueError
        return _in_range(int(given), least, most)

    return Kind(parse=parse, allowed=f"a whole number from {least} to {most}", metavar="N", bare=bare)


def integer_or_auto(most: int) -> Kind:
    """A whole number from 1; `auto` is 0."""
    number = integer(1, most)
    return Kind(
        parse=lambda given: 0 if given.lower() == "auto" else number.parse(given),
        show=lambda n: str(n or "auto"),
        allowed=f"auto, or {number.allowed}",
        metavar="auto|N",
    )


def duration(least_s: float, most_s: float) -> Kind:
    """A duration in Go's syntax, as seconds; the range includes its ends."""
    allowed = f"a duration such as 15s, 5m or 1h30m, from {show_duration(least_s)} to {show_duration(most_s)}"
    return Kind(parse=lambda given: _in_range(parse_duration(given), least_s, most_s), allowed=allowed, metavar="TIME")


def size() -> Kind:
    """A size in bytes, with or without a unit."""
    return Kind(parse=parse_bytes, show=_show_size, allowed="a size such as 24GB or 23.5GiB", metavar="SIZE")


def boolean() -> Kind:
    """Yes or no."""
    return Kind(parse=_parse_boolean, allowed="true or false", metavar="true|false", bare="true")


def path() -> Kind:
    """A path; `~` is the home folder. Whether something is there is for its user to find out."""
    return Kind(parse=_parse_path, allowed="a path", metavar="PATH")


def log_level() -> Kind:
    """A `Level` by its word; `warning` may be written `warn`."""
    return Kind(parse=_parse_level, allowed="debug, info, warn or error", metavar="LEVEL")


def key() -> Kind:
    """A key, as `auxot-router setup` prints it."""
    return Kind(parse=_parse_key, allowed="a key: a prefix such as adm_ and 43 characters", metavar="KEY")


def key_hash() -> Kind:
    """The PHC string of a key."""
    allowed = (
        "an Argon2id hash, $argon2id$v=19$m=...,t=...,p=...$<salt>$<hash> as `auxot-router setup` prints it "
        "(in single quotes, or a shell takes its $ away)"
    )
    return Kind(parse=_parse_hash, allowed=allowed, metavar="HASH")


def url(*schemes: str) -> Kind:
    """A URL with one of the schemes."""

    def parse(given: str) -> str:
        scheme, separator, rest = given.partition("://")
        if scheme.lower() not in schemes or not separator or not rest or re.search(r"\s", given):
            raise ValueError
        return given

    return Kind(parse=parse, allowed=" or ".join(f"{scheme}://..." for scheme in schemes), metavar="URL")


def parse_duration(given: str) -> float:
    """Return the seconds of a duration in Go's syntax (`300ms`, `1h30m`, `1.5s`, `0`).

    Raises:
        ValueError: anything else; also a sign, which no duration of ours has.
    """
    if given == "0":
        return 0.0
    parts = list(_DURATION_PART.finditer(given))
    if not parts or "".join(part[0] for part in parts) != given:
        raise ValueError
    return sum(float(part[1]) * _UNIT_S[part[2]] for part in parts)


def show_duration(seconds: float) -> str:
    """Write seconds as `parse_duration` reads them, in the largest units: 5400 -> 1h30m."""
    if seconds < 1:
        return f"{seconds * 1000:g}ms" if seconds else "0"
    hours, rest = divmod(seconds, 3600)
    minutes, rest = divmod(rest, 60)
    return "".join(f"{n:g}{unit}" for n, unit in ((hours, "h"), (minutes, "m"), (round(rest, 3), "s")) if n)


def _show_size(n_bytes: int) -> str:
    return f"{n_bytes // 10**9}GB" if n_bytes and n_bytes % 10**9 == 0 else str(n_bytes)


def _parse_text(given: str) -> str:
    if not given.isprintable():
        raise ValueError
    return given


def _parse_tag(given: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", given):
        raise ValueError
    return given


def _in_range(value: N, least: float, most: float) -> N:
    if not least <= value <= most:
        raise ValueError
    return value


def _parse_names(given: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in given.split(",") if name.strip())


def _parse_aliases(given: str) -> tuple[tuple[str, str], ...]:
    pairs = []
    for entry in _parse_names(_parse_text(given)):
        name, equals, model = (part.strip() for part in entry.partition("="))
        if not name or bool(equals) != bool(model):
            raise ValueError
        pairs.append((name, model))
    return tuple(pairs)


def _parse_origins(given: str) -> tuple[str, ...]:
    names = tuple(name.lower() for name in _parse_names(given))
    if not all(name == "*" or _ORIGIN.fullmatch(name) for name in names):
        raise ValueError
    return names


def _parse_boolean(given: str) -> bool:
    word = given.lower()
    if word not in _TRUE + _FALSE:
        raise ValueError
    return word in _TRUE


def _parse_path(given: str) -> Path:
    if not given or "\0" in given:
        raise ValueError
    try:
        return Path(given).expanduser()
    except RuntimeError as exc:  # no such user
        raise ValueError from exc


def _parse_level(given: str) -> Level:
    word = given.upper()
    try:
        return Level["WARNING" if word == "WARN" else word]
    except KeyError as exc:
        raise ValueError from exc


def _parse_key(given: str) -> str:
    if not has_key_shape(given):
        raise ValueError
    return given


def _parse_hash(given: str) -> str:
    try:
        parse_hash(given)
    except InvalidKeyError as exc:
        raise ValueError from exc
    return given
