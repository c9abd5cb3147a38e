"""The inner language: a Job goes to a worker, JobEvents come back. Every dialect and every worker speaks it.

    JobEvent = TextDelta | ReasoningDelta | ToolCallDelta | PromptProgress
             | PayloadHead | Payload | Finished | Failed

Invariants: a job ends with exactly one terminal event, Finished or Failed, and nothing follows it. Deltas of one
choice come in order; choices (n > 1) may interleave. The first ToolCallDelta of a call carries its id and name,
later ones only more of its arguments.

Four kinds of work, told apart by `Job.kind`:

    CHAT        messages -> deltas, Finished                        what an original worker knows; the others are ours
    COMPLETION  prompt -> TextDelta ..., Finished                   raw text, no chat template
    COUNT       messages, tools -> Finished, usage.prompt_tokens    the prompt's tokens, exactly; nothing is generated
    FORWARD     method, path, body -> PayloadHead, Payload ..., Finished     an endpoint of llama-server, as it is

A Job is also the `job` message of the wire (original protocol, plus the fields marked "ours" there), so the bytes
that are queued are the bytes that a worker reads: a large prompt is written as JSON once.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any

import attrs

from auxot.core.errors import ErrorCode


class FinishReason(enum.Enum):
    """Why a choice ended, in the inner language; dialects translate it."""

    STOP = "stop"  # the model ended its turn
    STOP_SEQUENCE = "stop_sequence"  # one of the caller's stop words was written
    LENGTH = "length"  # max_tokens reached
    CONTEXT_FULL = "context_full"  # the slot's context is full
    TOOL_CALLS = "tool_calls"
    CONTENT_FILTER = "content_filter"


@attrs.frozen(kw_only=True)
class FunctionCall:
    """What a tool call calls: a name, and its arguments as JSON text (not parsed)."""

    name: str
    arguments: str


@attrs.frozen(kw_only=True)
class ToolCall:
    """A whole tool call, as it stands in a message of the history or in an answer."""

    id: str
    type: str = "function"
    function: FunctionCall


@attrs.frozen(kw_only=True)
class ChatMessage:
    """One message of a conversation. `content` is a string, a list of OpenAI content parts, or None."""

    role: str
    content: Any
    tool_call_id: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    name: str | None = None  # ours
    reasoning_content: str | None = None  # ours


@attrs.frozen(kw_only=True)
class Function:
    """A function that the model may call; `parameters` is its JSON Schema."""

    name: str
    description: str | None = None
    parameters: Any = None
    strict: bool | None = None  # ours


@attrs.frozen(kw_only=True)
class Tool:
    """A tool offered to the model."""

    type: str = "function"
    function: Function


class Kind(enum.Enum):
    """What a job asks for; the value is its word on the wire."""

    CHAT = "chat"
    COMPLETION = "completion"
    COUNT = "count"
    FORWARD = "forward"


@attrs.frozen(kw_only=True)
class Forward:
    """A request to an endpoint of llama-server that is passed on as it is. Ours.

    Attributes:
        method: GET or POST.
        path: beginning with a slash, as llama-server knows it; chosen by the router from its own table.
        body: the body as text; "" if there is none.
        body_base64: the body where it is not UTF-8 text (uploads); then `body` is "".
        content_type: of the body.
    """

    method: str
    path: str
    body: str = ""
    body_base64: str = ""
    content_type: str = "application/json"


@attrs.frozen(kw_only=True)
class Job:
    """One unit of work for one slot of a worker, complete: nothing about it is kept elsewhere.

    `params` holds every sampling and output field of llama-server's chat completions that the caller sent and that
    has no field of its own here (`top_p`, `stop`, `seed`, `n`, `response_format`, `tool_choice`, ...), under
    llama-server's names. The fields after it belong to the original's commercial server; they are relayed, not used.
    """

    job_id: str
    messages: tuple[ChatMessage, ...]
    model: str | None = None
    tools: tuple[Tool, ...] = ()
    temperature: float | None = None
    max_tokens: int | None = None
    reasoning_effort: str | None = None
    params: Mapping[str, Any] = attrs.field(factory=dict)  # ours
    attempt: int = 0  # ours: 1 for the first delivery; 0 from an original router
    prompt: Any = None  # ours, COMPLETION: a string, a list of token ids, or a list of such prompts
    count_only: bool = False  # ours, COUNT
    forward: Forward | None = None  # ours, FORWARD
    reference_id: str | None = None
    data: Mapping[str, Any] | None = None
    caller_tools: tuple[str, ...] = ()
    compaction_session_id: str | None = None
    credentials: Mapping[str, str] | None = None

    @property
    def kind(self) -> Kind:
        """What the job asks for."""
        if self.forward is not None:
            return Kind.FORWARD
        if self.count_only:
            return Kind.COUNT
        return Kind.CHAT if self.prompt is None else Kind.COMPLETION


@attrs.frozen(kw_only=True)
class Usage:
    """Token counts as llama-server gives them.

    Attributes:
        prompt_tokens: the whole prompt, those from the cache included.
        cached_tokens: prompt tokens that did not have to be processed again.
        completion_tokens: tokens written, reasoning and tool calls included.
        reasoning_tokens: how many of them were reasoning; 0 when unknown.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0


# Deltas are made once a token: `define`, not `frozen`, because it costs half as much. Nobody changes them.


@attrs.define
class TextDelta:
    """More of the answer's text. `logprobs`: OpenAI `logprobs.content` entries of these tokens."""

    text: str
    choice: int = 0
    logprobs: list[Any] | None = None


@attrs.define
class ReasoningDelta:
    """More of the model's reasoning."""

    text: str
    choice: int = 0
    logprobs: list[Any] | None = None


@attrs.define
class ToolCallDelta:
    """More of a tool call. `id` and `name` come with the first delta of call `index`, then `arguments` only."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""
    choice: int = 0
    logprobs: list[Any] | None = None


@attrs.define
class PromptProgress:
    """How far the prompt is processed, in tokens: of `total`; `processed` includes the `cached` ones."""

    total: int
    cached: int
    processed: int


@attrs.frozen
class PayloadHead:
    """The head of a forwarded endpoint's answer; comes once, before any Payload."""

    status: int
    content_type: str


@attrs.frozen
class Payload:
    """More of the body of a forwarded endpoint's answer."""

    body: bytes = attrs.field(repr=False)


@attrs.frozen
class Finish:
    """How one choice ended. `stop_sequence`: the stop word that was written, when known."""

    reason: FinishReason
    stop_sequence: str | None = None


@attrs.frozen
class Finished:
    """The job is done. `finishes` has one entry a choice, in order; `usage` covers all choices."""

    finishes: tuple[Finish, ...]
    usage: Usage

    @property
    def reason(self) -> FinishReason:
        """Why the first choice ended."""
        return self.finishes[0].reason


@attrs.frozen
class Failed:
    """The job ended without (the rest of) an answer; `message` is fit for the client."""

    code: ErrorCode
    message: str
    n_prompt_tokens: int | None = None
    n_ctx: int | None = None


Delta = TextDelta | ReasoningDelta | ToolCallDelta
JobEvent = TextDelta | ReasoningDelta | ToolCallDelta | PromptProgress | PayloadHead | Payload | Finished | Failed


@attrs.define
class ChoiceTranscript:
    """One choice of an answer, collected. `text_logprobs` are those of `logprobs` that came with its text."""

    text: list[str] = attrs.field(factory=list)
    reasoning: list[str] = attrs.field(factory=list)
    tool_calls: dict[int, ToolCallDelta] = attrs.field(factory=dict)
    logprobs: list[Any] | None = None
    text_logprobs: list[Any] | None = None

    def add(self, delta: Delta) -> None:
        """Append one delta of this choice."""
        if isinstance(delta, TextDelta):
            self.text.append(delta.text)
        elif isinstance(delta, ReasoningDelta):
            self.reasoning.append(delta.text)
        else:
            self._add_tool_call(delta)
        if delta.logprobs is not None:
            self.logprobs = self.logprobs or []
            self.logprobs.extend(delta.logprobs)
            if isinstance(delta, TextDelta):
                self.text_logprobs = self.text_logprobs or []
                self.text_logprobs.extend(delta.logprobs)

    def _add_tool_call(self, delta: ToolCallDelta) -> None:
        call = self.tool_calls.setdefault(delta.index, ToolCallDelta(delta.index))
        call.id = call.id or delta.id
        call.name = call.name or delta.name
        call.arguments += delta.arguments


@attrs.define
class Transcript:
    """A whole answer, collected from its events: what a blocking response is written from.

    `finished` and `failed` are None until the terminal event; after it exactly one of them is set.
    """

    choices: dict[int, ChoiceTranscript] = attrs.field(factory=dict)
    head: PayloadHead | None = None
    payload: list[bytes] = attrs.field(factory=list)
    progress: PromptProgress | None = None
    finished: Finished | None = None
    failed: Failed | None = None

    def add(self, event: JobEvent) -> None:
        """Fold one more event in."""
        if isinstance(event, Finished):
            self.finished = event
        elif isinstance(event, Failed):
            self.failed = event
        elif isinstance(event, PromptProgress):
            self.progress = event
        elif isinstance(event, PayloadHead):
            self.head = event
        elif isinstance(event, Payload):
            self.payload.append(event.body)
        else:
            self.choice(event.choice).add(event)

    def choice(self, index: int) -> ChoiceTranscript:
        """Return the transcript of one choice, empty if nothing of it has come."""
        return self.choices.setdefault(index, ChoiceTranscript())


@attrs.define(kw_only=True)
class JobRecord:
    """The life of one job: logs, response headers and metrics are all told from it.

    Times are Unix seconds UTC, None until the step is reached; those of a retried job are of its latest attempt,
    but `accepted_at` and `queued_at` are of the job. Owner: the router that accepted the request.
    """

    job_id: str
    accepted_at: float
    router_id: str = ""
    request_id: str = ""
    key_name: str = ""  # whose key asked for it
    queued_at: float | None = None
    claimed_at: float | None = None
    sent_at: float | None = None
    first_event_at: float | None = None  # the first delta: prompt processing has ended
    ended_at: float | None = None
    worker_id: str | None = None
    route: str = ""  # why that worker: "prefix" (it holds the prompt's beginning) or "least-loaded"
    attempt: int = 0
    outcome: str = ""  # "stop", "length", ..., an ErrorCode's word, or "cancelled"
    usage: Usage | None = None
