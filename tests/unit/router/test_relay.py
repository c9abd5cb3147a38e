from typing import Any

from auxot.core.jobs import JobRecord
from auxot.router.relay import OpenJob, Relay

NOBODY: Any = None  # no event comes


def test_a_job_waits_until_a_worker_has_it_and_again_when_that_is_lost():
    """A client would be told a place in a queue that it has left."""
    relay = Relay()
    job = OpenJob(record=JobRecord(job_id="j", accepted_at=0.0), answer=NOBODY, frame=b"")
    seen = []
    with relay.open(job):
        seen.append(job.waits)
        job.start(worker_id="w", attempt=1, cancel=lambda: None)
        seen.append(job.waits)
        job.cancel_attempt = None  # its worker was lost
        seen.append(job.waits)
    seen.append(job.waits)
    assert seen == [True, False, True, False]
