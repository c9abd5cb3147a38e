"""When to try again what does not last, and when to stop: pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

import attrs

STEADY_S = 10.0  # a connection that lasts as long is no failure


@attrs.frozen(kw_only=True)
class RestartPolicy:
    """How often llama-server may die.

    Attributes:
        max_deaths: the death that is one too many.
        within_s: deaths longer ago than this are forgiven.
        first_delay_s, max_delay_s: the pause before a restart; see `link.backoff_delays`.
        quarantine_s: the pause after one death too many.
    """

    max_deaths: int = 5
    within_s: float = 600.0
    first_delay_s: float = 0.5
    max_delay_s: float = 30.0
    quarantine_s: float = 600.0


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


class Reconnects:
    """The pauses between connections, which begin anew only after one that has lasted.

    A link that opens and breaks at once, again and again, would else never be left alone: its router gives it jobs
    each time, and each is lost.
    """

    def __init__(self, delays: Callable[[], Iterator[float]]) -> None:
        """Prepare; `delays` begins a new series of pauses in seconds, see `link.backoff_delays`."""
        self._begin = delays
        self._delays = delays()

    def pause_s(self, *, lasted_s: float) -> float:
        """Return the pause after a connection that lasted so long; negative: there was none."""
        if lasted_s >= STEADY_S:
            self._delays = self._begin()
        return next(self._delays)
