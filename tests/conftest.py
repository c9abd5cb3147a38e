"""With CI=true in the environment a skipped test fails: nothing is silently left out there.

What the run logs is searched for secrets, see `log_scan`: a finding fails the whole run.

Hypothesis has no time limits here: they would measure the machine.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests import log_scan

settings.register_profile("auxot", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("auxot")

_IN_CI = os.environ.get("CI") == "true"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _refuse_skip(report, item.nodeid)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _refuse_skip(report, collector.nodeid)
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    for title, text in report.sections:
        if title.endswith(f"stderr {report.when}"):
            log_scan.collect(report.nodeid, text.encode(errors="replace"))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if log_scan.findings and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if log_scan.findings:
        terminalreporter.section("secrets in logs or errors", red=True)
    for finding in log_scan.findings[:20]:
        terminalreporter.line(f"FOUND {finding}", red=True)


def _refuse_skip(report: Any, node_id: str) -> None:
    """Turn a skip into a failure; an expected failure (xfail) is reported as skipped as well, but is none."""
    if _IN_CI and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"{node_id}: skipped, which CI does not allow: {reason}"
