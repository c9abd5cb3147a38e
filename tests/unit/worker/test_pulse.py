from __future__ import annotations

from auxot.worker.pulse import Pulse


def test_silence_counts_while_somebody_waits() -> None:
    """An idle llama-server is killed, or one that hangs is not."""
    pulse = Pulse()
    assert pulse.silent_s(1000) == 0
    pulse.wait(1000)
    assert pulse.silent_s(1030) == 30
    pulse.heard(1030)
    assert pulse.silent_s(1040) == 10
    pulse.leave(1040)
    assert pulse.silent_s(9999) == 10


def test_clients_that_give_up_do_not_hide_it() -> None:
    """A llama-server that answers nobody is never found out, because each client leaves before its time is over."""
    pulse = Pulse()
    for start in range(0, 1000, 100):
        pulse.wait(start)
        pulse.leave(start + 60)
    assert pulse.silent_s(1000) == 600


def test_one_word_is_for_all() -> None:
    """A job that waits long for its first word, because others are before it, counts as silence."""
    pulse = Pulse()
    pulse.wait(0)
    pulse.wait(0)
    pulse.heard(50)
    pulse.leave(50)
    assert pulse.silent_s(60) == 10
