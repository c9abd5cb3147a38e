from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auxot.core.errors import ErrorCode, ProtocolError
from auxot.core.jobs import (
    Failed,
    Finish,
    Finished,
    FinishReason,
    Payload,
    PayloadHead,
    PromptProgress,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from auxot.router.letters import Batch, Cancel, Happened, Lost, Started, decode_batch, encode_batch

WORD = st.text(max_size=8)
MAYBE_WORD = st.none() | WORD
COUNT = st.integers(0, 2**53)
LOGPROBS = st.none() | st.lists(
    st.fixed_dictionaries({"token": WORD, "logprob": st.floats(allow_nan=False, allow_infinity=False)}), max_size=2
)
USAGE = st.builds(Usage, prompt_tokens=COUNT, cached_tokens=COUNT, completion_tokens=COUNT, reasoning_tokens=COUNT)
EVENT = st.one_of(
    st.builds(TextDelta, WORD, COUNT, LOGPROBS),
    st.builds(ReasoningDelta, WORD, COUNT, LOGPROBS),
    st.builds(ToolCallDelta, COUNT, MAYBE_WORD, MAYBE_WORD, WORD, COUNT, LOGPROBS),
    st.builds(PromptProgress, COUNT, COUNT, COUNT),
    st.builds(PayloadHead, COUNT, WORD),
    st.builds(Payload, st.binary(max_size=16)),
    st.builds(Finished, st.lists(st.builds(Finish, st.sampled_from(FinishReason), MAYBE_WORD)).map(tuple), USAGE),
    st.builds(Failed, st.sampled_from(ErrorCode), WORD, st.none() | COUNT, st.none() | COUNT),
)
LETTER = st.one_of(
    st.builds(Started, job_id=WORD, attempt=COUNT, worker_id=WORD),
    st.builds(Happened, job_id=WORD, attempt=COUNT, events=st.lists(EVENT, max_size=4).map(tuple)),
    st.builds(Lost, job_id=WORD, attempt=COUNT),
    st.builds(Cancel, job_id=WORD),
)
BATCH = st.builds(Batch, sender=WORD, number=COUNT, letters=st.lists(LETTER, max_size=4).map(tuple))


@given(BATCH)
def test_letters_arrive_as_they_were_written(batch: Batch) -> None:
    """An event would change, or be refused, on its way from one router to another."""
    assert decode_batch(encode_batch(batch)) == batch


@given(BATCH, st.data())
def test_a_cut_or_garbled_batch_is_a_protocol_error(batch: Batch, data: st.DataObject) -> None:
    """Broken mail would end the task that reads it, and the router with it."""
    content = encode_batch(batch)
    end = data.draw(st.integers(0, len(content) - 1))
    garbage = content[:end] + data.draw(st.binary(max_size=3)) + content[end + data.draw(st.integers(0, 5)) :]
    for broken in (content[:end], garbage):
        with suppress(ProtocolError):
            assert isinstance(decode_batch(broken), Batch)


@pytest.mark.parametrize("content", [b"", b"null", b"[]", b"{}", b"\xff", b'{"sender":"a","letters":[]}'])
def test_what_is_no_batch_is_refused(content: bytes) -> None:
    """Something else that was written into a mailbox would be obeyed."""
    with pytest.raises(ProtocolError):
        decode_batch(content)
