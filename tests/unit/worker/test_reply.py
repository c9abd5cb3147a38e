from __future__ import annotations

from auxot.core.errors import ErrorCode
from auxot.core.jobs import (
    Failed,
    Finish,
    Finished,
    FinishReason,
    FunctionCall,
    JobEvent,
    PromptProgress,
    ReasoningDelta,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    Usage,
)
from auxot.core.messages import (
    Complete,
    Error,
    FinishMessage,
    PromptProgressMessage,
    Token,
    ToolCallDeltaMessage,
    ToolGenerating,
    WorkerMessage,
)
from auxot.worker.reply import Reply

USAGE = Usage(prompt_tokens=10, cached_tokens=4, completion_tokens=6, reasoning_tokens=1)
FINISHED = Finished((Finish(FinishReason.TOOL_CALLS),), USAGE)
EVENTS: list[JobEvent] = [
    PromptProgress(total=10, cached=4, processed=10),
    ReasoningDelta("hm"),
    TextDelta("a", logprobs=[{"token": "a"}]),
    TextDelta("b"),
    ToolCallDelta(0, id="c1", name="f", arguments="{"),
    ToolCallDelta(0, arguments="}"),
    FINISHED,
]


def told(*, is_original: bool, events: list[JobEvent]) -> list[WorkerMessage]:
    reply = Reply("j", is_original=is_original)
    return [message for event in events for message in reply.messages(event, elapsed_ms=5)]


def test_our_router_gets_everything_once() -> None:
    """Tool calls, logprobs or finish reasons get lost, or the answer is sent a second time at the end."""
    assert told(is_original=False, events=EVENTS) == [
        PromptProgressMessage(job_id="j", total=10, cached=4, processed=10),
        Token(job_id="j", token="hm", reasoning=True),
        Token(job_id="j", token="a", logprobs=[{"token": "a"}]),
        Token(job_id="j", token="b"),
        ToolGenerating(job_id="j"),
        ToolCallDeltaMessage(job_id="j", index=0, id="c1", name="f", arguments="{"),
        ToolCallDeltaMessage(job_id="j", index=0, arguments="}"),
        Complete(
            job_id="j",
            duration_ms=5,
            cache_tokens=4,
            input_tokens=6,
            output_tokens=6,
            reasoning_tokens=1,
            finishes=(FinishMessage(finish_reason="tool_calls"),),
        ),
    ]


def test_original_router_gets_the_whole_answer_at_the_end() -> None:
    """An original router shows its clients an answer without text, reasoning or tool calls."""
    messages = told(is_original=True, events=EVENTS)
    assert messages[:-1] == [
        PromptProgressMessage(job_id="j", total=10, cached=4, processed=10),
        Token(job_id="j", token="hm", reasoning=True),
        Token(job_id="j", token="a"),
        Token(job_id="j", token="b"),
        ToolGenerating(job_id="j"),
    ]
    complete = messages[-1]
    assert isinstance(complete, Complete)
    assert (complete.full_response, complete.reasoning_content) == ("ab", "hm")
    assert complete.tool_calls == (ToolCall(id="c1", function=FunctionCall(name="f", arguments="{}")),)


def test_failure_carries_code_and_figures() -> None:
    """A client is not told that, and by how much, its prompt is too long."""
    failure = Failed(ErrorCode.CONTEXT_LENGTH_EXCEEDED, "too long", 60, 40)
    assert told(is_original=False, events=[failure, FINISHED]) == [
        Error(job_id="j", error="too long", code="context_length_exceeded", n_prompt_tokens=60, n_ctx=40)
    ]


def test_nothing_follows_the_end() -> None:
    """A job ends twice."""
    assert len(told(is_original=False, events=[FINISHED, TextDelta("x"), FINISHED])) == 1
