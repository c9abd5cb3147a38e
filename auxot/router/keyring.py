"""The named API keys of a file, and what each may do. Pure.

    [[key]]
    name = "team-a"
    sha256 = "9f86d0..."            # or: hash = "$argon2id$..."
    max_concurrent = 8              # all below are optional
    requests_per_minute = 600
    priority = "interactive"        # or "batch"
    weight = 2

A key is 256 random bits, so its plain SHA-256 gives nothing away, and to check one against ten thousand digests is
one look-up. An Argon2id hash is slow on purpose and has to be tried one by one: a file may hold a few.
"""

from __future__ import annotations

import enum
import re
import tomllib
from typing import Any

import attrs

from auxot.core.errors import ConfigError, InvalidKeyError
from auxot.core.keys import KEY_NAME, parse_hash

MAX_FILE_BYTES = 4 * 1024 * 1024
MAX_KEYS = 10_000
MAX_PHC_HASHES = 16  # a stranger's key is tried against each of them
DEFAULT_NAME = "default"  # of the key whose hash is a variable

_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


class Priority(enum.Enum):
    """Which jobs go first; the value is its word in the file."""

    INTERACTIVE = "interactive"
    BATCH = "batch"


@attrs.frozen(kw_only=True)
class Principal:
    """Who asks, and what it may have. The name is for logs; it is no secret.

    Attributes:
        name: of the key.
        max_concurrent: requests that are open at once; None for any number.
        requests_per_minute: also how many may come in one burst; None for any number.
        priority: its jobs' class.
        weight: its share among the keys of its class.
    """

    name: str = DEFAULT_NAME
    max_concurrent: int | None = None
    requests_per_minute: int | None = None
    priority: Priority = Priority.INTERACTIVE
    weight: int = 1


@attrs.frozen(kw_only=True)
class NamedKey:
    """A key by its digest or its hash, one of the two, and its principal."""

    principal: Principal
    digest: bytes | None = attrs.field(default=None, repr=False)
    phc: str | None = attrs.field(default=None, repr=False)

    @property
    def credential(self) -> bytes | str | None:
        """What a shown key is compared with."""
        return self.digest or self.phc


def parse_keys(content: bytes) -> tuple[NamedKey, ...]:
    """Read a file of keys.

    Raises:
        ConfigError: it cannot be used; the text names the key and the field, and never quotes a hash.
    """
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(f"larger than {MAX_FILE_BYTES} bytes")
    try:
        document = tomllib.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as exc:
        raise ConfigError("not UTF-8 text") from exc
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError("not TOML" + _place_in(str(exc))) from None  # the rest of its words may quote the file
    except RecursionError:
        raise ConfigError("not TOML: nested too deep") from None
    entries = document.pop("key", [])
    if document or type(entries) is not list:
        raise ConfigError("expected [[key]] tables and nothing else")
    if len(entries) > MAX_KEYS:
        raise ConfigError(f"more than {MAX_KEYS} keys")
    keys = tuple(_read_entry(number, entry) for number, entry in enumerate(entries, 1))
    _check_together(keys)
    return keys


def _place_in(message: str) -> str:
    found = re.search(r"line \d+, column \d+", message)
    return f" ({found[0]})" if found else ""


def _check_together(keys: tuple[NamedKey, ...]) -> None:
    names: set[str] = set()
    credentials: set[bytes | str | None] = set()
    for key in keys:
        name = key.principal.name
        if name in names:
            raise ConfigError(f"key {name}: there are two of that name")
        if key.credential in credentials:
            raise ConfigError(f"key {name}: another key has the same hash")
        names.add(name)
        credentials.add(key.credential)
    if sum(key.phc is not None for key in keys) > MAX_PHC_HASHES:
        raise ConfigError(f"more than {MAX_PHC_HASHES} Argon2id hashes: use sha256 in their place")


def _read_entry(number: int, entry: Any) -> NamedKey:
    name = entry.pop("name", None) if type(entry) is dict else None
    if type(name) is not str or not KEY_NAME.fullmatch(name) or name == DEFAULT_NAME:
        raise ConfigError(
            f"key number {number}: name: expected letters, digits and ._@-, at most 64, other than {DEFAULT_NAME!r}"
        )
    reader = _Entry(name, entry)
    digest, phc = reader.digest(), reader.phc()
    if (digest is None) == (phc is None):
        raise ConfigError(f"key {name}: expected either sha256 or hash")
    principal = Principal(
        name=name,
        max_concurrent=reader.integer("max_concurrent", most=1_000_000),
        requests_per_minute=reader.integer("requests_per_minute", most=1_000_000),
        priority=reader.priority(),
        weight=reader.integer("weight", most=1000) or 1,
    )
    reader.check_empty()
    return NamedKey(principal=principal, digest=digest, phc=phc)


@attrs.frozen
class _Entry:
    """The fields of one key that have not been read yet."""

    name: str
    fields: dict[str, Any] = attrs.field(repr=False)

    def digest(self) -> bytes | None:
        given = self.fields.pop("sha256", None)
        if given is None:
            return None
        if type(given) is not str or not _SHA256.fullmatch(given):
            raise self._expected("sha256", "64 hexadecimal digits")
        return bytes.fromhex(given)

    def phc(self) -> str | None:
        given = self.fields.pop("hash", None)
        if given is None:
            return None
        try:
            parse_hash(given if type(given) is str else "")
        except InvalidKeyError as exc:
            raise self._expected("hash", "an Argon2id hash") from exc
        return str(given)

    def integer(self, field: str, *, most: int) -> int | None:
        given = self.fields.pop(field, None)
        if given is not None and (type(given) is not int or not 1 <= given <= most):
            raise self._expected(field, f"a whole number from 1 to {most}")
        return given

    def priority(self) -> Priority:
        try:
            return Priority(self.fields.pop("priority", Priority.INTERACTIVE.value))
        except ValueError:
            raise self._expected("priority", " or ".join(one.value for one in Priority)) from None

    def check_empty(self) -> None:
        if self.fields:
            raise ConfigError(f"key {self.name}: unknown field {min(self.fields)[:40]!r}")

    def _expected(self, field: str, what: str) -> ConfigError:
        return ConfigError(f"key {self.name}: {field}: expected {what}")
