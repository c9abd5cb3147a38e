"""Requests to forwarded endpoints: which route leads to which, and what of a body is looked at. Pure.

    (API, route) --ROUTES--> row of core.forwarded --read--> Forward, stream?, model

What needs no check is passed on as it came, but for nulls, which clients write for absent fields and llama-server does
not always take. Checked is what llama-server would answer with a failure of its own, or what it would ignore although
the API's documentation promises it.

Sources: https://platform.openai.com/docs/api-reference/embeddings, https://jina.ai/reranker and, for llama.cpp's own
endpoints, its tools/server/README.md.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import orjson

from auxot.core.errors import ErrorCode, RefusedError
from auxot.core.forwarded import FORWARDED, ForwardedEndpoint
from auxot.core.jobs import Forward
from auxot.router.dialects.field_table import check_refused, refusals
from auxot.router.dialects.fields import Fields, parse_object
from auxot.router.dialects.openai_fields import EMBEDDING_FIELDS
from auxot.router.routes import Api, Route

MAX_INPUTS = 2048  # of one embeddings request; OpenAI's bound
_MAX_CONTENT_TYPE_CHARS = 200
_MEDIA = frozenset({"image_url", "input_audio", "input_video", "video_url"})
_REFUSED = refusals(EMBEDDING_FIELDS)
_MULTIPART = "multipart/form-data"
# A text field of a form, as all clients write it: no charset, no encoding.
_FORM_FIELD = rb'name="?%b"?\r\n(?:[^\r\n]+\r\n)*\r\n([^\r\n]{0,200})\r\n'
_STREAM_FIELD = re.compile(_FORM_FIELD % b"stream")
_MODEL_FIELD = re.compile(_FORM_FIELD % b"model")


@attrs.frozen(kw_only=True)
class ForwardRequest:
    """A request that was read: what goes to llama-server, and what the router has to know of it."""

    forward: Forward
    stream: bool
    model: str | None


def read(row: ForwardedEndpoint, body: bytes, *, content_type: str) -> ForwardRequest:
    """Read and check a request.

    Args:
        row: the endpoint.
        body: the HTTP body, whole.
        content_type: the header; looked at for uploads only, because JSON comes under many names.

    Raises:
        RefusedError: the body is not a request of that endpoint; `param` names the field.
    """
    return _read_upload(row, body, content_type) if row.is_upload else _read_json(row, body)


def _read_json(row: ForwardedEndpoint, body: bytes) -> ForwardRequest:
    raw = parse_object(body, invalid="invalid JSON: ")
    fields = Fields({name: value for name, value in raw.items() if value is not None})
    model = fields.string("model")
    stream = row.streams and fields.boolean("stream") is True
    changed = _CHECKS.get(row.path, _as_it_is)(fields)
    try:
        text = orjson.dumps(changed).decode()
    except TypeError as exc:
        raise RefusedError(ErrorCode.INVALID_REQUEST, "the body is nested too deep") from exc
    return ForwardRequest(forward=Forward(method=row.method, path=row.path, body=text), stream=stream, model=model)


def _read_upload(row: ForwardedEndpoint, body: bytes, content_type: str) -> ForwardRequest:
    is_sane = content_type.isascii() and content_type.isprintable() and len(content_type) <= _MAX_CONTENT_TYPE_CHARS
    if not is_sane or not content_type.lower().startswith(_MULTIPART) or "boundary=" not in content_type:
        raise RefusedError(ErrorCode.INVALID_REQUEST, f"the body must be a form: {_MULTIPART}, with its boundary")
    stream, model = _STREAM_FIELD.search(body), _MODEL_FIELD.search(body)
    return ForwardRequest(
        forward=Forward(
            method=row.method,
            path=row.path,
            body_base64=base64.b64encode(body).decode(),
            content_type=content_type,
        ),
        stream=stream is not None and stream[1] == b"true",
        model=model[1].decode(errors="replace") if model else None,
    )


def _as_it_is(fields: Fields) -> dict[str, Any]:
    return fields.raw


def _embeddings(fields: Fields) -> dict[str, Any]:
    check_refused(fields, _REFUSED)
    fields.word("encoding_format", ("base64", "float"))
    value = fields.get("input")
    if type(value) is list and not _is_token_ids(value):
        if not value or len(value) > MAX_INPUTS:
            raise fields.refused("input", f"must have from 1 to {MAX_INPUTS} items")
        inputs = value
    else:
        inputs = [value]
    for one in inputs:
        if not one or not (type(one) is str or _is_token_ids(one)):
            raise fields.refused("input", "must be a string or an array of strings, of token ids or of such arrays")
    return fields.raw


def _rerank(fields: Fields) -> dict[str, Any]:
    fields.required_string("query")
    name = "documents" if "documents" in fields.raw else "texts"
    documents = [_document(one) for one in fields.array(name) or ()]
    if not documents or None in documents:
        raise fields.refused(name, "must be an array of strings, or of objects with a text, and not be empty")
    fields.integer("top_n", 1)
    return {**fields.raw, name: documents}


def _document(value: Any) -> str | None:
    text = value.get("text") if type(value) is dict else value
    return text if type(text) is str else None


def _tokenize(fields: Fields) -> dict[str, Any]:
    content = fields.get("content")
    pieces = content if type(content) is list else [content]
    if not all(type(piece) is str or _is_token_id(piece) for piece in pieces):
        raise fields.refused("content", "must be a string, or an array of strings and token ids")
    for name in ("add_special", "parse_special", "with_pieces"):
        fields.boolean(name)
    return fields.raw


def _detokenize(fields: Fields) -> dict[str, Any]:
    if not _is_token_ids(fields.get("tokens")):
        raise fields.refused("tokens", "must be an array of token ids")
    return fields.raw


def _apply_template(fields: Fields) -> dict[str, Any]:
    messages = fields.objects("messages")
    if not messages:
        raise fields.refused("messages", "Field required")
    for message in messages:
        _check_media(message)
    return fields.raw


def _check_media(message: Fields) -> None:
    """Refuse addresses: llama-server would fetch what stands there, from inside its own network."""
    content = message.get("content")
    for part in message.objects("content") or () if type(content) is list else ():
        for name in _MEDIA.intersection(part.raw):
            value = part.raw[name]
            texts = value.values() if type(value) is dict else [value]
            if any(type(text) is str and ":" in text and not text.startswith("data:") for text in texts):
                raise part.refused(name, "must be a data: URL here")


def _infill(fields: Fields) -> dict[str, Any]:
    for name in ("input_prefix", "input_suffix"):
        if fields.string(name) is None:
            raise fields.refused(name, "Field required")
    fields.string("prompt")
    for extra in fields.objects("input_extra") or ():
        if extra.string("text") is None:
            raise extra.refused("text", "Field required")
        extra.string("filename")
    return fields.raw


def _is_token_ids(value: Any) -> bool:
    return type(value) is list and all(map(_is_token_id, value)) and bool(value)


def _is_token_id(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**31


_CHECKS: Mapping[str, Callable[[Fields], dict[str, Any]]] = {
    "/v1/embeddings": _embeddings,
    "/v1/rerank": _rerank,
    "/tokenize": _tokenize,
    "/detokenize": _detokenize,
    "/apply-template": _apply_template,
    "/infill": _infill,
}
ROUTES: Mapping[Route, ForwardedEndpoint] = {
    Route(api, path): row
    for row in FORWARDED
    for path in row.routes
    for api in ((Api.OPENAI, Api.NONE) if row.is_own else (Api.OPENAI,))
}
