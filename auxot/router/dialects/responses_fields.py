"""What the Responses API may send, and what becomes of each part of it: the tables that the reader follows.

    HONOURED    it does here what the API says
    IGNORED     accepted, and without effect: the answer is as good without it
    REFUSED     400 with `param`: an answer without it would not be what was asked for

Names that stand in no table are ignored in the body of a request (SDKs send new ones every month), tolerated and not
offered to the model as tools, and refused as input items, whose meaning would be lost.

The rows are what the reader follows, so they cannot say one thing while it does another.

Source: the types of the official SDK, https://platform.openai.com/docs/api-reference/responses/create
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from auxot.router.dialects.field_table import FieldRule, Status, extensions
from auxot.router.dialects.fields import Fields
from auxot.router.dialects.sampling import OUTPUT_PARAMS, SAMPLING_PARAMS, Reader

# What llama-server takes beside the documented fields; the API has other names for the rest of OUTPUT_PARAMS.
PARAMS: Mapping[str, Reader] = {
    **SAMPLING_PARAMS,
    **{
        name: OUTPUT_PARAMS[name]
        for name in ("stop", "json_schema", "parallel_tool_calls", "add_generation_prompt", "continue_final_message")
    },
}


@attrs.frozen
class Rule:
    """What becomes of one name.

    Attributes:
        status: what becomes of it.
        note: how it is honoured, or why it is not; of what is refused it is the text of the error.
        tolerated: values that a refused field may have, because they ask for nothing.
    """

    status: Status
    note: str = ""
    tolerated: tuple[Any, ...] = (None,)


def _honoured(how: str = "") -> Rule:
    return Rule(Status.HONOURED, how)


def _ignored(why: str) -> Rule:
    return Rule(Status.IGNORED, why)


def _refused(why: str, *tolerated: Any) -> Rule:
    return Rule(Status.REFUSED, why, (None, *tolerated))


_NOT_STORED = "nothing is stored here: send the whole conversation as input"
_HOSTED = "a tool that runs on OpenAI's servers"
_RECORD = "what a tool on another server did: its outcome is in the messages after it"

REQUEST_FIELDS: Mapping[str, Rule] = {
    "input": _honoured("a string, or items; see the tables below"),
    "model": _honoured(),
    "instructions": _honoured("the first system message"),
    "max_output_tokens": _honoured(),
    "temperature": _honoured(),
    "top_p": _honoured(),
    "top_logprobs": _honoured("more than 0 asks for log probabilities, as `include` does"),
    "tools": _honoured("functions, custom tools and namespaces; others are not offered to the model"),
    "tool_choice": _honoured("auto, none, required, a function, a custom tool, allowed_tools"),
    "parallel_tool_calls": _honoured(),
    "text": _honoured("format text, json_object or json_schema; verbosity for chat templates that know it"),
    "reasoning": _honoured("effort; reasoning is returned whole, so that no summary is made"),
    "include": _honoured("message.output_text.logprobs, reasoning.encrypted_content; the rest has nothing to show"),
    "stream": _honoured(),
    "metadata": _honoured("returned"),
    "user": _honoured("returned"),
    "safety_identifier": _honoured("returned"),
    "prompt_cache_key": _honoured("returned"),
    "max_tool_calls": _ignored("counts the calls of tools that run on OpenAI's servers"),
    "store": _ignored("nothing is ever stored, and the response says so"),
    "truncation": _ignored("an input that is too long is refused, as with `disabled`"),
    "stream_options": _ignored("no obfuscation is added"),
    "service_tier": _ignored("there is one tier"),
    "prompt_cache_options": _ignored("the prompt cache needs no breakpoints"),
    "prompt_cache_retention": _ignored("a prefix stays cached as long as its slot is not needed"),
    "context_management": _ignored("nothing is compacted; an input that is too long is refused"),
    "access_programs": _ignored("there are none"),
    "image": _ignored("images go to the model as they are"),
    "background": _refused("background responses are not supported", False),
    "conversation": _refused(_NOT_STORED, ""),
    "previous_response_id": _refused(_NOT_STORED, ""),
    "prompt": _refused("prompt templates are not stored here: send their text as input"),
    "moderation": _refused("there is no moderation model here"),
}

INPUT_ITEMS: Mapping[str, Rule] = {
    "message": _honoured("roles user, assistant, system, developer"),
    "reasoning": _honoured("content, or what this router put into encrypted_content"),
    "function_call": _honoured(),
    "function_call_output": _honoured(),
    "custom_tool_call": _honoured(),
    "custom_tool_call_output": _honoured(),
    "local_shell_call": _honoured("as a call of `local_shell`"),
    "local_shell_call_output": _honoured(),
    "shell_call": _honoured("as a call of `shell`"),
    "shell_call_output": _honoured(),
    "apply_patch_call": _honoured("as a call of `apply_patch`"),
    "apply_patch_call_output": _honoured(),
    "additional_tools": _honoured("its tools are offered"),
    "tool_search_call": _ignored("the tools that it found are offered"),
    "tool_search_output": _honoured("its tools are offered"),
    "web_search_call": _ignored(_RECORD),
    "file_search_call": _ignored(_RECORD),
    "code_interpreter_call": _ignored(_RECORD),
    "image_generation_call": _ignored(_RECORD),
    "mcp_list_tools": _ignored(_RECORD),
    "mcp_approval_request": _ignored(_RECORD),
    "mcp_approval_response": _ignored(_RECORD),
    "mcp_call": _ignored(_RECORD),
    "item_reference": _refused(_NOT_STORED),
    "computer_call": _refused("computer use is not supported"),
    "computer_call_output": _refused("computer use is not supported"),
    "configuration_update": _ignored("the fields of the request count"),
    "compaction": _refused("a compacted conversation can be read only by the server that made it"),
    "compaction_trigger": _refused("compaction is not supported"),
    "program": _refused("programmatic tool calling is not supported"),
    "program_output": _refused("programmatic tool calling is not supported"),
}

CONTENT_PARTS: Mapping[str, Rule] = {
    "input_text": _honoured(),
    "output_text": _honoured(),
    "text": _honoured("as input_text"),
    "refusal": _honoured("as text"),
    "input_image": _honoured("image_url: a data: URL, or one that the router fetches (https:, http:)"),
    "input_audio": _honoured(),
    "input_file": _refused("files are not supported: send their text"),
}

TOOLS: Mapping[str, Rule] = {
    "function": _honoured(),
    "custom": _honoured("as a function with one string; a grammar is told to the model, not enforced"),
    "namespace": _honoured("its functions and custom tools, each under its own name"),
    "web_search": _ignored(_HOSTED),
    "web_search_2025_08_26": _ignored(_HOSTED),
    "web_search_preview": _ignored(_HOSTED),
    "web_search_preview_2025_03_11": _ignored(_HOSTED),
    "file_search": _ignored(_HOSTED),
    "code_interpreter": _ignored(_HOSTED),
    "image_generation": _ignored(_HOSTED),
    "mcp": _ignored(_HOSTED),
    "computer": _ignored("computer use is not supported"),
    "computer_use_preview": _ignored("computer use is not supported"),
    "programmatic_tool_calling": _ignored(_HOSTED),
    "tool_search": _ignored("all tools are offered at once"),
    "local_shell": _ignored("models know it only if they were trained for it"),
    "shell": _ignored("models know it only if they were trained for it"),
    "apply_patch": _ignored("models know it only if they were trained for it"),
}

TOOL_CHOICES: Mapping[str, Rule] = {
    "function": _honoured(),
    "custom": _honoured(),
    "allowed_tools": _honoured(),
    **{
        kind: _refused("this tool is not supported, so that it cannot be chosen")
        for kind in (
            "apply_patch",
            "code_interpreter",
            "computer",
            "computer_use",
            "computer_use_preview",
            "file_search",
            "image_generation",
            "mcp",
            "programmatic_tool_calling",
            "shell",
            "web_search_preview",
            "web_search_preview_2025_03_11",
        )
    },
}

INCLUDES: Mapping[str, Rule] = {
    "message.output_text.logprobs": _honoured(),
    "reasoning.encrypted_content": _honoured("the reasoning itself, encoded: send it back as it is"),
    "message.input_image.image_url": _ignored("the input is not returned"),
    "file_search_call.results": _ignored(_HOSTED),
    "web_search_call.results": _ignored(_HOSTED),
    "web_search_call.action.sources": _ignored(_HOSTED),
    "code_interpreter_call.outputs": _ignored(_HOSTED),
    "computer_call_output.output.image_url": _ignored(_HOSTED),
}

_TABLES: Mapping[str, Mapping[str, Rule]] = {
    "": REQUEST_FIELDS,
    "input[].type=": INPUT_ITEMS,
    "input[].content[].type=": CONTENT_PARTS,
    "tools[].type=": TOOLS,
    "tool_choice.type=": TOOL_CHOICES,
    "include[]=": INCLUDES,
}


def field_rules() -> tuple[FieldRule, ...]:
    """Return all tables as rows, with llama-server's own fields at the end."""
    documented = [
        FieldRule(f"{path}{name}", rule.status, rule.note)
        for path, table in _TABLES.items()
        for name, rule in table.items()
    ]
    return (*documented, *extensions(PARAMS, documented))


def check_fields(fields: Fields) -> None:
    """Refuse a body that asks for what is not served.

    Raises:
        RefusedError: it has a refused field, with a value that asks for something.
    """
    for name, rule in REQUEST_FIELDS.items():
        if rule.status is Status.REFUSED and fields.get(name) not in rule.tolerated:
            raise fields.refused(name, rule.note)


def check_type(holder: Fields, kind: str, table: Mapping[str, Rule]) -> None:
    """Refuse an item, a part or a choice by its type.

    Raises:
        RefusedError: the table refuses it, or does not know it.
    """
    rule = table.get(kind)
    if rule is None:
        known = sorted(name for name, known in table.items() if known.status is not Status.REFUSED)
        raise holder.refused("type", f"must be one of {', '.join(known)}")
    if rule.status is Status.REFUSED:
        raise holder.refused("type", rule.note)
