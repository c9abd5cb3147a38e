"""Requests in every dialect for an answer of known length, and what a client gets of it."""

from __future__ import annotations

from typing import Any

import attrs
import httpx
import orjson

from auxot.demo.tiny_model import ANSWER

OPENAI, ANTHROPIC, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
COMPLETIONS = "/v1/completions"
N_TOKENS = 1200
WHOLE = " ".join((ANSWER.split() * N_TOKENS)[:N_TOKENS])  # the answer to `request_of`


@attrs.frozen
class Outcome:
    """What a client got: the text, tokens of the prompt and of the answer, errors, and whether it looks whole."""

    text: str
    usage: tuple[int, int]
    errors: list[Any]
    thoughts: str = ""
    arguments: str = ""
    is_whole: bool = True

    @property
    def is_empty(self) -> bool:
        """Whether no part of an answer was seen."""
        return not (self.text or self.thoughts or self.arguments)


def request_of(path: str, **changes: Any) -> dict[str, Any]:
    """Return a request for N_TOKENS tokens, streamed."""
    plain = {"model": "any", "stream": True, "ignore_eos": True, **changes}
    if path == RESPONSES:
        return {"input": "hi", "max_output_tokens": N_TOKENS, "reasoning": {"effort": "none"}, **plain}
    if path == COMPLETIONS:
        return {"prompt": "hi", "max_tokens": N_TOKENS, **plain}
    asked = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": N_TOKENS, **plain}
    if path == OPENAI:
        asked = {"reasoning_effort": "none", "stream_options": {"include_usage": True}, **asked}
    return asked


def ask(client: httpx.Client, path: str, **changes: Any) -> Outcome:
    """Read a stream to its end."""
    return outcome_of(path, client.post(path, json=request_of(path, **changes)).text)


def ask_blocking(client: httpx.Client, path: str) -> Outcome:
    """Read a blocking answer."""
    asked = request_of(path, stream=False)
    asked.pop("stream_options", None)
    body = client.post(path, json=asked).json()
    if body.get("error"):
        return Outcome("", (0, 0), [body["error"]])
    usage = body["usage"]
    if path == OPENAI:
        text = body["choices"][0]["message"]["content"]
        return Outcome(text, (usage["prompt_tokens"], usage["completion_tokens"]), [])
    content = body["output"][0]["content"] if path == RESPONSES else body["content"]
    n_prompt = usage["input_tokens"] + usage.get("cache_read_input_tokens", 0)
    return Outcome(content[0]["text"], (n_prompt, usage["output_tokens"]), [])


def outcome_of(path: str, stream: str) -> Outcome:
    """Read a stream of events; a refusal that came in its place is an error like one within it."""
    if stream.startswith("{"):
        return Outcome("", (0, 0), [orjson.loads(stream)["error"]], is_whole=False)
    lines = [line[6:] for line in stream.splitlines() if line.startswith("data: ") and line != "data: [DONE]"]
    events = [orjson.loads(line) for line in lines]
    if path == OPENAI:
        return _openai(events)
    if path == COMPLETIONS:
        return _completions(events)
    return _anthropic(events) if path == ANTHROPIC else _responses(events)


def _openai(events: list[dict[str, Any]]) -> Outcome:
    choices = [event["choices"][0] for event in events if event.get("choices")]
    deltas = [choice["delta"] for choice in choices]
    calls = [call["function"] for delta in deltas for call in delta.get("tool_calls") or []]
    usage = next((event["usage"] for event in events if event.get("usage")), {})
    return Outcome(
        "".join(delta.get("content") or "" for delta in deltas),
        (usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0)),
        [event["error"] for event in events if "error" in event],
        "".join(delta.get("reasoning_content") or "" for delta in deltas),
        "".join((call.get("name") or "") + call.get("arguments", "") for call in calls),
        any(choice.get("finish_reason") for choice in choices),
    )


def _completions(events: list[dict[str, Any]]) -> Outcome:
    choices = [event["choices"][0] for event in events if event.get("choices")]
    return Outcome(
        "".join(choice["text"] for choice in choices),
        (0, 0),
        [event["error"] for event in events if "error" in event],
        is_whole=any(choice.get("finish_reason") for choice in choices),
    )


def _anthropic(events: list[dict[str, Any]]) -> Outcome:
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    calls = [event["content_block"] for event in events if event["type"] == "content_block_start"]
    usage = next((event["usage"] for event in events if event["type"] == "message_delta"), {})
    return Outcome(
        "".join(delta.get("text", "") for delta in deltas),
        (usage.get("input_tokens", 0) + usage.get("cache_read_input_tokens", 0), usage.get("output_tokens", 0)),
        [event["error"] for event in events if event["type"] == "error"],
        "".join(delta.get("thinking", "") for delta in deltas),
        "".join([call.get("name", "") for call in calls] + [delta.get("partial_json", "") for delta in deltas]),
        any(event["type"] in ("message_delta", "message_stop") for event in events),
    )


def _responses(events: list[dict[str, Any]]) -> Outcome:
    def joined(kind: str) -> str:
        return "".join(event["delta"] for event in events if event["type"] == kind)

    end = events[-1].get("response", {})
    calls = [event["item"] for event in events if event["type"] == "response.output_item.added"]
    usage = end.get("usage") or {}
    return Outcome(
        joined("response.output_text.delta"),
        (usage.get("input_tokens", 0), usage.get("output_tokens", 0)),
        [end["error"]] if events[-1]["type"] == "response.failed" else [],
        joined("response.reasoning_text.delta") + joined("response.reasoning_summary_text.delta"),
        "".join(call.get("name", "") for call in calls) + joined("response.function_call_arguments.delta"),
        events[-1]["type"] in ("response.completed", "response.incomplete"),
    )
