"""How long llama-server has been silent while somebody waited for a word from it.

Time counts while at least one job waits. A job that leaves without an answer does not set it back: clients that give
up after a minute would else hide for ever that nobody is answered. Only a word from llama-server does that; while jobs
are answered, one comes with every token and with every batch of a prompt.

Owner: the station; times are on Trio's clock.
"""

from __future__ import annotations

import attrs


@attrs.define
class Pulse:
    """The silence of one llama-server."""

    _n_waiting: int = 0
    _since: float = 0.0  # when it was last looked at, while jobs wait
    _silent_s: float = 0.0  # before that

    def wait(self, now: float) -> None:
        """Note that one more job waits for a word."""
        if not self._n_waiting:
            self._since = now
        self._n_waiting += 1

    def heard(self, now: float) -> None:
        """Note a word."""
        self._silent_s, self._since = 0.0, now

    def leave(self, now: float) -> None:
        """Note that one job fewer waits."""
        self._silent_s = self.silent_s(now)
        self._since = now
        self._n_waiting -= 1

    def silent_s(self, now: float) -> float:
        """Return for how long jobs have waited since the last word."""
        return self._silent_s + (now - self._since if self._n_waiting else 0.0)
