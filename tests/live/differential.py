"""Asking llama-server directly and through the router, and what of the two answers must be the same.

Left out on purpose: ids and times, llama-server's `timings`, and how many prompt tokens came from the cache, which
depends on what was asked before. Log probabilities are compared to four digits: a prompt that was cached is computed
in other pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import attrs
import httpx
import orjson

LogprobView = tuple[str, float, tuple[tuple[str, float], ...]]


@attrs.frozen(kw_only=True)
class Case:
    """One request.

    Attributes:
        name: what is special about it.
        body: as a client sends it.
        direct: what llama-server gets instead of it, where it needs other words for the same wish.
        why: why it does.
        view: changes what llama-server answered to what the router promises.
        streamed: llama-server is asked for a stream in any case: its blocking answer lists the log probabilities of
            tokens that nobody sees as well, such as the end of the thoughts.
    """

    name: str
    body: dict[str, Any]
    direct: dict[str, Any] | None = None
    why: str = ""
    view: Callable[[Answer], Answer] | None = None
    streamed: bool = False

    def __str__(self) -> str:
        return self.name

    @property
    def for_llama(self) -> dict[str, Any]:
        """The body for llama-server."""
        return self.body if self.direct is None else self.direct


@attrs.frozen(kw_only=True)
class Choice:
    """What one choice says, the same from a blocking and from a streaming answer."""

    text: str
    reasoning: str = ""
    tool_calls: tuple[tuple[str, str], ...] = ()  # name, arguments as they were written
    finish_reason: str | None = None
    logprobs: tuple[LogprobView, ...] | None = None


@attrs.frozen(kw_only=True)
class Answer:
    """A whole answer. `usage`: tokens of the prompt, of the answer, and both."""

    choices: tuple[Choice, ...]
    usage: tuple[int, int, int]


@attrs.define
class _Writing:
    """A choice while its pieces come."""

    text: str = ""
    reasoning: str = ""
    tool_calls: dict[int, list[str]] = attrs.field(factory=dict)
    finish_reason: str | None = None
    logprobs: list[LogprobView] | None = None

    def add(self, choice: dict[str, Any]) -> None:
        part = choice.get("message") or choice.get("delta") or {}
        self.text += choice.get("text") or part.get("content") or ""
        self.reasoning += part.get("reasoning_content") or ""
        for place, call in enumerate(part.get("tool_calls") or ()):
            written = self.tool_calls.setdefault(call.get("index", place), ["", ""])
            written[0] += call["function"].get("name") or ""
            written[1] += call["function"].get("arguments") or ""
        self.finish_reason = choice.get("finish_reason") or self.finish_reason
        if choice.get("logprobs"):
            self.logprobs = (self.logprobs or []) + list(_logprobs(choice["logprobs"]))

    def whole(self) -> Choice:
        return Choice(
            text=self.text,
            reasoning=self.reasoning,
            tool_calls=tuple((name, arguments) for _, (name, arguments) in sorted(self.tool_calls.items())),
            finish_reason=self.finish_reason,
            logprobs=None if self.logprobs is None else tuple(self.logprobs),
        )


def _logprobs(logprobs: dict[str, Any]) -> Iterator[LogprobView]:
    """Read the log probabilities of some tokens: in the chat form, or in the legacy one of completions."""
    if "content" in logprobs:
        for entry in logprobs["content"] or ():
            others = tuple((other["token"], round(other["logprob"], 4)) for other in entry["top_logprobs"])
            yield entry["token"], round(entry["logprob"], 4), others
        return
    tops = logprobs["top_logprobs"] or [{}] * len(logprobs["tokens"])
    for token, logprob, top in zip(logprobs["tokens"], logprobs["token_logprobs"], tops, strict=True):
        yield token, round(logprob, 4), tuple((other, round(value, 4)) for other, value in top.items())


def fold(chunks: list[dict[str, Any]]) -> Answer:
    """Put an answer together: from its chunks, or from the one object of a blocking answer."""
    writing: dict[int, _Writing] = {}
    usage: dict[str, int] = {}
    for chunk in chunks:
        for choice in chunk.get("choices") or ():
            writing.setdefault(choice["index"], _Writing()).add(choice)
        usage = chunk.get("usage") or usage
    return Answer(
        choices=tuple(choice.whole() for _, choice in sorted(writing.items())),
        usage=(usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]),
    )


def ask(client: httpx.Client, path: str, body: dict[str, Any], *, stream: bool) -> Answer:
    """Ask for an answer, streaming or blocking."""
    if stream:
        body = {**body, "stream": True, "stream_options": {"include_usage": True}}
    response = client.post(path, json={"model": "any", **body})
    assert response.status_code == 200, response.text
    return fold(events(response.text) if stream else [response.json()])


def events(text: str) -> list[dict[str, Any]]:
    """Return the objects of an event stream, which must end with [DONE]."""
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    return [orjson.loads(line) for line in lines if line != "null"]  # llama-server writes one before several prompts


def ask_anthropic(client: httpx.Client, body: dict[str, Any]) -> dict[str, Any]:
    """Ask for a message; return what must be the same of it."""
    response = client.post("/v1/messages", json=body)
    assert response.status_code == 200, response.text
    message = response.json()
    usage = message["usage"]
    return {
        "blocks": [{name: block[name] for name in block.keys() - _OWN} for block in message["content"]],
        "stop_reason": message["stop_reason"],
        "input_tokens": usage["input_tokens"] + usage.get("cache_read_input_tokens", 0),
        "output_tokens": usage["output_tokens"],
    }


_OWN = {"id", "signature"}  # made by each
