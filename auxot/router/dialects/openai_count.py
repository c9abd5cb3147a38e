"""Counts of prompts: `POST .../responses/input_tokens` and, of llama.cpp, `POST .../chat/completions/input_tokens`.

The request is read by the dialect whose answers would be counted, so that the count is exactly the `usage` of that
request: the same messages, tools and template, counted by the worker's own tokenizer. Nothing is generated.

Source: https://platform.openai.com/docs/api-reference/responses/input-tokens
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import orjson

from auxot.core.errors import ErrorCode, RefusedError
from auxot.core.jobs import Failed, Transcript
from auxot.router.dialects.base import ChatRequest, Dialect, ModelCard, StreamEncoder, json_bytes
from auxot.router.dialects.fields import parse_object

_NO_MODEL = ""  # the field is optional here, and no name is always served


@attrs.frozen
class InputTokens:
    """The dialect of counts of another dialect's requests; see `Dialect`."""

    counted: Dialect

    @property
    def name(self) -> str:
        """A word for logs and metrics."""
        return f"{self.counted.name}.input_tokens"

    def parse(self, body: bytes, *, job_id: str, now: float) -> ChatRequest:
        """Read and check a request."""
        raw = parse_object(body, invalid="invalid JSON: ")
        if raw.get("model") is None or "stream" in raw:
            raw = {"model": _NO_MODEL, **{name: value for name, value in raw.items() if value is not None}}
            raw.pop("stream", None)
            body = _dumped(raw, body)
        request = self.counted.parse(body, job_id=job_id, now=now)
        return attrs.evolve(request, job=attrs.evolve(request.job, count_only=True))

    def encoder(self, request: ChatRequest) -> StreamEncoder:
        """Return an encoder; never asked for, a count is not streamed."""
        return self.counted.encoder(request)

    def response(self, request: ChatRequest, transcript: Transcript) -> bytes:  # noqa: ARG002 -- nothing is echoed
        """Return the JSON body of the answer."""
        finished = transcript.finished
        n_tokens = finished.usage.prompt_tokens if finished else 0
        return json_bytes({"object": "response.input_tokens", "input_tokens": n_tokens})

    def refusal(self, failed: Failed) -> RefusedError:
        """Return a job's failure as the error of this dialect."""
        return self.counted.refusal(failed)

    def error_body(self, error: RefusedError, *, request_id: str) -> bytes:
        """Return the JSON body of an error."""
        return self.counted.error_body(error, request_id=request_id)

    def status(self, code: ErrorCode) -> int:
        """Return the HTTP status of an error."""
        return self.counted.status(code)

    def models(self, cards: Sequence[ModelCard]) -> bytes:
        """Return the JSON body of the list of models."""
        return self.counted.models(cards)

    def model(self, card: ModelCard) -> bytes:
        """Return the JSON body of one model."""
        return self.counted.model(card)


def _dumped(raw: dict[str, object], body: bytes) -> bytes:
    try:
        return orjson.dumps(raw)
    except TypeError:  # nested too deep: the dialect itself says so, of the body as it came
        return body
