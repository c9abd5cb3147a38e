"""What a program on LangChain gets from the router, through both of its integrations: JSON on stdout."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from langchain_anthropic import ChatAnthropic  # type: ignore[import-not-found]
from langchain_core.messages import HumanMessage, ToolMessage  # type: ignore[import-not-found]
from langchain_core.tools import tool  # type: ignore[import-not-found]
from langchain_openai import ChatOpenAI  # type: ignore[import-not-found]


@tool
def get_weather(city: str) -> str:
    """Tell the weather of a city."""
    return f"12 degrees in {city}"


def main() -> None:
    """Ask each integration for all that is asked for here."""
    url, key = os.environ["AUXOT_URL"], os.environ["AUXOT_KEY"]
    common = {"model": "any", "api_key": key, "max_retries": 0}
    openai = {**common, "base_url": f"{url}/api/openai/v1"}
    answers = {
        "openai": told(ChatOpenAI(**openai, reasoning_effort="none", stream_usage=True)),
        "responses": told(ChatOpenAI(**openai, reasoning={"effort": "none"}, use_responses_api=True)),
        "anthropic": told(ChatAnthropic(**common, base_url=f"{url}/api/anthropic", max_tokens=100)),
    }
    sys.stdout.write(json.dumps(answers))


def told(model: Any) -> dict[str, Any]:
    """Return a blocking answer, a streaming one, a tool call and the answer to its result."""
    blocking = model.invoke("hi")
    pieces = list(model.stream("hi"))
    streamed = pieces[0]
    for piece in pieces[1:]:
        streamed = streamed + piece
    able, question = model.bind_tools([get_weather]), HumanMessage("hi")
    asked = able.invoke([question])
    (call,) = asked.tool_calls
    result = ToolMessage(get_weather.invoke(call["args"]), tool_call_id=call["id"])
    return {
        "blocking": blocking.text,
        "n_tokens": blocking.usage_metadata["output_tokens"],
        "streaming": streamed.text,
        "n_streamed_tokens": streamed.usage_metadata["output_tokens"],
        "tool": call["name"],
        "arguments": call["args"],
        "after_tool": able.invoke([question, asked, result]).text,
    }


if __name__ == "__main__":
    main()
