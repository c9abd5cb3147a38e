"""How far something is, as a bar of text. Pure."""

from __future__ import annotations

BAR_CHARS = 30


def draw_bar(done: int, total: int) -> str:
    """Return a bar such as `[######........]`: full when `done` reaches `total`, empty while nothing is known of it."""
    filled = min(BAR_CHARS, BAR_CHARS * max(done, 0) // max(total, 1))
    return f"[{'#' * filled}{'.' * (BAR_CHARS - filled)}]"
