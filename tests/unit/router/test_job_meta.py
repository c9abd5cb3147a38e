from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auxot.router.job_meta import JobMeta, decode_meta, encode_meta

COUNT = st.integers(0, 2**31)
META = st.builds(JobMeta, needs=st.none() | st.text(), max_tokens=st.none() | COUNT, issue=COUNT, n_attempts=COUNT)


@given(META)
def test_what_is_written_is_read(meta: JobMeta) -> None:
    """A job would go to a worker that cannot do it, or be taken for another issue of itself."""
    assert decode_meta(encode_meta(meta)) == meta


@pytest.mark.parametrize("content", [b"", b"{", b"null", b"[]", b"\xff", b'{"needs":1,"issue":"x","max_tokens":[]}'])
def test_what_cannot_be_read_says_nothing(content: bytes) -> None:
    """One strange entry would end the task that claims jobs."""
    assert decode_meta(content) == JobMeta()
