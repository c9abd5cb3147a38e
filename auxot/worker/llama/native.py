"""Generations in llama.cpp's own form, such as `/infill`: always streamed, put together again if need be. Pure.

    asked for    sent on to llama-server             what becomes of its chunks
    a stream     + return_progress                   passed on, but for progress that nobody asked for
    an answer    + return_progress, + stream         folded into the one object (or array) that llama-server would send

llama-server notices that its client has left when it writes: a request that is not a stream may run to its end, and
one without progress to the end of its prompt.

The chunks (llama.cpp 0.5.0-dev): `index`, `content`, `tokens`, `stop`: false, with `prompt_progress` or
`completion_probabilities`; then one a choice without `stop`: false, whole but for what was in the chunks before it, and
only with those fields that the request's `response_fields` names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import orjson

_PROBABILITIES = "completion_probabilities"
_SETTINGS = "generation_settings"


@attrs.frozen(kw_only=True)
class NativeRequest:
    """A generation as it was asked for."""

    fields: Mapping[str, Any]

    @property
    def is_stream(self) -> bool:
        """Whether the chunks themselves are wanted."""
        return self.fields.get("stream") is True

    @property
    def wants_progress(self) -> bool:
        """Whether the prompt's progress is wanted among them."""
        return self.fields.get("return_progress") is True

    def body(self) -> bytes:
        """Return the body for llama-server."""
        return orjson.dumps({**self.fields, "stream": True, "return_progress": True})


@attrs.define
class _Choice:
    text: list[str] = attrs.field(factory=list)
    tokens: list[Any] = attrs.field(factory=list)
    probabilities: list[Any] = attrs.field(factory=list)
    last: dict[str, Any] | None = None


@attrs.define
class NativeAnswer:
    """The chunks of one answer, on their way to being the blocking answer."""

    request: NativeRequest
    _choices: dict[int, _Choice] = attrs.field(factory=dict)

    def add(self, chunk: dict[str, Any]) -> None:
        """Take the next chunk. What has not the form that it should have counts as nothing."""
        choice = self._choice(chunk.get("index"))
        if chunk.get("stop") is not False:
            choice.last = chunk
        elif "prompt_progress" not in chunk:
            choice.text.append(_text(chunk.get("content")))
            choice.tokens += _list(chunk.get("tokens"))
            choice.probabilities += _list(chunk.get(_PROBABILITIES))

    @property
    def has_ended(self) -> bool:
        """Whether every choice has."""
        return bool(self._choices) and all(choice.last is not None for choice in self._choices.values())

    def body(self) -> bytes:
        """Return the blocking answer, once it has ended."""
        wholes = [self._whole(choice, choice.last or {}) for _, choice in sorted(self._choices.items())]
        return orjson.dumps(wholes[0] if len(wholes) == 1 else wholes)

    def _choice(self, index: Any) -> _Choice:
        """Return a choice; a last chunk whose index was filtered away belongs to the first one that has not ended."""
        if type(index) is not int:
            index = next((i for i, choice in sorted(self._choices.items()) if choice.last is None), 0)
        return self._choices.setdefault(index, _Choice())

    def _whole(self, choice: _Choice, last: dict[str, Any]) -> dict[str, Any]:
        whole = {**last}
        if "content" in whole:
            whole["content"] = "".join([*choice.text, _text(whole["content"])])
        if "tokens" in whole and self.request.fields.get("return_tokens") is True:
            whole["tokens"] = [*choice.tokens, *_list(whole["tokens"])]
        if choice.probabilities and _PROBABILITIES in (
            _list(self.request.fields.get("response_fields")) or (_PROBABILITIES,)
        ):
            whole[_PROBABILITIES] = choice.probabilities
        if isinstance(whole.get(_SETTINGS), dict):
            whole[_SETTINGS] = {**whole[_SETTINGS], "stream": False}
        if f"{_SETTINGS}/stream" in whole:
            whole[f"{_SETTINGS}/stream"] = False
        return whole


def _text(value: Any) -> str:
    return value if type(value) is str else ""


def _list(value: Any) -> list[Any]:
    return value if type(value) is list else []


def read_native_request(body: str) -> NativeRequest | None:
    """Read a request; None if it is not a JSON object, which llama-server itself then refuses."""
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return NativeRequest(fields=fields) if isinstance(fields, dict) else None
