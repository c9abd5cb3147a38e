"""What a program on LiteLLM gets from the router, as its OpenAI and as its Anthropic provider: JSON on stdout."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import litellm  # type: ignore[import-not-found]

HI = [{"role": "user", "content": "hi"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def main() -> None:
    """Ask each provider for all that is asked for here."""
    litellm.suppress_debug_info = True  # else it prints advice to stdout
    url, key = os.environ["AUXOT_URL"], os.environ["AUXOT_KEY"]
    openai = {"model": "openai/any", "api_base": f"{url}/v1", "extra_body": {"reasoning_effort": "none"}}
    anthropic = {"model": "anthropic/any", "api_base": f"{url}/api/anthropic", "max_tokens": 100}
    answers = {
        "openai": told({**openai, "api_key": key}),
        "anthropic": told({**anthropic, "api_key": key}),
    }
    sys.stdout.write(json.dumps(answers))


def told(asked: dict[str, Any]) -> dict[str, Any]:
    """Return a blocking answer, a streaming one and a tool call."""
    blocking = litellm.completion(messages=HI, **asked)
    chunks = litellm.completion(messages=HI, stream=True, stream_options={"include_usage": True}, **asked)
    streamed = litellm.stream_chunk_builder(list(chunks), messages=HI)
    call = litellm.completion(messages=HI, tools=[TOOL], **asked).choices[0]
    return {
        "blocking": blocking.choices[0].message.content,
        "n_tokens": blocking.usage.completion_tokens,
        "streaming": streamed.choices[0].message.content,
        "n_streamed_tokens": streamed.usage.completion_tokens,
        "tool": call.message.tool_calls[0].function.name,
        "arguments": json.loads(call.message.tool_calls[0].function.arguments),
        "finish_reason": call.finish_reason,
    }


if __name__ == "__main__":
    main()
