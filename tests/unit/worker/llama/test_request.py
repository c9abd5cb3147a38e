from __future__ import annotations

from typing import Any

from auxot.core.errors import ErrorCode
from auxot.core.jobs import ChatMessage, Function, FunctionCall, Job, Tool, ToolCall
from auxot.worker.llama.request import chat_request, completion_request, too_long

USER = ChatMessage(role="user", content="Hi")
SCHEMA = {
    "type": "object",
    "properties": {"days": {"type": "array", "items": {"anyOf": [{"type": "integer"}, {"$ref": "#/$defs/day"}]}}},
    "$defs": {"day": {"type": "string", "enum": ["mon"]}},
    "additionalProperties": False,
}


def job(*messages: ChatMessage, **fields: Any) -> Job:
    return Job(job_id="j", messages=messages or (USER,), **fields)


def test_plain_job() -> None:
    """A job is asked for without what streaming, counting and cancelling need."""
    assert chat_request(job(temperature=0.5, max_tokens=7)).body == {
        "model": "local",
        "messages": [{"role": "user", "content": "Hi"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_progress": True,
        "temperature": 0.5,
        "max_tokens": 7,
    }


def test_completion() -> None:
    """A raw prompt is not asked for as it is, or cannot be streamed, counted and cancelled."""
    params = {"n": 2, "stop": ["x"], "prompt": "not this", "stream": False}
    request = completion_request(Job(job_id="j", messages=(), prompt=["a", [1, 2]], max_tokens=7, params=params))
    assert (request.path, request.n_choices, request.max_tokens) == ("/v1/completions", 2, 7)
    assert request.body == {
        "model": "local",
        "prompt": ["a", [1, 2]],
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_progress": True,
        "max_tokens": 7,
        "n": 2,
        "stop": ["x"],
        "verbose": True,
    }


def test_params_go_through_but_not_over_ours() -> None:
    """A caller's sampling field is lost, or one switches streaming off."""
    params = {"top_p": 0.5, "grammar": "g", "stream": False, "model": "x", "messages": [], "return_progress": False}
    body = chat_request(job(params=params)).body
    assert (body["top_p"], body["grammar"]) == (0.5, "g")
    assert (body["stream"], body["return_progress"], body["model"], len(body["messages"])) == (True, True, "local", 1)


def test_stop_words_ask_for_their_name() -> None:
    """The router cannot say which stop word was written."""
    assert chat_request(job(params={"stop": ["x"]})).body["verbose"] is True
    assert "verbose" not in chat_request(job(params={"stop": []})).body


def test_tools_stay_whole() -> None:
    """Nested schemas are cut down, and the model calls tools with wrong arguments."""
    tool = Tool(function=Function(name="f", parameters=SCHEMA, strict=True))
    assert chat_request(job(tools=(tool,))).body["tools"] == [
        {"type": "function", "function": {"name": "f", "parameters": SCHEMA, "strict": True}}
    ]


def test_tool_history() -> None:
    """A conversation with tool calls loses their ids, or has arguments that templates cannot parse."""
    call = ToolCall(id="c1", function=FunctionCall(name="f", arguments=""))
    messages = (
        USER,
        ChatMessage(role="assistant", content=None, tool_calls=(call,), reasoning_content="hm"),
        ChatMessage(role="tool", content="42", tool_call_id="c1", name="f"),
    )
    assert chat_request(job(*messages)).body["messages"][1:] == [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
            "reasoning_content": "hm",
        },
        {"role": "tool", "content": "42", "tool_call_id": "c1", "name": "f"},
    ]


def test_flat_image_is_written_in_the_long_form() -> None:
    """llama-server refuses an image that the caller sent in the short form."""
    parts = [{"type": "text", "text": "see"}, {"type": "image_url", "image_url": "data:image/png;base64,xx"}]
    content = chat_request(job(ChatMessage(role="user", content=parts))).body["messages"][0]["content"]
    assert content == [parts[0], {"type": "image_url", "image_url": {"url": "data:image/png;base64,xx"}}]


def test_effort_none_switches_thinking_off() -> None:
    """A caller who wants no reasoning gets it, or one who set it himself is overruled."""
    body = chat_request(job(reasoning_effort="None")).body
    assert body["chat_template_kwargs"] == {"enable_thinking": False, "thinking": False}
    kwargs = {"enable_thinking": True, "x": 1}
    body = chat_request(job(reasoning_effort="none", params={"chat_template_kwargs": kwargs})).body
    assert body["chat_template_kwargs"] == {"enable_thinking": True, "thinking": False, "x": 1}
    assert "chat_template_kwargs" not in chat_request(job(reasoning_effort="high")).body


def test_prefill_is_the_text_of_a_last_assistant_message() -> None:
    """Text that the caller began is repeated in the answer."""
    assert chat_request(job(USER, ChatMessage(role="assistant", content="And"))).prefill == "And"
    parts = [{"type": "text", "text": "An"}, {"type": "text", "text": "d"}]
    assert chat_request(job(USER, ChatMessage(role="assistant", content=parts))).prefill == "And"
    assert chat_request(job()).prefill == ""


def test_a_prompt_of_known_length_is_refused_with_the_numbers() -> None:
    """A prompt that cannot fit is sent to llama-server, or one that fits is refused."""
    failure = too_long(Job(job_id="j", messages=(), prompt=list(range(101))), 100)
    assert failure is not None
    assert (failure.code, failure.n_prompt_tokens, failure.n_ctx) == (ErrorCode.CONTEXT_LENGTH_EXCEEDED, 101, 100)
    assert too_long(Job(job_id="j", messages=(), prompt=[[1, 2], list(range(101))]), 100) == failure
    for prompt in (list(range(100)), [list(range(100)), "x" * 101], "x" * 1000, ["x" * 1000], None):
        assert too_long(Job(job_id="j", messages=(), prompt=prompt), 100) is None
