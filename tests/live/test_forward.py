"""Forwarded endpoints, raw completions and counts, against a llama-server that the test can also ask directly."""

from __future__ import annotations

import base64
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest

from auxot.demo.tiny_model import ANSWER, TOOL_NAME, TOOL_PARAMETERS
from tests.live.processes import API_KEY, House, running_router, running_worker, stop, wait_until

BEGIN = " ".join(ANSWER.split()[:3])  # as a raw prompt the model goes on from here
REST = ANSWER.removeprefix(BEGIN)
INFILL = {"input_prefix": BEGIN, "input_suffix": "stars", "n_predict": 5, "temperature": 0}
ENDLESS = {**INFILL, "n_predict": 1_000_000, "ignore_eos": True}
FIM_TOKENS = ",".join(f"tokenizer.ggml.fim_{part}_token_id=int:{5 + i}" for i, part in enumerate(("pre", "suf", "mid")))
FLAGS = ("--embeddings", "--pooling", "mean", "--override-kv", FIM_TOKENS)
TOOL = {"name": TOOL_NAME, "description": "tells it", "input_schema": TOOL_PARAMETERS}
N_SLOTS = 2
CANCEL_BOUND_S = 5


@contextmanager
def running_llama(binary: Path, model: Path, folder: Path, *flags: str) -> Iterator[str]:
    """Run a llama-server on a port of loopback; its URL once it is ready."""
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    argv = [binary, "--model", model, "--host", "127.0.0.1", "--port", str(port), "--jinja", "--threads", "1"]
    argv += ["--parallel", str(N_SLOTS), "--ctx-size", str(65_536 * N_SLOTS), "--reasoning-format", "deepseek", *flags]
    url = f"http://127.0.0.1:{port}"
    with (folder / "llama.log").open("wb") as log:
        process = subprocess.Popen(list(map(str, argv)), stdout=log, stderr=log)
    try:
        wait_until(lambda: is_ready(url), what="a llama-server that is ready")
        yield url
    finally:
        stop(process)


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def llama(llama_server_binary: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_llama(llama_server_binary, tiny_model, tmp_path_factory.mktemp("llama"), *FLAGS) as url:
        yield url


@pytest.fixture(scope="module")
def house(llama: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("house")
    with running_router(folder) as running, running_worker(running, AUXOT_LLAMA_URL=llama):
        running.wait_health(workers=1)
        yield running


@pytest.fixture
def direct(llama: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=llama, timeout=60, trust_env=False) as client:
        yield client


@pytest.fixture
def client(house: House) -> Iterator[httpx.Client]:
    with house.client() as client:
        yield client


@pytest.fixture
def openai_client(house: House) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{house.url}/v1", api_key=API_KEY, max_retries=0) as client:
        yield client


def n_busy(direct: httpx.Client) -> int:
    return sum(slot["is_processing"] for slot in direct.get("/slots").json())


def wait_idle(direct: httpx.Client) -> float:
    """Wait until no slot is busy; return how long it took."""
    began = time.monotonic()
    wait_until(lambda: n_busy(direct) == 0, what="idle slots")
    return time.monotonic() - began


# Embeddings, rerank, audio


@pytest.mark.parametrize("inputs", ["hi", ["hi", "there you are"], [275, 276], [[275], [276, 277]]])
def test_embeddings(openai_client: openai.OpenAI, direct: httpx.Client, inputs: Any) -> None:
    """Embeddings differ from llama-server's own, in numbers, order or counts, or the SDK cannot decode them."""
    expected = direct.post("/v1/embeddings", json={"input": inputs}).json()
    vectors = [item["embedding"] for item in expected["data"]]
    asked: tuple[dict[str, Any], ...] = ({}, {"encoding_format": "base64"}, {"encoding_format": "float"})
    for arguments in asked:
        answer = openai_client.embeddings.create(model="my-embedder", input=inputs, **arguments)
        assert answer.model == "my-embedder"
        assert answer.usage.prompt_tokens == answer.usage.total_tokens == expected["usage"]["prompt_tokens"]
        got = [decoded(item.embedding) for item in answer.data]
        assert [len(vector) for vector in got] == [len(vector) for vector in vectors]
        assert all(pytest.approx(one, abs=1e-6) == other for one, other in zip(got, vectors, strict=True))


def decoded(embedding: Any) -> list[float]:
    """Return a vector; an explicit base64 is not decoded by the SDK: float32, little-endian."""
    if not isinstance(embedding, str):
        return list(embedding)
    raw = base64.b64decode(embedding, validate=True)
    return list(struct.unpack(f"<{len(raw) // 4}f", raw))


def test_embeddings_refusals(openai_client: openai.OpenAI) -> None:
    """A request that cannot be served as asked is served otherwise, or blamed on the server."""
    with pytest.raises(openai.BadRequestError) as refused:
        openai_client.embeddings.create(model="any", input="hi", dimensions=8)
    assert refused.value.param == "dimensions"
    with pytest.raises(openai.BadRequestError) as refused:
        openai_client.embeddings.create(model="any", input=[])
    assert refused.value.param == "input"
    with pytest.raises(openai.BadRequestError, match="invalid tokens"):
        openai_client.embeddings.create(model="any", input=[1_000_000])


def test_what_the_server_cannot_do_is_said(client: httpx.Client) -> None:
    """A client waits for, or is given a failure of, what no connected worker can do."""
    answers = [
        client.post("/v1/rerank", json={"query": "a", "documents": ["b"]}),
        client.post("/v1/audio/transcriptions", files={"file": ("a.wav", b"RIFF")}, data={"model": "any"}),
    ]
    for answer in answers:
        assert answer.status_code == 501
        assert answer.json()["error"]["type"] == "not_implemented"


@pytest.mark.parametrize(
    ("switch", "able", "request_body"),
    [
        ({"LLAMA_ARG_EMBEDDINGS": "1", "LLAMA_ARG_POOLING": "mean"}, "/v1/embeddings", {"input": "hi"}),
        ({"LLAMA_ARG_RERANKING": "1"}, "/v1/rerank", {"query": "a", "documents": ["b", {"text": "c"}], "top_n": 1}),
    ],
)
def test_switches_of_the_workers_own_llama_server(
    llama_server_binary: Path,
    tiny_model: Path,
    tmp_path: Path,
    switch: dict[str, str],
    able: str,
    request_body: dict[str, Any],
) -> None:
    """What an operator switches on in llama-server is not served, or chat is not any more."""
    own = {"AUXOT_LLAMA_BINARY": str(llama_server_binary), "AUXOT_MODEL_FILE": str(tiny_model), **switch}
    with running_router(tmp_path) as house, running_worker(house, **own), house.client() as client:
        house.wait_health(workers=1)
        answer = client.post(able, json={"model": "any", **request_body})
        assert (answer.status_code, answer.json()["model"]) == (200, "any")
        assert answer.json()["usage"]["prompt_tokens"] > 1
        assert client.post("/infill", json=INFILL).status_code == 501  # the tiny model has no tokens for it
        assert able.rpartition("/")[2] in client.get("/v1/models").json()["data"][0]["capabilities"]
        chat = {"model": "any", "messages": [{"role": "user", "content": "hi"}], "reasoning_effort": "none"}
        assert client.post("/v1/chat/completions", json=chat).json()["choices"][0]["message"]["content"] == ANSWER


# llama.cpp's own


@pytest.mark.parametrize("prefix", ["", "/v1", "/api/openai", "/api/openai/v1"])
def test_own_endpoints(client: httpx.Client, direct: httpx.Client, prefix: str) -> None:
    """An endpoint answers otherwise than llama-server itself."""
    requests: dict[str, dict[str, Any]] = {
        "/tokenize": {"content": ANSWER, "add_special": True, "with_pieces": True},
        "/detokenize": {"tokens": [275, 276, 277]},
        "/apply-template": {"messages": [{"role": "user", "content": "h\u00e9"}], "tools": None},
    }
    for path, body in requests.items():
        ours, theirs = client.post(prefix + path, json=body), direct.post(path, json=body)
        assert (ours.status_code, ours.content) == (200, theirs.content)
        assert ours.headers["content-type"] == theirs.headers["content-type"]
        assert client.get(prefix + path).status_code == 405


@pytest.mark.parametrize("stream", [True, False])
def test_infill(client: httpx.Client, direct: httpx.Client, stream: bool) -> None:
    """Code completion differs from llama-server's, blocking or streamed."""
    body = {**INFILL, "stream": stream, "response_fields": ["content", "stop_type", "tokens_predicted"]}
    ours, theirs = client.post("/infill", json=body), direct.post("/infill", json=body)
    assert (ours.status_code, ours.text) == (200, theirs.text)
    assert ours.headers["content-type"].startswith("text/event-stream" if stream else "application/json")
    assert ours.headers["x-auxot-worker"]


@pytest.mark.parametrize("extra", [{}, {"n_probs": 2, "return_tokens": True}, {"n": 2, "stop": ["quick"]}])
def test_whole_infill(client: httpx.Client, direct: httpx.Client, extra: dict[str, Any]) -> None:
    """A field of a blocking answer, which the worker puts together from a stream, is not what llama-server says."""
    ours, theirs = (one.post("/infill", json={**INFILL, **extra, "seed": 1}).json() for one in (client, direct))
    assert without_timings(ours) == without_timings(theirs)


def without_timings(answer: Any) -> Any:
    """Return an answer without what differs from one time to the next."""
    if isinstance(answer, list):
        return [without_timings(one) for one in answer]
    return {name: value for name, value in answer.items() if name not in ("timings", "id_slot", "tokens_cached")}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/detokenize", {"tokens": [2_000_000]}),
        ("/infill", {**INFILL, "temperature": "hot"}),
        ("/infill", {**INFILL, "stream": True, "grammar": "no grammar"}),
        ("/apply-template", {"messages": [{"role": "user", "content": 3}]}),
    ],
)
def test_bad_bodies_are_the_clients_fault(client: httpx.Client, path: str, body: dict[str, Any]) -> None:
    """A request at fault is answered with 500, or outside OpenAI's error shape."""
    answer = client.post(path, json=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["type"], bool(error["message"])) == ("invalid_request_error", True)


@pytest.mark.parametrize("stream", [True, False])
def test_leaving_frees_the_slot(house: House, direct: httpx.Client, stream: bool) -> None:
    """llama-server goes on for a client that has left, and the worker's slot stays taken."""
    with house.client() as client:
        with pytest.raises(httpx.ReadTimeout):
            read_all(client, {**ENDLESS, "stream": stream}, direct)
        assert wait_idle(direct) < CANCEL_BOUND_S
    house.wait_health(active_jobs=0)


def read_all(client: httpx.Client, body: dict[str, Any], direct: httpx.Client) -> None:
    if not body["stream"]:
        client.post("/infill", json=body, timeout=1)
        return
    with client.stream("POST", "/infill", json=body) as answer:
        for _ in answer.iter_lines():
            assert n_busy(direct) == 1
            raise httpx.ReadTimeout("enough")


# Completions


def test_completion(openai_client: openai.OpenAI) -> None:
    """A raw prompt is put into the chat template, or its answer, counts or reason are wrong."""
    answer = openai_client.completions.create(model="any", prompt=BEGIN, max_tokens=100)
    assert [choice.text for choice in answer.choices] == [REST]
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(BEGIN.split()) + 1  # with the token that begins a text
    short = openai_client.completions.create(model="any", prompt=[BEGIN, "The"], n=2, max_tokens=2, temperature=0)
    assert [choice.index for choice in short.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in short.choices] == [" fox jumps"] * 2 + [" quick brown"] * 2
    assert {choice.finish_reason for choice in short.choices} == {"length"}
    assert short.usage is not None
    assert (short.usage.prompt_tokens, short.usage.completion_tokens) == (4 + 2, 8)


def test_completion_of_token_ids(openai_client: openai.OpenAI, direct: httpx.Client) -> None:
    """Prompts of token ids are read as text, or as several prompts."""
    ids = direct.post("/tokenize", json={"content": BEGIN, "add_special": True}).json()["tokens"]
    for prompt in (ids, [ids]):
        answer = openai_client.completions.create(model="any", prompt=prompt, max_tokens=100)
        assert answer.choices[0].text == REST
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == len(ids)


def test_streamed_completion(openai_client: openai.OpenAI) -> None:
    """A streamed completion is not the blocking one."""
    stream = openai_client.completions.create(
        model="any", prompt=BEGIN, max_tokens=100, stop=[" lazy"], stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(choice.text for chunk in chunks for choice in chunk.choices)
    assert text == REST[: REST.index(" lazy")]
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices][-1] == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == len(text.split()) + 1  # with the word that was not shown


def test_completion_logprobs(openai_client: openai.OpenAI) -> None:
    """Log probabilities of a completion get lost."""
    answer = openai_client.completions.create(model="any", prompt=BEGIN, max_tokens=2, logprobs=2, temperature=0)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == [" fox", " jumps"]
    assert logprobs.token_logprobs == pytest.approx([0, 0], abs=1e-3)


def test_leaving_a_completion_frees_the_slot(house: House, direct: httpx.Client) -> None:
    """llama-server goes on with a raw prompt for a client that has left."""
    body = {"model": "any", "prompt": BEGIN, "max_tokens": 1_000_000, "ignore_eos": True}
    with house.client() as client:
        with pytest.raises(httpx.ReadTimeout):
            client.post("/v1/completions", json=body, timeout=1)
        assert wait_idle(direct) < CANCEL_BOUND_S
    house.wait_health(active_jobs=0)


# Counts


def test_count_is_the_usage_of_the_same_request(house: House, client: httpx.Client) -> None:
    """A count is not what the request then costs: the system prompt, tools or the template are left out."""
    request: dict[str, Any] = {
        "model": "any",
        "messages": [{"role": "user", "content": "What is it like in Paris? \u00e9\u4e2d"}],
        "system": "Be short.",
        "tools": [TOOL],
    }
    with anthropic.Anthropic(base_url=f"{house.url}/api/anthropic", api_key=API_KEY, max_retries=0) as sdk:
        count = sdk.messages.count_tokens(**request)
        usage = sdk.messages.create(max_tokens=1, **request).usage
        assert count.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)
        plain = sdk.messages.count_tokens(model="any", messages=request["messages"])
        assert plain.input_tokens < count.input_tokens
    chat = {"messages": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "hi"}]}
    counted = client.post("/v1/chat/completions/input_tokens", json=chat).json()
    used = client.post("/v1/chat/completions", json={"model": "any", "max_tokens": 1, **chat}).json()["usage"]
    assert counted == {"object": "response.input_tokens", "input_tokens": used["prompt_tokens"]}


def test_count_of_a_response(openai_client: openai.OpenAI) -> None:
    """The SDK's count of a response is not its usage."""
    request: dict[str, Any] = {"model": "any", "input": "hi", "instructions": "Be short."}
    counted = openai_client.responses.input_tokens.count(**request)
    usage = openai_client.responses.create(max_output_tokens=16, **request).usage
    assert usage is not None
    assert counted.input_tokens == usage.input_tokens
