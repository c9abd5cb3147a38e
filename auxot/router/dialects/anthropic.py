"""Anthropic's messages, `POST .../v1/messages` and `POST .../v1/messages/count_tokens`: the two dialects.

Reading a request is `anthropic_request`'s, the stream is `anthropic_stream`'s; what becomes of each field stands in
`anthropic_fields`.

Source: https://docs.claude.com/en/api/messages
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs

from auxot.core.errors import ErrorCode, RefusedError
from auxot.core.jobs import ChoiceTranscript, Failed, Transcript, Usage
from auxot.router.dialects import anthropic_objects as objects
from auxot.router.dialects.anthropic_objects import AnthropicRequest, Thoughts
from auxot.router.dialects.anthropic_request import parse_count, parse_messages
from auxot.router.dialects.anthropic_stream import AnthropicEncoder
from auxot.router.dialects.base import ChatRequest, ModelCard, finishes_of, json_bytes


@attrs.frozen(kw_only=True)
class _Anthropic:
    """What the two have in common.

    Attributes:
        keep_billing_header: leave the line at the head of the system prompt in its place that Claude Code changes every
            turn, and with which no prompt begins like the one before it.
    """

    keep_billing_header: bool = False

    def encoder(self, request: ChatRequest) -> AnthropicEncoder:
        """Return the encoder of one streaming answer."""
        assert isinstance(request, AnthropicRequest)
        return AnthropicEncoder(request)

    def refusal(self, failed: Failed) -> RefusedError:
        """Return a job's failure as the error of this dialect."""
        return objects.refusal(failed)

    def error_body(self, error: RefusedError, *, request_id: str) -> bytes:
        """Return the JSON body of an error."""
        return objects.error_body(error, request_id=request_id)

    def status(self, code: ErrorCode) -> int:
        """Return the HTTP status of an error."""
        return objects.status(code)

    def models(self, cards: Sequence[ModelCard]) -> bytes:
        """Return the JSON body of the list of models."""
        return objects.models_body(cards)

    def model(self, card: ModelCard) -> bytes:
        """Return the JSON body of one model."""
        return objects.model_body(card)


class AnthropicMessages(_Anthropic):
    """The dialect of messages; see `Dialect`."""

    name = "anthropic.messages"

    def parse(self, body: bytes, *, job_id: str, now: float) -> AnthropicRequest:
        """Read and check a request."""
        return parse_messages(body, job_id=job_id, now=now, keep_billing_header=self.keep_billing_header)

    def response(self, request: ChatRequest, transcript: Transcript) -> bytes:
        """Return the JSON body of a blocking answer."""
        assert isinstance(request, AnthropicRequest)
        finished = transcript.finished
        finish = finishes_of(finished, 1)[0]
        return json_bytes(
            {
                **objects.message_object(request, finished.usage if finished else Usage()),
                "content": _content(request, transcript.choice(0)),
                "stop_reason": objects.STOP_REASONS[finish.reason],
                "stop_sequence": finish.stop_sequence,
            }
        )


class AnthropicCount(_Anthropic):
    """The dialect of counting a prompt's tokens: the same request, and a number for an answer."""

    name = "anthropic.count_tokens"

    def parse(self, body: bytes, *, job_id: str, now: float) -> AnthropicRequest:
        """Read and check a request; it never streams."""
        return parse_count(body, job_id=job_id, now=now, keep_billing_header=self.keep_billing_header)

    def response(self, request: ChatRequest, transcript: Transcript) -> bytes:  # noqa: ARG002 -- the dialect's form
        """Return the JSON body of the answer."""
        usage = transcript.finished.usage if transcript.finished else Usage()
        return json_bytes({"input_tokens": usage.prompt_tokens})


def _content(request: AnthropicRequest, choice: ChoiceTranscript) -> list[dict[str, Any]]:
    """Return the blocks of an answer: thinking, text, then the calls. What was not written has no block."""
    thinking, text = "".join(choice.reasoning), "".join(choice.text)
    blocks: list[dict[str, Any]] = []
    if thinking and request.thoughts is not Thoughts.HIDDEN:
        shown = thinking if request.thoughts is Thoughts.SHOWN else ""
        blocks.append({"type": "thinking", "thinking": shown, "signature": objects.signature(thinking)})
    if text:
        blocks.append({"type": "text", "text": text})
    for index, call in sorted(choice.tool_calls.items()):
        spelt_id = call.id or objects.tool_use_id(request, index=index)
        arguments = objects.read_arguments(call.arguments)
        blocks.append({"type": "tool_use", "id": spelt_id, "name": call.name or "", "input": arguments})
    return blocks


ANTHROPIC = AnthropicMessages()
ANTHROPIC_COUNT = AnthropicCount()
