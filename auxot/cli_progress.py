"""Shows on standard error how far a build or a download is: a bar that moves on a terminal, else a line a tenth."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Self

from auxot.core.bars import draw_bar
from auxot.core.sizes import show_bytes

if TYPE_CHECKING:
    from auxot.worker.fetch.source import FetchProgress
    from auxot.worker.llama.build import BuildProgress


class Progress:
    """A report for builds and downloads; the bar ends with the block."""

    def __init__(self, *, is_terminal: bool | None = None) -> None:
        self._is_terminal = sys.stderr.isatty() if is_terminal is None else is_terminal
        self._has_bar = False
        self._told = ("", -1)  # what was told last, and how many tenths of it

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end_bar()

    def __call__(self, step: BuildProgress | FetchProgress | str) -> None:
        """Show a step."""
        if isinstance(step, str):
            self._end_bar()
            _write(f"{step}\n")
            return
        done, total, doing, amount = _figures(step)
        if self._is_terminal:
            _write(f"\r{draw_bar(done, total)} {amount} {doing}\x1b[K")
            self._has_bar = True
        elif (told := (doing.partition(",")[0], 10 * done // max(total, 1))) != self._told:
            self._told = told
            _write(f"{doing}: {amount.replace('/', ' of ')}\n")

    def _end_bar(self) -> None:
        if self._has_bar:
            _write("\n")
            self._has_bar = False


def _figures(step: BuildProgress | FetchProgress) -> tuple[int, int, str, str]:
    """Return how much is done, of how much, what is being done, and both amounts for people."""
    from auxot.worker.fetch.source import FetchProgress  # noqa: PLC0415 - a router's image is without the worker

    if isinstance(step, FetchProgress):
        amount = f"{show_bytes(step.done_bytes)}/{show_bytes(step.total_bytes)}"
        doing = f"{step.doing} {step.name}, {show_bytes(round(step.bytes_per_s))}/s"
        return step.done_bytes, step.total_bytes, doing, amount
    return step.done, step.total, step.step, f"{step.done}/{step.total}"


def _write(text: str) -> None:
    print(text, end="", file=sys.stderr, flush=True)
