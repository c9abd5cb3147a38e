from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auxot.core.errors import ErrorCode, RefusedError
from auxot.core.forwarded import FORWARDED, PROBES, ForwardedEndpoint
from auxot.router.forward_table import MAX_INPUTS, ROUTES, ForwardRequest, read
from auxot.router.routes import Api, Route, resolve

ROWS = {row.path: row for row in FORWARDED}
FORM = "multipart/form-data; boundary=b"


def sent(path: str, **fields: Any) -> Any:
    """Return what llama-server gets for a body."""
    request = read(ROWS[path], json.dumps(fields).encode(), content_type="text/plain")
    assert (request.forward.path, request.forward.method) == (path, "POST")
    return json.loads(request.forward.body)


def refused(path: str, body: bytes, content_type: str = "application/json") -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        read(ROWS[path], body, content_type=content_type)
    assert caught.value.code is ErrorCode.INVALID_REQUEST
    return caught.value


@pytest.mark.parametrize(
    ("path", "llama_path"),
    [
        ("/v1/embeddings", "/v1/embeddings"),
        ("/api/openai/v1/rerank", "/v1/rerank"),
        ("/api/openai/reranking", "/v1/rerank"),
        ("/rerank", "/v1/rerank"),
        ("/infill", "/infill"),
        ("/v1/infill", "/infill"),
        ("/v1/audio/transcriptions", "/v1/audio/transcriptions"),
    ],
)
def test_routes(path: str, llama_path: str) -> None:
    """A client's address leads nowhere, or somewhere else."""
    assert ROUTES[resolve(path, ())].path == llama_path


def test_nothing_but_the_table_is_served() -> None:
    """An address leads to what changes a llama-server, or an API's endpoint is served outside its API."""
    assert {(row.method, row.path) for row in ROUTES.values()} == {(row.method, row.path) for row in FORWARDED}
    assert not {Route(api, path) for api in Api for path in ("/slots", "/props", "/lora-adapters")} & set(ROUTES)
    assert Route(Api.NONE, "/embeddings") not in ROUTES
    assert set(PROBES) == {"count", "embeddings", "rerank", "infill"}


def test_a_new_endpoint_needs_a_line_only() -> None:
    """A row without a check of its own is not passed on."""
    row = ForwardedEndpoint("/new", ("/new",))
    request = read(row, b'{"a":null,"model":"m","stream":true,"b":[1.5]}', content_type="")
    assert (request.forward.body, request.model, request.stream) == (
        '{"model":"m","stream":true,"b":[1.5]}',
        "m",
        False,
    )


@pytest.mark.parametrize("value", ["hi", ["a", "b"], [1, 2], [[1], [2, 3]], ["a", [1]]])
def test_embeddings(value: Any) -> None:
    """An input in one of the documented forms is refused or changed."""
    assert sent("/v1/embeddings", input=value, model="m", encoding_format=None, user="u") == {
        "input": value,
        "model": "m",
        "user": "u",
    }


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": [""]}, "input"),
        ({"input": [[]]}, "input"),
        ({"input": [-1]}, "input"),
        ({"input": [1.5]}, "input"),
        ({"input": [True]}, "input"),
        ({"input": {"content": "x"}}, "input"),
        ({"input": ["x"] * (MAX_INPUTS + 1)}, "input"),
        ({"input": "x", "dimensions": 3}, "dimensions"),
        ({"input": "x", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "x", "model": 3}, "model"),
    ],
)
def test_embeddings_refused(body: dict[str, Any], param: str) -> None:
    """A request that cannot be served as it is asked is served otherwise, or fails in llama-server."""
    assert refused("/v1/embeddings", json.dumps(body).encode()).param == param


def test_rerank() -> None:
    """Documents in the object form, as Jina's clients write them, are refused."""
    body = sent("/v1/rerank", query="q", documents=["a", {"text": "b"}], top_n=1)
    assert body == {"query": "q", "documents": ["a", "b"], "top_n": 1}
    assert sent("/v1/rerank", query="q", texts=["a"]) == {"query": "q", "texts": ["a"]}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/rerank", {"documents": ["a"]}, "query"),
        ("/v1/rerank", {"query": "q"}, "texts"),
        ("/v1/rerank", {"query": "q", "documents": []}, "documents"),
        ("/v1/rerank", {"query": "q", "documents": [1]}, "documents"),
        ("/v1/rerank", {"query": "q", "documents": ["a"], "top_n": -1}, "top_n"),
        ("/tokenize", {}, "content"),
        ("/tokenize", {"content": {"a": 1}}, "content"),
        ("/tokenize", {"content": "a", "with_pieces": "yes"}, "with_pieces"),
        ("/detokenize", {"tokens": ["a"]}, "tokens"),
        ("/detokenize", {"tokens": [2**40]}, "tokens"),
        ("/apply-template", {}, "messages"),
        ("/apply-template", {"messages": ["a"]}, "messages[0]"),
        ("/infill", {"input_suffix": "a"}, "input_prefix"),
        ("/infill", {"input_prefix": "a"}, "input_suffix"),
        ("/infill", {"input_prefix": "a", "input_suffix": "", "prompt": 3}, "prompt"),
        ("/infill", {"input_prefix": "a", "input_suffix": "", "input_extra": [{}]}, "input_extra[0].text"),
        ("/infill", {"input_prefix": "a", "input_suffix": "", "stream": "yes"}, "stream"),
    ],
)
def test_refused(path: str, body: dict[str, Any], param: str) -> None:
    """What llama-server would answer with a failure of its own reaches it, or is refused without the field's name."""
    assert refused(path, json.dumps(body).encode()).param == param


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b'{"content":"\xff"}', b'{"content":"\\ud800"}'])
def test_bodies_that_are_none(body: bytes) -> None:
    """Broken JSON reaches llama-server."""
    refused("/tokenize", body)


def test_stream_is_noticed() -> None:
    """A stream is collected, or an answer that is none is sent as one."""
    infill = {"input_prefix": "a", "input_suffix": "", "stream": True}
    assert read(ROWS["/infill"], json.dumps(infill).encode(), content_type="").stream
    assert not read(ROWS["/tokenize"], b'{"content":"a","stream":true}', content_type="").stream


def form(**fields: str) -> bytes:
    parts = [f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{fields[name]}\r\n' for name in fields]
    upload = '--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav\r\n\r\n'
    return "".join(parts).encode() + upload.encode() + b"RIFF\x00\xff\r\n--b--\r\n"


def test_upload() -> None:
    """A file is broken on the way, or the fields beside it are not seen."""
    body = form(model="m", stream="true")
    request = read(ROWS["/v1/audio/transcriptions"], body, content_type=FORM)
    assert base64.b64decode(request.forward.body_base64) == body
    assert (request.forward.content_type, request.model, request.stream) == (FORM, "m", True)
    plain = read(ROWS["/v1/audio/transcriptions"], form(), content_type=FORM)
    assert (plain.model, plain.stream) == (None, False)


@pytest.mark.parametrize("kind", ["", "application/json", "multipart/form-data", FORM + "\r\nx: y", FORM + "\u00e9"])
def test_upload_of_another_type(kind: str) -> None:
    """A body that is no form, or a header that is none, reaches llama-server."""
    refused("/v1/audio/transcriptions", form(), content_type=kind)


NAMES = [
    "input",
    "dimensions",
    "query",
    "documents",
    "content",
    "tokens",
    "messages",
    "input_prefix",
    "stream",
    "model",
]
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*NAMES, "text"]), inner, max_size=4),
    max_leaves=12,
)


@given(
    row=st.sampled_from(FORWARDED),
    body=st.dictionaries(st.sampled_from(NAMES), _JSON, max_size=6).map(json.dumps) | _JSON.map(json.dumps) | st.text(),
    content_type=st.sampled_from(["application/json", FORM]) | st.text(max_size=20),
)
def test_anything_is_read_or_refused(row: ForwardedEndpoint, body: str, content_type: str) -> None:
    """A strange body becomes a fault of the router."""
    try:
        request = read(row, body.encode("utf-8", "surrogatepass"), content_type=content_type)
    except RefusedError:
        return
    assert isinstance(request, ForwardRequest)


@pytest.mark.parametrize("levels", [200, 300, 2000])
def test_depth(levels: int) -> None:
    """A body that is nested deep becomes a fault of the router."""
    body = b'{"input_prefix":"","input_suffix":"","x":%b%b}' % (b"[" * levels, b"]" * levels)
    if levels > 254:
        refused("/infill", body)
    else:
        assert json.loads(read(ROWS["/infill"], body, content_type="").forward.body) == json.loads(body)
