"""The part of an answer that was sent, and the job that asks for the rest."""

from __future__ import annotations

import attrs
import pytest

from auxot.core.errors import ErrorCode
from auxot.core.jobs import (
    ChatMessage,
    Failed,
    Finish,
    Finished,
    FinishReason,
    Forward,
    FunctionCall,
    Job,
    PromptProgress,
    ReasoningDelta,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    Usage,
)
from auxot.router.draft import LOST, MAX_CHARS, N_MARKS, Draft, can_be_continued

USER = ChatMessage(role="user", content="hi")
STOP = (Finish(FinishReason.STOP),)


def job(*messages: ChatMessage, **fields) -> Job:
    return Job(job_id="j", messages=messages or (USER,), **fields)


def draft_of(*events) -> Draft:
    draft = Draft()
    for event in events:
        assert draft.take(event) is event
    return draft


def rest_of(draft: Draft, asked: Job) -> Job:
    draft.begin_rest()
    return draft.rest_of(asked)


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({}, True),
        ({"n": 1, "tool_choice": "auto", "stop": ["x"], "response_format": {"type": "text"}}, True),
        ({"n": 2}, False),
        ({"grammar": "root ::= x"}, False),
        ({"json_schema": {}}, False),
        ({"response_format": {"type": "json_object"}}, False),
        ({"logprobs": True}, False),
        ({"tool_choice": "required"}, False),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, False),
        ({"reasoning_format": "none"}, False),
        ({"add_generation_prompt": False}, False),
    ],
)
def test_what_a_text_does_not_determine_is_not_continued(params, expected):
    """The rest would break the grammar, or repeat what the client has."""
    assert can_be_continued(job(params=params)) is expected


@pytest.mark.parametrize(
    "asked",
    [
        attrs.evolve(job(), prompt="raw"),
        attrs.evolve(job(), count_only=True),
        attrs.evolve(job(), forward=Forward(method="GET", path="/props")),
        Job(job_id="j", messages=()),
        job(
            USER,
            ChatMessage(
                role="assistant",
                content="x",
                tool_calls=(ToolCall(id="c", function=FunctionCall(name="f", arguments="")),),
            ),
        ),
        job(
            USER, ChatMessage(role="assistant", content=[{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])
        ),
    ],
)
def test_what_is_no_plain_chat_is_not_continued(asked):
    """An assistant message at the end would mean something else there."""
    assert not can_be_continued(asked)


def test_the_rest_is_asked_for_behind_what_was_sent():
    """The next worker would begin again, think again or write too much."""
    asked = job(
        max_tokens=10,
        temperature=0.5,
        reasoning_effort="high",
        params={"seed": 1, "chat_template_kwargs": {"enable_thinking": True, "lang": "de"}},
    )
    rest = rest_of(draft_of(ReasoningDelta("Hm"), TextDelta("The "), TextDelta("quick")), asked)
    answer = ChatMessage(role="assistant", content="The quick", reasoning_content="Hm")
    kwargs = {"enable_thinking": False, "thinking": False, "lang": "de"}
    assert rest == attrs.evolve(
        asked,
        messages=(USER, answer),
        max_tokens=10 - 3 - N_MARKS,
        reasoning_effort="none",
        params={"seed": 1, "chat_template_kwargs": kwargs},
    )


@pytest.mark.parametrize("content", ["The", [{"type": "text", "text": "The"}]])
def test_a_prefill_of_the_client_is_extended(content):
    """The server would see two answers in a row."""
    asked = job(USER, ChatMessage(role="assistant", content=content))
    assert can_be_continued(asked)
    rest = rest_of(draft_of(TextDelta(" quick")), asked)
    assert rest.messages == (USER, ChatMessage(role="assistant", content="The quick"))


@pytest.mark.parametrize(
    "events",
    [
        [],
        [TextDelta("")],
        [TextDelta(" \n")],
        [ReasoningDelta("Hm")],
        [TextDelta("a"), ReasoningDelta("b")],
        [TextDelta("a"), ReasoningDelta("b"), TextDelta("c")],
        [TextDelta("a"), ToolCallDelta(0, "c", "f")],
        [TextDelta("a"), ToolCallDelta(0, "c", "f"), TextDelta("b")],
        [TextDelta("x" * MAX_CHARS), TextDelta("x")],
        [TextDelta("x" * MAX_CHARS), TextDelta("x"), TextDelta("y")],
    ],
)
def test_there_is_nothing_to_go_on_from(events):
    """A call or a thought would be cut in two, or memory would grow with the answer."""
    assert not draft_of(*events).has_text


def test_usage_is_that_of_the_whole_answer():
    """A client would be told the prompt and the tokens of the last part only."""
    draft = draft_of(PromptProgress(9, 4, 9), ReasoningDelta("Hm"), TextDelta("a"), TextDelta("b"))
    draft.begin_rest()
    assert draft.take(PromptProgress(20, 0, 20)) is None
    draft.take(TextDelta("c"))
    draft.begin_rest()
    draft.take(TextDelta("d"))
    finished = draft.take(Finished(STOP, Usage(prompt_tokens=30, cached_tokens=1, completion_tokens=2)))
    assert isinstance(finished, Finished)
    assert finished.usage == Usage(prompt_tokens=9, cached_tokens=4, completion_tokens=6 + N_MARKS, reasoning_tokens=1)


def test_without_progress_the_prompt_is_told_from_the_rest():
    """The part that was sent would be counted twice."""
    draft = draft_of(TextDelta("a"), TextDelta("b"))
    draft.begin_rest()
    finished = draft.take(Finished(STOP, Usage(prompt_tokens=12, cached_tokens=11, completion_tokens=1)))
    assert isinstance(finished, Finished)
    assert finished.usage == Usage(prompt_tokens=10, cached_tokens=10, completion_tokens=3)


def test_an_answer_that_lacks_only_its_end_is_full():
    """A worker would be asked for no tokens, which means no limit."""
    draft = draft_of(PromptProgress(9, 0, 9), TextDelta("a"), TextDelta("b"))
    assert [draft.is_full(limit) for limit in (1, 2, 3, None)] == [True, True, False, False]
    finished = draft.finished_full()
    assert finished == Finished((Finish(FinishReason.LENGTH),), Usage(prompt_tokens=9, completion_tokens=2))


def test_repeated_thoughts_do_not_reach_the_client():
    """The thoughts would come a second time, in the middle of the text."""
    draft = draft_of(ReasoningDelta("Hm"), TextDelta("a"))
    draft.begin_rest()
    assert draft.take(ReasoningDelta("Hm")) is None
    assert draft.take(TextDelta("b")) == TextDelta("b")
    assert draft.has_text


def test_a_refusal_of_the_rest_is_not_the_clients_fault():
    """A client whose request was good would be told that it was not."""
    draft = draft_of(TextDelta("a"))
    refusal = Failed(ErrorCode.INVALID_REQUEST, "no prefill")
    assert draft.take(refusal) is refusal
    draft.begin_rest()
    assert draft.take(refusal) is LOST
    failure = Failed(ErrorCode.WORKER_FAILED, "out of memory")
    assert draft.take(failure) is failure
