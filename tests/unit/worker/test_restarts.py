from __future__ import annotations

from auxot.worker.restarts import DeathLog, RestartPolicy


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
