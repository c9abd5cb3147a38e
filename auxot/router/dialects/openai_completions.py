"""OpenAI's legacy completions, `POST .../completions`: the dialect, its blocking answer and its stream.

    waiting --text: what is echoed, text--> begun --Finished--> finish chunks [usage chunk] [DONE]
       |                                      '-----Failed----> error [DONE]
       '--Finished: as if begun; Failed: the same

Both answers have objects of the same form, `text_completion`; a chunk holds only what is new. Reading a request is
`openai_completions_request`'s.

Source: https://platform.openai.com/docs/api-reference/completions/object
"""

from __future__ import annotations

from typing import Any

from auxot.core import sse
from auxot.core.jobs import (
    ChoiceTranscript,
    Failed,
    Finish,
    Finished,
    FinishReason,
    JobEvent,
    PromptProgress,
    TextDelta,
    Transcript,
    Usage,
)
from auxot.router.dialects.base import ChatRequest, finishes_of, json_bytes
from auxot.router.dialects.openai_chunks import ChunkFrame
from auxot.router.dialects.openai_completions_request import CompletionRequest, parse_completion
from auxot.router.dialects.openai_family import OpenAiFamily
from auxot.router.dialects.openai_objects import usage_object

_OBJECT = "text_completion"
_REASONS = {
    FinishReason.LENGTH: "length",
    FinishReason.CONTEXT_FULL: "length",
    FinishReason.CONTENT_FILTER: "content_filter",
}  # all others are "stop"


class OpenAiCompletions(OpenAiFamily):
    """The dialect; see `Dialect`."""

    name = "openai.completions"

    def parse(self, body: bytes, *, job_id: str, now: float) -> CompletionRequest:
        """Read and check a request."""
        return parse_completion(body, job_id=job_id, now=now)

    def encoder(self, request: ChatRequest) -> OpenAiCompletionEncoder:
        """Return the encoder of one streaming answer."""
        return OpenAiCompletionEncoder(_completion_request(request))

    def response(self, request: ChatRequest, transcript: Transcript) -> bytes:
        """Return the JSON body of a blocking answer."""
        asked, finished = _completion_request(request), transcript.finished
        return json_bytes(
            {
                "id": asked.answer_id,
                "object": _OBJECT,
                "created": asked.created,
                "model": asked.model,
                "choices": [
                    _choice(asked, transcript.choice(index), index=index, finish=finish)
                    for index, finish in enumerate(finishes_of(finished, asked.n_choices))
                ],
                "usage": usage_object(finished.usage if finished else Usage()),
            }
        )


class OpenAiCompletionEncoder:
    """The encoder of one answer; see `StreamEncoder`."""

    def __init__(self, request: CompletionRequest) -> None:
        self._request = request
        self._frame = ChunkFrame(request, _OBJECT)
        self._offsets = [0] * request.n_choices  # of the next token with log probabilities, in characters
        self._begun = False
        self._ended = False

    @property
    def begun(self) -> bool:
        """Whether a part of the answer, or its error, has been written."""
        return self._begun

    def feed(self, event: JobEvent) -> bytes:
        """Take the next event; see `StreamEncoder.feed`."""
        if self._ended:
            return b""
        if isinstance(event, TextDelta):
            return self._text(event)
        if isinstance(event, Finished):
            return self._finish(event)
        if isinstance(event, Failed):
            self._begun = self._ended = True
            return self._frame.failure(event)
        if isinstance(event, PromptProgress) and self._request.shows_progress:
            return self._frame.progress(event)
        return b""

    def keep_alive(self, note: str = "") -> bytes:
        """Return a comment."""
        return sse.encode_comment(note)

    def _text(self, event: TextDelta) -> bytes:
        if not 0 <= event.choice < self._request.n_choices:
            return b""  # nobody asked for it
        if not event.text and event.logprobs is None:
            return b""
        return self._begin() + self._chunk(event.choice, event.text, logprobs=event.logprobs)

    def _begin(self) -> bytes:
        """Return the chunks of what is echoed, if they have not been written yet."""
        if self._begun:
            return b""
        self._begun = True
        return b"".join(self._chunk(choice, text) for choice, text in enumerate(self._request.echoes) if text)

    def _chunk(
        self, choice: int, text: str, *, finish_reason: str | None = None, logprobs: list[Any] | None = None
    ) -> bytes:
        shown = _logprobs(self._request, logprobs, offset=self._offsets[choice])
        if shown is not None:
            self._offsets[choice] += sum(map(len, shown["tokens"]))
        return self._frame.chunk(
            json_bytes({"text": text, "index": choice, "logprobs": shown, "finish_reason": finish_reason})
        )

    def _finish(self, event: Finished) -> bytes:
        self._ended = True
        chunks = [self._begin()]
        for choice, finish in enumerate(finishes_of(event, self._request.n_choices)):
            chunks.append(self._chunk(choice, "", finish_reason=_REASONS.get(finish.reason, "stop")))
        self._begun = True
        return b"".join([*chunks, self._frame.finish(event.usage)])


def _completion_request(request: ChatRequest) -> CompletionRequest:
    assert isinstance(request, CompletionRequest)  # `parse` made it
    return request


def _choice(request: CompletionRequest, choice: ChoiceTranscript, *, index: int, finish: Finish) -> dict[str, Any]:
    return {
        "text": request.echoes[index] + "".join(choice.text),
        "index": index,
        "logprobs": _logprobs(request, choice.logprobs, offset=0),
        "finish_reason": _REASONS.get(finish.reason, "stop"),
    }


def _logprobs(request: CompletionRequest, entries: list[Any] | None, *, offset: int) -> dict[str, Any] | None:
    """Return the log probabilities of some tokens in the old form: one list a kind.

    Args:
        request: says how many alternatives of a token to show; the token itself is among them.
        entries: of the tokens, as chat completions have them; what is none is left out.
        offset: of the first token, in characters of the choice's text.
    """
    if entries is None:
        return None
    tokens = [entry for entry in entries if type(entry) is dict and type(entry.get("token")) is str]
    offsets = []
    for entry in tokens:
        offsets.append(offset)
        offset += len(entry["token"])
    n_top = request.n_top_logprobs
    return {
        "tokens": [entry["token"] for entry in tokens],
        "token_logprobs": [entry.get("logprob") for entry in tokens],
        "top_logprobs": [_alternatives(entry, n_top) for entry in tokens] if n_top != 0 else None,
        "text_offset": offsets,
    }


def _alternatives(entry: dict[str, Any], n_top: int | None) -> dict[str, Any]:
    """Return the likeliest tokens with their log probabilities; of two that are spelt alike the likelier one."""
    listed = entry.get("top_logprobs")
    shown: dict[str, Any] = {}
    for other in (listed if type(listed) is list else [])[:n_top]:
        if type(other) is dict and type(other.get("token")) is str:
            shown.setdefault(other["token"], other.get("logprob"))
    shown.setdefault(entry["token"], entry.get("logprob"))
    return shown


OPENAI_COMPLETIONS = OpenAiCompletions()
