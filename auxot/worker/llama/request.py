"""From a Job to the body of llama-server's chat completions or completions: pure.

Everything goes through unchanged (tool schemas whole, sampling fields verbatim); what is set here is what llama-server
needs to be told so that the answer can be streamed, counted and cancelled.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from auxot.core.errors import ErrorCode
from auxot.core.jobs import ChatMessage, Failed, Job, Tool, ToolCall

# Fields of the body that `params` cannot change: they are the job's own, or what reading the stream stands on.
_OURS = frozenset(
    {"model", "messages", "tools", "temperature", "max_tokens", "reasoning_effort"}
    | {"prompt", "stream", "stream_options", "return_progress", "verbose"}
)


@attrs.frozen(kw_only=True)
class LlamaRequest:
    """A request for llama-server that it answers with a stream of chunks.

    Attributes:
        body: what is sent.
        path: where.
        prefill: the text that the model is to continue, "" if there is none.
        max_tokens: of one choice; None: no limit.
        n_choices: of each prompt.
    """

    body: Mapping[str, Any]
    path: str = "/v1/chat/completions"
    prefill: str = ""
    max_tokens: int | None = None
    n_choices: int = 1


def chat_request(job: Job) -> LlamaRequest:
    """Translate a CHAT job; of a COUNT job the body is the same, so that the same prompt is counted.

    Always streamed, also for callers who wait for the whole answer, and always with progress: llama-server notices
    that a request was dropped only when it writes, and during the prompt it writes nothing but progress. With stop
    words also `verbose`, without which it does not tell which one was written; that repeats the prompt once, at the
    end, as text.
    """
    body = _body(job, messages=[_message(message) for message in job.messages])
    if job.tools:
        body["tools"] = [_tool(tool) for tool in job.tools]
    if job.reasoning_effort is not None:
        body["reasoning_effort"] = job.reasoning_effort
    if (job.reasoning_effort or "").lower() == "none":
        body["reasoning_effort"] = "none"
        body["chat_template_kwargs"] = _without_thinking(body.get("chat_template_kwargs"))
    return LlamaRequest(body=body, prefill=_prefill(job), max_tokens=job.max_tokens, n_choices=_n_choices(job))


def completion_request(job: Job) -> LlamaRequest:
    """Translate a COMPLETION job; asked for in the same way as a chat."""
    body = _body(job, prompt=job.prompt)
    path = "/v1/completions"
    return LlamaRequest(body=body, path=path, max_tokens=job.max_tokens, n_choices=_n_choices(job))


def too_long(job: Job, slot_ctx_tokens: int) -> Failed | None:
    """Return the failure of a prompt that cannot fit, where its length is certain: one that is given as token ids.

    Of text nobody knows without the model's tokens, and llama-server itself refuses it before it computes anything.

    Args:
        job: what is to be generated.
        slot_ctx_tokens: context of one slot.
    """
    n_tokens = max(map(_n_tokens, _prompts(job.prompt)), default=0)
    if n_tokens <= slot_ctx_tokens:
        return None
    message = f"the prompt has {n_tokens} tokens, and the context of a slot has {slot_ctx_tokens}"
    return Failed(ErrorCode.CONTEXT_LENGTH_EXCEEDED, message, n_tokens, slot_ctx_tokens)


def _prompts(prompt: Any) -> list[Any]:
    """Return the prompts of a job, each a text or a list of token ids."""
    is_several = isinstance(prompt, list) and any(isinstance(one, list) for one in prompt)
    return prompt if is_several else [prompt]


def _n_tokens(prompt: Any) -> int:
    return len(prompt) if isinstance(prompt, list) and all(type(token) is int for token in prompt) else 0


def _body(job: Job, **own: Any) -> dict[str, Any]:
    """Return what both kinds of body have in common, with a field of its own."""
    body: dict[str, Any] = {
        **{name: value for name, value in job.params.items() if name not in _OURS},
        "model": "local",
        **own,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_progress": True,
    }
    limits = {"temperature": job.temperature, "max_tokens": job.max_tokens}
    body |= {name: value for name, value in limits.items() if value is not None}
    if body.get("stop"):
        body["verbose"] = True
    return body


def _n_choices(job: Job) -> int:
    n_choices = job.params.get("n")
    return n_choices if type(n_choices) is int and n_choices > 0 else 1


def _without_thinking(kwargs: Any) -> dict[str, Any]:
    """Switch thinking off under the names that chat templates know it by, where the caller did not say otherwise."""
    return {"enable_thinking": False, "thinking": False, **(kwargs if isinstance(kwargs, dict) else {})}


def _message(message: ChatMessage) -> dict[str, Any]:
    fields: dict[str, Any] = {"role": message.role, "content": _content(message.content)}
    if message.tool_calls:
        fields["tool_calls"] = [_tool_call(call) for call in message.tool_calls]
    optional = {
        "tool_call_id": message.tool_call_id,
        "name": message.name,
        "reasoning_content": message.reasoning_content,
    }
    return fields | {name: value for name, value in optional.items() if value is not None}


def _content(content: Any) -> Any:
    """Write content as llama-server takes it: no null, images in the long form."""
    if content is None:
        return ""
    if isinstance(content, list):
        return [_part(part) for part in content]
    return content


def _part(part: Any) -> Any:
    if isinstance(part, dict) and isinstance(part.get("image_url"), str):
        return {**part, "image_url": {"url": part["image_url"]}}
    return part


def _tool_call(call: ToolCall) -> dict[str, Any]:
    arguments = call.function.arguments or "{}"  # templates parse them; nothing is not JSON
    return {"id": call.id, "type": call.type, "function": {"name": call.function.name, "arguments": arguments}}


def _tool(tool: Tool) -> dict[str, Any]:
    function = attrs.asdict(tool.function, recurse=False)
    return {"type": tool.type, "function": {name: value for name, value in function.items() if value is not None}}


def _prefill(job: Job) -> str:
    """Return the text of an assistant message at the end: llama-server goes on writing it."""
    last = job.messages[-1] if job.messages else None
    if last is None or last.role != "assistant" or last.tool_calls:
        return ""
    if isinstance(last.content, list):
        return "".join(str(part.get("text") or "") for part in last.content if isinstance(part, dict))
    return last.content if isinstance(last.content, str) else ""
