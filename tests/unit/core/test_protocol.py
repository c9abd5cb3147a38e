from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from typing import Any, Union, get_args, get_origin, get_type_hints

import attrs
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auxot.core import protocol
from auxot.core.errors import ProtocolError
from auxot.core.jobs import ChatMessage, Function, Job, Tool
from auxot.core.messages import Complete, Hello, HelloAck, RouterMessage, Token, WorkerMessage

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)  # JSON of the wire is UTF-8
INTEGERS = st.integers(-(2**63), 2**63 - 1)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | INTEGERS | FLOATS | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
PLAIN: dict[Any, st.SearchStrategy[Any]] = {str: TEXT, int: INTEGERS, float: FLOATS, bool: st.booleans(), Any: JSON}
WORKER_CLASSES = get_args(WorkerMessage)
ROUTER_CLASSES = get_args(RouterMessage)


def values(annotation: Any) -> st.SearchStrategy[Any]:
    """Any value of a field of the protocol."""
    if annotation in PLAIN:
        return PLAIN[annotation]
    if attrs.has(annotation):
        return messages(annotation)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (types.UnionType, Union):
        return st.one_of([st.none() if argument is types.NoneType else values(argument) for argument in arguments])
    if origin is tuple:
        return st.lists(values(arguments[0]), max_size=3).map(tuple)
    if origin is list:
        return st.lists(values(arguments[0]), max_size=3)
    assert origin is Mapping
    return st.dictionaries(values(arguments[0]), values(arguments[1]), max_size=3)


def messages(cls: type) -> st.SearchStrategy[Any]:
    """Any message of a class."""
    hints = get_type_hints(cls)
    return st.builds(cls, **{field.name: values(hints[field.name]) for field in attrs.fields(cls)})


def decoder_of(cls: type) -> Callable[[bytes | str], Any]:
    return protocol.decode_worker_message if cls in WORKER_CLASSES else protocol.decode_router_message


def accepts_or_refuses(decode: Callable[[bytes | str], Any], frame: bytes) -> None:
    reason = ""
    try:
        decode(frame)
    except ProtocolError as error:
        reason = error.reason
    assert len(reason) < 100  # a reason, not the peer's own text


EVERY_CLASS = pytest.mark.parametrize("cls", [*WORKER_CLASSES, *ROUTER_CLASSES], ids=lambda cls: cls.__name__)


@EVERY_CLASS
@settings(max_examples=20)  # for each of the classes
@given(data=st.data())
def test_every_message_survives_the_wire(cls, data):
    """A field would be lost or changed between a router and a worker of the same version."""
    message = data.draw(messages(cls))
    frame = protocol.encode(message)
    assert decoder_of(cls)(frame) == message
    assert decoder_of(cls)(frame.decode()) == message


@EVERY_CLASS
@settings(max_examples=20)  # for each of the classes
@given(data=st.data())
def test_unknown_fields_are_ignored(cls, data):
    """A newer peer would be refused for a field that it has more."""
    message = data.draw(messages(cls))
    fields = orjson.loads(protocol.encode(message)) | {"a_field_of_tomorrow": data.draw(JSON)}
    assert decoder_of(cls)(orjson.dumps(fields)) == message


@EVERY_CLASS
@settings(max_examples=20)  # for each of the classes
@given(data=st.data())
def test_a_malformed_message_is_a_protocol_error_and_nothing_else(cls, data):
    """One bad message of a peer would end the router with an exception that nobody expects."""
    fields = orjson.loads(protocol.encode(data.draw(messages(cls))))
    for name in data.draw(st.lists(st.sampled_from(sorted(fields)), max_size=3, unique=True)):
        if data.draw(st.booleans()):
            fields[name] = data.draw(JSON)
        else:
            del fields[name]
    for decode in (protocol.decode_worker_message, protocol.decode_router_message, protocol.decode_job):
        accepts_or_refuses(decode, orjson.dumps(fields))


@given(st.binary(max_size=50) | JSON.map(orjson.dumps) | st.just(b'{"type":"token","job_id":' + b"[" * 5000))
def test_garbage_is_a_protocol_error_and_nothing_else(frame):
    """Bytes that are no message would end the router."""
    for decode in (protocol.decode_worker_message, protocol.decode_router_message, protocol.decode_job):
        with pytest.raises(ProtocolError):
            decode(frame)


@pytest.mark.parametrize(
    "frame",
    [
        b'{"type":"token","job_id":"a"}',
        b'{"type":"token","job_id":"a","token":5}',
        b'{"type":"token","job_id":"a","token":null}',
        b'{"type":"token","job_id":"a","token":"x","reasoning":"true"}',
        b'{"type":"token","job_id":"a","token":"x","choice":1.5}',
        b'{"type":"token","job_id":"a","token":"x","choice":true}',
        b'{"type":"complete","job_id":"a","finishes":["stop"]}',
        b'{"type":"complete","job_id":"a","tool_calls":{"a":1}}',
        b'{"type":"hello","capabilities":[]}',
        b'{"type":"hello_ack","success":true}',  # a router's message
        b'{"type":["token"]}',
        b'{"job_id":"a"}',
    ],
)
def test_nothing_is_converted_silently(frame):
    """A number would become a text, or a text a truth value, and the mistake would show up far away."""
    with pytest.raises(ProtocolError):
        protocol.decode_worker_message(frame)


def test_the_hot_message_is_read_like_every_other():
    """The fast way to read a token would differ from the ordinary one."""
    assert protocol.decode_worker_message(b'{"type":"token","job_id":"a","token":"x"}') == Token(job_id="a", token="x")
    assert protocol.decode_worker_message(b'{"type":"token","job_id":"a","token":"x","reasoning":true}') == Token(
        job_id="a", token="x", reasoning=True
    )


def test_an_array_may_be_null():
    """Go writes an empty list as null: an original worker's messages would be refused."""
    message = protocol.decode_worker_message(b'{"type":"complete","job_id":"a","full_response":"x","tool_calls":null}')
    assert message == Complete(job_id="a", full_response="x")


def test_what_the_original_always_writes_is_written():
    """An original peer would miss a field that it has always been sent."""
    assert protocol.encode(Hello()) == b'{"type":"hello","gpu_key":""}'
    assert protocol.encode(Complete(job_id="a")) == b'{"type":"complete","job_id":"a","full_response":""}'
    job = Job(
        job_id="a",
        messages=(ChatMessage(role="user", content=None),),
        tools=(Tool(function=Function(name="f")),),
    )
    assert orjson.loads(protocol.encode(job)) == {
        "type": "job",
        "job_id": "a",
        "messages": [{"role": "user", "content": None}],
        "tools": [{"type": "function", "function": {"name": "f"}}],
    }


def test_keys_are_not_shown():
    """A key would stand in a log line that prints a message."""
    assert "secret" not in repr(Hello(gpu_key="secret"))


@given(messages(Job), st.integers(0, 2**31))
def test_an_attempt_is_added_without_reading_the_job(job, attempt):
    """A delivered job would not say which delivery it is, or would no longer be the job that was queued."""
    job = attrs.evolve(job, attempt=0)
    frame = protocol.with_attempt(protocol.encode(job), attempt)
    assert protocol.decode_job(frame) == attrs.evolve(job, attempt=attempt)


def test_a_refused_worker_gets_an_answer_that_it_understands():
    """An original worker would try a wrong key for ever: it stops for exactly this form."""
    assert orjson.loads(protocol.encode(HelloAck(success=False, error="authentication failed: x"))) == {
        "type": "hello_ack",
        "success": False,
        "error": "authentication failed: x",
    }
