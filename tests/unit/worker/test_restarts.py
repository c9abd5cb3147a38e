from __future__ import annotations

import itertools

from auxot.worker.restarts import STEADY_S, DeathLog, Reconnects, RestartPolicy


def test_too_many_deaths_in_too_short_a_time() -> None:
    """A llama-server that cannot live is restarted for ever."""
    deaths = DeathLog(RestartPolicy(max_deaths=3, within_s=60))
    assert [deaths.note(now) for now in (0, 20, 40)] == [False, False, True]


def test_old_deaths_are_forgiven() -> None:
    """A worker gives up after a few deaths in a year."""
    deaths = DeathLog(RestartPolicy(max_deaths=3, within_s=60))
    assert not any(deaths.note(now) for now in (0, 50, 100, 150, 200))
    assert not deaths.is_alone(200)
    assert not deaths.note(1000)
    assert deaths.is_alone(1000)


def test_a_connection_that_breaks_at_once_is_no_success() -> None:
    """A worker whose link flaps comes back as fast as it can, and loses a job each time."""
    reconnects = Reconnects(lambda: itertools.count(1.0))
    assert [reconnects.pause_s(lasted_s=lasted_s) for lasted_s in (-1, 0.1, STEADY_S - 1)] == [1, 2, 3]
    assert reconnects.pause_s(lasted_s=STEADY_S) == 1
    assert reconnects.pause_s(lasted_s=0.1) == 2
