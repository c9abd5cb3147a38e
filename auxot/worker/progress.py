"""How far something is that takes long: a bar below the log on a terminal, else an event now and then.

For downloads, builds and the loading of models.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import trio

from auxot.core import logs
from auxot.core.bars import draw_bar
from auxot.core.logs import get_logger
from auxot.core.sizes import show_bytes
from auxot.worker.fetch.source import FetchProgress
from auxot.worker.llama.build import BuildProgress

_BAR_S = 0.4  # between two bars
_PREPARE_LOG_S = 5.0
_LOAD_LOG_S = 10.0

_log = get_logger()


class Teller:
    """Shows bars on a terminal, or writes events into a log; not too often. A bar ends with the block.

    Args:
        log_s: between two events.
        is_patient: the first event, too, waits for so long.
    """

    def __init__(self, *, log_s: float, is_patient: bool = False) -> None:
        self._log_s = log_s
        self._next_bar_at = trio.current_time()
        self._next_event_at = self._next_bar_at + (log_s if is_patient else 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        logs.show_below("")

    def is_due(self) -> bool:
        """Tell whether it is time to tell."""
        return trio.current_time() >= (self._next_bar_at if logs.has_terminal() else self._next_event_at)

    def tell(self, event: str, shown: str, **fields: Any) -> None:
        """Tell now: `shown` to people, or the event with its fields to the log."""
        if logs.has_terminal():
            self._next_bar_at = trio.current_time() + _BAR_S
            logs.show_below(shown)
        else:
            self._next_event_at = trio.current_time() + self._log_s
            _log.info(event, **fields)


class Progress(Teller):
    """A report of what is got ready, for downloads and builds. A text: a step begins."""

    def __init__(self) -> None:
        super().__init__(log_s=_PREPARE_LOG_S)

    def __call__(self, step: FetchProgress | BuildProgress | str) -> None:
        """Tell a step."""
        if isinstance(step, str):
            _log.info("prepare.step", message=step)
        elif self.is_due():
            if isinstance(step, FetchProgress):
                self._tell_fetch(step)
            else:
                self._tell_build(step)

    def _tell_fetch(self, step: FetchProgress) -> None:
        amount = f"{show_bytes(step.done_bytes)}/{show_bytes(step.total_bytes)}"
        speed = f"{show_bytes(round(step.bytes_per_s))}/s"
        self.tell(
            "fetch.progress",
            f"{draw_bar(step.done_bytes, step.total_bytes)} {amount}, {speed}, {step.doing} {step.name}",
            file=step.name,
            doing=step.doing,
            done_bytes=step.done_bytes,
            total_bytes=step.total_bytes,
            bytes_per_s=round(step.bytes_per_s),
        )

    def _tell_build(self, step: BuildProgress) -> None:
        shown = f"{draw_bar(step.done, step.total)} {step.done}/{step.total} {step.step} llama-server"
        self.tell("build.progress", shown, step=step.step, n_done=step.done, n_total=step.total)


class Loading(Teller):
    """How far llama-server is with its model: of a mapped file the resident bytes grow with what has been read.

    Args:
        step: for people: what is waited for.
        model_bytes: the size of the model's files; 0 if it is not known.
    """

    def __init__(self, *, step: str, model_bytes: int) -> None:
        super().__init__(log_s=_LOAD_LOG_S, is_patient=True)
        self._step = step
        self._model_bytes = model_bytes
        self._began_at = trio.current_time()

    def tell_loaded(self, resident_bytes: Callable[[], int]) -> None:
        """Tell, if it is time, how far it is; `resident_bytes`: how many bytes llama-server has in memory."""
        if not self.is_due():
            return
        n_bytes, waited_s = resident_bytes(), trio.current_time() - self._began_at
        self.tell(
            "llama.loading",
            f"{self._amount(n_bytes)}{waited_s:.0f} s, {self._step}",
            waited_ms=round(waited_s * 1000),
            resident_bytes=n_bytes,
            model_bytes=self._model_bytes,
        )

    def _amount(self, n_bytes: int) -> str:
        total = self._model_bytes
        if not total:
            return ""
        done = min(n_bytes, total)
        return f"{draw_bar(done, total)} {show_bytes(done)}/{show_bytes(total)}, "
