import attrs
import pytest

from auxot.core.jobs import JobRecord
from auxot.router.headers import id_headers, job_headers, request_id_of

WHOLE = JobRecord(
    job_id="j",
    accepted_at=100.0,
    queued_at=100.001,
    claimed_at=100.01,
    sent_at=100.0125,
    first_event_at=100.5,
    ended_at=102.0,
    worker_id="w1",
)


@pytest.mark.parametrize("given", [b"req_1", b"a", b"x" * 128, b"0e2c-~!"])
def test_a_clients_own_request_id_is_kept(given):
    """A client could not find its request in the router's log."""
    assert request_id_of([(b"host", b"x"), (b"x-request-id", given)]) == given.decode()


@pytest.mark.parametrize("given", [b"", b"x" * 129, b"a b", b"a\tb", b"\xff", b"a\x7f", "é".encode()])
def test_an_id_that_could_not_stand_in_a_header_or_a_log_is_replaced(given):
    """A client could write what it wants into the log, or break the answer's head."""
    made = request_id_of([(b"x-request-id", given)])
    assert made.startswith("req_")
    assert made != request_id_of([])


def test_both_names_of_the_id_are_told():
    """The SDKs of one of the APIs would not show the id."""
    assert id_headers("r1") == [(b"x-request-id", b"r1"), (b"request-id", b"r1")]


def test_the_steps_of_a_job_are_told_in_milliseconds():
    """An operator could not see whether a slow answer waited, read or wrote."""
    assert job_headers(WHOLE) == [
        (b"server-timing", b"queue;dur=12.5, prompt;dur=487.5, generation;dur=1500.0, total;dur=2000.0"),
        (b"x-auxot-worker", b"w1"),
    ]


@pytest.mark.parametrize(
    ("changes", "timing"),
    [
        ({"ended_at": None}, b"queue;dur=12.5, prompt;dur=487.5"),
        ({"ended_at": None, "first_event_at": None}, b"queue;dur=12.5"),
        ({"first_event_at": None}, b"queue;dur=12.5, total;dur=2000.0"),
        ({"ended_at": 90.0, "first_event_at": None}, b"queue;dur=12.5, total;dur=0.0"),  # the clock was set back
    ],
)
def test_only_what_is_known_is_told(changes, timing):
    """A step that has not ended would be told as one that took no time."""
    assert job_headers(attrs.evolve(WHOLE, **changes))[0] == (b"server-timing", timing)


def test_why_a_worker_was_chosen_is_told():
    """An operator could not see whether conversations find their workers again."""
    assert (b"x-auxot-route", b"prefix") in job_headers(attrs.evolve(WHOLE, route="prefix"))


def test_a_job_that_no_worker_has_had_tells_nothing():
    """A header without a value would break the answer."""
    assert job_headers(JobRecord(job_id="j", accepted_at=1.0)) == []
