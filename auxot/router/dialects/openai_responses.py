"""OpenAI's Responses API, `POST .../responses`: the dialect.

Reading a request is `responses_request`'s (its tools `responses_tools`', its items `responses_input`'s), the stream
is `responses_stream`'s; what is honoured stands in `responses_fields`. Nothing is stored: a client sends the whole
conversation with each request, as Codex and the SDKs do without `previous_response_id`.

Source: https://platform.openai.com/docs/api-reference/responses
"""

from __future__ import annotations

from collections.abc import Iterator

from auxot.core.jobs import (
    ChoiceTranscript,
    Finish,
    Finished,
    FinishReason,
    JobEvent,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    Transcript,
    Usage,
)
from auxot.router.dialects.base import ChatRequest, json_bytes
from auxot.router.dialects.openai_family import OpenAiFamily
from auxot.router.dialects.responses_request import ResponsesRequest, parse_responses
from auxot.router.dialects.responses_stream import ResponsesEncoder

_NOTHING_TOLD = Finished((Finish(FinishReason.STOP),), Usage())


class OpenAiResponses(OpenAiFamily):
    """The dialect; see `Dialect`."""

    name = "openai.responses"

    def parse(self, body: bytes, *, job_id: str, now: float) -> ChatRequest:
        """Read and check a request."""
        return parse_responses(body, job_id=job_id, now=now)

    def encoder(self, request: ChatRequest) -> ResponsesEncoder:
        """Return the encoder of one streaming answer."""
        assert isinstance(request, ResponsesRequest)  # made by `parse`
        return ResponsesEncoder(request)

    def response(self, request: ChatRequest, transcript: Transcript) -> bytes:
        """Return the JSON body of a blocking answer: the response at the end of the stream that it would have been."""
        encoder = self.encoder(request)
        for event in _events(transcript.choice(0)):
            encoder.feed(event)
        encoder.feed(transcript.finished or _NOTHING_TOLD)
        return json_bytes(encoder.response)


def _events(choice: ChoiceTranscript) -> Iterator[JobEvent]:
    """Yield a collected answer as the fewest events that say it."""
    yield ReasoningDelta("".join(choice.reasoning))
    yield TextDelta("".join(choice.text), logprobs=choice.text_logprobs)
    for index, call in sorted(choice.tool_calls.items()):
        yield ToolCallDelta(index, call.id, call.name, call.arguments)


OPENAI_RESPONSES = OpenAiResponses()
