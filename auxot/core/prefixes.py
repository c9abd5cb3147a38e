"""PURE: which worker has (nearly) the same prompt in its cache. A hint: where it is wrong, a prompt is only slower.

llama-server keeps the prompts of its slots, and does not compute again what a new prompt has in common with one of
them from its beginning. A conversation repeats its whole history with each turn, so its next turn is almost free on
the worker that had the last one.

    chain_of(frame) -> Chain -> matches -> placement
    started: the slot's prompt is being overwritten, nobody holds it     ended: that worker holds it

A prompt is written as a chain of hashes, each of which stands for everything before it: the tools (templates put them
first), then a message after the other, long messages in blocks. Two prompts have a beginning in common as far as
their chains are the same. Whoever holds the deepest of a chain's hashes has most of it.

The chain is told from the encoded job, without parsing it: 1 us for a short prompt and a millisecond for a megabyte.
Hashes are Python's own, with this process's secret seed, and never leave it.

What many conversations share draws none of them: tools and system messages, and the beginning of the first message
after them (coding agents put the same notes there), unless that is as long as a document. Else all conversations that
begin alike would crowd into the cache of one worker, on a quiet day; so, each worker has the shared part soon enough.

What is remembered is bounded: MAX_NODES hashes (oldest go first, and of a prompt its end before its beginning), each
with its MAX_HOLDERS latest workers. Those that have gone are not looked for: no worker gets an id twice.

A router keeps such a map of its workers, and a worker with several llama-servers one of them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterator

import attrs

from auxot.core.jobs import Job

FIRST_BLOCK_BYTES = 1024  # a shorter message is one hash
LAST_BLOCK_BYTES = 8192  # they double from one to the other
MAX_CHAIN = 1024  # hashes of one prompt, and
MAX_BYTES = 4 * 1024 * 1024  # of it, a million tokens: what comes after is not looked at
MAX_NODES = 32_768  # hashes that are remembered, some 450 bytes each
MAX_HOLDERS = 16  # of one hash
MAX_MATCHES = 32  # workers that are considered for one job
DOCUMENT_BYTES = 16 * 1024  # of the first message: worth to be found again with another question behind it

_MESSAGES = b'"messages":['
_MESSAGE = b'{"role":"'  # cannot stand in a JSON string, where quotes are escaped
_LIST_END = b'}],"'  # of objects, before another field
_TOOLS = b',"tools":['
_TOOLS_END = b'}}],"'  # the last tool and the function in it: rarer than _LIST_END in schemas
_SYSTEM = (b'{"role":"system"', b'{"role":"developer"')
_PROMPT = b',"prompt":'  # the last field
_names = [field.name for field in attrs.fields(Job)]
_AFTER_MESSAGES = tuple(f'{name}":'.encode() for name in _names[_names.index("messages") + 1 :])
_AFTER_TOOLS = tuple(f'{name}":'.encode() for name in _names[_names.index("tools") + 1 :])


@attrs.frozen
class Chain:
    """A prompt from its beginning.

    Attributes:
        nodes: hashes, each of everything up to its place.
        sizes: how many bytes that is.
        n_shared: the nodes before this one are of what many conversations share.
    """

    nodes: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()
    n_shared: int = 0


NO_CHAIN = Chain()


@attrs.frozen
class Match:
    """A worker that holds the first `n_bytes` of a prompt, which `node` stands for."""

    worker_id: str
    n_bytes: int
    node: int


def chain_of(frame: bytes) -> Chain:
    """Return the chain of a chat or completion; that of other jobs means nothing.

    Args:
        frame: the encoded `job` message, as `protocol.encode` writes it.
    """
    start = frame.find(_MESSAGES, 0, MAX_BYTES) + len(_MESSAGES)
    if start < len(_MESSAGES):
        return NO_CHAIN
    if frame.startswith(b"]", start):
        prompt = frame.find(_PROMPT, start, start + MAX_BYTES)
        return NO_CHAIN if prompt < 0 else _link(frame, [(prompt, len(frame) - 1)], seed=0)
    spans, end = _message_spans(frame, start)
    tools = _tools(frame, end)
    n_system = next((n for n, (at, _) in enumerate(spans) if not frame.startswith(_SYSTEM, at)), len(spans) - 1)
    return _link(frame, spans, n_system=n_system, seed=hash(tools), n_bytes=len(tools))


def _message_spans(frame: bytes, start: int) -> tuple[list[tuple[int, int]], int]:
    """Return where the messages stand, and where their list ends."""
    spans: list[tuple[int, int]] = []
    limit = min(start + MAX_BYTES, len(frame))
    while (following := frame.find(_MESSAGE, start + 1, limit)) >= 0:
        spans.append((start, following - 1))  # without the comma
        start = following
    end = _find_end(frame, start, limit=limit, last=_LIST_END, followers=_AFTER_MESSAGES)
    spans.append((start, end))
    return spans, end


def _find_end(frame: bytes, start: int, *, limit: int, last: bytes, followers: tuple[bytes, ...]) -> int:
    """Return where the list ends whose last element ends like that, before one of these fields or the frame's end."""
    at = start
    while (at := frame.find(last, at + 1, limit)) >= 0:
        if frame.startswith(followers, at + len(last)):
            return at + len(last) - 3  # `],"`
    return min(limit, len(frame) - 2)  # `]}`


def _tools(frame: bytes, start: int) -> bytes:
    """Return the tools as they are written after the messages."""
    limit = start + MAX_BYTES
    start = frame.find(_TOOLS, start, limit)
    if start < 0:
        return b""
    return frame[start : _find_end(frame, start, limit=limit, last=_TOOLS_END, followers=_AFTER_TOOLS)]


def _link(
    frame: bytes, spans: list[tuple[int, int]], *, seed: int, n_bytes: int = 0, n_system: int | None = None
) -> Chain:
    """Return the chain of what stands there, after `n_bytes` of tools; `n_system` messages are before the first."""
    nodes: list[int] = []
    sizes: list[int] = []
    node, n_shared = seed, 0
    for n, (span_start, span_end) in enumerate(spans):
        n_before, size_before = len(nodes), n_bytes
        for start, end in _blocks(span_start, span_end):
            node = hash((node, frame[start:end]))
            n_bytes += end - start
            nodes.append(node)
            sizes.append(n_bytes)
        if n == n_system:
            n_shared = min(bisect_left(sizes, size_before + DOCUMENT_BYTES, lo=n_before), len(nodes) - 1)
        if len(nodes) >= MAX_CHAIN:
            break
    return Chain(tuple(nodes[:MAX_CHAIN]), tuple(sizes[:MAX_CHAIN]), n_shared)


def _blocks(start: int, end: int) -> Iterator[tuple[int, int]]:
    """Cut a span at places that do not move when more is written at its end."""
    size = FIRST_BLOCK_BYTES
    end = min(end, start + MAX_BYTES)
    while end - start > size:
        yield start, start + size
        start += size
        size = min(2 * size, LAST_BLOCK_BYTES)
    yield start, end


@attrs.define(eq=False, kw_only=True)
class PrefixMap:
    """The prompts in the workers' caches, as far as this process knows."""

    max_nodes: int = MAX_NODES
    _holders: OrderedDict[int, dict[str, None]] = attrs.field(factory=OrderedDict)

    def __len__(self) -> int:
        return len(self._holders)

    def started(self, chain: Chain, worker_id: str) -> None:
        """Note that a worker has begun with a prompt: whatever it held of it is with a busy slot now."""
        for node in chain.nodes[chain.n_shared :]:
            holders = self._holders.get(node)
            if holders is not None and worker_id in holders:
                del holders[worker_id]
                if not holders:
                    del self._holders[node]

    def ended(self, chain: Chain, worker_id: str) -> None:
        """Note that a worker is done with a prompt and holds it."""
        for node in reversed(chain.nodes[chain.n_shared :]):
            holders = self._holders.setdefault(node, {})
            holders.pop(worker_id, None)  # so that it becomes the latest
            if len(holders) >= MAX_HOLDERS:
                del holders[next(iter(holders))]
            holders[worker_id] = None
            self._holders.move_to_end(node)
        while len(self._holders) > self.max_nodes:
            self._holders.popitem(last=False)

    def matches(self, chain: Chain) -> list[Match]:
        """Return who holds a part of a prompt that is not shared by many, the longest first, each worker once."""
        found: dict[str, Match] = {}
        look_up = self._holders.get
        for place in range(len(chain.nodes) - 1, chain.n_shared - 1, -1):
            node = chain.nodes[place]
            for worker_id in look_up(node, ()):
                if worker_id not in found:
                    found[worker_id] = Match(worker_id, chain.sizes[place], node)
            if len(found) >= MAX_MATCHES:
                break
        return list(found.values())
