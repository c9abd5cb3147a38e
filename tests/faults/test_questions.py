"""The reader of the chaos run itself: what no client should ever get must be seen."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.questions import CHAT, MESSAGES, RESPONSES, CutError, MalformedError, Question, read_answer

GOLDEN = Path(__file__).parent.parent / "unit" / "golden"
FOLDERS = {CHAT: "openai_chat/include_usage", MESSAGES: "anthropic/text", RESPONSES: "openai_responses/text"}


def stream_of(path: str, folder: str | None = None) -> bytes:
    return (GOLDEN / (folder or FOLDERS[path]) / "stream.txt").read_bytes()


def question(path: str) -> Question:
    return Question(name="", path=path, body={"stream": True})


@pytest.mark.parametrize("path", FOLDERS)
def test_a_whole_stream_is_understood(path):
    """The run would call every answer wrong."""
    answer = read_answer(question(path), 200, stream_of(path))
    assert answer.failure is None
    assert answer.text
    assert answer.usage != (0, 0)
    assert answer.finish is not None


@pytest.mark.parametrize(
    ("path", "folder"),
    [
        (CHAT, "openai_chat/failed_in_the_answer"),
        (MESSAGES, "anthropic/failed_in_the_answer"),
        (RESPONSES, "openai_responses/failed_in_the_answer"),
    ],
)
def test_an_error_after_the_beginning_is_understood(path, folder):
    """The run would take an explicit error for a whole answer."""
    answer = read_answer(question(path), 200, stream_of(path, folder))
    assert answer.failure is not None
    assert answer.text


@pytest.mark.parametrize("path", FOLDERS)
def test_what_is_cut_doubled_or_goes_on_is_refused(path):
    """A lost end, a second answer or words after the end would pass unseen."""
    stream = stream_of(path)
    last = stream.rindex(b"\n\n", 0, -2) + 2
    for cut in (b"", stream[:last], stream[: len(stream) // 2]):
        with pytest.raises((CutError, MalformedError)):
            read_answer(question(path), 200, cut)
    middle = stream.index(b"\n\n", len(stream) // 2) + 2
    for more in (stream + stream, stream + stream[middle:last]):
        with pytest.raises(MalformedError):
            read_answer(question(path), 200, more)


@pytest.mark.parametrize(("path", "body"), [(CHAT, b"{}"), (CHAT, b"oops"), (MESSAGES, b'{"error":{"message":"x"}}')])
def test_an_error_of_another_form_is_refused(path, body):
    """A client's SDK could not parse an error, and nobody would know."""
    with pytest.raises(MalformedError):
        read_answer(question(path), 503, body)
