"""The messages between a router and its workers: one JSON object in one WebSocket text frame, told apart by `type`.

The protocol is the original Auxot's, so that an original worker works with our router and ours with an original
router. Unknown fields are ignored, in both directions. Everything marked "ours" below is an optional field or a
message that is sent only to a peer that has announced the matching feature:

    hello.capabilities.features, hello_ack.features    what this side understands beyond the original (FEATURE_*), and
                                                        which of forwarded.PROBES this worker's llama-server can do
    job.params, job.attempt, message.name, message.reasoning_content, function.strict
    token.choice, token.logprobs
    a frame of several messages, a line each            sent by a worker that announces FEATURE_BATCHES to a router that
                                                        does; `encode` writes no line breaks
    job that goes on with the answer of a lost worker   sent only to a worker that announces FEATURE_CONTINUE: its last
                                                        message is the assistant's, which is not repeated
    job.prompt, job.count_only, job.forward             sent only to a worker that announces the kind (FEATURE_OF_KIND)
    forward_head, forward_body                          the answer to job.forward
    tool_call_delta                                     FEATURE_DELTAS announced by the router
    prompt_progress                                     an original message, which an original router drops
    complete.finishes                                   why each choice ended
    error.code, error.n_prompt_tokens, error.n_ctx      an ErrorCode's word and the figures of a long prompt
    hello_ack with success=false for a bad key          the original sends `error` and drops the connection; original
                                                        workers stop only for this form

With FEATURE_DELTAS announced by the router, `complete` carries no second copy of the text, the reasoning or the tool
calls: all of it has been streamed. Without it (an original router) `complete` is whole, as the original's is.

Agent workers' messages are left out: no open router has ever served them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args, get_origin

import orjson
from cattrs.gen import make_dict_unstructure_fn, override
from cattrs.preconf.orjson import OrjsonConverter, make_converter

from auxot.core.errors import ProtocolError
from auxot.core.jobs import Job, Tool, ToolCall
from auxot.core.messages import Complete, Hello, Policy, RouterMessage, Token, ToolsPolicy, WorkerMessage

JOB_TYPE = "job"  # a Job is a message too; its class belongs to the inner language and knows no wire


def join(messages: Sequence[str]) -> str:
    """Return several encoded messages as one frame, for a peer that takes FEATURE_BATCHES."""
    return "\n".join(messages)


def split(frame: bytes) -> list[bytes]:
    """Return the encoded messages of a frame that `join` has made."""
    return frame.split(b"\n")


def decode_worker_message(frame: bytes | str) -> WorkerMessage:
    """Read a message that a worker may send.

    Args:
        frame: the payload of one WebSocket frame, text or binary.

    Raises:
        ProtocolError: not JSON, not an object, no or an unknown `type`, a missing field, or one of the wrong type.
    """
    fields = _fields(frame)
    if fields.get("type") == "token" and len(fields) == 3:  # the hot message, once a token: 0.5 us instead of 1
        job_id, token = fields.get("job_id"), fields.get("token")
        if type(job_id) is str and type(token) is str:
            return Token(job_id=job_id, token=token)
    message: WorkerMessage = _structure(fields, _WORKER_CLASSES)
    return message


def decode_router_message(frame: bytes | str) -> RouterMessage:
    """Read a message that a router may send; arguments and errors as `decode_worker_message`."""
    message: RouterMessage = _structure(_fields(frame), _ROUTER_CLASSES)
    return message


def encode(message: WorkerMessage | RouterMessage) -> bytes:
    """Write a message as the payload of one text frame; optional fields that are empty are left out."""
    return orjson.dumps({"type": _TYPE_OF[type(message)], **_CONVERTER.unstructure(message)})


def decode_job(frame: bytes | str) -> Job:
    """Read a `job` message; errors as `decode_worker_message`."""
    job: Job = _structure(_fields(frame), {JOB_TYPE: Job})
    return job


def with_attempt(job_frame: bytes, attempt: int) -> bytes:
    """Return an encoded job that says which delivery it is, without reading it again (prompts can be megabytes)."""
    return b'%b,"attempt":%d}' % (job_frame[:-1], attempt)


def _fields(frame: bytes | str) -> dict[str, Any]:
    try:
        fields = orjson.loads(frame)
    except orjson.JSONDecodeError as exc:
        raise ProtocolError("not JSON") from exc
    if type(fields) is not dict:
        raise ProtocolError("not a JSON object")
    return fields


def _structure(fields: dict[str, Any], classes: Mapping[str, type]) -> Any:
    kind = fields.get("type")
    cls = classes.get(kind) if isinstance(kind, str) else None
    if cls is None:
        raise ProtocolError("no type" if not kind else "unknown type")
    try:
        return _CONVERTER.structure(fields, cls)
    except ProtocolError:
        raise
    except Exception as exc:  # cattrs raises KeyError, TypeError, ValueError, AttributeError, ... for a bad shape
        raise ProtocolError(f"malformed {kind}: {type(exc).__name__}") from exc


def _exactly(cls: type) -> Callable[[Any, Any], Any]:
    """Return a cattrs hook that takes a value of that very type and converts nothing."""

    def structure(value: Any, _: Any) -> Any:
        if type(value) is not cls:
            raise ProtocolError(f"expected {cls.__name__}, got {type(value).__name__}")
        return value

    return structure


def _structure_float(value: Any, _: Any) -> float:
    if type(value) not in (int, float):
        raise ProtocolError(f"expected a number, got {type(value).__name__}")
    return float(value)


def _structure_object(value: Any, _: Any) -> Any:
    if type(value) is not dict:
        raise ProtocolError(f"expected an object, got {type(value).__name__}")
    return value


def _structure_str_map(value: Any, _: Any) -> Any:
    _structure_object(value, None)
    if not all(type(text) is str for text in value.values()):
        raise ProtocolError("expected an object of strings")
    return value


def _is_tuple(annotation: Any) -> bool:
    origin: Any = get_origin(annotation)
    return origin is tuple


def _tuple_hook(annotation: Any, converter: Any) -> Callable[[Any, Any], tuple[Any, ...]]:
    """Return a hook for `tuple[X, ...]`: takes a list, or null (Go writes an empty list so), and nothing else."""
    item_type = get_args(annotation)[0]

    def structure(value: Any, _: Any) -> tuple[Any, ...]:
        if value is None:
            return ()
        if type(value) is not list:
            raise ProtocolError(f"expected an array, got {type(value).__name__}")
        return tuple(converter.structure(item, item_type) for item in value)

    return structure


def _converter() -> OrjsonConverter:
    """Return a converter that takes what the protocol says and converts nothing silently."""
    converter = make_converter(omit_if_default=True, detailed_validation=False)
    for primitive in (str, int, bool):
        converter.register_structure_hook(primitive, _exactly(primitive))
    converter.register_structure_hook(float, _structure_float)
    converter.register_structure_hook_func(lambda kind: kind == Mapping[str, Any], _structure_object)
    converter.register_structure_hook_func(lambda kind: kind == Mapping[str, str], _structure_str_map)
    converter.register_structure_hook_factory(_is_tuple, _tuple_hook)
    for cls, names in _ALWAYS_WRITTEN.items():
        overrides: dict[str, Any] = {name: override(omit_if_default=False) for name in names}
        write: Any = make_dict_unstructure_fn(cls, converter, _cattrs_omit_if_default=True, **overrides)
        converter.register_unstructure_hook(cls, write)
    return converter


# Fields that the original writes even when they are empty.
_ALWAYS_WRITTEN: dict[type, tuple[str, ...]] = {
    Tool: ("type",),
    ToolCall: ("type",),  # before Complete, whose encoder is made from this one
    Hello: ("gpu_key",),
    Policy: ("capabilities",),
    ToolsPolicy: ("allowed_tools", "mcp_servers"),
    Complete: ("full_response",),
}
_CONVERTER = _converter()
_TYPE_OF: dict[type, str] = {
    cls: JOB_TYPE if cls is Job else cls.TYPE for cls in (*get_args(WorkerMessage), *get_args(RouterMessage))
}
_WORKER_CLASSES = {_TYPE_OF[cls]: cls for cls in get_args(WorkerMessage)}
_ROUTER_CLASSES = {_TYPE_OF[cls]: cls for cls in get_args(RouterMessage)}
