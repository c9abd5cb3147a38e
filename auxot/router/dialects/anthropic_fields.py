"""Everything that a request of Anthropic's messages may hold, and what becomes of it: one table.

    honoured    it does what Anthropic documents
    ignored     read over: the answer would be no other, or only Anthropic's own servers could give it a meaning
    refused     400 that names it: the answer would be another, and we cannot give that one

The readers ask these tables what to drop and what to refuse, so they cannot say one thing and do another. A test walks
the types of the official SDK and fails on a name that is not here. A name that nobody knows yet is ignored in a
request or in a block, and refused as the type of a block: dropping a piece of the conversation silently is worse.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import attrs

from auxot.router.dialects.field_table import FieldRule, Status
from auxot.router.dialects.sampling import SAMPLING_PARAMS


@attrs.frozen
class Entry:
    """One field, or one type of block, tool or setting.

    Attributes:
        status: what becomes of it.
        note: how it is honoured, or why it is not; of what is refused it is the text of the error.
        fields: the fields of a type that is honoured.
    """

    status: Status
    note: str = ""
    fields: Mapping[str, Entry] = attrs.field(factory=dict)


def _honoured(note: str = "", fields: Mapping[str, Entry] | None = None) -> Entry:
    return Entry(Status.HONOURED, note, fields or {})


def _ignored(note: str) -> Entry:
    return Entry(Status.IGNORED, note)


def _refused(note: str) -> Entry:
    return Entry(Status.REFUSED, note)


_YES = _honoured()
_CACHE = {"cache_control": _ignored("the prefix of every prompt is kept without being told")}
_NO_CITATIONS = {"citations": _ignored("answers hold no citations")}
_CALLER = {"caller": _ignored("there is no other caller than the model")}
_SERVER_TRACE = _ignored("left by a tool of Anthropic's servers")
_SERVER_TOOL = _ignored("runs on Anthropic's servers: the model is not offered it")
_NOT_STORED = "nothing is stored here: send the whole conversation"

REQUEST: Mapping[str, Entry] = {
    "model": _honoured("echoed"),
    "messages": _YES,
    "system": _honoured("a string or text blocks; the billing line of Claude Code is removed"),
    "max_tokens": _honoured("from 1: a request that only fills the cache is refused"),
    "stream": _YES,
    "stop_sequences": _honoured("up to 256"),
    "thinking": _honoured("off unless it is asked for: then no thoughts are shown"),
    "output_config": _YES,
    "output_format": _honoured("the older place of output_config.format"),
    "tools": _YES,
    "tool_choice": _YES,
    "temperature": _honoured("0 to 1"),
    **dict.fromkeys(SAMPLING_PARAMS, _honoured("as llama-server knows it")),
    **_CACHE,
    "context_management": _ignored("the history is used as it is sent"),
    "diagnostics": _ignored("cached tokens are told in usage"),
    "fallbacks": _ignored("there is one model"),
    "fallback_credit_token": _ignored("there is one model"),
    "inference_geo": _ignored("the workers are where they are"),
    "metadata": _ignored("changes no answer"),
    "service_tier": _ignored("all requests are alike"),
    "speed": _ignored("all requests are alike"),
    "billing_policy": _ignored("nothing is billed"),
    "user_profile_id": _ignored("nothing is billed"),
    "workspace_id": _ignored("there are no workspaces"),
    "betas": _ignored("changes no answer by itself"),
    "anthropic_beta": _ignored("changes no answer by itself"),
    "anthropic_version": _ignored("there is one version"),
    "compaction": _refused("compaction is not supported: ask for a summary in a message"),
    "container": _refused("containers are not supported: no code is run here"),
    "mcp_servers": _refused("remote MCP servers are not supported: offer their tools in tools"),
    "thread": _refused(_NOT_STORED),
}

MESSAGES: Mapping[str, Entry] = {
    "role": _honoured("user, assistant or system; neighbours of the same role become one message"),
    "content": _honoured("an assistant message at the end is continued"),
    "clear_at": _ignored("the history is used as it is sent"),
    "output_config": _ignored("the request's own holds"),
}

BLOCKS: Mapping[str, Entry] = {
    "text": _honoured(fields={"text": _YES, **_CACHE, **_NO_CITATIONS}),
    "image": _honoured(
        "for models that see",
        {"source": _YES, "transformations": _ignored("every image is fitted to the model"), **_CACHE},
    ),
    "document": _honoured("as text", {"source": _YES, "title": _YES, "context": _YES, **_CACHE, **_NO_CITATIONS}),
    "search_result": _honoured("as text", {"source": _YES, "title": _YES, "content": _YES, **_CACHE, **_NO_CITATIONS}),
    "thinking": _honoured(fields={"thinking": _YES, "signature": _ignored("not checked")}),
    "tool_use": _honoured(
        fields={
            "id": _YES,
            "name": _YES,
            "input": _honoured("JSON in a string is read; what cannot be an object is refused"),
            "toolset_name": _ignored("names are enough"),
            **_CALLER,
            **_CACHE,
        }
    ),
    "tool_result": _honoured(
        fields={
            "tool_use_id": _YES,
            "content": _honoured("text, images, documents, search results"),
            "is_error": _honoured("said in words to the model"),
            "toolset_name": _ignored("names are enough"),
            **_CACHE,
        }
    ),
    "compaction": _honoured(
        "as text",
        {
            "content": _YES,
            "encrypted_content": _ignored("only Anthropic can read it"),
            "signature": _ignored("not checked"),
            "tool_changes": _ignored("tools are those of the request"),
            **_CACHE,
        },
    ),
    "redacted_thinking": _ignored("only Anthropic can read it"),
    "tool_reference": _ignored("every tool is in the prompt from the start"),
    "fallback": _ignored("there is one model"),
    "server_tool_use": _SERVER_TRACE,
    "web_search_tool_result": _SERVER_TRACE,
    "web_fetch_tool_result": _SERVER_TRACE,
    "code_execution_tool_result": _SERVER_TRACE,
    "bash_code_execution_tool_result": _SERVER_TRACE,
    "text_editor_code_execution_tool_result": _SERVER_TRACE,
    "tool_search_tool_result": _SERVER_TRACE,
    "advisor_tool_result": _SERVER_TRACE,
    "mcp_tool_use": _SERVER_TRACE,
    "mcp_tool_result": _SERVER_TRACE,
    "mcp_tool_listing": _SERVER_TRACE,
    "container_upload": _refused("files are not stored here: send their text"),
    "browser_state": _refused("the browser toolset is not supported: say it in text"),
    "tool_addition": _refused("tools do not change within a request: list them in tools"),
    "tool_removal": _refused("tools do not change within a request: list them in tools"),
}

IMAGE_SOURCES: Mapping[str, Entry] = {
    "base64": _honoured(fields={"media_type": _YES, "data": _YES}),
    "url": _honoured("the router fetches it: http or https", {"url": _YES}),
    "file": _refused("files are not stored here: send the image as base64"),
}

DOCUMENT_SOURCES: Mapping[str, Entry] = {
    "text": _honoured(fields={"data": _YES, "media_type": _ignored("text is text")}),
    "content": _honoured("text and image blocks", {"content": _YES}),
    "base64": _honoured("text only: a PDF is refused", {"data": _YES, "media_type": _honoured("text/...")}),
    "url": _refused("documents are not fetched: send their text"),
    "file": _refused("files are not stored here: send their text"),
}

_TOOL_HINTS = {
    "allowed_callers": _ignored("there is no other caller than the model"),
    "defer_loading": _ignored("every tool is in the prompt from the start"),
    "input_examples": _ignored("a hint"),
    **_CACHE,
}
_CLIENT_TOOL = _honoured("offered with its documented schema", {"name": _YES, "strict": _YES, **_TOOL_HINTS})
_EDITOR = attrs.evolve(
    _CLIENT_TOOL, fields={**_CLIENT_TOOL.fields, "max_characters": _ignored("the client cuts what it shows")}
)
_COMPUTER = attrs.evolve(
    _CLIENT_TOOL,
    fields={
        **_CLIENT_TOOL.fields,
        "display_width_px": _YES,
        "display_height_px": _YES,
        "display_number": _ignored("the client knows its displays"),
        "enable_zoom": _ignored("the model is not offered it"),
    },
)
_TOOLSET = _refused("toolsets are not supported: offer each tool with its input_schema")

TOOLS: Mapping[str, Entry] = {
    "custom": _honoured(
        fields={
            "name": _YES,
            "description": _YES,
            "input_schema": _YES,
            "strict": _YES,
            "eager_input_streaming": _ignored("input is always streamed as it is written"),
            **_TOOL_HINTS,
        }
    ),
    "bash_20241022": _CLIENT_TOOL,
    "bash_20250124": _CLIENT_TOOL,
    "text_editor_20241022": _EDITOR,
    "text_editor_20250124": _EDITOR,
    "text_editor_20250429": _EDITOR,
    "text_editor_20250728": _EDITOR,
    "memory_20250818": _CLIENT_TOOL,
    "computer_20241022": _COMPUTER,
    "computer_20250124": _COMPUTER,
    "computer_20251124": _COMPUTER,
    "browser_toolset_20260801": _TOOLSET,
    "computer_toolset_20260801": _TOOLSET,
    "code_execution_20250522": _SERVER_TOOL,
    "code_execution_20250825": _SERVER_TOOL,
    "code_execution_20260120": _SERVER_TOOL,
    "code_execution_20260521": _SERVER_TOOL,
    "web_search_20250305": _SERVER_TOOL,
    "web_search_20260209": _SERVER_TOOL,
    "web_search_20260318": _SERVER_TOOL,
    "web_fetch_20250910": _SERVER_TOOL,
    "web_fetch_20260209": _SERVER_TOOL,
    "web_fetch_20260309": _SERVER_TOOL,
    "web_fetch_20260318": _SERVER_TOOL,
    "tool_search_tool_bm25": _SERVER_TOOL,
    "tool_search_tool_bm25_20251119": _SERVER_TOOL,
    "tool_search_tool_regex": _SERVER_TOOL,
    "tool_search_tool_regex_20251119": _SERVER_TOOL,
    "advisor_20260301": _SERVER_TOOL,
    "mcp_toolset": _SERVER_TOOL,
}

_PARALLEL = {"disable_parallel_tool_use": _YES}
TOOL_CHOICES: Mapping[str, Entry] = {
    "auto": _honoured(fields=_PARALLEL),
    "any": _honoured(fields=_PARALLEL),
    "tool": _honoured(fields={"name": _YES, **_PARALLEL}),
    "none": _honoured("the model is offered no tools"),
}

_DISPLAY = {
    "display": _honoured("summarized: the thoughts themselves; omitted: a signature only"),
    "block_binding": _ignored("signatures are not checked"),
}
THINKING: Mapping[str, Entry] = {
    "enabled": _honoured(fields={"budget_tokens": _YES, **_DISPLAY}),
    "adaptive": _honoured("on", _DISPLAY),
    "between_tools": _honoured("off: text between calls is no thought"),
    "disabled": _YES,
}

OUTPUT_CONFIG: Mapping[str, Entry] = {
    "effort": _honoured("where thinking is on"),
    "format": _honoured("json_schema"),
    "task_budget": _ignored("a hint"),
}
OUTPUT_FORMATS: Mapping[str, Entry] = {"json_schema": _honoured(fields={"schema": _YES})}

PARTS: Mapping[str, Mapping[str, Entry]] = {
    "": REQUEST,
    "messages[].": MESSAGES,
    "messages[].content[].": BLOCKS,
    "messages[].content[].image.source.": IMAGE_SOURCES,
    "messages[].content[].document.source.": DOCUMENT_SOURCES,
    "tools[].": TOOLS,
    "tool_choice.": TOOL_CHOICES,
    "thinking.": THINKING,
    "output_config.": OUTPUT_CONFIG,
    "output_config.format.": OUTPUT_FORMATS,
}
"""Every table, by the place in a request that it is about."""


def rows() -> Iterator[FieldRule]:
    """Yield the whole table, a type's own fields after it: `thinking.enabled`, `thinking.enabled.budget_tokens`."""
    for place, table in PARTS.items():
        for name, entry in table.items():
            yield FieldRule(place + name, entry.status, entry.note)
            for field, inner in entry.fields.items():
                yield FieldRule(f"{place}{name}.{field}", inner.status, inner.note)


def block_entry(kind: str) -> Entry | None:
    """Return what becomes of blocks of a type; a tool of Anthropic's servers that is newer than the table counts."""
    entry = BLOCKS.get(kind)
    return _SERVER_TRACE if entry is None and kind.endswith("_tool_result") else entry


def tool_entry(kind: str) -> Entry:
    """Return what becomes of tools of a type; one that is not known is Anthropic's own, as clients cannot add types.

    A version that is newer than the table counts as one of its family: `bash_20990101` is a bash.
    """
    entry = TOOLS.get(kind)
    if entry is None:
        family = kind.rstrip("0123456789")
        entry = next((known for name, known in TOOLS.items() if name.rstrip("0123456789") == family), _SERVER_TOOL)
    return entry
