"""Arguments that models write and JSON does not know."""

from __future__ import annotations

import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from auxot.router.dialects.repair import repair_json_object

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.text(max_size=4), VALUES, max_size=4)
LAYOUTS = st.sampled_from([{}, {"indent": 2}, {"ensure_ascii": False}, {"separators": (",", ":")}])


@pytest.mark.parametrize(
    ("text", "repaired"),
    [
        ("", "{}"),
        (" \n", "{}"),
        ("null", "{}"),
        ('{"a": 1, "b": [2', '{"a":1,"b":[2]}'),
        ('{"a": 1, "b": tr', '{"a":1,"b":true}'),
        ('{"a": 1, "b":', '{"a":1}'),
        ('{"a": 1, "b', '{"a":1}'),
        ('{"a": 1, "b": -', '{"a":1}'),
        ('{"a": 1, "b": 2.', '{"a":1}'),
        ('{"a": 1, "b": 25', '{"a":1,"b":25}'),
        ('{"a": [1, 2,],}', '{"a":[1,2]}'),
        ('{"a": 1}}', '{"a":1}'),
        ('{"a": 1} ]}\n', '{"a":1}'),
        ('{"a": "two\nlines\t"}', '{"a":"two\\nlines\\t"}'),
        ('{"a": "cut\\', '{"a":"cut"}'),
        ('{"a": "cut\\\\', '{"a":"cut\\\\"}'),
        ('{"a": "cut\\u12', '{"a":"cut"}'),
        ('{"a": "cut\\ud83d\\ude', '{"a":"cut"}'),
        ('"{\\"a\\": 1}"', '{"a": 1}'),
    ],
)
def test_what_can_be_meant_in_one_way_only_is_repaired(text, repaired):
    """A conversation with one broken call in it could never go on."""
    assert repair_json_object(text) == repaired


@pytest.mark.parametrize(
    "text",
    [
        *["5", "[1", "true", '"a"', "a", "{a: 1}", '{"a": 1}{"b": 2}', '{"a": NaN}', '{"a" "b"', '{"a": 1 2'],
        *["{,", '{"a":1,,', "{]", '{"a":[1}', '{"a":"\\ud800x', "{'a': 1}", '{"a": 1} and so on', "\udc00", "{5"],
        *['{"a":}', '{"a": "\\q"}', '{"a":' + "[" * 5000, '{"a":[' + "1," * 50_000],
    ],
)
def test_what_is_not_certain_is_left_alone(text):
    """A tool's call in the history would say what the model never said."""
    assert repair_json_object(text) is None


@given(OBJECTS, LAYOUTS)
def test_an_object_stays_as_it_was_written(value, layout):
    """A history would change from turn to turn, and the prompt cache would miss."""
    text = json.dumps(value, **layout)
    assert repair_json_object(text) == text


@given(OBJECTS, LAYOUTS, st.integers(1, 200))
def test_an_object_that_breaks_off_anywhere_is_repaired(value, layout, length):
    """A call that the limit of tokens cut off would make every later turn fail."""
    text = json.dumps(value, **layout)[:length]
    repaired = repair_json_object(text)
    assert repaired is not None
    assert list(orjson.loads(repaired)) == list(value)[: len(orjson.loads(repaired))]


@given(st.text(st.sampled_from('{}[]",:\\ \n1-.etrufalsn'), max_size=12))
def test_whatever_comes_out_is_an_object(text):
    """A chat template would be given text that it cannot parse."""
    repaired = repair_json_object(text)
    assert repaired is None or type(orjson.loads(repaired)) is dict
