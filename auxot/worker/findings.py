"""What `auxot-worker doctor` finds, and how it is shown: a line a finding, or all of them as JSON."""

from __future__ import annotations

import enum
from collections.abc import Sequence

import attrs
import orjson


class Verdict(enum.Enum):
    """What a check found. A start works with warnings; it does not with a failure."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@attrs.frozen
class Finding:
    """What one check found: `text` tells it, `advice` what to do."""

    check: str
    verdict: Verdict
    text: str
    advice: str = ""


def show(finding: Finding) -> str:
    """Return a finding as a line, with a second one for what to do."""
    line = f"{finding.verdict.value:<5} {finding.check:<13} {finding.text}"
    return f"{line}\n{'':<19} -> {finding.advice}" if finding.advice else line


def report(findings: Sequence[Finding]) -> str:
    """Return all findings as a JSON object."""
    rows = [{**attrs.asdict(one), "verdict": one.verdict.value} for one in findings]
    is_well = all(one.verdict is not Verdict.FAIL for one in findings)
    return orjson.dumps({"ok": is_well, "findings": rows}, option=orjson.OPT_INDENT_2).decode()
