from __future__ import annotations

import hashlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auxot.core.errors import InvalidKeyError
from auxot.core.keys import (
    CHEAP,
    STANDARD,
    Profile,
    Role,
    generate_key,
    has_key_shape,
    hash_key,
    key_digest,
    parse_hash,
    redact,
    verify_key,
)

CHEAP_HASH = hash_key("rtr_" + "a" * 43, CHEAP)
# Computed with OpenSSL's Argon2, salt b"0123456789abcdef".
KNOWN_KEY = "adm_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
KNOWN_HASH = "$argon2id$v=19$m=65536,t=3,p=4$MDEyMzQ1Njc4OWFiY2RlZg$VMDEv3I0baOjqxhQ5UwIxi/kfltqcfVXrDL8yfBlV5o"


@pytest.mark.parametrize(("role", "prefix"), [(Role.WORKER, "adm_"), (Role.API, "rtr_"), (Role.TOOLS, "tls_")])
def test_key_has_the_format_of_the_original(role, prefix):
    """A key of ours would not be recognized as one."""
    key = generate_key(role)
    assert re.fullmatch(prefix + r"[A-Za-z0-9_-]{43}", key)
    assert has_key_shape(key)


def test_keys_differ():
    """Two customers would get the same key."""
    assert len({generate_key(Role.API) for _ in range(1000)}) == 1000


def test_hash_with_the_original_parameters():
    """A hash of ours would not work in the original, or cost less to break."""
    key = generate_key(Role.WORKER)
    phc = hash_key(key)
    assert re.fullmatch(r"\$argon2id\$v=19\$m=65536,t=3,p=4\$[A-Za-z0-9+/]{22}\$[A-Za-z0-9+/]{43}", phc)
    assert parse_hash(phc) == STANDARD
    assert verify_key(key, phc)
    assert not verify_key(generate_key(Role.WORKER), phc)


def test_hash_of_another_implementation():
    """Hashes that the original made would not open its successor."""
    assert verify_key(KNOWN_KEY, KNOWN_HASH)


def test_cheap_profile_is_written_into_the_hash():
    """Demos and tests would pay for a full hash."""
    assert parse_hash(CHEAP_HASH) == CHEAP


def test_every_hash_has_its_own_salt():
    """Equal keys would be seen to be equal."""
    key = generate_key(Role.API)
    assert hash_key(key, CHEAP) != hash_key(key, CHEAP)


def test_prefix_belongs_to_the_key():
    """A worker's key would open the API."""
    assert not verify_key("adm_" + "a" * 43, CHEAP_HASH)
    assert verify_key("rtr_" + "a" * 43, CHEAP_HASH)


@pytest.mark.parametrize("key", ["", "short", "rtr_" + "a" * 44, "\ud800", "x" * 100_000, "rtr_\0" + "a" * 42])
def test_any_text_can_be_verified(key):
    """A strange header would be a crash in place of a wrong key."""
    assert not verify_key(key, CHEAP_HASH)


def test_hash_of_what_is_no_key_is_refused():
    """`setup` could make a hash that no key opens."""
    with pytest.raises(InvalidKeyError):
        hash_key("secret", CHEAP)


@pytest.mark.parametrize(
    "phc",
    [
        "",
        "argon2id",
        CHEAP_HASH[1:],
        CHEAP_HASH + "$",
        CHEAP_HASH + "\n",
        CHEAP_HASH.replace("argon2id", "argon2i"),
        CHEAP_HASH.replace("v=19", "v=16"),
        CHEAP_HASH.replace("m=8", "m=7"),
        CHEAP_HASH.replace("m=8", "m=99999999"),
        CHEAP_HASH.replace("t=1", "t=0"),
        CHEAP_HASH.replace("t=1", "t=100000"),
        CHEAP_HASH.replace("p=1", "p=0"),
        CHEAP_HASH.replace("p=1", "p=2"),
        CHEAP_HASH.replace("m=8,t=1,p=1", "t=1,m=8,p=1"),
        CHEAP_HASH[:-1],
        CHEAP_HASH[:-2],
        CHEAP_HASH[:-1] + "=",
        CHEAP_HASH[:-1] + "-",
        CHEAP_HASH.rpartition("$")[0] + "$",
        "$$$$$",
        "\ud800",
    ],
)
def test_malformed_hash_is_an_error(phc):
    """A router would start with a hash that no key can ever match, or that takes all memory."""
    with pytest.raises(InvalidKeyError):
        parse_hash(phc)
    with pytest.raises(InvalidKeyError):
        verify_key("rtr_" + "a" * 43, phc)


def test_cost_comes_from_the_hash():
    """Hashes made with other parameters would stop to work."""
    key = generate_key(Role.API)
    profile = Profile(passes=2, memory_kib=64, lanes=2)
    phc = hash_key(key, profile)
    assert parse_hash(phc) == profile
    assert verify_key(key, phc)


@given(st.from_regex(r"\A[a-z]{2,8}_[A-Za-z0-9_-]{43}\Z"))
def test_key_shape_takes_every_prefix(key):
    """Keys of the original's other products would be refused without a look at the hash."""
    assert has_key_shape(key)
    assert redact(key) == key[:8]


@given(st.text(max_size=60))
def test_what_is_no_key_is_not_shown(text):
    """A password in the wrong place would end in a log."""
    if not has_key_shape(text):
        assert redact(text) == "***"


@pytest.mark.parametrize(
    "text",
    [
        "a_" + "x" * 43,
        "abcdefghi_" + "x" * 43,
        "ADM_" + "x" * 43,
        "adm_" + "x" * 42,
        "adm_" + "x" * 44,
        "adm-" + "x" * 43,
        "adm_" + "x" * 42 + "+",
        "adm_" + "x" * 43 + "\n",
        " adm_" + "x" * 43,
        "adm_" + "é" * 43,
    ],
)
def test_other_texts_have_not_the_shape_of_a_key(text):
    """A stranger could make the router compute hashes of anything."""
    assert not has_key_shape(text)


def test_digest_is_sha256_of_the_whole_key():
    """Two keys could share a place in a cache."""
    key = generate_key(Role.API)
    assert key_digest(key) == hashlib.sha256(key.encode()).digest()
    assert key_digest("\ud800") != key_digest("\ud801")
