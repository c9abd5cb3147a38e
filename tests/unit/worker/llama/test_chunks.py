"""ChunkReader: recorded streams of a real llama-server, cut streams, and anything at all.

A golden case is NAME.sse, as llama-server sent it, and NAME.json: the reader's arguments and the expected events.
"""

from __future__ import annotations

import enum
import json
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from auxot.core.errors import ErrorCode
from auxot.core.jobs import Failed, Finished, FinishReason, JobEvent, TextDelta
from auxot.core.sse import SseDecoder
from auxot.worker.llama.chunks import ChunkReader, failure_of

GOLDEN = sorted(Path(__file__).with_name("golden").glob("*.sse"))
TERMINAL = Finished | Failed

ANSWER = [
    {"choices": [{"index": 0, "delta": {"role": "assistant", "content": None}}], "prompt_progress": {"total": 5}},
    {"choices": [{"index": 0, "delta": {"content": "one"}}]},
    {"choices": [{"index": 0, "delta": {"content": " two"}}]},
    {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
    {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2}},
]


def read_stream(reader: ChunkReader, pieces: list[bytes]) -> list[JobEvent]:
    decoder = SseDecoder()
    events: list[JobEvent] = []
    for piece in pieces:
        for sse_event in decoder.feed(piece):
            events += reader.end() if sse_event.data == b"[DONE]" else reader.read(json.loads(sse_event.data))
    return events


def plain(event: JobEvent) -> dict[str, Any]:
    """Return an event as the golden files write it: what is empty left out."""

    def value(_: Any, __: Any, value: Any) -> Any:
        return value.name if isinstance(value, enum.Enum) else value

    fields = attrs.asdict(
        event, value_serializer=value, filter=lambda field, value: field.name == "text" or value not in (None, 0)
    )
    return {"event": type(event).__name__, **json.loads(json.dumps(fields))}


@pytest.mark.parametrize("recording", GOLDEN, ids=lambda path: path.stem)
def test_recorded_stream(recording: Path) -> None:
    """A stream that llama-server really sends is read as something else than it says."""
    case = json.loads(recording.with_suffix(".json").read_text())
    events = read_stream(ChunkReader(**case["reader"]), [recording.read_bytes()])
    assert [plain(event) for event in events] == case["events"]


@given(cut=st.integers(min_value=0, max_value=7000))
def test_stream_that_ends_early_has_failed(cut: int) -> None:
    """A cut stream passes for an answer."""
    stream = (GOLDEN[0].parent / "answer.sse").read_bytes()
    reader = ChunkReader()
    events = read_stream(reader, [stream[: min(cut, len(stream) - 20)]]) + reader.lost() + reader.end()
    assert [event for event in events if isinstance(event, TERMINAL)] == [events[-1]]
    failure = events[-1]
    assert isinstance(failure, Failed)
    assert failure.code is ErrorCode.WORKER_LOST


FIELDS = [
    *("choices", "delta", "content", "index", "finish_reason", "usage", "timings", "error", "tool_calls", "function"),
    *("prompt_progress", "__verbose", "logprobs", "reasoning_content", "prompt_tokens", "code"),
]
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(FIELDS),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(chunks=st.lists(_JSON, max_size=6), prefill=st.sampled_from(["", "abc"]))
def test_anything_gives_one_terminal_event(chunks: list[Any], prefill: str) -> None:
    """A strange chunk raises, or a job ends twice or never."""
    reader = ChunkReader(prefill=prefill, slot_ctx_tokens=10)
    events = [event for chunk in chunks for event in reader.read(chunk)] + reader.end() + reader.lost()
    assert [event for event in events if isinstance(event, TERMINAL)] == [events[-1]]


def test_error_in_the_stream_fails_the_job() -> None:
    """A failure that llama-server reports in its stream passes for the end of the answer."""
    reader = ChunkReader()
    events = [event for chunk in ANSWER[:3] for event in reader.read(chunk)]
    events += reader.read({"error": {"code": 500, "message": "out of memory", "type": "server_error"}})
    events += reader.end()
    assert events[-1] == Failed(ErrorCode.WORKER_FAILED, "out of memory")


def test_done_without_a_finish_reason_has_failed() -> None:
    """A stream whose choice never ended passes for an answer."""
    reader = ChunkReader()
    events = [event for chunk in ANSWER[:3] for event in reader.read(chunk)] + reader.end()
    assert isinstance(events[-1], Failed)


def test_prefill_of_a_server_without_progress_is_taken_off_once() -> None:
    """The prefilled text is repeated, or text that the model wrote is lost."""
    reader = ChunkReader(prefill="one")
    chunks: list[Any] = [{"choices": [{"delta": {"content": text}}]} for text in ("one and", "one")]
    events = [event for chunk in chunks for event in reader.read(chunk)]
    assert events == [TextDelta(" and"), TextDelta("one")]


def test_timings_count_when_usage_is_missing() -> None:
    """A server that sends no usage leaves a job without token counts."""
    reader = ChunkReader()
    timings = {"cache_n": 3, "prompt_n": 2, "predicted_n": 7}
    running = {"choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": None}], "timings": timings}
    last = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "timings": timings}
    events = [*reader.read(running), *reader.read(last), *reader.end()]
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert (finished.usage.prompt_tokens, finished.usage.cached_tokens, finished.usage.completion_tokens) == (5, 3, 7)


@pytest.mark.parametrize(("max_tokens", "reason"), [(2, FinishReason.LENGTH), (3, FinishReason.CONTEXT_FULL)])
def test_full_context_is_told_from_a_reached_limit(max_tokens: int, reason: FinishReason) -> None:
    """`max_tokens` that was reached in a full context is called a full context, or the other way round."""
    reader = ChunkReader(max_tokens=max_tokens, slot_ctx_tokens=7)
    for chunk in ANSWER[:3]:
        reader.read(chunk)
    reader.read({"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]})
    reader.read(ANSWER[4])
    finished = reader.end()[0]
    assert isinstance(finished, Finished)
    assert finished.reason is reason


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        ({"type": "exceed_context_size_error", "message": "m"}, 400, ErrorCode.CONTEXT_LENGTH_EXCEEDED),
        ({"type": "invalid_request_error", "message": "m"}, 400, ErrorCode.INVALID_REQUEST),
        ({"message": "Loading model", "type": "unavailable_error", "code": 503}, None, ErrorCode.UNAVAILABLE),
        ({"message": "image input is not supported - hint: ...", "code": 500}, 500, ErrorCode.INVALID_REQUEST),
        ({"message": "Compute error.", "code": 500}, 500, ErrorCode.WORKER_FAILED),
        ({"message": "Invalid API Key", "type": "authentication_error"}, 401, ErrorCode.WORKER_FAILED),
        ({}, None, ErrorCode.WORKER_FAILED),
        ("text", None, ErrorCode.WORKER_FAILED),
        ({"code": "x", "message": 3, "type": []}, None, ErrorCode.WORKER_FAILED),
    ],
)
def test_failure_codes(error: Any, status: int | None, code: ErrorCode) -> None:
    """A request at fault is tried elsewhere, or a worker at fault is blamed on the request."""
    assert failure_of(error, status=status).code is code


def test_overflow_carries_its_figures() -> None:
    """A client whose prompt is too long is not told by how much."""
    error = {"code": 400, "type": "exceed_context_size_error", "message": "m", "n_prompt_tokens": 60, "n_ctx": 40}
    assert failure_of(error) == Failed(ErrorCode.CONTEXT_LENGTH_EXCEEDED, "m", 60, 40)
