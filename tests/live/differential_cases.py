"""The requests that llama-server and the router are both asked, each streaming and blocking.

Where we differ on purpose a case says in `why` what llama-server must be asked instead, or `view` makes of its answer
what we promise.
"""

from __future__ import annotations

from typing import Any

import attrs

from auxot.demo.tiny_model import ANSWER, TOOL_NAME, TOOL_PARAMETERS
from tests.live.differential import Answer, Case, LogprobView

HI: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
PLAIN = {**HI, "chat_template_kwargs": {"enable_thinking": False}}
# Under a grammar all letters are alike to the tiny model, so that what is drawn hangs on every sampling field.
LETTERS = {**PLAIN, "grammar": "root ::= [a-z]{24}", "seed": 7, "temperature": 1}
GREEDY = {**PLAIN, "temperature": 0}
SCHEMA = {"type": "object", "properties": {"sunny": {"type": "boolean"}}, "required": ["sunny"]}
WEATHER = {"type": "function", "function": {"name": TOOL_NAME, "parameters": TOOL_PARAMETERS}}
CLOCK = {
    "type": "function",
    "function": {"name": "clock", "description": "Tells the time", "parameters": {"type": "object", "properties": {}}},
}
CALL = {"id": "call_1", "type": "function", "function": {"name": TOOL_NAME, "arguments": '{"city": "Paris"}'}}
ASSISTANT_CALL = {"role": "assistant", "content": None, "tool_calls": [CALL]}
TOOL_RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "12 degrees"}


def said(*messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """Return a request with these messages."""
    return {**PLAIN, "messages": list(messages), **fields}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def without(prefix: str) -> Any:
    """Return a view that drops the prefilled text: llama-server repeats it, where OpenAI's API only continues."""

    def view(answer: Answer) -> Answer:
        (choice,) = answer.choices
        assert choice.text.startswith(prefix)
        return attrs.evolve(answer, choices=(attrs.evolve(choice, text=choice.text.removeprefix(prefix)),))

    return view


def counting(n_prompt_tokens: int, n_answer_tokens: int) -> Any:
    """Return a view with the tokens of all choices: llama-server counts those of one."""
    usage = (n_prompt_tokens, n_answer_tokens, n_prompt_tokens + n_answer_tokens)
    return lambda answer: attrs.evolve(answer, usage=usage)


def in_legacy_form(answer: Answer) -> Answer:
    """Return a view in which each token is among its alternatives, as OpenAI's completions have it."""

    def legacy(view: LogprobView) -> LogprobView:
        token, logprob, others = view
        shown = dict(reversed(others))  # of two that are spelt alike the likelier one
        return token, logprob, tuple({**{other: shown[other] for other, _ in others}, token: logprob}.items())

    (choice,) = answer.choices
    return attrs.evolve(answer, choices=(attrs.evolve(choice, logprobs=tuple(map(legacy, choice.logprobs or ()))),))


ANSWERS = [
    Case(name="plain", body=PLAIN),
    Case(name="thinking", body=HI),
    Case(name="no_thinking", body={**HI, "reasoning_effort": "none"}),
    Case(name="much_thinking", body={**HI, "reasoning_effort": "high"}),
    Case(name="system", body=said({"role": "system", "content": "Be brief."}, user("hi"))),
    Case(
        name="developer",
        body=said({"role": "developer", "content": "Be brief."}, user("hi")),
        direct=said({"role": "system", "content": "Be brief."}, user("hi")),
        why="templates know `system`: `developer` is OpenAI's new word for it",
    ),
    Case(name="parts", body=said(user([{"type": "text", "text": "Say "}, {"type": "text", "text": "hi"}]))),
    Case(name="turns", body=said(user("hi"), {"role": "assistant", "content": "Yes?"}, user("go on"))),
    Case(name="named", body=said({"role": "user", "name": "ann", "content": "hi"})),
    Case(name="empty", body=said(user(""))),
    Case(name="unicode", body=said(user("h\u00e9llo \U0001f98a \u4f60\u597d \u0000 \u2028 end"))),
    Case(name="long", body=said(user("word " * 800))),
    Case(
        name="reasoning_in_history",
        body=said(
            user("hi"), {"role": "assistant", "content": "Yes?", "reasoning_content": "Let me see."}, user("go on")
        ),
    ),
    Case(name="tool_result", body=said(user("weather?"), ASSISTANT_CALL, TOOL_RESULT, tools=[WEATHER])),
    Case(
        name="two_calls_in_history",
        body=said(
            user("weather?"),
            {"role": "assistant", "content": "Both.", "tool_calls": [CALL, {**CALL, "id": "call_2"}]},
            TOOL_RESULT,
            {**TOOL_RESULT, "tool_call_id": "call_2"},
        ),
    ),
    Case(
        name="prefill", body=said(user("hi"), {"role": "assistant", "content": "The quick"}), view=without("The quick")
    ),
    Case(
        name="prefill_parts",
        body=said(
            user("hi"), {"role": "assistant", "content": [{"type": "text", "text": "The quick brown"}]}, max_tokens=3
        ),
        view=without("The quick brown"),
    ),
    Case(name="not_cached", body={**PLAIN, "cache_prompt": False}),
]

LIMITS = [
    Case(name="max_tokens_1", body={**PLAIN, "max_tokens": 1}),
    Case(name="max_tokens_5", body={**PLAIN, "max_tokens": 5}),
    Case(name="max_tokens_before_the_end", body={**PLAIN, "max_tokens": len(ANSWER.split())}),
    Case(name="max_tokens_just_enough", body={**PLAIN, "max_tokens": len(ANSWER.split()) + 1}),
    Case(name="max_tokens_while_thinking", body={**HI, "max_tokens": 4}),
    Case(name="max_completion_tokens", body={**PLAIN, "max_completion_tokens": 4}),
    Case(name="n_predict", body={**PLAIN, "n_predict": 3}),
    Case(name="endless", body={**PLAIN, "ignore_eos": True, "max_tokens": 80}),
    Case(name="stop", body={**PLAIN, "stop": "lazy"}),
    Case(name="stops", body={**PLAIN, "stop": ["winter", "lazy dog"]}),
    Case(name="stop_across_tokens", body={**PLAIN, "stop": ["n fox ju"]}),
    Case(name="stop_never_written", body={**PLAIN, "stop": ["zebra"]}),
    Case(name="stop_at_once", body={**PLAIN, "stop": ["The"]}),
    Case(name="stop_after_thinking", body={**HI, "stop": ["fox"]}),
    Case(name="choices", body={**PLAIN, "n": 2, "max_tokens": 4}, view=counting(21, 2 * 4)),
    Case(name="choices_stopped", body={**PLAIN, "n": 3, "stop": ["fox"]}, view=counting(21, 3 * 4)),
    Case(name="logprobs", body={**PLAIN, "logprobs": True, "top_logprobs": 1, "max_tokens": 4}),
    Case(name="top_logprobs", body={**LETTERS, "logprobs": True, "top_logprobs": 3}, streamed=True),
    Case(name="logprobs_of_thoughts", body={**HI, "logprobs": True, "top_logprobs": 2}, streamed=True),
    Case(
        name="logprobs_of_choices",
        body={**PLAIN, "n": 2, "logprobs": True, "top_logprobs": 2, "max_tokens": 2},
        view=counting(21, 2 * 2),
    ),
    Case(
        name="choices_drawn",
        body={**PLAIN, "n": 3, "grammar": "root ::= [0-9]{24}", "seed": 7, "temperature": 1},
        view=counting(21, 3 * 25),
    ),
    Case(name="post_sampling_probs", body={**PLAIN, "max_tokens": 3, "post_sampling_probs": False, "n_probs": 2}),
]

SAMPLING = [
    Case(name=f"{name}_{value}" if type(value) in (int, float) else name, body={**LETTERS, name: value})
    for name, value in [
        ("seed", 8),
        ("temperature", 0),
        ("temperature", 0.3),
        ("temperature", 2),
        ("top_k", 3),
        ("top_p", 0.4),
        ("min_p", 0.5),
        ("typical_p", 0.5),
        ("top_n_sigma", 1.5),
        ("xtc_probability", 0.5),
        ("dynatemp_range", 0.5),
        ("repeat_penalty", 1.5),
        ("presence_penalty", 2),
        ("frequency_penalty", 1.5),
        ("dry_multiplier", 0.8),
        ("mirostat", 1),
        ("mirostat", 2),
        ("min_keep", 4),
        ("samplers", ["top_k", "temperature"]),
        ("logit_bias", {"a": 5, "z": -100}),
        ("logit_bias", [["q", 3], ["x", False]]),
    ]
]

CONSTRAINED = [
    Case(name="grammar", body={**GREEDY, "grammar": 'root ::= "yes" | "no"'}),
    Case(name="json_object", body={**GREEDY, "response_format": {"type": "json_object"}, "max_tokens": 40}),
    Case(
        name="response_schema",
        body={**GREEDY, "response_format": {"type": "json_schema", "json_schema": {"name": "w", "schema": SCHEMA}}},
    ),
    Case(name="response_text", body={**GREEDY, "response_format": {"type": "text"}}),
    Case(name="json_schema", body={**GREEDY, "json_schema": SCHEMA}),
    Case(
        name="schema_after_thinking",
        body={
            **HI,
            "temperature": 0,
            "response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA, "strict": True}},
        },
    ),
]

TOOLS = [
    Case(name="tools", body={**PLAIN, "tools": [WEATHER]}),
    Case(name="tools_auto", body={**PLAIN, "tools": [WEATHER, CLOCK], "tool_choice": "auto"}),
    Case(name="tools_thinking", body={**HI, "tools": [WEATHER]}),
    Case(name="tools_not_called", body={**PLAIN, "tools": [CLOCK]}),
    Case(name="tools_required", body={**GREEDY, "tools": [WEATHER], "tool_choice": "required"}),
    Case(name="tools_parallel", body={**PLAIN, "tools": [WEATHER, CLOCK], "parallel_tool_calls": True}),
    Case(name="tools_one_at_a_time", body={**PLAIN, "tools": [WEATHER, CLOCK], "parallel_tool_calls": False}),
    Case(name="tools_cut", body={**PLAIN, "tools": [WEATHER], "max_tokens": 6}),
    Case(
        name="tools_none",
        body={**PLAIN, "tools": [WEATHER], "tool_choice": "none"},
        direct=PLAIN,
        why="llama-server shows the model the tools all the same, and the model calls them",
    ),
    Case(
        name="tool_named",
        body={
            **GREEDY,
            "tools": [CLOCK, WEATHER],
            "tool_choice": {"type": "function", "function": {"name": TOOL_NAME}},
        },
        direct={**GREEDY, "tools": [WEATHER], "tool_choice": "required"},
        why="llama-server knows no named choice",
    ),
    Case(
        name="tools_allowed",
        body={
            **PLAIN,
            "tools": [CLOCK, WEATHER],
            "tool_choice": {
                "type": "allowed_tools",
                "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "clock"}}]},
            },
        },
        direct={**PLAIN, "tools": [CLOCK], "tool_choice": "auto"},
        why="llama-server does not know the field",
    ),
]

RAW = {"prompt": "hi", "max_tokens": 8}
COMPLETION_CASES = [
    Case(name="raw", body=RAW),
    Case(name="raw_to_the_end", body={"prompt": "hi\n", "n_predict": -1}),
    Case(
        name="raw_unlimited",
        body={"prompt": "hi\n"},
        direct={"prompt": "hi\n", "max_tokens": 16},
        why="OpenAI's limit is 16 tokens where none is given, llama-server has none",
    ),
    Case(name="raw_tokens", body={"prompt": [275, 276, 277], "max_tokens": 5}),
    Case(name="raw_stop", body={"prompt": "The", "max_tokens": 40, "stop": ["lazy"]}),
    Case(name="raw_choices", body={**RAW, "n": 2}, view=counting(3, 2 * 8)),
    Case(name="raw_grammar", body={**RAW, "grammar": "root ::= [a-z]{6}", "seed": 3, "temperature": 1}),
    Case(name="raw_json_schema", body={**RAW, "json_schema": SCHEMA, "temperature": 0, "max_tokens": 60}),
    Case(
        name="raw_logprobs", body={**RAW, "logprobs": 2, "grammar": "root ::= [a-z]{6}", "seed": 3}, view=in_legacy_form
    ),
    Case(name="raw_penalty", body={**RAW, "presence_penalty": 1, "grammar": "root ::= [a-e]{8}", "seed": 3}),
    Case(name="raw_special_tokens", body={"prompt": "<|im_start|>user\nhi<|im_end|>\n", "max_tokens": 4}),
    Case(name="raw_several", body={"prompt": ["hi", "The quick"], "max_tokens": 4}, view=counting(6, 2 * 4)),
    Case(name="raw_several_tokens", body={"prompt": [[275], [275, 276]], "max_tokens": 4}, view=counting(3, 2 * 4)),
]

CHAT_CASES = [*ANSWERS, *LIMITS, *SAMPLING, *CONSTRAINED, *TOOLS]

FORWARDED = {
    "embedding": ("/v1/embeddings", {"input": "hi", "model": "any"}),
    "embeddings": ("/v1/embeddings", {"input": ["hi", "The quick brown"], "encoding_format": "float"}),
    "embedding_of_tokens": ("/v1/embeddings", {"input": [275, 276]}),
    "embeddings_in_base64": ("/v1/embeddings", {"input": ["hi", "you"], "encoding_format": "base64"}),
    "tokenize": ("/tokenize", {"content": "The quick h\u00e9", "add_special": True, "with_pieces": True}),
    "detokenize": ("/detokenize", {"tokens": [275, 276, 107]}),
    "apply_template": ("/apply-template", {**PLAIN, "tools": [WEATHER]}),
}


@attrs.frozen(kw_only=True)
class Refusal:
    """A request that the router refuses with 400. `direct`: llama-server's status; `param`: the field that we name."""

    name: str
    direct: int
    param: str | None
    body: Any

    def __str__(self) -> str:
        return self.name


# Where llama-server answers 200, it ignores or bends what the client asked for; its 500s are about the request as well.
REFUSALS = [
    Refusal(name="no_json", direct=500, param=None, body=b'{"messages": ['),
    Refusal(name="no_messages", direct=400, param="messages", body={}),
    Refusal(name="empty_messages", direct=200, param="messages", body={**PLAIN, "messages": []}),
    Refusal(name="role", direct=200, param="messages[0].role", body=said({"role": "robot", "content": "hi"})),
    Refusal(name="temperature", direct=200, param="temperature", body={**PLAIN, "temperature": 9}),
    Refusal(name="top_p", direct=200, param="top_p", body={**PLAIN, "top_p": 7}),
    Refusal(name="stop", direct=200, param="stop", body={**PLAIN, "stop": 3}),
    Refusal(name="max_tokens", direct=200, param="max_tokens", body={**PLAIN, "max_tokens": 0}),
    Refusal(name="no_choice", direct=400, param="n", body={**PLAIN, "n": 0}),
    Refusal(name="more_choices_than_slots", direct=400, param=None, body={**PLAIN, "n": 9}),
    Refusal(name="top_logprobs", direct=400, param="top_logprobs", body={**PLAIN, "top_logprobs": 2}),
    Refusal(name="grammar", direct=400, param=None, body={**PLAIN, "grammar": "root ::= ("}),
    Refusal(name="schema", direct=400, param=None, body={**PLAIN, "json_schema": {"type": "nothing"}}),
    Refusal(name="format", direct=400, param="response_format.type", body={**PLAIN, "response_format": {"type": "x"}}),
    Refusal(
        name="no_schema",
        direct=200,
        param="response_format.json_schema",
        body={**GREEDY, "response_format": {"type": "json_schema"}, "max_tokens": 9},
    ),
    Refusal(
        name="grammar_and_schema",
        direct=500,
        param="grammar",
        body={**PLAIN, "grammar": "root ::= [a]", "json_schema": SCHEMA},
    ),
    Refusal(name="tool_type", direct=500, param="tools[0].type", body={**PLAIN, "tools": [{"type": "magic"}]}),
    Refusal(name="tool_choice", direct=400, param="tool_choice", body={**PLAIN, "tool_choice": "sometimes"}),
    Refusal(name="required_of_none", direct=200, param="tool_choice", body={**PLAIN, "tool_choice": "required"}),
    Refusal(name="sound", direct=200, param="modalities", body={**PLAIN, "modalities": ["text", "audio"]}),
    Refusal(
        name="image",
        direct=500,
        param=None,
        body=said(user([{"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}])),
    ),
    Refusal(name="context", direct=400, param=None, body=said(user("x" * 20_000))),
    Refusal(
        name="broken_arguments",
        direct=500,
        param="messages[0].tool_calls[0].function.arguments",
        body=said(
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{**CALL, "function": {"name": TOOL_NAME, "arguments": "city: Paris"}}],
            },
            TOOL_RESULT,
        ),
    ),
]

MESSAGES = {"model": "any", "max_tokens": 100, **HI}
ANTHROPIC_TOOL = {"name": TOOL_NAME, "input_schema": TOOL_PARAMETERS}
USE = {"type": "tool_use", "id": "toolu_1", "name": TOOL_NAME, "input": {"city": "Paris"}}
RESULT = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "12 degrees"}
# llama-server thinks unless its template is told otherwise; in Anthropic's API thinking is off unless asked for.
NO_THOUGHT = {"chat_template_kwargs": {"enable_thinking": False}}
ANTHROPIC_CASES = [
    Case(name="messages", body=MESSAGES, direct={**MESSAGES, **NO_THOUGHT}),
    Case(name="messages_thinking", body={**MESSAGES, "thinking": {"type": "enabled", "budget_tokens": 1024}}),
    Case(name="messages_system", body={**MESSAGES, **NO_THOUGHT, "system": "Be brief."}),
    Case(name="messages_system_blocks", body={**MESSAGES, **NO_THOUGHT, "system": [{"type": "text", "text": "Be"}]}),
    Case(name="messages_limit", body={**MESSAGES, **NO_THOUGHT, "max_tokens": 3}),
    Case(name="messages_tools", body={**MESSAGES, **NO_THOUGHT, "tools": [ANTHROPIC_TOOL]}),
    Case(
        name="messages_tool_result",
        body={
            **MESSAGES,
            **NO_THOUGHT,
            "tools": [ANTHROPIC_TOOL],
            "messages": [user("?"), {"role": "assistant", "content": [USE]}, user([RESULT])],
        },
    ),
]
