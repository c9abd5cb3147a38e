from __future__ import annotations

import collections
import functools
import time
from types import SimpleNamespace

import pytest
import trio
import trio.testing

from auxot.core.errors import ErrorCode, InvalidKeyError, RefusedError
from auxot.core.keys import CHEAP, Profile, Role, generate_key, hash_key, key_digest
from auxot.router import auth, check_line
from auxot.router.auth import KeyVerifier, Limits, anthropic_key, openai_key
from auxot.router.keyring import NamedKey, Principal

LIMITS = Limits(max_checks=8)  # short floods
KEYS = {role: generate_key(role) for role in Role}
HASHES = {role: hash_key(key, CHEAP) for role, key in KEYS.items()}
# About 50 ms a check: long enough for other tasks to come while one is under way.
SLOW_KEY = generate_key(Role.API)
SLOW_HASH = hash_key(SLOW_KEY, Profile(passes=6, memory_kib=16 * 1024, lanes=1))


@pytest.fixture
def clock():
    """A clock that stands until it is moved."""
    return SimpleNamespace(now=1000.0)


@pytest.fixture
def verifier(clock):
    return KeyVerifier(HASHES, ttl_s=300, clock=lambda: clock.now)


@pytest.fixture
def slow(clock):
    return KeyVerifier({Role.API: SLOW_HASH}, ttl_s=300, clock=lambda: clock.now, limits=LIMITS)


def code_of(excinfo):
    return excinfo.value.code


@pytest.mark.parametrize("role", list(Role))
async def test_right_key_opens_its_role_and_no_other(verifier, role):
    """A worker's key would open the API, or a right key nothing."""
    await verifier.verify(KEYS[role], role)
    for other in set(Role) - {role}:
        with pytest.raises(RefusedError) as excinfo:
            await verifier.verify(KEYS[role], other)
        assert code_of(excinfo) is ErrorCode.UNAUTHENTICATED


async def test_wrong_key_is_refused_in_the_words_of_the_dialect(verifier):
    """A client would see another API's message."""
    with pytest.raises(RefusedError, match=r"^invalid API key$"):
        await verifier.verify(generate_key(Role.API), Role.API)
    with pytest.raises(RefusedError, match=r"^Invalid API key\.$") as excinfo:
        await verifier.verify(generate_key(Role.API), Role.API, refusal=auth.ANTHROPIC_INVALID_KEY)
    assert code_of(excinfo).status == 401


@pytest.mark.parametrize("key", ["", "x", "Bearer", "rtr_" + "a" * 42, "a" * 10_000, "rtr_\xe9" + "a" * 42])
async def test_what_is_no_key_is_refused_without_hashing(slow, key):
    """A stranger could keep the processors busy with garbage."""
    assert slow.cached(key, Role.API) is False
    began = time.perf_counter()
    for _ in range(20):
        with pytest.raises(RefusedError):
            await slow.verify(key, Role.API)
    assert time.perf_counter() - began < 0.5  # 20 hashes would take a second


async def test_role_without_a_hash_opens_to_nobody():
    """Tools workers would come in where none are configured."""
    verifier = KeyVerifier({Role.API: HASHES[Role.API], Role.TOOLS: None}, ttl_s=300)
    with pytest.raises(RefusedError):
        await verifier.verify(KEYS[Role.TOOLS], Role.TOOLS)
    with pytest.raises(RefusedError):
        await verifier.verify(KEYS[Role.WORKER], Role.WORKER)


def test_malformed_hash_is_found_at_once():
    """A router would start and then refuse every key."""
    with pytest.raises(InvalidKeyError):
        KeyVerifier({Role.API: "$argon2id$nonsense"}, ttl_s=300)


async def test_a_wrong_key_is_remembered_until_that_expires(verifier, clock):
    """Each request with it would cost a hash; or it would be remembered for ever."""
    wrong = generate_key(Role.API)
    assert verifier.cached(wrong, Role.API) is None
    with pytest.raises(RefusedError):
        await verifier.verify(wrong, Role.API)
    clock.now += 299
    assert verifier.cached(wrong, Role.API) is False
    clock.now += 1
    assert verifier.cached(wrong, Role.API) is None


async def test_a_right_key_is_known_for_ever(verifier, clock):
    """A flood of wrong keys that comes as it expires would lock its users out."""
    assert verifier.cached(KEYS[Role.API], Role.API) is None
    await verifier.verify(KEYS[Role.API], Role.API)
    clock.now += 1_000_000
    assert verifier.cached(KEYS[Role.API], Role.API) is True


async def test_no_other_key_is_checked_once_each_hash_has_met_its_own(verifier):
    """Each invented key would cost 64 MiB and a fifth of a second, for as long as the router lives."""
    second = generate_key(Role.API)
    verifier.replace_keys([NamedKey(principal=Principal(name="a"), phc=hash_key(second, CHEAP))])
    strange = generate_key(Role.API)
    await verifier.verify(KEYS[Role.API], Role.API)
    assert verifier.cached(strange, Role.API) is None  # it could be the other hash's
    await verifier.verify(second, Role.API)
    assert verifier.cached(strange, Role.API) is False
    with pytest.raises(RefusedError):
        await verifier.verify(strange, Role.API)
    assert verifier.cached(strange, Role.WORKER) is None  # that role's key has not been seen


async def test_a_hash_that_is_new_can_meet_its_key(verifier):
    """A key that is added to the file would be refused as long as the router lives, or a revoked one let in."""
    added, strange = generate_key(Role.API), generate_key(Role.API)
    await verifier.verify(KEYS[Role.API], Role.API)
    assert verifier.cached(added, Role.API) is False
    verifier.replace_keys([NamedKey(principal=Principal(name="a"), phc=hash_key(added, CHEAP))])
    assert (await verifier.verify(added, Role.API)).name == "a"
    assert verifier.cached(strange, Role.API) is False
    verifier.replace_keys([NamedKey(principal=Principal(name="b"), phc=hash_key(strange, CHEAP))])
    assert verifier.cached(added, Role.API) is None
    with pytest.raises(RefusedError):
        await verifier.verify(added, Role.API)
    assert (await verifier.verify(strange, Role.API)).name == "b"


async def test_who_stands_in_line_is_not_checked_when_that_has_become_needless():
    """A flood that came before the right key would go on costing hashes after it."""
    slow = KeyVerifier({Role.API: SLOW_HASH}, ttl_s=300, limits=Limits(max_checks=100))
    n_refused = 0

    async def ask():
        nonlocal n_refused
        with pytest.raises(RefusedError):
            await slow.verify(generate_key(Role.API), Role.API)
        n_refused += 1

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(slow.verify, SLOW_KEY, Role.API)
            await trio.testing.wait_all_tasks_blocked()
            for _ in range(99):
                nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            began = time.perf_counter()
    assert n_refused == 99
    assert time.perf_counter() - began < 2.5  # 99 hashes would take 5 s


async def test_cached_answer_is_fast(slow):
    """The check of a key would be felt in each request."""
    await slow.verify(SLOW_KEY, Role.API)
    began = time.perf_counter()
    for _ in range(1000):
        await slow.verify(SLOW_KEY, Role.API)
    assert time.perf_counter() - began < 1  # 1000 hashes would take a minute


async def test_no_key_is_kept(verifier):
    """A memory dump of the router would tell its callers' keys."""
    await verifier.verify(KEYS[Role.API], Role.API)
    with pytest.raises(RefusedError):
        await verifier.verify(KEYS[Role.WORKER], Role.API)
    assert not any(key in repr(vars(verifier)) for key in KEYS.values())


async def test_refused_keys_do_not_grow_without_bound(clock):
    """A stranger could fill the memory with invented keys."""
    verifier = KeyVerifier(HASHES, ttl_s=300, clock=lambda: clock.now, limits=Limits(max_refused=3))
    wrong = [generate_key(Role.API) for _ in range(5)]
    for key in wrong:
        with pytest.raises(RefusedError):
            await verifier.verify(key, Role.API)
    assert [verifier.cached(key, Role.API) for key in wrong] == [None, None, False, False, False]


async def test_one_check_answers_all_who_wait_for_it(slow):
    """A hundred streams that start at once with one key would cost a hundred hashes."""
    with trio.fail_after(10):
        began = time.perf_counter()
        await slow.verify(SLOW_KEY, Role.API)
        alone_s = time.perf_counter() - began
        fresh = KeyVerifier({Role.API: SLOW_HASH}, ttl_s=300)
        began = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(fresh.verify, SLOW_KEY, Role.API)
    assert time.perf_counter() - began < 20 * alone_s


async def test_all_who_wait_learn_that_the_key_is_wrong(slow):
    """A wrong key would be let in by waiting for another's check of it."""
    wrong = generate_key(Role.API)
    n_refused = 0

    async def ask():
        nonlocal n_refused
        with pytest.raises(RefusedError):
            await slow.verify(wrong, Role.API)
        n_refused += 1

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(ask)
    assert n_refused == 20


async def test_first_waiter_that_leaves_does_not_fail_the_others(slow):
    """A client that hangs up would take the answer away from all others with its key."""
    scope = trio.CancelScope()
    answered = []

    async def leave():
        with scope:
            await slow.verify(SLOW_KEY, Role.API)

    async def stay(number):
        await slow.verify(SLOW_KEY, Role.API)
        answered.append(number)

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(leave)
            await trio.testing.wait_all_tasks_blocked()
            for number in range(5):
                nursery.start_soon(stay, number)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    assert sorted(answered) == [0, 1, 2, 3, 4]


async def test_check_that_is_cancelled_in_line_is_taken_over(slow):
    """The same, when the first waiter has not got a thread yet: nobody would ever answer the others."""
    blockers = [generate_key(Role.API) for _ in range(LIMITS.n_threads)]
    scope = trio.CancelScope()
    answered = []

    async def block(key):
        with pytest.raises(RefusedError):
            await slow.verify(key, Role.API)

    async def leave():
        with scope:
            await slow.verify(SLOW_KEY, Role.API)

    async def stay():
        await slow.verify(SLOW_KEY, Role.API)
        answered.append(True)

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            for key in blockers:
                nursery.start_soon(block, key)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(leave)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(stay)
            nursery.start_soon(stay)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    assert answered == [True, True]
    assert scope.cancelled_caught


async def test_flood_of_wrong_keys_is_turned_away(slow):
    """A flood would queue for minutes, with a connection and 64 MiB each."""
    outcomes = []

    async def ask(key):
        try:
            await slow.verify(key, Role.API)
        except RefusedError as exc:
            outcomes.append((exc.code, exc.retry_after_s))

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for _ in range(LIMITS.max_checks + 40):
                nursery.start_soon(ask, generate_key(Role.API))
    assert outcomes.count((ErrorCode.UNAVAILABLE, check_line.RETRY_AFTER_S)) == 40
    assert outcomes.count((ErrorCode.UNAUTHENTICATED, None)) == LIMITS.max_checks


@pytest.mark.parametrize(
    ("flood", "other"),
    [("10.0.0.1", "10.0.0.2"), ("", "10.0.0.2"), ("2001:db8::1", "2001:db8:0:1::1"), ("::ffff:10.0.0.1", "10.0.0.2")],
)
async def test_a_flood_of_one_address_does_not_shut_out_another(slow, flood, other):
    """A stranger could keep a right key out that has not been seen since the start."""
    outcomes = collections.Counter()

    async def ask():
        with pytest.raises(RefusedError) as excinfo:
            await slow.verify(generate_key(Role.API), Role.API, address=flood)
        outcomes[code_of(excinfo)] += 1

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for _ in range(2 * LIMITS.max_checks):
                nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            await slow.verify(SLOW_KEY, Role.API, address=other)
            assert outcomes[ErrorCode.UNAUTHENTICATED] <= 3  # it waits for its turn, not for the flood
    assert outcomes == {
        ErrorCode.UNAVAILABLE: LIMITS.max_checks + 1,  # one had to make room
        ErrorCode.UNAUTHENTICATED: LIMITS.max_checks - 1,
    }


@pytest.mark.parametrize("address", ["10.0.0.1", "2001:db8::%d", "::ffff:10.0.0.1"])
async def test_a_flood_of_one_network_cannot_push_itself_forward(slow, address):
    """Whoever has many addresses would have many shares of the line."""
    refused = []

    async def ask(number):
        with pytest.raises(RefusedError) as excinfo:
            await slow.verify(generate_key(Role.API), Role.API, address=address % number if "%" in address else address)
        if code_of(excinfo) is ErrorCode.UNAVAILABLE:
            refused.append(number)

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for number in range(LIMITS.max_checks):
                nursery.start_soon(ask, number)
            await trio.testing.wait_all_tasks_blocked()
            await ask(LIMITS.max_checks)
    assert refused == [LIMITS.max_checks]


async def test_waiters_of_one_check_are_bounded():
    """One slow check would collect connections without end."""
    slow = KeyVerifier({Role.API: SLOW_HASH}, ttl_s=300, limits=Limits(max_waiters=2))
    outcomes: list[ErrorCode | None] = []

    async def ask():
        try:
            await slow.verify(SLOW_KEY, Role.API)
        except RefusedError as exc:
            outcomes.append(exc.code)
        else:
            outcomes.append(None)

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(ask)
    assert outcomes.count(None) == 3
    assert outcomes.count(ErrorCode.UNAVAILABLE) == 2


async def test_loop_goes_on_while_a_key_is_checked():
    """All streams would stand still for each new key."""
    longest_s = 0.0

    async def tick():
        nonlocal longest_s
        while True:
            began = time.perf_counter()
            await trio.sleep(0.001)
            longest_s = max(longest_s, time.perf_counter() - began)

    hard = hash_key(SLOW_KEY, Profile(passes=20, memory_kib=32 * 1024, lanes=1))
    verifier = KeyVerifier({Role.API: hard}, ttl_s=300)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tick)
            began = time.perf_counter()
            await verifier.verify(SLOW_KEY, Role.API)
            took_s = time.perf_counter() - began
            nursery.cancel_scope.cancel()
    assert longest_s < took_s / 2


async def test_original_cost_works_end_to_end():
    """A hash made by `auxot-router setup` would not be accepted by the router."""
    verifier = KeyVerifier({Role.WORKER: hash_key(KEYS[Role.WORKER])}, ttl_s=300)
    with trio.fail_after(30):
        await verifier.verify(KEYS[Role.WORKER], Role.WORKER)
        with pytest.raises(RefusedError):
            await verifier.verify(KEYS[Role.API], Role.WORKER)


@pytest.mark.parametrize("read_key", [openai_key, anthropic_key])
@pytest.mark.parametrize(
    "value",
    [b"Bearer abc", b"bearer abc", b"BEARER abc", b"  Bearer   abc  "],
)
def test_bearer_token_is_found_in_any_case(read_key, value):
    """Clients that write `bearer` would be turned away."""
    assert read_key([(b"host", b"x"), (b"authorization", value)]) == "abc"


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"authorization", b"")],
        [(b"authorization", b"Bearer")],
        [(b"authorization", b"Bearer  ")],
        [(b"authorization", b"Basic abc")],
        [(b"authorization", b"abc")],
        [(b"authorization", b"Bearerabc")],
        [(b"x-api-key", b" ")],
        [(b"authorization", b"\xff\xfe")],
    ],
)
def test_missing_key_is_told_in_the_words_of_the_dialect(headers):
    """A client without a key would see another API's message, or a crash."""
    with pytest.raises(RefusedError, match=r"^missing Bearer token$") as excinfo:
        openai_key(headers)
    assert code_of(excinfo) is ErrorCode.UNAUTHENTICATED
    with pytest.raises(RefusedError, match=r"^Missing API key\. Set the x-api-key header or use Bearer token\.$"):
        anthropic_key(headers)


def test_x_api_key_goes_before_bearer():
    """A wrong x-api-key would be covered by a bearer token, or not be found."""
    both = [(b"authorization", b"Bearer second"), (b"x-api-key", b" first ")]
    assert anthropic_key(both) == "first"
    assert openai_key(both) == "second"
    assert anthropic_key(iter([(b"x-api-key", b""), (b"authorization", b"Bearer second")])) == "second"
    with pytest.raises(RefusedError):
        openai_key([(b"x-api-key", b"first")])


def test_verification_survives_any_header_bytes():
    """Bytes that are not ASCII would be a crash in place of a 401."""
    key = openai_key([(b"authorization", b"Bearer \xe9\xff")])
    with pytest.raises(RefusedError):
        trio.run(functools.partial(KeyVerifier(HASHES, ttl_s=1).verify, key, Role.API))


async def test_named_keys_are_found_by_digest_or_hash_and_go_at_once(verifier):
    """A key of the file would not open, tell another's name, or open after it was revoked."""
    by_digest, by_hash = generate_key(Role.API), generate_key(Role.API)
    first = NamedKey(principal=Principal(name="a"), digest=key_digest(by_digest))
    second = NamedKey(principal=Principal(name="b"), phc=hash_key(by_hash, CHEAP))
    with pytest.raises(RefusedError):
        await verifier.verify(by_hash, Role.API)  # is remembered as wrong
    verifier.replace_keys([first, second])
    keys = (by_digest, by_hash, KEYS[Role.API])
    assert [(await verifier.verify(key, Role.API)).name for key in keys] == ["a", "b", "default"]
    with pytest.raises(RefusedError):
        await verifier.verify(by_digest, Role.WORKER)
    renamed = NamedKey(principal=Principal(name="c"), phc=second.phc)
    verifier.replace_keys([renamed])
    assert [verifier.cached(key, Role.API) for key in keys] == [False, True, True]
    assert (await verifier.verify(by_hash, Role.API)).name == "c"
    verifier.replace_keys([])
    for key in (by_digest, by_hash):
        with pytest.raises(RefusedError):
            await verifier.verify(key, Role.API)


async def test_a_key_that_is_revoked_while_it_is_checked_does_not_open(slow):
    """A check that began before the change would let the key in for minutes."""
    other = generate_key(Role.API)
    slow.replace_keys(
        [NamedKey(principal=Principal(name="a"), phc=hash_key(other, Profile(passes=6, memory_kib=16384, lanes=1)))]
    )
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:

            async def ask():
                with pytest.raises(RefusedError):
                    await slow.verify(other, Role.API)

            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            slow.replace_keys([])
