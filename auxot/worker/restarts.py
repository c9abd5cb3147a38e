"""When to stop restarting something that dies again and again: pure."""

from __future__ import annotations

from collections import deque

import attrs


@attrs.frozen(kw_only=True)
class RestartPolicy:
    """How often llama-server may die.

    Attributes:
        max_deaths: the death that is one too many.
        within_s: deaths longer ago than this are forgiven.
        first_delay_s, max_delay_s: the pause before a restart; see `link.backoff_delays`.
    """

    max_deaths: int = 5
    within_s: float = 600.0
    first_delay_s: float = 0.5
    max_delay_s: float = 30.0


class DeathLog:
    """The recent deaths. Times are seconds on any clock that does not go back."""

    def __init__(self, policy: RestartPolicy) -> None:
        self._policy = policy
        self._deaths: deque[float] = deque(maxlen=policy.max_deaths)

    def note(self, now: float) -> bool:
        """Write down a death; return whether it is one too many."""
        self._deaths.append(now)
        return len(self._deaths) == self._policy.max_deaths and now - self._deaths[0] <= self._policy.within_s

    def is_alone(self, now: float) -> bool:
        """Tell whether the latest death is the only recent one, so that the pauses may begin anew."""
        return sum(now - death <= self._policy.within_s for death in self._deaths) <= 1
