"""Golden files: tests/unit/golden/<dialect>/<case>/ holds what goes in and what must come out.

    request.json                    the body of a request
    job.json                        the job that it becomes, as the wire has it; or
    refusal.json                    the status and the body with which it is refused
    events.jsonl                    the events of its job, a line each: {"event": "text", "text": "Hi"}
    stream.txt                      the streaming answer
    response.json                   the blocking answer; or
    failure.json                    the status and the body of a job that failed

A case is a folder; no Python is needed for a new one. AUXOT_WRITE_GOLDEN=1 writes the outcomes that are missing: read
them before you commit them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import orjson
import pytest

from auxot.core import protocol
from auxot.core.errors import ErrorCode, RefusedError
from auxot.core.jobs import (
    Failed,
    Finish,
    Finished,
    FinishReason,
    JobEvent,
    PromptProgress,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    Transcript,
    Usage,
)
from auxot.router.dialects.anthropic import ANTHROPIC
from auxot.router.dialects.base import ChatRequest, Dialect
from auxot.router.dialects.openai_chat import OPENAI_CHAT
from auxot.router.dialects.openai_completions import OPENAI_COMPLETIONS
from auxot.router.dialects.openai_responses import OPENAI_RESPONSES

GOLDEN = Path(__file__).parents[2] / "golden"
DIALECTS: dict[str, Dialect] = {
    "openai_chat": OPENAI_CHAT,
    "openai_completions": OPENAI_COMPLETIONS,
    "openai_responses": OPENAI_RESPONSES,
    "anthropic": ANTHROPIC,
}
CASES = sorted(path.parent for dialect in DIALECTS for path in (GOLDEN / dialect).glob("*/request.json"))
ANSWERED = [case for case in CASES if (case / "events.jsonl").exists()]
JOB_ID = "chatcmpl-0123456789abcdef01234567"
NOW = 1760000000.75

DELTAS: dict[str, Any] = {
    "text": TextDelta,
    "reasoning": ReasoningDelta,
    "tool_call": ToolCallDelta,
    "progress": PromptProgress,
}


def read_event(line: bytes) -> JobEvent:
    fields = orjson.loads(line)
    kind = fields.pop("event")
    if kind == "finished":
        finishes = tuple(Finish(FinishReason(reason), word) for reason, word in fields["finishes"])
        return Finished(finishes, Usage(**fields["usage"]))
    if kind == "failed":
        return Failed(ErrorCode.from_word(fields.pop("code")), **fields)
    event: JobEvent = DELTAS[kind](**fields)
    return event


def read_events(case: Path) -> list[JobEvent]:
    return [read_event(line) for line in (case / "events.jsonl").read_bytes().splitlines()]


def parse(case: Path) -> ChatRequest:
    dialect = DIALECTS[case.parent.name]
    return dialect.parse((case / "request.json").read_bytes(), job_id=JOB_ID, now=NOW)


def error_json(dialect: Dialect, error: RefusedError) -> bytes:
    body = orjson.loads(dialect.error_body(error, request_id="req_golden"))
    return orjson.dumps({"status": error.code.status, "body": body})


def check(path: Path, outcome: bytes) -> None:
    """Compare an outcome with its golden file; JSON as values, so that files can be laid out for readers."""
    is_json = path.suffix == ".json"
    if not path.exists() and os.environ.get("AUXOT_WRITE_GOLDEN") == "1":
        path.write_bytes(
            orjson.dumps(orjson.loads(outcome), option=orjson.OPT_INDENT_2) + b"\n" if is_json else outcome
        )
    golden = path.read_bytes()
    assert (orjson.loads(outcome) == orjson.loads(golden)) if is_json else (outcome.decode() == golden.decode())


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.parent.name}/{case.name}")
def test_request_becomes_its_job(case):
    """A request becomes exactly this job, or is refused in exactly these words."""
    try:
        request = parse(case)
    except RefusedError as error:
        check(case / "refusal.json", error_json(DIALECTS[case.parent.name], error))
    else:
        check(case / "job.json", protocol.encode(request.job))


@pytest.mark.parametrize("case", ANSWERED, ids=lambda case: f"{case.parent.name}/{case.name}")
def test_events_become_their_stream(case):
    """A job's events become exactly this stream."""
    encoder = DIALECTS[case.parent.name].encoder(parse(case))
    check(case / "stream.txt", b"".join(encoder.feed(event) for event in read_events(case)))


@pytest.mark.parametrize("case", ANSWERED, ids=lambda case: f"{case.parent.name}/{case.name}")
def test_events_become_their_response(case):
    """A job's events become exactly this blocking answer, or this error."""
    dialect, transcript = DIALECTS[case.parent.name], Transcript()
    for event in read_events(case):
        transcript.add(event)
    if transcript.failed is None:
        check(case / "response.json", dialect.response(parse(case), transcript))
    else:
        check(case / "failure.json", error_json(dialect, dialect.refusal(transcript.failed)))
