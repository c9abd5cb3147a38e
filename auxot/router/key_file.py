"""The file of API keys, read at the start and again whenever it changes.

A file that cannot be used any more changes nothing: the keys of the last good one stay, and the log says why.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import trio

from auxot.core.errors import ConfigError
from auxot.router.keyring import MAX_FILE_BYTES, NamedKey, parse_keys

if TYPE_CHECKING:
    from auxot.core.logs import Logger

POLL_S = 2.0

_Signature = tuple[int, int, int, int]  # of a file: when anything of it changes, so does one of these


@attrs.define(eq=False, kw_only=True)
class KeyFile:
    """One file. `on_keys` is told its keys, at the start and after each change."""

    path: Path
    on_keys: Callable[[tuple[NamedKey, ...]], None]
    log: Logger
    _seen: _Signature | None = None

    async def load(self) -> None:
        """Read it for the first time.

        Raises:
            ConfigError: it cannot be used.
        """
        try:
            self._seen, content = await trio.to_thread.run_sync(_read, self.path)
            keys = parse_keys(content)
        except OSError as exc:
            raise ConfigError(f"AUXOT_API_KEYS_FILE: {str(self.path)!r} cannot be read: {exc.strerror}") from exc
        except ConfigError as exc:
            raise ConfigError(f"AUXOT_API_KEYS_FILE: {exc}") from exc
        self.on_keys(keys)

    async def watch(self) -> None:
        """Read it again when it changes, for ever."""
        while True:
            await trio.sleep(POLL_S)
            await self._look()

    async def _look(self) -> None:
        before = self._seen
        try:
            signature = await trio.to_thread.run_sync(_signature_of, self.path)
            if signature == before:
                return
            self._seen, content = await trio.to_thread.run_sync(_read, self.path)
            keys = parse_keys(content)
        except OSError as exc:
            self._seen = None
            if before is not None:  # told once
                self.log.warning("keys.unreadable", path=str(self.path), error=exc.strerror)
        except ConfigError as exc:
            self.log.warning("keys.not_changed", path=str(self.path), error=str(exc))
        else:
            self.log.info("keys.changed", path=str(self.path), n_keys=len(keys))
            self.on_keys(keys)


def _read(path: Path) -> tuple[_Signature, bytes]:
    with path.open("rb") as stream:
        signature = _signature(os.fstat(stream.fileno()))
        return signature, stream.read(MAX_FILE_BYTES + 1)


def _signature_of(path: Path) -> _Signature:
    return _signature(path.stat())


def _signature(status: os.stat_result) -> _Signature:
    return (status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino)
