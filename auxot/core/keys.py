"""Keys: their format, generation and Argon2id hashing.

    key   prefix of the role, "_", 43 characters of base64url without padding (32 random bytes): adm_Zm9v...
    hash  PHC string of Argon2id over the whole key, prefix included:
          $argon2id$v=19$m=65536,t=3,p=4$<salt>$<hash>, both parts in standard base64 without padding

Formats and cost are those of the original Auxot: its keys and hashes work here and ours work there. Only hashes are
configured and stored; a key is shown once, when it is made.

Hashing at the standard cost takes 64 MiB and 0.1 to 0.3 s of CPU on purpose: servers do it in a thread, behind a
limit (see `router.auth`). The argon2 package lets other threads run meanwhile. PHC format:
https://github.com/P-H-C/phc-string-format/blob/master/phc-sf-spec.md, Argon2: RFC 9106.
"""

from __future__ import annotations

import base64
import binascii
import enum
import hashlib
import re
import secrets

import attrs
from argon2 import low_level
from argon2.exceptions import Argon2Error, VerifyMismatchError

from auxot.core.errors import InvalidKeyError

KEY_BYTES = 32
SALT_BYTES = 16
HASH_BYTES = 32
N_SHOWN_CHARS = 8  # what a log or a list may show of a key: the prefix and 24 of 256 bits

# A name for a key of a file of keys; for logs too, so it is plain.
KEY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
# Any prefix: other Auxot products use others (gpu_, agent_), and only the hash decides what a key opens.
_KEY = re.compile(r"[a-z]{2,8}_[A-Za-z0-9_-]{43}")
_PHC = re.compile(
    r"\$argon2id\$v=19\$m=(?P<m>[0-9]{1,10}),t=(?P<t>[0-9]{1,10}),p=(?P<p>[0-9]{1,8})"
    r"\$(?P<salt>[A-Za-z0-9+/]{11,64})\$(?P<hash>[A-Za-z0-9+/]{43,172})"  # hash: 32 bytes or more, so not cut off
)


class Role(enum.Enum):
    """What a key opens; the value is the prefix of its keys."""

    WORKER = "adm"  # GPU and CLI workers; "admin key" and "GPU key" are older names of it
    API = "rtr"  # callers of the HTTP APIs
    TOOLS = "tls"  # tools workers


@attrs.frozen(kw_only=True)
class Profile:
    """The cost of a hash: passes over the memory, its size in KiB, lanes (threads)."""

    passes: int
    memory_kib: int
    lanes: int


STANDARD = Profile(passes=3, memory_kib=64 * 1024, lanes=4)  # the original's
CHEAP = Profile(passes=1, memory_kib=8, lanes=1)  # Argon2's least: for demos and tests, whose keys live for minutes

# A typing error in a hash must not make every request cost minutes or all memory.
MAX_PROFILE = Profile(passes=64, memory_kib=1024 * 1024, lanes=64)


def generate_key(role: Role) -> str:
    """Return a new random key of that role, 47 characters."""
    return f"{role.value}_{secrets.token_urlsafe(KEY_BYTES)}"


def has_key_shape(text: str) -> bool:
    """Whether the text could be a key at all. Microseconds: ask before hashing."""
    return _KEY.fullmatch(text) is not None


def key_digest(key: str) -> bytes:
    """Return the SHA-256 of a key, for caches to hold in its place: 256 random bits need no salt."""
    return hashlib.sha256(_encoded(key)).digest()


def redact(key: str) -> str:
    """Return what may be shown of a key: its first 8 characters; nothing of a text that has not a key's shape."""
    return key[:N_SHOWN_CHARS] if has_key_shape(key) else "***"


def hash_key(key: str, profile: Profile = STANDARD) -> str:
    """Hash a key with a fresh salt. Blocking and expensive, see the module.

    Returns:
        the PHC string that goes into the configuration.

    Raises:
        InvalidKeyError: the text has not the shape of a key, or Argon2 got no memory.
    """
    if not has_key_shape(key):
        raise InvalidKeyError("not a key: expected a prefix such as adm_ and 43 characters of base64url")
    try:
        phc = low_level.hash_secret(
            _encoded(key),
            secrets.token_bytes(SALT_BYTES),
            time_cost=profile.passes,
            memory_cost=profile.memory_kib,
            parallelism=profile.lanes,
            hash_len=HASH_BYTES,
            type=low_level.Type.ID,
        )
    except Argon2Error as exc:
        raise InvalidKeyError(f"hashing failed: {exc}") from exc
    return phc.decode("ascii")


def verify_key(key: str, phc: str) -> bool:
    """Check a key against a hash, at the cost that the hash names. Blocking and expensive, see the module.

    Args:
        key: any text; its shape is not looked at.
        phc: a hash as `hash_key` makes it.

    Returns:
        whether the hash is that key's; compared in constant time.

    Raises:
        InvalidKeyError: the hash is malformed, or Argon2 got no memory or threads.
    """
    parse_hash(phc)
    try:
        return low_level.verify_secret(phc.encode("ascii"), _encoded(key), low_level.Type.ID)
    except VerifyMismatchError:
        return False
    except Argon2Error as exc:
        raise InvalidKeyError(f"the key could not be checked: {exc}") from exc


def parse_hash(phc: str) -> Profile:
    """Check the form of a key hash, without computing anything.

    Returns:
        what a verification costs.

    Raises:
        InvalidKeyError: not an Argon2id PHC string of version 19, or a cost beyond `MAX_PROFILE`.
    """
    match = _PHC.fullmatch(phc)
    if match is None or not (_is_base64(match["salt"]) and _is_base64(match["hash"])):
        raise InvalidKeyError("not an Argon2id hash: expected $argon2id$v=19$m=...,t=...,p=...$<salt>$<hash>")
    profile = Profile(passes=int(match["t"]), memory_kib=int(match["m"]), lanes=int(match["p"]))
    _check_cost(profile)
    return profile


def _check_cost(profile: Profile) -> None:
    for name, value, least, most in (
        ("t", profile.passes, 1, MAX_PROFILE.passes),
        ("p", profile.lanes, 1, MAX_PROFILE.lanes),
        ("m", profile.memory_kib, 8 * profile.lanes, MAX_PROFILE.memory_kib),  # 8 a lane: RFC 9106
    ):
        if not least <= value <= most:
            raise InvalidKeyError(f"an Argon2id hash with {name}={value}: expected {least} to {most}")


def _is_base64(text: str) -> bool:
    try:
        octets = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except binascii.Error:
        return False
    return base64.b64encode(octets).rstrip(b"=") == text.encode("ascii")  # spare bits are zero, as Argon2 demands


def _encoded(key: str) -> bytes:
    return key.encode("utf-8", "surrogatepass")  # a header may hold anything
