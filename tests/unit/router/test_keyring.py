from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auxot.core.errors import ConfigError
from auxot.core.keys import CHEAP, Role, generate_key, hash_key, key_digest
from auxot.router.keyring import MAX_PHC_HASHES, Principal, Priority, parse_keys

KEY = generate_key(Role.API)
SHA256 = key_digest(KEY).hex()
PHC = hash_key(KEY, CHEAP)


def test_every_field_is_read():
    """A limit would be written down and not held."""
    content = f"""
        [[key]]
        name = "team-a"
        sha256 = "{SHA256.upper()}"
        max_concurrent = 8
        requests_per_minute = 600
        priority = "batch"
        weight = 2
        [[key]]
        name = "b"
        hash = "{PHC}"
    """
    first, second = parse_keys(content.encode())
    assert first.digest == key_digest(KEY)
    assert first.principal == Principal(
        name="team-a", max_concurrent=8, requests_per_minute=600, priority=Priority.BATCH, weight=2
    )
    assert (second.phc, second.digest, second.principal) == (PHC, None, Principal(name="b"))
    assert SHA256 not in repr(first)
    assert PHC not in repr(second)


def test_a_file_without_keys_is_one():
    """The last key could not be revoked."""
    assert parse_keys(b"# none\n") == ()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[[key]]\nname = 'a'", "either sha256 or hash"),
        (f"[[key]]\nname = 'a'\nsha256 = '{SHA256}'\nhash = '{PHC}'", "either sha256 or hash"),
        ("[[key]]\nname = 'a'\nsha256 = 'secret-text'", "sha256"),
        ("[[key]]\nname = 'a'\nhash = 'secret-text'", "hash"),
        ("[[key]]\nname = 'a'\nsha256 = 7", "sha256"),
        (f"[[key]]\nname = 'default'\nsha256 = '{SHA256}'", "name"),
        (f"[[key]]\nname = 'a b'\nsha256 = '{SHA256}'", "name"),
        (f"[[key]]\nsha256 = '{SHA256}'", "name"),
        (f"[[key]]\nname = 'a'\nsha256 = '{SHA256}'\nweight = 0", "weight"),
        (f"[[key]]\nname = 'a'\nsha256 = '{SHA256}'\nmax_concurrent = true", "max_concurrent"),
        (f"[[key]]\nname = 'a'\nsha256 = '{SHA256}'\npriority = 'high'", "priority"),
        (f"[[key]]\nname = 'a'\nsha256 = '{SHA256}'\npriority = []", "priority"),
        (f"[[key]]\nname = 'a'\nsha256 = '{SHA256}'\nmax_concurent = 3", "max_concurent"),
        (f"[[key]]\nname = 'a'\nsha256 = '{SHA256}'\n[[key]]\nname = 'b'\nsha256 = '{SHA256}'", "same hash"),
        (f"[[key]]\nname = 'a'\nsha256 = '{SHA256}'\n[[key]]\nname = 'a'\nsha256 = '{'0' * 64}'", "two of that name"),
        ("key = 3", "tables"),
        ("keys = []", "tables"),
        ("[[key]\nsecret-text", "line 1"),
    ],
)
def test_what_cannot_be_used_is_told_without_quoting_a_hash(content, reason):
    """A typing error would open or close the door in silence, or a hash would stand in a log."""
    with pytest.raises(ConfigError, match=reason) as excinfo:
        parse_keys(content.encode())
    assert "secret-text" not in str(excinfo.value)
    assert SHA256 not in str(excinfo.value)


def test_slow_hashes_are_few():
    """A stranger's key would cost a slow hash for each key of the file."""
    entries = [
        f"[[key]]\nname = 'k{n}'\nhash = '{hash_key(generate_key(Role.API), CHEAP)}'" for n in range(MAX_PHC_HASHES + 1)
    ]
    assert len(parse_keys("\n".join(entries[:-1]).encode())) == MAX_PHC_HASHES
    with pytest.raises(ConfigError, match="Argon2id"):
        parse_keys("\n".join(entries).encode())


@given(st.binary(max_size=200))
def test_any_bytes_are_keys_or_one_clear_error(content):
    """A half-written file would end the router."""
    with contextlib.suppress(ConfigError):
        parse_keys(content)
