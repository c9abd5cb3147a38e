from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auxot.router.queue_entries import QueuedJob, entry_fields, read_entry, read_summary


@given(
    job_id=st.text(max_size=20), data=st.binary(max_size=50), reply_to=st.text(max_size=20), meta=st.binary(max_size=20)
)
def test_a_job_is_read_as_it_was_written(job_id: str, data: bytes, reply_to: str, meta: bytes) -> None:
    """A job changes on its way through the stream."""
    job = QueuedJob(job_id=job_id, data=data, reply_to=reply_to, meta=meta)
    flat = [value.encode() if isinstance(value, str) else value for value in entry_fields(job)]
    claimed = read_entry([b"1-0", flat], attempt=3, max_attempts=3)
    assert (claimed.job_id, claimed.data, claimed.reply_to, claimed.meta) == (job_id, data, reply_to, meta)
    assert (claimed.entry_id, claimed.attempt, claimed.is_exhausted) == (b"1-0", 3, False)
    assert read_entry([b"1-0", flat], attempt=4, max_attempts=3).is_exhausted


@pytest.mark.parametrize("missing", ["job_id", "data", "reply_to", "meta"])
def test_a_missing_field_is_named(missing: str) -> None:
    """An entry of somebody else is taken for a job, or crashes the router."""
    names = [name for name in ("job_id", "data", "reply_to", "meta") if name != missing]
    flat = [part for name in names for part in (name.encode(), b"x")]
    with pytest.raises(ValueError, match=missing):
        read_entry([b"1-0", flat], attempt=1, max_attempts=3)


def test_an_id_that_is_not_text_is_refused() -> None:
    """An entry of somebody else crashes the router."""
    flat = [b"job_id", b"\xff", b"data", b"", b"reply_to", b"", b"meta", b""]
    with pytest.raises(ValueError, match="utf-8"):
        read_entry([b"1-0", flat], attempt=1, max_attempts=3)


def test_what_is_pending_is_counted_by_consumer() -> None:
    """An empty group, or counts that come as text, cannot be read."""
    assert read_summary([0, None, None, None]) == {}
    assert read_summary([3, b"1-0", b"3-0", [[b"a", b"2"], [b"b", 1]]]) == {"a": 2, "b": 1}
