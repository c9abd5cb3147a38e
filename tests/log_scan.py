"""What the whole run has logged, and what errors have told clients, searched for what must never stand there.

`conftest` collects what the parts under test write to standard error, the harnesses collect the logs of daemons and the
bodies of errors. A finding fails the run, whichever test it was that logged.
"""

from __future__ import annotations

import re

CANARY = "q7canary"  # a part of prompts and passwords in tests
REDIS_PASSWORD = f"pa:ss/w@rd-{CANARY}"

_PATTERNS = {
    "a key": re.compile(rb"(?<![A-Za-z0-9_-])(?:adm|rtr|tls)_[A-Za-z0-9_-]{43}(?![A-Za-z0-9_-])"),
    "the hash of a key": re.compile(rb"\$argon2id?\$v="),
    "a prompt or a password": re.compile(CANARY.encode()),
}
_SHOWN_BEFORE, _SHOWN_AFTER = 200, 12  # bytes around a finding: enough to find it, not the secret itself

n_scanned_bytes = 0
findings: list[str] = []


def collect(where: str, text: bytes) -> None:
    """Search a text; what is found is told at the end of the run."""
    global n_scanned_bytes  # noqa: PLW0603 -- one run, one count
    n_scanned_bytes += len(text)
    findings.extend(f"{where}: {finding}" for finding in find_secrets(text))


def find_secrets(text: bytes) -> list[str]:
    """Return a line for each kind of secret that stands in a text."""
    found = []
    for kind, pattern in _PATTERNS.items():
        match = pattern.search(text)
        if match is not None:
            around = text[max(0, match.start() - _SHOWN_BEFORE) : match.start() + _SHOWN_AFTER]
            found.append(f"{kind} in ...{around.decode(errors='replace')}...")
    return found
