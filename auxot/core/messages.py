"""Every message between a router and its workers, as plain values; `protocol` reads and writes them.

Names, types and defaults are those of the original Auxot's wire protocol; what is marked "ours" is told in
`protocol`. A field with a default is optional on the wire.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import attrs

from auxot.core.jobs import Job, Kind, ToolCall

FEATURE_DELTAS = "deltas"  # tool_call_delta, finishes; `complete` need not repeat the answer
FEATURE_PARAMS = "params"  # the worker honours job.params
FEATURE_CONTINUE = "continue"  # the worker goes on with an assistant message at the end, and repeats nothing of it
FEATURE_BATCHES = "batches"  # frames of several messages, a line each: a router takes them, a worker sends them
FEATURE_OF_KIND = {Kind.COMPLETION: "completion", Kind.COUNT: "count", Kind.FORWARD: "forward"}  # the worker runs them
ROUTER_FEATURES = (FEATURE_DELTAS, FEATURE_BATCHES)
WORKER_FEATURES = (FEATURE_DELTAS, FEATURE_PARAMS, FEATURE_CONTINUE, FEATURE_BATCHES, *FEATURE_OF_KIND.values())

PENDING_BACKEND = "pending"  # announced on the policy connection, which never takes a job
AUTH_FAILED = "authentication failed"  # an original worker stops for good on an error that holds these words


@attrs.frozen(kw_only=True)
class Capabilities:
    """What a worker announces of itself. `ctx_size`: tokens of one slot; `total_slots`: 0 = as the policy says."""

    backend: str
    model: str
    ctx_size: int
    vram_gb: float | None = None
    parameters: str | None = None
    total_slots: int = 0
    model_capabilities: tuple[str, ...] = ()
    features: tuple[str, ...] = ()  # ours


@attrs.frozen(kw_only=True)
class ToolsCapabilities:
    """The names of the tools that a tools worker runs."""

    tools: tuple[str, ...]


@attrs.frozen(kw_only=True)
class Policy:
    """What the router wants its workers to serve. `context_size`: tokens of one slot."""

    worker_type: str | None = None
    cli_type: str | None = None
    builtin_tools: tuple[str, ...] = ()
    model_name: str
    quantization: str
    context_size: int
    max_parallelism: int
    parameters: str | None = None
    family: str | None = None
    capabilities: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class McpHeader:
    """One header of a remote MCP server, or where its value comes from."""

    header_name: str
    source: str
    value_prefix: str | None = None
    oauth_provider: str | None = None
    credential_id: str | None = None
    secret_name: str | None = None
    static_value: str | None = attrs.field(default=None, repr=False)


@attrs.frozen(kw_only=True)
class McpServer:
    """An MCP server for tools workers: a package to run or an address to call."""

    id: str | None = None
    package: str | None = None
    version: str | None = None
    url: str | None = None
    transport: str | None = None
    headers: tuple[McpHeader, ...] = ()
    resolved_headers: Mapping[str, str] | None = attrs.field(default=None, repr=False)


@attrs.frozen(kw_only=True)
class ToolsPolicy:
    """What a tools worker may run."""

    allowed_tools: tuple[str, ...] = ()
    mcp_servers: tuple[McpServer, ...] = ()


@attrs.frozen(kw_only=True)
class Hello:
    """Worker -> router, the first message."""

    TYPE: ClassVar = "hello"
    gpu_key: str = attrs.field(default="", repr=False)
    worker_type: str | None = None
    capabilities: Capabilities | None = None
    tools_capabilities: ToolsCapabilities | None = None


@attrs.frozen(kw_only=True)
class HelloAck:
    """Router -> worker: the answer to `hello`; `gpu_id` is the worker's id for this connection."""

    TYPE: ClassVar = "hello_ack"
    success: bool
    gpu_id: str | None = None
    policy: Policy | None = None
    tools_policy: ToolsPolicy | None = None
    error: str | None = None
    reconnectInSeconds: int | None = None  # noqa: N815 -- the wire's own spelling
    features: tuple[str, ...] = ()  # ours


@attrs.frozen(kw_only=True)
class Heartbeat:
    """Worker -> router, at a fixed interval."""

    TYPE: ClassVar = "heartbeat"


@attrs.frozen(kw_only=True)
class HeartbeatAck:
    """Router -> worker."""

    TYPE: ClassVar = "heartbeat_ack"


@attrs.frozen(kw_only=True)
class Config:
    """Worker -> router: the capabilities that hold from now on."""

    TYPE: ClassVar = "config"
    capabilities: Capabilities


@attrs.frozen(kw_only=True)
class ConfigAck:
    """Router -> worker."""

    TYPE: ClassVar = "config_ack"
    success: bool
    error: str | None = None


@attrs.define(kw_only=True)
class Token:
    """Worker -> router: more text, or more reasoning, of a job."""

    TYPE: ClassVar = "token"
    job_id: str
    token: str
    reasoning: bool = False
    choice: int = 0  # ours
    logprobs: list[Any] | None = None  # ours


@attrs.frozen(kw_only=True)
class ToolGenerating:
    """Worker -> router: the model has begun to write a tool call. At most once a job."""

    TYPE: ClassVar = "tool_generating"
    job_id: str


@attrs.define(kw_only=True)
class ToolCallDeltaMessage:
    """Worker -> router, ours: more of a tool call; see jobs.ToolCallDelta."""

    TYPE: ClassVar = "tool_call_delta"
    job_id: str
    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""
    choice: int = 0
    logprobs: list[Any] | None = None


@attrs.frozen(kw_only=True)
class PromptProgressMessage:
    """Worker -> router: how much of the prompt is processed, in tokens."""

    TYPE: ClassVar = "prompt_progress"
    job_id: str
    total: int
    cached: int
    processed: int


@attrs.frozen(kw_only=True)
class ForwardHead:
    """Worker -> router, ours: the head of a forwarded endpoint's answer; see jobs.PayloadHead."""

    TYPE: ClassVar = "forward_head"
    job_id: str
    status: int
    content_type: str


@attrs.frozen(kw_only=True)
class ForwardBody:
    """Worker -> router, ours: more of its body; `data` is base64."""

    TYPE: ClassVar = "forward_body"
    job_id: str
    data: str = attrs.field(repr=False)


@attrs.frozen(kw_only=True)
class BuiltinTool:
    """CLI worker -> router: it ran a tool of its own. `arguments` is JSON text."""

    TYPE: ClassVar = "builtin_tool"
    job_id: str
    id: str
    name: str
    arguments: str
    result: str


@attrs.frozen(kw_only=True)
class BuiltinToolUse:
    """A tool that a CLI worker ran, told again in `complete`."""

    id: str
    name: str
    arguments: str
    result: str | None = None


@attrs.frozen(kw_only=True)
class Attachment:
    """A file that a CLI worker made; `data` is base64."""

    name: str
    mime_type: str | None = None
    data: str


@attrs.frozen(kw_only=True)
class FinishMessage:
    """Ours: how one choice ended; `finish_reason` is a FinishReason's value."""

    finish_reason: str
    stop_sequence: str | None = None


@attrs.frozen(kw_only=True)
class Complete:
    """Worker -> router: the job is done.

    `input_tokens` counts newly processed prompt tokens only; `cache_tokens` those that came from the cache.
    """

    TYPE: ClassVar = "complete"
    job_id: str
    full_response: str = ""
    post_tool_content: str | None = None
    reasoning_content: str | None = None
    duration_ms: int = 0
    cache_tokens: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    tool_calls: tuple[ToolCall, ...] = ()
    builtin_tool_uses: tuple[BuiltinToolUse, ...] = ()
    attachments: tuple[Attachment, ...] = ()
    total_cost_usd: float | None = None
    provider_session_id: str | None = None
    rate_limit_status: str | None = None
    rate_limit_resets_at: int | None = None
    rate_limit_type: str | None = None
    finishes: tuple[FinishMessage, ...] = ()  # ours: one a choice


@attrs.frozen(kw_only=True)
class Error:
    """Both ways: with a job id that job has failed; without one it is about the sender.

    From the router, and from original workers, that means that the connection is about to be dropped. From our workers
    with the code `unavailable`: no more jobs are taken; without a code (sent to our routers only): a word for the log.
    """

    TYPE: ClassVar = "error"
    job_id: str | None = None
    error: str
    details: str | None = None
    code: str | None = None  # ours: an ErrorCode's word
    n_prompt_tokens: int | None = None  # ours
    n_ctx: int | None = None  # ours


@attrs.frozen(kw_only=True)
class Cancel:
    """Router -> worker: stop this job and say nothing more about it."""

    TYPE: ClassVar = "cancel"
    job_id: str


@attrs.frozen(kw_only=True)
class PolicyUpdate:
    """Router -> worker: serve this from now on."""

    TYPE: ClassVar = "policy_update"
    policy: Policy


@attrs.frozen(kw_only=True)
class JobOverload:
    """CLI worker -> router: its provider limits the rate; queue the job again later."""

    TYPE: ClassVar = "job.overload"
    job_id: str
    retry_after_secs: int | None = None
    rate_limit_status: str | None = None
    rate_limit_resets_at: int | None = None
    rate_limit_type: str | None = None


@attrs.frozen(kw_only=True)
class ImagePart:
    """An image in a tool's result; `data` is base64."""

    mime_type: str
    data: str


@attrs.frozen(kw_only=True)
class JobToolCallRequest:
    """CLI worker -> router: run this tool and tell me the result. `arguments` is JSON text."""

    TYPE: ClassVar = "job.tool.call.request"
    job_id: str
    call_id: str
    tool_name: str
    arguments: str


@attrs.frozen(kw_only=True)
class JobToolCallResult:
    """Router -> CLI worker."""

    TYPE: ClassVar = "job.tool.call.result"
    job_id: str
    call_id: str
    result: str
    is_error: bool = False
    image_parts: tuple[ImagePart, ...] = ()


@attrs.frozen(kw_only=True)
class ToolJob:
    """Router -> tools worker: run one tool. `arguments` is any JSON."""

    TYPE: ClassVar = "tool_job"
    job_id: str
    parent_job_id: str
    thread_id: str | None = None
    tool_name: str
    tool_call_id: str
    arguments: Any
    credentials: Mapping[str, str] | None = attrs.field(default=None, repr=False)
    mcp_package: str | None = None
    mcp_version: str | None = None
    mcp_url: str | None = None
    mcp_transport: str | None = None
    mcp_headers: Mapping[str, str] | None = attrs.field(default=None, repr=False)


@attrs.frozen(kw_only=True)
class ToolResult:
    """Tools worker -> router. `result` is any JSON; `error` is set when the tool failed."""

    TYPE: ClassVar = "tool_result"
    job_id: str
    parent_job_id: str
    tool_call_id: str
    tool_name: str
    result: Any = None
    image_parts: tuple[ImagePart, ...] = ()
    error: str | None = None
    duration_ms: int = 0


@attrs.frozen(kw_only=True)
class ReloadPolicy:
    """Router -> tools worker."""

    TYPE: ClassVar = "reload_policy"
    policy: ToolsPolicy


@attrs.frozen(kw_only=True)
class McpSchema:
    """What a tools worker found in an MCP package."""

    tool_name: str
    package: str
    version: str
    description: str
    commands: tuple[Any, ...]


@attrs.frozen(kw_only=True)
class PolicyReloaded:
    """Tools worker -> router."""

    TYPE: ClassVar = "policy_reloaded"
    advertised_tools: tuple[str, ...]
    mcp_schemas: tuple[McpSchema, ...] = ()


WorkerMessage = (
    Hello
    | Config
    | Heartbeat
    | Token
    | ToolGenerating
    | ToolCallDeltaMessage
    | PromptProgressMessage
    | ForwardHead
    | ForwardBody
    | BuiltinTool
    | Complete
    | Error
    | JobOverload
    | JobToolCallRequest
    | ToolResult
    | PolicyReloaded
)
RouterMessage = (
    HelloAck
    | HeartbeatAck
    | ConfigAck
    | Job
    | Cancel
    | PolicyUpdate
    | Error
    | JobToolCallResult
    | ToolJob
    | ReloadPolicy
)
