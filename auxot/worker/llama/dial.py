"""When llama-server cannot allocate: how that is told from other failures, and what is tried next. Pure.

    slots: a quarter fewer at a time, down to one -> context: half at a time, down to MIN_CTX_TOKENS -> no more

llama-server says nothing machine-readable when memory runs out: it prints what its allocator said, and ends. The words
are those of llama.cpp (ggml-cuda, ggml-vulkan, ggml-metal, ggml-backend, llama-model; 0.5.0-dev), of the C++ library
and of libc. Where the weights themselves have no room, a shorter context is of no use, and nothing else is tried.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import attrs

from auxot.worker.llama.argv import LlamaSettings

MIN_CTX_TOKENS = 8192  # less is of no use to an agent

_NO_MEMORY = re.compile(
    r"std::bad_alloc|(?:out of|insufficient|cannot allocate) memory|(?:failed|unable) to allocate"
    r"|OutOf(?:Device|Host)Memory|Resource temporarily unavailable",  # the last: of threads, of which slots need some
    re.IGNORECASE,
)
_NO_ROOM_FOR_WEIGHTS = re.compile(r"error loading model: unable to allocate", re.IGNORECASE)


def want_of_memory(lines: Iterable[str]) -> str:
    """Return the line in which llama-server says that it got no memory for what a smaller shape has less of.

    Args:
        lines: the end of its output.

    Returns:
        The first such line, which tells how much it wanted; "" if it ended for another reason.
    """
    lines = list(lines)
    if any(_NO_ROOM_FOR_WEIGHTS.search(line) for line in lines):
        return ""
    return next((line for line in lines if _NO_MEMORY.search(line)), "")


def dialled_down(settings: LlamaSettings) -> LlamaSettings | None:
    """Return the next smaller shape to try, None if there is none that is worth it."""
    if settings.slots > 1:
        return attrs.evolve(settings, slots=settings.slots - max(1, settings.slots // 4))
    half = settings.slot_ctx_tokens // 2
    if settings.slot_ctx_tokens <= MIN_CTX_TOKENS:
        return None
    return attrs.evolve(settings, slot_ctx_tokens=max(MIN_CTX_TOKENS, half))
