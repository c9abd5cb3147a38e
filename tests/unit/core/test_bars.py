from __future__ import annotations

import pytest

from auxot.core.bars import BAR_CHARS, draw_bar


@pytest.mark.parametrize(
    ("done", "total", "n_filled"), [(0, 10, 0), (5, 10, 15), (10, 10, 30), (11, 10, 30), (-1, 10, 0), (0, 0, 0)]
)
def test_a_bar_has_one_length(done: int, total: int, n_filled: int) -> None:
    """A file that is larger than was said makes the bar longer than the terminal."""
    assert draw_bar(done, total) == f"[{'#' * n_filled}{'.' * (BAR_CHARS - n_filled)}]"
