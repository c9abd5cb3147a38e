from contextlib import ExitStack
from typing import Any

from auxot.core.jobs import JobRecord
from auxot.router.relay import MAX_COUNTED, OpenJob, Relay

NOBODY: Any = None  # no event comes


def job(job_id: str) -> OpenJob:
    return OpenJob(record=JobRecord(job_id=job_id, accepted_at=0.0), answer=NOBODY, frame=b"")


def test_the_place_in_the_queue_counts_those_that_came_before_and_still_wait():
    """A client would be told a wrong place, or one in a queue that it has left."""
    relay = Relay()
    jobs = [job(str(n)) for n in range(4)]
    with ExitStack() as stack:
        for one in jobs:
            stack.enter_context(relay.open(one))
        assert [relay.n_ahead(str(n)) for n in range(5)] == [0, 1, 2, 3, None]
        jobs[1].start(worker_id="w", attempt=1, cancel=lambda: None)
        assert [relay.n_ahead(str(n)) for n in range(4)] == [0, None, 1, 2]
        jobs[1].cancel_attempt = None  # its worker was lost
        assert relay.n_ahead("1") == 1
        jobs[0].ended = True
        assert [relay.n_ahead(str(n)) for n in range(4)] == [None, 0, 1, 2]


def test_counting_is_bounded():
    """A note for each of ten thousand streams that wait would keep the router busy."""
    relay = Relay()
    with ExitStack() as stack:
        for n in range(MAX_COUNTED + 50):
            stack.enter_context(relay.open(job(str(n))))
        assert relay.n_ahead(str(MAX_COUNTED + 49)) == MAX_COUNTED
