from __future__ import annotations

import json
from typing import Any

import pytest

from auxot.core.errors import RefusedError
from auxot.core.jobs import Finish, Finished, FinishReason, Kind, Transcript, Usage
from auxot.router.dialects.base import ChatRequest, Dialect
from auxot.router.dialects.openai_chat import OPENAI_CHAT
from auxot.router.dialects.openai_count import InputTokens
from auxot.router.dialects.openai_responses import OPENAI_RESPONSES

MESSAGES: Any = [{"role": "user", "content": "hi"}]


def parse(dialect: Dialect, **fields: Any) -> ChatRequest:
    return dialect.parse(json.dumps(fields).encode(), job_id="j-1", now=0)


@pytest.mark.parametrize(
    ("counted", "fields"), [(OPENAI_CHAT, {"messages": MESSAGES}), (OPENAI_RESPONSES, {"input": "hi"})]
)
def test_the_same_prompt_is_counted(counted: Dialect, fields: dict[str, Any]) -> None:
    """What is counted is another prompt than the one that would be answered."""
    request = parse(InputTokens(counted), **fields, stream=True)
    asked = parse(counted, model="m", **fields)
    assert (request.job.kind, request.stream) == (Kind.COUNT, False)
    assert (request.job.messages, request.job.tools) == (asked.job.messages, asked.job.tools)


def test_answer() -> None:
    """The SDK cannot read the count."""
    dialect = InputTokens(OPENAI_CHAT)
    request = parse(dialect, messages=MESSAGES)
    transcript = Transcript(finished=Finished((Finish(FinishReason.STOP),), Usage(prompt_tokens=7)))
    assert json.loads(dialect.response(request, transcript)) == {"object": "response.input_tokens", "input_tokens": 7}


@pytest.mark.parametrize("body", [b"{", b"[]", b"{}", b'{"messages":3}', b'{"x":' + b"[" * 400 + b"]" * 400 + b"}"])
def test_refused(body: bytes) -> None:
    """A malformed request is counted, or a fault."""
    with pytest.raises(RefusedError):
        InputTokens(OPENAI_CHAT).parse(body, job_id="j-1", now=0)
