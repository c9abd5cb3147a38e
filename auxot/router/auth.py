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

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping

import attrs
import trio

from auxot.core.errors import ErrorCode, InvalidKeyError, RefusedError
from auxot.core.keys import Role, has_key_shape, key_digest, parse_hash, verify_key
from auxot.core.logs import get_logger

RETRY_AFTER_S = 2

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
    """A verification that is under way. `is_right` stays None if it was given up."""

    done: trio.Event = attrs.field(factory=trio.Event)
    is_right: bool | None = None


class KeyVerifier:
    """Checks keys against the configured hashes, one for each role."""

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
        self._ttl_s = ttl_s
        self._limits = limits
        self._clock = clock
        self._accepted: dict[_Id, float] = {}  # until when; one key fits a hash: as many entries as roles
        self._refused: OrderedDict[_Id, float] = OrderedDict()  # until when, latest last
        self._checks: dict[_Id, _Check] = {}
        self._n_waiters = 0
        self._strangers = trio.CapacityLimiter(limits.n_threads)
        self._known = trio.CapacityLimiter(1)

    def cached(self, key: str, role: Role) -> bool | None:
        """Tell what is known about a key without waiting: right, wrong, or None when it has to be verified."""
        if role not in self._hashes or not has_key_shape(key):
            return False
        return self._recall((role, key_digest(key)))

    async def verify(self, key: str, role: Role, *, refusal: str = OPENAI_INVALID_KEY) -> None:
        """Return if the key opens that role; at once, without a checkpoint, if that is known.

        Cancel-safe: a check that others wait for goes on for them. A check that has begun runs to its end in its
        thread (0.3 s), and a cancelled caller leaves only then.

        Args:
            key: what the caller showed, any text.
            role: what it wants to open.
            refusal: the message for a wrong key, in the words of the caller's dialect.

        Raises:
            RefusedError: UNAUTHENTICATED: not the right key. UNAVAILABLE: too many keys are being checked.
        """
        is_right = self.cached(key, role)
        if is_right is None:
            is_right = await self._find_out(key, (role, key_digest(key)))
        if not is_right:
            raise RefusedError(ErrorCode.UNAUTHENTICATED, refusal)

    async def _find_out(self, key: str, who: _Id) -> bool:
        """Check a key, or wait for the check that is under way; if that is given up, the next waiter takes over."""
        while (check := self._checks.get(who)) is not None:
            await self._wait(check)
            if check.is_right is not None:
                return check.is_right
        check = self._checks[who] = self._admit(who)
        try:
            check.is_right = await self._compute(key, who)
        finally:
            del self._checks[who]
            check.done.set()
        self._remember(who, is_right=check.is_right)
        return check.is_right

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

    async def _compute(self, key: str, who: _Id) -> bool:
        limiter = self._known if who in self._accepted else self._strangers
        try:
            return await trio.to_thread.run_sync(verify_key, key, self._hashes[who[0]], limiter=limiter)
        except InvalidKeyError as exc:  # the hash is well-formed, so Argon2 got no memory or no threads
            _log.error("auth.check_failed", role=who[0].name, error=exc)
            raise _too_busy() from exc

    def _recall(self, who: _Id) -> bool | None:
        if self._accepted.get(who, 0.0) > (now := self._clock()):
            return True
        return False if self._refused.get(who, 0.0) > now else None

    def _remember(self, who: _Id, *, is_right: bool) -> None:
        until = self._clock() + self._ttl_s
        if is_right:
            self._accepted[who] = until
            return
        self._refused[who] = until
        self._refused.move_to_end(who)
        if len(self._refused) > self._limits.max_refused:
            self._refused.popitem(last=False)


def _too_busy() -> RefusedError:
    message = "too many keys are being checked, try again in a moment"
    return RefusedError(ErrorCode.UNAVAILABLE, message, retry_after_s=RETRY_AFTER_S)
