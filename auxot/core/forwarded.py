"""The endpoints of llama-server that are passed on as they are: one table, for the router and its workers. Pure.

The router serves what stands here (`router.forward_table` says which bodies it looks at), and a worker asks its
llama-server for nothing else: what changes a llama-server or tells of other people's prompts (`/slots`, `/props`,
`/lora-adapters`) cannot be reached through a router. To add an endpoint, add a line.

Source of the paths: tools/server/README.md of llama.cpp.
"""

from __future__ import annotations

import attrs

from auxot.core.jobs import Kind
from auxot.core.messages import FEATURE_OF_KIND

AUDIO = "audio"
INPUT_TOKENS_PATH = "/v1/chat/completions/input_tokens"  # counts a prompt; older servers do not have it


@attrs.frozen
class ForwardedEndpoint:
    """One row of the table.

    Attributes:
        path: as llama-server knows it.
        routes: as the router's clients know it, within OpenAI's API and without `/v1`.
        needs: the feature that a worker must announce; a word of its own where not every llama-server can do it.
        is_own: llama.cpp's own, no API's: served without a prefix too.
        streams: answers with server-sent events where the request says `stream`.
        is_upload: takes a form with a file, not JSON.
        method: GET or POST.
    """

    path: str
    routes: tuple[str, ...]
    needs: str = FEATURE_OF_KIND[Kind.FORWARD]
    is_own: bool = False
    streams: bool = False
    is_upload: bool = False
    method: str = "POST"


FORWARDED = (
    ForwardedEndpoint("/v1/embeddings", ("/embeddings",), needs="embeddings"),
    ForwardedEndpoint("/v1/rerank", ("/rerank", "/reranking"), needs="rerank", is_own=True),
    ForwardedEndpoint(
        "/v1/audio/transcriptions", ("/audio/transcriptions",), needs=AUDIO, streams=True, is_upload=True
    ),
    ForwardedEndpoint("/infill", ("/infill",), needs="infill", is_own=True, streams=True),
    ForwardedEndpoint("/tokenize", ("/tokenize",), is_own=True),
    ForwardedEndpoint("/detokenize", ("/detokenize",), is_own=True),
    ForwardedEndpoint("/apply-template", ("/apply-template",), is_own=True),
)
# What a worker finds out by asking its llama-server: feature -> a path that answers 404 or 501 to PROBE_BODY where it
# cannot do that. None of them computes anything for it. Whether it understands sound stands in `/props`.
PROBES = {
    FEATURE_OF_KIND[Kind.COUNT]: INPUT_TOKENS_PATH,
    **{row.needs: row.path for row in FORWARDED if row.needs not in (FEATURE_OF_KIND[Kind.FORWARD], AUDIO)},
}
PROBE_BODY = b'{"messages":[{"role":"user","content":"x"}],"input_extra":0}'
