"""Anthropic messages, `POST .../v1/messages`: the dialect, and its blocking answer.

Reading a request is `anthropic_request`'s, the stream is `anthropic_stream`'s.

Source: https://docs.claude.com/en/api/messages
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from auxot.core.errors import RefusedError
from auxot.core.jobs import ChoiceTranscript, Failed, Transcript, Usage
from auxot.router.dialects import anthropic_objects as objects
from auxot.router.dialects.anthropic_request import parse_messages
from auxot.router.dialects.anthropic_stream import AnthropicEncoder
from auxot.router.dialects.base import ChatRequest, ModelCard, finishes_of, json_bytes


class AnthropicMessages:
    """The dialect; see `Dialect`."""

    name = "anthropic.messages"

    def parse(self, body: bytes, *, job_id: str, now: float) -> ChatRequest:
        """Read and check a request."""
        return parse_messages(body, job_id=job_id, now=now)

    def encoder(self, request: ChatRequest) -> AnthropicEncoder:
        """Return the encoder of one streaming answer."""
        return AnthropicEncoder(request)

    def response(self, request: ChatRequest, transcript: Transcript) -> bytes:
        """Return the JSON body of a blocking answer."""
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

    def refusal(self, failed: Failed) -> RefusedError:
        """Return a job's failure as the error of this dialect."""
        return objects.refusal(failed)

    def error_body(self, error: RefusedError, *, request_id: str) -> bytes:
        """Return the JSON body of an error."""
        return objects.error_body(error, request_id=request_id)

    def models(self, cards: Sequence[ModelCard]) -> bytes:
        """Return the JSON body of the list of models."""
        return objects.models_body(cards)

    def model(self, card: ModelCard) -> bytes:
        """Return the JSON body of one model."""
        return objects.model_body(card)


def _content(request: ChatRequest, choice: ChoiceTranscript) -> list[dict[str, Any]]:
    """Return the blocks of an answer: thinking, text, then the calls. What was not written has no block."""
    thinking, text = "".join(choice.reasoning), "".join(choice.text)
    blocks: list[dict[str, Any]] = []
    if thinking:
        blocks.append({"type": "thinking", "thinking": thinking, "signature": objects.signature(thinking)})
    if text:
        blocks.append({"type": "text", "text": text})
    for index, call in sorted(choice.tool_calls.items()):
        spelt_id = call.id or objects.tool_use_id(request, index=index)
        arguments = objects.read_arguments(call.arguments)
        blocks.append({"type": "tool_use", "id": spelt_id, "name": call.name or "", "input": arguments})
    return blocks


ANTHROPIC = AnthropicMessages()
