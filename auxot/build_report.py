"""How far a build of llama-server is, for whoever waits for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

from auxot.worker.llama.build import BuildProgress

BAR_CHARS = 30


class BuildReport:
    """Shows a build: a bar that moves on a terminal, else a line for each tenth of the way.

    `write` takes a text and, by name, what stands at its end in place of a newline.
    """

    def __init__(self, *, is_terminal: bool, write: Callable[..., None]) -> None:
        self._write = write
        self._is_terminal = is_terminal
        self._has_bar = False
        self._n_tenths = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end_bar()

    def __call__(self, progress: BuildProgress | str) -> None:
        """Show how far it is; a text is a step's name."""
        if isinstance(progress, str):
            self._end_bar()
            self._write(progress)
        elif self._is_terminal:
            filled = BAR_CHARS * progress.done // max(progress.total, 1)
            bar = "#" * filled + "." * (BAR_CHARS - filled)
            self._write(f"\r[{bar}] {progress.done}/{progress.total} {progress.step}\x1b[K", end="")
            self._has_bar = True
        elif (n_tenths := 10 * progress.done // max(progress.total, 1)) != self._n_tenths:
            self._n_tenths = n_tenths
            self._write(f"{progress.step}: {progress.done} of {progress.total}")

    def _end_bar(self) -> None:
        if self._has_bar:
            self._write("")
            self._has_bar = False
