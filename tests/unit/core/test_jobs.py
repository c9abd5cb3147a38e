from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from auxot.core.errors import ErrorCode
from auxot.core.jobs import (
    ChoiceTranscript,
    Failed,
    Finish,
    Finished,
    FinishReason,
    Job,
    JobRecord,
    PromptProgress,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    Transcript,
    Usage,
)

DELTAS = st.one_of(
    st.builds(TextDelta, st.text(), st.integers(0, 2)),
    st.builds(ReasoningDelta, st.text(), st.integers(0, 2)),
    st.builds(ToolCallDelta, st.integers(0, 2), st.none(), st.none(), st.text(), st.integers(0, 2)),
)


@given(st.lists(DELTAS))
def test_a_transcript_keeps_every_choice_apart(deltas):
    """Interleaved choices, or text and reasoning, would be mixed in a blocking answer."""
    transcript = Transcript()
    for delta in deltas:
        transcript.add(delta)
    for choice in range(3):
        own = [delta for delta in deltas if delta.choice == choice]
        collected = transcript.choice(choice)
        assert "".join(collected.text) == "".join(d.text for d in own if isinstance(d, TextDelta))
        assert "".join(collected.reasoning) == "".join(d.text for d in own if isinstance(d, ReasoningDelta))
        for index, call in collected.tool_calls.items():
            pieces = [d.arguments for d in own if isinstance(d, ToolCallDelta) and d.index == index]
            assert call.arguments == "".join(pieces)


def test_a_tool_call_has_the_id_and_name_of_its_first_delta():
    """A call would lose its id when its next piece has none."""
    choice = ChoiceTranscript()
    for delta in (ToolCallDelta(1, "a", "f", "{"), ToolCallDelta(1, arguments="}")):
        choice.add(delta)
    assert choice.tool_calls == {1: ToolCallDelta(1, "a", "f", "{}")}


def test_collecting_a_call_leaves_its_deltas_alone():
    """The events that are also streamed would change under the encoder's hands."""
    choice, first = ChoiceTranscript(), ToolCallDelta(0, "a", "f", "{")
    choice.add(first)
    choice.add(ToolCallDelta(0, arguments="}"))
    assert first.arguments == "{"


def test_log_probabilities_are_none_unless_some_came():
    """An answer would show empty log probabilities that nobody asked for."""
    choice = ChoiceTranscript()
    choice.add(TextDelta("a"))
    assert choice.logprobs is None
    choice.add(TextDelta("b", logprobs=[1]))
    choice.add(ReasoningDelta("c", logprobs=[2]))
    assert choice.logprobs == [1, 2]


def test_a_transcript_tells_how_its_job_ended():
    """A failed job would be answered as a finished one."""
    finished = Finished((Finish(FinishReason.LENGTH), Finish(FinishReason.STOP)), Usage(prompt_tokens=1))
    failed = Failed(ErrorCode.TIMEOUT, "too late")
    transcript = Transcript()
    transcript.add(PromptProgress(3, 2, 3))
    assert (transcript.finished, transcript.failed, transcript.choices) == (None, None, {})
    transcript.add(finished)
    assert transcript.finished is finished
    assert finished.reason is FinishReason.LENGTH
    transcript = Transcript()
    transcript.add(failed)
    assert (transcript.finished, transcript.failed) == (None, failed)


def test_a_job_is_a_value():
    """A job that waits in the queue could be changed behind its back, or two equal jobs would differ."""
    job = Job(job_id="a", messages=())
    assert job == Job(job_id="a", messages=())
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        job.job_id = "b"  # type: ignore[misc]  # what is tested


def test_a_record_starts_with_no_step_reached():
    """A job that was never sent would show times of steps that it has not reached."""
    record = JobRecord(job_id="a", accepted_at=1.0)
    steps = (record.queued_at, record.claimed_at, record.sent_at, record.first_event_at, record.ended_at)
    assert steps == (None,) * 5
