from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from auxot.worker.llama.native import NativeAnswer, NativeRequest, read_native_request


def whole(fields: dict[str, Any], *chunks: dict[str, Any]) -> Any:
    answer = NativeAnswer(NativeRequest(fields=fields))
    for chunk in chunks:
        answer.add(chunk)
    assert answer.has_ended
    return json.loads(answer.body())


def piece(content: str, index: int = 0, **fields: Any) -> dict[str, Any]:
    return {"index": index, "content": content, "tokens": [len(content)], "stop": False, **fields}


def last(index: int = 0, **fields: Any) -> dict[str, Any]:
    return {"index": index, "content": "", "tokens": [], "stop": True, **fields}


def test_choices_are_told_apart() -> None:
    """Choices of one answer are mixed up, or come in the order in which they ended."""
    assert whole({}, piece("a", 1), piece("x"), piece("b", 1), last(1), piece("y"), last()) == [
        last(content="xy"),
        last(1, content="ab"),
    ]


def test_lists_are_put_together_when_asked_for() -> None:
    """Tokens or probabilities of a blocking answer get lost, or come unasked."""
    chunks = piece("ab", completion_probabilities=[{"id": 1}]), piece("c"), last()
    probabilities: dict[str, Any] = {"completion_probabilities": [{"id": 1}]}
    assert whole({}, *chunks) == last(content="abc", **probabilities)
    assert whole({"return_tokens": True}, *chunks) == last(content="abc", tokens=[2, 1], **probabilities)
    assert whole({"response_fields": ["content"]}, *chunks[:2], {"content": ""}) == {"content": "abc"}


def test_chosen_fields_of_several_choices() -> None:
    """A last chunk that was stripped of its index ends the wrong choice, or none."""
    fields = {"response_fields": ["content", "generation_settings/stream"]}
    end = {"content": "", "generation_settings/stream": True}
    assert whole(fields, piece("a", 1), piece("x"), end, end) == [
        {"content": "x", "generation_settings/stream": False},
        {"content": "a", "generation_settings/stream": False},
    ]


def test_what_is_no_object_is_left_to_llama_server() -> None:
    """A malformed body crashes the worker."""
    assert read_native_request("{") is None
    assert read_native_request("[]") is None
    assert read_native_request("{}") == NativeRequest(fields={})


@given(
    chunks=st.lists(
        st.dictionaries(
            st.sampled_from(["index", "content", "tokens", "stop", "completion_probabilities", "generation_settings"]),
            st.none()
            | st.booleans()
            | st.integers(-2, 2)
            | st.text(max_size=3)
            | st.lists(st.integers(0, 9), max_size=2),
        ),
        max_size=6,
    )
)
def test_anything_is_read(chunks: list[dict[str, Any]]) -> None:
    """A strange chunk raises."""
    answer = NativeAnswer(NativeRequest(fields={"return_tokens": True}))
    for chunk in chunks:
        answer.add(chunk)
    json.loads(answer.body())
    assert isinstance(answer.has_ended, bool)
