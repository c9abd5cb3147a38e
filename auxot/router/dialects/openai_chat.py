"""OpenAI chat completions, `POST .../chat/completions`: the dialect, and its blocking answer.

Reading a request is `openai_request`'s, the stream is `openai_stream`'s.

Source: https://platform.openai.com/docs/api-reference/chat/object
"""

from __future__ import annotations

from typing import Any

from auxot.core.jobs import ChoiceTranscript, Finish, ToolCallDelta, Transcript, Usage
from auxot.router.dialects.base import ChatRequest, finishes_of, json_bytes
from auxot.router.dialects.openai_family import OpenAiFamily
from auxot.router.dialects.openai_objects import (
    OpenAiRequest,
    call_id,
    finish_reason_of,
    logprobs_object,
    openai_request,
    usage_object,
)
from auxot.router.dialects.openai_request import parse_chat
from auxot.router.dialects.openai_stream import OpenAiChatEncoder


class OpenAiChat(OpenAiFamily):
    """The dialect; see `Dialect`."""

    name = "openai.chat"

    def parse(self, body: bytes, *, job_id: str, now: float) -> OpenAiRequest:
        """Read and check a request."""
        return parse_chat(body, job_id=job_id, now=now)

    def encoder(self, request: ChatRequest) -> OpenAiChatEncoder:
        """Return the encoder of one streaming answer."""
        return OpenAiChatEncoder(openai_request(request))

    def response(self, request: ChatRequest, transcript: Transcript) -> bytes:
        """Return the JSON body of a blocking answer."""
        asked, finished = openai_request(request), transcript.finished
        return json_bytes(
            {
                "id": request.answer_id,
                "object": "chat.completion",
                "created": request.created,
                "model": request.model,
                "choices": [
                    _choice(asked, transcript.choice(index), index=index, finish=finish)
                    for index, finish in enumerate(finishes_of(finished, asked.n_choices))
                ],
                "usage": usage_object(finished.usage if finished else Usage()),
            }
        )


def _choice(request: OpenAiRequest, choice: ChoiceTranscript, *, index: int, finish: Finish) -> dict[str, Any]:
    return {
        "index": index,
        "message": _message(request, choice, index=index),
        "logprobs": logprobs_object(choice.logprobs, request.n_top_logprobs),
        "finish_reason": finish_reason_of(request, finish),
    }


def _message(request: OpenAiRequest, choice: ChoiceTranscript, *, index: int) -> dict[str, Any]:
    """Return an answer's message: `content` is null if there are tool calls and no text."""
    text, reasoning = "".join(choice.text), "".join(choice.reasoning)
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if reasoning:
        message["reasoning_content"] = reasoning
    if choice.tool_calls:
        message["content"] = text or None
        calls = [
            _tool_call(call, call.id or call_id(request, choice=index, index=position))
            for position, call in sorted(choice.tool_calls.items())
        ]
        message |= {"function_call": calls[0]["function"]} if request.uses_functions else {"tool_calls": calls}
    return message


def _tool_call(call: ToolCallDelta, spelt_id: str) -> dict[str, Any]:
    return {"id": spelt_id, "type": "function", "function": {"name": call.name or "", "arguments": call.arguments}}


OPENAI_CHAT = OpenAiChat()
