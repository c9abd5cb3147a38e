"""One streamed question to each API, shown as the answer arrives, with the times that matter to a reader."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import attrs
import httpx
import orjson
import trio

from auxot.core.errors import AuxotError
from auxot.core.sse import SseDecoder

ANSWER_TIMEOUT_S = 60.0


class QuestionError(AuxotError):
    """The router did not answer a question as it should."""


@attrs.frozen(kw_only=True)
class Question:
    """How one API is asked: the words for people, the path, the headers with the key, and the body."""

    api: str
    path: str
    headers: dict[str, str] = attrs.field(repr=False)
    body: dict[str, Any]
    read_text: Callable[[dict[str, Any]], Iterator[str]]


@attrs.frozen(kw_only=True)
class Timing:
    """What one answer took: seconds to its first text, and tokens a second from there (one event, one token)."""

    first_token_s: float
    tokens_per_s: float
    n_tokens: int


def openai_question(key: str, text: str) -> Question:
    """Return a streamed chat completion."""
    return Question(
        api="OpenAI",
        path="/v1/chat/completions",
        headers={"authorization": f"Bearer {key}"},
        body={
            "model": "any",
            "stream": True,
            "reasoning_effort": "none",  # the other API thinks only when it is asked to
            "messages": [{"role": "user", "content": text}],
        },
        read_text=_openai_text,
    )


def anthropic_question(key: str, text: str) -> Question:
    """Return a streamed message."""
    return Question(
        api="Anthropic",
        path="/v1/messages",
        headers={"x-api-key": key, "anthropic-version": "2023-06-01"},
        body={"model": "any", "stream": True, "max_tokens": 200, "messages": [{"role": "user", "content": text}]},
        read_text=_anthropic_text,
    )


async def ask(question: Question, *, base_url: str, show: Callable[[str], None]) -> Timing:
    """Ask, show each piece of text as it arrives, and return the times.

    Raises:
        QuestionError: no answer within ANSWER_TIMEOUT_S, an error in place of one, or an empty one.
    """
    asked_at = trio.current_time()
    arrivals: list[float] = []

    def on_text(text: str) -> None:
        arrivals.append(trio.current_time())
        show(text)

    try:
        with trio.fail_after(ANSWER_TIMEOUT_S):
            await _stream(question, base_url, on_text)
    except (httpx.HTTPError, trio.TooSlowError) as exc:
        raise QuestionError(f"{question.api}: no answer ({type(exc).__name__})") from exc
    if not arrivals:
        raise QuestionError(f"{question.api}: the answer was empty")
    elapsed = arrivals[-1] - arrivals[0]
    return Timing(
        first_token_s=arrivals[0] - asked_at,
        tokens_per_s=(len(arrivals) - 1) / elapsed if elapsed else 0.0,
        n_tokens=len(arrivals),
    )


async def _stream(question: Question, base_url: str, on_text: Callable[[str], None]) -> None:
    decoder = SseDecoder()
    async with (
        httpx.AsyncClient(base_url=base_url, trust_env=False, timeout=ANSWER_TIMEOUT_S) as client,
        client.stream("POST", question.path, headers=question.headers, json=question.body) as response,
    ):
        if response.status_code != httpx.codes.OK:
            raise QuestionError(f"{question.api}: HTTP {response.status_code}: {(await response.aread())[:500]!r}")
        async for piece in response.aiter_raw():
            for event in decoder.feed(piece):
                for text in _texts(question, event.data):
                    on_text(text)


def _texts(question: Question, data: bytes) -> Iterator[str]:
    if data == b"[DONE]":
        return
    fields = orjson.loads(data)
    if "error" in fields:
        raise QuestionError(f"{question.api}: {fields['error'].get('message', 'error')}")
    yield from filter(None, question.read_text(fields))


def _openai_text(chunk: dict[str, Any]) -> Iterator[str]:
    for choice in chunk["choices"]:
        yield choice["delta"].get("content") or ""


def _anthropic_text(event: dict[str, Any]) -> Iterator[str]:
    if event["type"] == "content_block_delta":
        yield event["delta"].get("text", "")
