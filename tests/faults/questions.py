"""Questions whose answers are known to the letter, and a reader that takes no answer which is not whole and in order.

The model is `auxot.demo.tiny_model`. `read_answer` checks the form: one end, nothing after it, sequence numbers without
a gap, an error in the shape of its API. What the answer says is compared by whoever asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import attrs
import orjson

from auxot.demo.tiny_model import ANSWER, TOOL_NAME, TOOL_PARAMETERS

CHAT, MESSAGES, RESPONSES, COMPLETIONS = "/v1/chat/completions", "/v1/messages", "/v1/responses", "/v1/completions"
LENGTHS = (1, 40, 400, 1200)  # tokens; the last ones take seconds
_FUNCTION = {"name": TOOL_NAME, "parameters": TOOL_PARAMETERS}


class MalformedError(Exception):
    """An answer that no client could make sense of; the text says why."""


class CutError(Exception):
    """An answer that ends in the middle."""


@attrs.frozen(kw_only=True)
class Question:
    """A request, and the text of its answer if that is plain text."""

    name: str
    path: str
    body: dict[str, Any]
    text: str | None = None

    @property
    def is_stream(self) -> bool:
        """Whether it asks for a stream."""
        return bool(self.body.get("stream"))


@attrs.frozen(kw_only=True)
class Answer:
    """What a client understands.

    Attributes:
        text: what the model says; of forwarded endpoints and counts the whole body.
        others: thoughts and arguments of tool calls, in order.
        usage: tokens of prompt and answer.
        finish: why it ended, in the API's own word.
        failure: the message of an error.
    """

    text: str = ""
    others: str = ""
    usage: tuple[int, int] = (0, 0)
    finish: str | None = None
    failure: str | None = None

    def begins(self, whole: Answer) -> bool:
        """Whether this is how that answer begins."""
        return whole.text.startswith(self.text) and whole.others.startswith(self.others)


def words(n_tokens: int) -> str:
    """Return what the model writes in so many tokens when its answer has no end."""
    return " ".join((ANSWER.split() * n_tokens)[:n_tokens])


def questions() -> list[Question]:
    """Return one of each kind."""
    return [*_plain(stream=True), *_plain(stream=False), *_special()]


def _plain(*, stream: bool) -> Iterator[Question]:
    """Yield questions for text: each API in each length."""
    user = {"messages": [{"role": "user", "content": "hi"}]}
    usage = {"stream_options": {"include_usage": True}} if stream else {}
    for n in LENGTHS:
        bodies = {
            CHAT: {**user, **usage, "max_tokens": n, "reasoning_effort": "none"},
            MESSAGES: {**user, "max_tokens": n},
            RESPONSES: {"input": "hi", "max_output_tokens": n, "reasoning": {"effort": "none"}},
            COMPLETIONS: {"prompt": "hi\n", **usage, "max_tokens": n},
        }
        for path, body in bodies.items():
            name = f"{path} {n} {'stream' if stream else 'whole'}"
            whole = {"model": "any", "stream": stream, "ignore_eos": True, **body}
            yield Question(name=name, path=path, body=whole, text=words(n))


def _special() -> Iterator[Question]:
    """Yield what cannot be continued by another worker, and what is no generation."""
    weather: dict[str, Any] = {"model": "any", "messages": [{"role": "user", "content": "weather"}]}
    tools = {"tools": [{"type": "function", "function": _FUNCTION}]}
    thinking = {"reasoning_effort": "high", "chat_template_kwargs": {"enable_thinking": True}, "max_tokens": 300}
    usage = {"stream": True, "stream_options": {"include_usage": True}}
    yield Question(name="thinking", path=CHAT, body={**weather, **thinking, **usage, "ignore_eos": True})
    yield Question(name="tool call, streamed", path=CHAT, body={**weather, **tools, **usage})
    yield Question(name="tool call, whole", path=CHAT, body={**weather, **tools})
    yield Question(name="count of a message", path="/v1/messages/count_tokens", body=weather)
    yield Question(name="count of a chat", path="/v1/chat/completions/input_tokens", body=weather)
    yield Question(name="tokens", path="/v1/tokenize", body={"content": ANSWER})
    yield Question(name="template", path="/v1/apply-template", body=weather)


def read_answer(question: Question, status: int, raw: bytes) -> Answer:
    """Return what a client understands.

    Raises:
        MalformedError: the bytes are not an answer.
        CutError: they are the beginning of one.
    """
    try:
        if status == 200 and question.is_stream:
            return _READERS[question.path](_events(raw))
        body = orjson.loads(raw)
        return _whole(question, body) if status == 200 else Answer(failure=_message(question.path, body))
    except (orjson.JSONDecodeError, KeyError, TypeError, IndexError) as exc:
        raise MalformedError(f"{type(exc).__name__} {exc} in {raw[-500:]!r}") from exc


def _message(path: str, body: Any) -> str:
    """Return the message of an error that has the form of its API."""
    error = body["error"]
    _demand(bool(error["type"]) and bool(error["message"]), f"an error without type or message: {body}")
    if path.startswith(MESSAGES):
        _demand(body["type"] == "error", f"no Anthropic error: {body}")
    return str(error["message"])


def _whole(question: Question, body: Any) -> Answer:
    if question.path in (CHAT, COMPLETIONS):
        (choice,) = body["choices"]
        message = choice.get("message", choice)
        calls = [call["function"]["arguments"] for call in message.get("tool_calls") or ()]
        text = message.get("content", message.get("text")) or ""
        return Answer(text=text, others="".join(calls), usage=_usage(body["usage"]), finish=choice["finish_reason"])
    if question.path == MESSAGES:
        text = "".join(block["text"] for block in body["content"])
        return Answer(text=text, usage=_usage(body["usage"]), finish=body["stop_reason"])
    if question.path == RESPONSES:
        text = "".join(part["text"] for item in body["output"] for part in item["content"])
        return Answer(text=text, usage=_usage(body["usage"]), finish=body["status"])
    return Answer(text=orjson.dumps(body).decode())


def _usage(usage: dict[str, Any]) -> tuple[int, int]:
    n_prompt = usage["prompt_tokens"] if "prompt_tokens" in usage else usage["input_tokens"]
    n_prompt += usage.get("cache_read_input_tokens") or 0
    return n_prompt, usage["completion_tokens"] if "completion_tokens" in usage else usage["output_tokens"]


def _events(raw: bytes) -> list[Any]:
    """Return the events of a stream; the mark at the end of OpenAI's is None."""
    if raw and not raw.endswith(b"\n\n"):
        raise CutError
    lines = [line for line in raw.decode().split("\n") if line and not line.startswith((":", "event: "))]
    _demand(all(line.startswith("data: ") for line in lines), "a line that is no event")
    return [None if line == "data: [DONE]" else orjson.loads(line[6:]) for line in lines]


def _read_chunks(events: list[Any]) -> Answer:
    """Read OpenAI's chat completions and completions."""
    if None not in events:
        raise CutError
    _demand(events.index(None) == len(events) - 1, "events after [DONE]")
    failures = [_message(CHAT, event) for event in events[:-1] if "error" in event]
    _demand(not failures or "error" in events[-2], "events after an error")
    choices = [choice for event in events[:-1] for choice in event.get("choices", ())]
    finishes = [choice["finish_reason"] for choice in choices if choice["finish_reason"]]
    _demand(len(finishes) + len(failures) == 1, f"ended by {finishes} and {failures}")
    _demand(bool(failures) or bool(choices[-1]["finish_reason"]), "text after the end")
    usages = [_usage(event["usage"]) for event in events[:-1] if event.get("usage")]
    _demand(len(usages) == (not failures), f"usage: {usages}")
    deltas = [choice.get("delta", choice) for choice in choices]
    calls = [call["function"].get("arguments") or "" for delta in deltas for call in delta.get("tool_calls") or ()]
    return Answer(
        text="".join(delta.get("content", delta.get("text")) or "" for delta in deltas),
        others="".join([*(delta.get("reasoning_content") or "" for delta in deltas), *calls]),
        usage=usages[0] if usages else (0, 0),
        finish=finishes[0] if finishes else None,
        failure=failures[0] if failures else None,
    )


def _read_messages(events: list[Any]) -> Answer:
    """Read Anthropic's messages."""
    ends = [n for n, event in enumerate(events) if event["type"] in ("message_stop", "error")]
    if not ends:
        raise CutError
    _demand(ends == [len(events) - 1], "events after the end")
    text = "".join(event["delta"].get("text", "") for event in events if event["type"] == "content_block_delta")
    if events[-1]["type"] == "error":
        return Answer(text=text, failure=_message(MESSAGES, events[-1]))
    (delta,) = [event for event in events if event["type"] == "message_delta"]
    return Answer(text=text, usage=_usage(delta["usage"]), finish=delta["delta"]["stop_reason"])


def _read_responses(events: list[Any]) -> Answer:
    """Read OpenAI's Responses."""
    ends = [n for n, event in enumerate(events) if event["type"] in _RESPONSES_ENDS]
    if not ends:
        raise CutError
    _demand(ends == [len(events) - 1], "events after the end")
    _demand([event["sequence_number"] for event in events] == list(range(len(events))), "a gap in the sequence")
    text = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
    response = events[-1]["response"]
    if events[-1]["type"] == "response.failed":
        return Answer(text=text, failure=str(response["error"]["message"]))
    return Answer(text=text, usage=_usage(response["usage"]), finish=response["status"])


def _demand(condition: bool, otherwise: str) -> None:
    if not condition:
        raise MalformedError(otherwise)


_RESPONSES_ENDS = ("response.completed", "response.incomplete", "response.failed")
_READERS: dict[str, Callable[[list[Any]], Answer]] = {
    CHAT: _read_chunks,
    COMPLETIONS: _read_chunks,
    MESSAGES: _read_messages,
    RESPONSES: _read_responses,
}
