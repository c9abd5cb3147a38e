"""What becomes of every request field of OpenAI's chat completions, completions and embeddings.

The names are those of the official SDK's types (openai 3.x, `*_create_params`); a test walks them and fails on one
that is missing here, so that a new release shows what is new. llama-server's own fields stand in `sampling`.

Source: https://platform.openai.com/docs/api-reference
"""

from __future__ import annotations

from auxot.router.dialects.field_table import FieldRule, Status, honoured, rule

HONOURED, IGNORED, REFUSED = Status.HONOURED, Status.IGNORED, Status.REFUSED

_NOBODY_ASKS = "says who asks; the answer does not depend on it"
_ONE_TIER = "there is one class of service"
_CACHE = "every prompt's beginning is kept in the cache for as long as there is room"
_NO_AUDIO = "answers in audio are not supported"
NO_CUSTOM = "only function tools are supported: give the tool a function with one string parameter"

_SHARED = (
    *honoured("model", "stream", "stream_options", "stream_options.include_usage"),
    *rule("stream_options.include_obfuscation", IGNORED, "nothing is padded"),
    *honoured("temperature", "top_p", "stop", "seed", "presence_penalty", "frequency_penalty", "logit_bias"),
    *rule("n", HONOURED, "as many as the worker has slots"),
    *rule("user", IGNORED, _NOBODY_ASKS),
)

CHAT_FIELDS: tuple[FieldRule, ...] = (
    *_SHARED,
    *honoured("messages", "messages[].role", "messages[].content", "messages[].name", "messages[].refusal"),
    *honoured("messages[].content[].type", "messages[].content[].text", "messages[].content[].refusal"),
    *rule(
        "messages[].content[].image_url",
        HONOURED,
        "a data: URL, or one that the router fetches (https:, http:); the model must have vision",
    ),
    *honoured("messages[].content[].image_url.url"),
    *rule("messages[].content[].image_url.detail", IGNORED, "an image is seen in the model's own resolution"),
    *rule("messages[].content[].input_audio", HONOURED, "the model must have audio"),
    *honoured("messages[].content[].input_audio.data", "messages[].content[].input_audio.format"),
    *rule("messages[].content[].file", REFUSED, "files are not supported: send their text"),
    *rule("messages[].content[].prompt_cache_breakpoint", IGNORED, _CACHE),
    *rule("messages[].audio", REFUSED, _NO_AUDIO),
    *honoured("messages[].tool_call_id", "messages[].tool_calls", "messages[].tool_calls[].id"),
    *honoured("messages[].tool_calls[].type", "messages[].tool_calls[].function"),
    *honoured("messages[].tool_calls[].function.name"),
    *rule("messages[].tool_calls[].function.arguments", HONOURED, "broken JSON is repaired where it is certain"),
    *rule("messages[].tool_calls[].custom", REFUSED, NO_CUSTOM),
    *rule("messages[].function_call", HONOURED, "read as a tool call"),
    *honoured("messages[].function_call.name", "messages[].function_call.arguments"),
    *honoured("tools", "tools[].type", "tools[].function", "tools[].function.name", "tools[].function.description"),
    *honoured("tools[].function.parameters", "tools[].function.strict"),
    *rule("tools[].custom", REFUSED, NO_CUSTOM),
    *rule("tool_choice", HONOURED, "a choice among the tools offers the model these tools only, `none` no tools"),
    *honoured("tool_choice.type", "tool_choice.function", "tool_choice.function.name", "tool_choice.allowed_tools"),
    *honoured("tool_choice.allowed_tools.mode", "tool_choice.allowed_tools.tools"),
    *rule("tool_choice.custom", REFUSED, NO_CUSTOM),
    *honoured("parallel_tool_calls"),
    *rule("functions", HONOURED, "as tools; the answer has `function_call`, as the client expects"),
    *honoured("functions[].name", "functions[].description", "functions[].parameters"),
    *honoured("function_call", "function_call.name"),
    *honoured("max_tokens"),
    *rule("max_completion_tokens", HONOURED, "goes before `max_tokens`"),
    *rule("logprobs", HONOURED, "not together with tools"),
    *honoured("top_logprobs"),
    *honoured("response_format", "response_format.type", "response_format.json_schema"),
    *honoured("response_format.json_schema.schema"),
    *rule("response_format.json_schema.name", IGNORED, "nothing is told by it"),
    *rule("response_format.json_schema.description", IGNORED, "the model sees the schema's own descriptions only"),
    *rule("response_format.json_schema.strict", IGNORED, "the schema is always enforced"),
    *rule("reasoning_effort", HONOURED, "`none` switches thinking off; the chat template gets the others"),
    *rule("verbosity", HONOURED, "the chat template gets it"),
    *honoured("modalities"),
    *rule("modalities=audio", REFUSED, _NO_AUDIO),
    *rule("audio", REFUSED, _NO_AUDIO),
    *rule("web_search_options", REFUSED, "web search is not supported"),
    *rule("moderation", REFUSED, "moderation is not supported"),
    *rule("prediction", IGNORED, "makes an answer faster, not other"),
    *rule("metadata", IGNORED, "is for stored answers"),
    *rule("store", IGNORED, "nothing is stored: asking for a stored answer gives 404"),
    *rule("service_tier", IGNORED, _ONE_TIER),
    *rule("safety_identifier", IGNORED, _NOBODY_ASKS),
    *rule("prompt_cache_key", IGNORED, "a hint; equal beginnings are found without it"),
    *rule("prompt_cache_options", IGNORED, _CACHE),
    *rule("prompt_cache_retention", IGNORED, _CACHE),
)

COMPLETION_FIELDS: tuple[FieldRule, ...] = (
    *_SHARED,
    *rule("prompt", HONOURED, "text, token ids, or several of them; required"),
    *rule("max_tokens", HONOURED, "16 if it is absent, as OpenAI says; `n_predict` -1 for no limit"),
    *rule("logprobs", HONOURED, "0 to 5"),
    *rule("echo", HONOURED, "text prompts only, and not together with `logprobs`"),
    *rule("best_of", HONOURED, "must be equal to `n`: choices are not ranked"),
    *rule("suffix", REFUSED, "is not supported: use the endpoint /infill"),
    *rule("response_format", REFUSED, "is of chat completions: use json_schema or grammar"),
)

EMBEDDING_FIELDS: tuple[FieldRule, ...] = (
    *honoured("input", "model", "encoding_format"),
    *rule("dimensions", REFUSED, "is not supported: embeddings have the model's own number of dimensions"),
    *rule("user", IGNORED, _NOBODY_ASKS),
)
