"""A first token before the first job: a llama-server that has loaded its model may still be unable to generate.

A GPU that hangs, a driver that does not match, a KV cache that is allocated at first use: all of that is seen at the
first token, and better here than in somebody's answer.
"""

from __future__ import annotations

from http import HTTPStatus

import orjson
import trio

from auxot.core.errors import LlamaError
from auxot.worker.llama.http import BrokenExchangeError, LlamaHttp

CANARY_TIMEOUT_S = 120.0  # weights that are mapped come from the disk with the first token

_REQUEST = orjson.dumps({"prompt": "Hi", "n_predict": 1, "temperature": 0, "cache_prompt": False})
_MAX_BYTES = 1024 * 1024
_MAX_SHOWN_CHARS = 200


async def generate_one_token(http: LlamaHttp) -> None:
    """Have one token generated, in CANARY_TIMEOUT_S; one that is not for generating (embeddings) has nothing to show.

    Raises:
        LlamaError: it did not; says what it did in place of that.
    """
    try:
        with trio.fail_after(CANARY_TIMEOUT_S):
            status, body = await http.post("/completion", _REQUEST, max_bytes=_MAX_BYTES)
    except trio.TooSlowError as exc:
        raise LlamaError(f"llama-server loaded its model, but wrote no token within {CANARY_TIMEOUT_S:g} s") from exc
    except BrokenExchangeError as exc:
        raise LlamaError(f"llama-server loaded its model, but broke off at the first token: {exc}") from exc
    if status in (HTTPStatus.NOT_FOUND, HTTPStatus.NOT_IMPLEMENTED):
        return
    if status != HTTPStatus.OK or not _has_token(body):
        shown = body[:_MAX_SHOWN_CHARS].decode(errors="replace")
        raise LlamaError(f"llama-server loaded its model, but answered status {status} to the first token: {shown}")


def _has_token(body: bytes) -> bool:
    try:
        n_tokens = orjson.loads(body)["tokens_predicted"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return False
    return type(n_tokens) is int and n_tokens > 0
