"""Who may do what: keys in headers, and their verification.

A verification is expensive on purpose (see `core.keys`), so strangers must not be able to buy many:

    shape?  --no-->  refused, for microseconds
      |
    its digest is known?  --yes-->  whose it is, or that it is wrong, for microseconds
      |
    the key of each hash is known, and this is none of them?  --yes-->  refused, for microseconds
      |
    being checked for somebody else?  --yes-->  wait for that one answer
      |
    check: in a bounded line (`check_line`); where there is no room: "try again" (503)

A hash is the hash of one key: what is known of a right key holds as long as its hash is configured, and once each
hash of a role has met its key, no stranger's key costs Argon2 any more. Before that a flood can only fill the line.
What is known are SHA-256 digests, never keys, and bounded.

Owner: the router, one `KeyVerifier`, used from one Trio loop. Its state changes between two awaits.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import attrs
import trio

from auxot.core.errors import ErrorCode, RefusedError
from auxot.core.keys import Role, has_key_shape, key_digest, parse_hash
from auxot.router.check_line import CheckLine, too_busy
from auxot.router.keyring import NamedKey, Principal

OPENAI_MISSING_KEY = "missing Bearer token"
OPENAI_INVALID_KEY = "invalid API key"
ANTHROPIC_MISSING_KEY = "Missing API key. Set the x-api-key header or use Bearer token."
ANTHROPIC_INVALID_KEY = "Invalid API key."

Headers = Iterable[tuple[bytes, bytes]]
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

    n_threads: int = 1
    max_checks: int = 32
    max_waiters: int = 4096
    max_refused: int = 4096


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
            ttl_s: how long a wrong key is remembered, in seconds.
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
        self._accepted: dict[_Id, str] = {}  # which hash: as many entries as there are hashes
        self._refused: OrderedDict[_Id, float] = OrderedDict()  # until when, latest last
        self._checks: dict[_Id, trio.Event] = {}  # under way; set when they are over
        self._n_waiters = 0
        self._line = CheckLine(n_threads=limits.n_threads, max_checks=limits.max_checks)

    def replace_keys(self, keys: Iterable[NamedKey]) -> None:
        """Put these named API keys in the place of those before; who is no longer among them is out at once."""
        keys = tuple(keys)
        self._by_digest = {key.digest: key.principal for key in keys if key.digest is not None}
        own = self._hashes.get(Role.API)
        named = {key.phc: key.principal for key in keys if key.phc is not None}
        self._phc[Role.API] = {**named, **({own: Principal()} if own else {})}
        self._accepted = {who: phc for who, phc in self._accepted.items() if phc in self._phc[who[0]]}
        self._refused.clear()  # one of them may be right by now
        self._generation += 1

    def cached(self, key: str, role: Role) -> bool | None:
        """Tell what is known about a key without waiting: right, wrong, or None when it has to be verified."""
        found = self._recall(key, role)
        return found if found is None else found is not False

    async def verify(self, key: str, role: Role, *, address: str = "", refusal: str = OPENAI_INVALID_KEY) -> Principal:
        """Return whose key it is, if it opens that role; at once, without a checkpoint, if that is known.

        Cancel-safe: a check that others wait for goes on for them. A check that has begun runs to its end in its
        thread (0.3 s a hash), and a cancelled caller leaves only then.

        Args:
            key: what the caller showed, any text.
            role: what it wants to open.
            address: the caller's, so that one caller cannot crowd others out; "" if unknown.
            refusal: the message for a wrong key, in the words of the caller's dialect.

        Raises:
            RefusedError: UNAUTHENTICATED: not the right key. UNAVAILABLE: too many keys are being checked.
        """
        found = self._recall(key, role)
        if found is None:
            found = await self._find_out(key, (role, key_digest(key)), address)
        if found is False:
            raise RefusedError(ErrorCode.UNAUTHENTICATED, refusal)
        return found

    async def _find_out(self, key: str, who: _Id, address: str) -> Principal | Literal[False]:
        """Check a key, or wait for the check that is under way; if that is given up, the next waiter takes over."""
        role = who[0]
        while (found := self._recall(key, role)) is None:
            if (is_over := self._checks.get(who)) is not None:
                await self._wait(is_over)
                continue
            is_over = self._checks[who] = trio.Event()
            generation = self._generation
            try:
                phc = await self._line.find(key, lambda: self._without_key(role), address=address)
            finally:
                del self._checks[who]
                is_over.set()
            if generation == self._generation or phc in self._phc[role]:  # else the right hash may be a new one
                self._remember(who, phc)
        return found

    async def _wait(self, is_over: trio.Event) -> None:
        if self._n_waiters >= self._limits.max_waiters:
            raise too_busy()
        self._n_waiters += 1
        try:
            await is_over.wait()
        finally:
            self._n_waiters -= 1

    def _without_key(self, role: Role) -> list[str]:
        """Return the hashes whose key is not known yet."""
        met = {phc for (of_role, _), phc in self._accepted.items() if of_role is role}
        return [phc for phc in self._phc[role] if phc not in met]

    def _recall(self, key: str, role: Role) -> Principal | Literal[False] | None:
        """Return what is known of a key: whose it is, False if it is wrong, None if nothing."""
        if not has_key_shape(key):
            return False
        digest = key_digest(key)
        if role is Role.API and (named := self._by_digest.get(digest)) is not None:
            return named
        who = (role, digest)
        if (phc := self._accepted.get(who)) is not None:
            return self._phc[role][phc]
        if self._refused.get(who, 0.0) > self._clock() or not (role in self._phc and self._without_key(role)):
            return False
        return None

    def _remember(self, who: _Id, phc: str | None) -> None:
        if phc is not None:
            self._accepted[who] = phc
            return
        self._refused[who] = self._clock() + self._ttl_s
        self._refused.move_to_end(who)
        if len(self._refused) > self._limits.max_refused:
            self._refused.popitem(last=False)
