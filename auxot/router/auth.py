"""Who may do what: keys in headers, and their verification.

A verification is expensive on purpose (see `core.keys`), so strangers must not be able to buy many:

    shape?  --no-->  refused, for microseconds
      |
    cached by digest?  --yes-->  the answer of last time, for microseconds
      |
    being checked for somebody else?  --yes-->  wait for that one answer
      |
    check: some at once in threads, some more in line (`Limits`); beyond: "try again" (503)

A key that was right once and has only expired is checked in a lane of its own, so a flood of invented keys cannot
push the users of real ones out. Caches hold SHA-256 digests, never keys, and are bounded.

Owner: the router, one `KeyVerifier`, used from one Trio loop. Its state changes between two awaits.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from typing import Literal

import attrs
import trio

from auxot.core.errors import ErrorCode, InvalidKeyError, RefusedError
from auxot.core.keys import Role, has_key_shape, key_digest, parse_hash, verify_key
from auxot.core.logs import get_logger
from auxot.router.keyring import NamedKey, Principal

RETRY_AFTER_S = 2
NICENESS = 10  # of a verification: a tenth of an ordinary thread's share where all cores are busy

OPENAI_MISSING_KEY = "missing Bearer token"
OPENAI_INVALID_KEY = "invalid API key"
ANTHROPIC_MISSING_KEY = "Missing API key. Set the x-api-key header or use Bearer token."
ANTHROPIC_INVALID_KEY = "Invalid API key."

Headers = Iterable[tuple[bytes, bytes]]
_log = get_logger()
_Id = tuple[Role, bytes]  # whose hash, digest of the key


def openai_key(headers: Headers) -> str:
    """Return the key of a request to the OpenAI routes, the tools API or MCP, from its ASGI headers.

    Raises:
        RefusedError: there is none. The scheme's case does not matter (RFC 9110, 11.1).
    """
    key = _bearer(headers)
    if not key:
        raise RefusedError(ErrorCode.UNAUTHENTICATED, OPENAI_MISSING_KEY)
    return key


def anthropic_key(headers: Headers) -> str:
    """Return the key of a request to the Anthropic routes: `x-api-key`, or a bearer token if that is empty.

    Raises:
        RefusedError: there is neither.
    """
    headers = tuple(headers)
    key = _header(headers, b"x-api-key") or _bearer(headers)
    if not key:
        raise RefusedError(ErrorCode.UNAUTHENTICATED, ANTHROPIC_MISSING_KEY)
    return key


def _bearer(headers: Headers) -> str:
    scheme, _, token = _header(headers, b"authorization").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _header(headers: Headers, name: bytes) -> str:
    """Return the first header of that name (lower case, as ASGI has it), stripped; "" if there is none."""
    for found, value in headers:
        if found == name:
            return value.decode("latin-1").strip()
    return ""


@attrs.frozen(kw_only=True)
class Limits:
    """What verification may cost.

    Attributes:
        n_threads: checks at once; each takes 64 MiB and up to 4 cores for 0.1 to 0.3 s.
        max_checks: different keys being checked or in line: a few seconds of work.
        max_waiters: callers that wait for somebody else's check of the same key.
        max_refused: wrong keys that are remembered, the latest ones; 4096 are about 1 MiB.
    """

    n_threads: int = 2
    max_checks: int = 32
    max_waiters: int = 4096
    max_refused: int = 4096


@attrs.define(eq=False)
class _Check:
    """A verification that is under way."""

    done: trio.Event = attrs.field(factory=trio.Event)


class KeyVerifier:
    """Checks keys against the configured hashes: one for each role, and those of named API keys.

    A named key that is kept as a SHA-256 digest is found at once; Argon2id hashes are tried one after the other.
    """

    def __init__(
        self,
        hashes: Mapping[Role, str | None],
        *,
        ttl_s: float,
        clock: Callable[[], float] = trio.current_time,
        limits: Limits = Limits(),
    ) -> None:
        """Prepare; computes nothing.

        Args:
            hashes: the PHC string of each role's key; a role without one opens to nobody.
            ttl_s: how long an answer is remembered, in seconds.
            clock: tells seconds that only grow.
            limits: what verification may cost.

        Raises:
            InvalidKeyError: a hash is malformed.
        """
        self._hashes = {role: phc for role, phc in hashes.items() if phc}
        for phc in self._hashes.values():
            parse_hash(phc)
        self._phc: dict[Role, dict[str, Principal]] = {role: {phc: Principal()} for role, phc in self._hashes.items()}
        self._by_digest: dict[bytes, Principal] = {}  # looked up as it is: nobody can steer what a digest begins with
        self._generation = 0  # of the named keys
        self._ttl_s = ttl_s
        self._limits = limits
        self._clock = clock
        self._accepted: dict[_Id, tuple[float, str]] = {}  # until when, and which hash: as many entries as hashes
        self._refused: OrderedDict[_Id, float] = OrderedDict()  # until when, latest last
        self._checks: dict[_Id, _Check] = {}
        self._n_waiters = 0
        self._strangers = trio.CapacityLimiter(limits.n_threads)
        self._known = trio.CapacityLimiter(1)

    def replace_keys(self, keys: Iterable[NamedKey]) -> None:
        """Put these named API keys in the place of those before; who is no longer among them is out at once."""
        keys = tuple(keys)
        self._by_digest = {key.digest: key.principal for key in keys if key.digest is not None}
        own = self._hashes.get(Role.API)
        named = {key.phc: key.principal for key in keys if key.phc is not None}
        self._phc[Role.API] = {**named, **({own: Principal()} if own else {})}
        self._accepted = {who: known for who, known in self._accepted.items() if known[1] in self._phc[who[0]]}
        self._refused.clear()  # one of them may be right by now
        self._generation += 1

    def cached(self, key: str, role: Role) -> bool | None:
        """Tell what is known about a key without waiting: right, wrong, or None when it has to be verified."""
        found = self._recall(key, role)
        return found if found is None else found is not False

    async def verify(self, key: str, role: Role, *, refusal: str = OPENAI_INVALID_KEY) -> Principal:
        """Return whose key it is, if it opens that role; at once, without a checkpoint, if that is known.

        Cancel-safe: a check that others wait for goes on for them. A check that has begun runs to its end in its
        thread (0.3 s a hash), and a cancelled caller leaves only then.

        Args:
            key: what the caller showed, any text.
            role: what it wants to open.
            refusal: the message for a wrong key, in the words of the caller's dialect.

        Raises:
            RefusedError: UNAUTHENTICATED: not the right key. UNAVAILABLE: too many keys are being checked.
        """
        found = self._recall(key, role)
        if found is None:
            found = await self._find_out(key, (role, key_digest(key)))
        if found is False:
            raise RefusedError(ErrorCode.UNAUTHENTICATED, refusal)
        return found

    async def _find_out(self, key: str, who: _Id) -> Principal | Literal[False]:
        """Check a key, or wait for the check that is under way; if that is given up, the next waiter takes over."""
        while (found := self._recall(key, who[0])) is None:
            if (check := self._checks.get(who)) is not None:
                await self._wait(check)
                continue
            check = self._checks[who] = self._admit(who)
            generation = self._generation
            try:
                phc = await self._compute(key, who)
            finally:
                del self._checks[who]
                check.done.set()
            if generation == self._generation or phc in self._phc[who[0]]:  # else the right hash may be a new one
                self._remember(who, phc)
        return found

    def _admit(self, who: _Id) -> _Check:
        if len(self._checks) >= self._limits.max_checks and who not in self._accepted:
            raise _too_busy()
        return _Check()

    async def _wait(self, check: _Check) -> None:
        if self._n_waiters >= self._limits.max_waiters:
            raise _too_busy()
        self._n_waiters += 1
        try:
            await check.done.wait()
        finally:
            self._n_waiters -= 1

    async def _compute(self, key: str, who: _Id) -> str | None:
        """Return the hash that is this key's, or None."""
        limiter = self._known if who in self._accepted else self._strangers
        hashes = list(self._phc[who[0]])
        if who in self._accepted:
            hashes.sort(key=lambda phc: phc != self._accepted[who][1])  # the one of last time first
        try:
            return await trio.to_thread.run_sync(_first_match_in_background, key, hashes, limiter=limiter)
        except InvalidKeyError as exc:  # the hash is well-formed, so Argon2 got no memory or no threads
            _log.error("auth.check_failed", role=who[0].name, error=exc)
            raise _too_busy() from exc

    def _recall(self, key: str, role: Role) -> Principal | Literal[False] | None:
        """Return what is known of a key: whose it is, False if it is wrong, None if nothing."""
        if not has_key_shape(key):
            return False
        digest = key_digest(key)
        if role is Role.API and (named := self._by_digest.get(digest)) is not None:
            return named
        if not self._phc.get(role):
            return False
        who, now = (role, digest), self._clock()
        until, phc = self._accepted.get(who, (0.0, ""))
        if until > now:
            return self._phc[role][phc]
        return False if self._refused.get(who, 0.0) > now else None

    def _remember(self, who: _Id, phc: str | None) -> None:
        until = self._clock() + self._ttl_s
        if phc is not None:
            self._accepted[who] = (until, phc)
            return
        self._refused[who] = until
        self._refused.move_to_end(who)
        if len(self._refused) > self._limits.max_refused:
            self._refused.popitem(last=False)


def _first_match_in_background(key: str, hashes: list[str]) -> str | None:
    """Find the hash in a thread of its own that gives way to others, above all to the one that serves everybody.

    Argon2 starts four threads for a key, which inherit the priority; it cannot be raised again, so no thread of a pool
    is used. Only Linux has priorities of threads.
    """
    outcome: Future[str | None] = Future()

    def find() -> None:
        if sys.platform == "linux":
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        try:
            outcome.set_result(_first_match(key, hashes))
        except Exception as exc:  # noqa: BLE001 -- it is raised where the outcome is asked for
            outcome.set_exception(exc)

    threading.Thread(target=find, name="auxot-key", daemon=True).start()
    return outcome.result()


def _first_match(key: str, hashes: Iterable[str]) -> str | None:
    return next((phc for phc in hashes if verify_key(key, phc)), None)


def _too_busy() -> RefusedError:
    message = "too many keys are being checked, try again in a moment"
    return RefusedError(ErrorCode.UNAVAILABLE, message, retry_after_s=RETRY_AFTER_S)
