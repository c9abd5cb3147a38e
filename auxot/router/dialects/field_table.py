"""What becomes of each field of a request: one table a dialect, which the parser uses and the README shows.

    name                                     status      note
    temperature                              HONOURED
    user                                     IGNORED     nobody is told who asks
    audio                                    REFUSED     answers in audio are not supported
    messages[].content[].file                REFUSED     ...                  covers everything below it
    modalities=audio                         REFUSED     ...                  one value of a field

A name is a path in the body: `[]` stands for every item of an array, `=` for one value of the field before it.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable, Mapping

import attrs

from auxot.router.dialects.fields import Fields


class Status(enum.Enum):
    """What the router does with a field."""

    HONOURED = "honoured"
    IGNORED = "ignored"  # the answer is the one that was asked for all the same
    REFUSED = "refused"  # 400, with the field's name in `param`


@attrs.frozen
class FieldRule:
    """One row of a table. `note`: why it is not honoured, or in what form it is."""

    name: str
    status: Status
    note: str = ""

    @property
    def is_top_level(self) -> bool:
        """Whether it is about a field of the body itself."""
        return not set(".[=") & set(self.name)


def honoured(*names: str) -> tuple[FieldRule, ...]:
    """Return rows for fields that are honoured and need no word more."""
    return tuple(FieldRule(name, Status.HONOURED) for name in names)


def rule(name: str, status: Status, note: str) -> tuple[FieldRule, ...]:
    """Return one row."""
    return (FieldRule(name, status, note),)


def extensions(names: Iterable[str], known: Collection[FieldRule]) -> tuple[FieldRule, ...]:
    """Return rows for the fields that llama-server has beside those of the dialect's own table."""
    documented = {row.name for row in known}
    return tuple(
        FieldRule(name, Status.HONOURED, "llama-server's own") for name in sorted(names) if name not in documented
    )


def refusals(table: Iterable[FieldRule]) -> Mapping[str, str]:
    """Return the fields of the body itself that a table refuses, each with the reason: for `check_refused`."""
    return {row.name: row.note for row in table if row.status is Status.REFUSED and row.is_top_level}


def check_refused(fields: Fields, refused: Mapping[str, str]) -> None:
    """Refuse a body that has one of the refused fields; nulls and empty strings say nothing, and pass.

    Raises:
        RefusedError: the first of them in the body, with its reason.
    """
    for name, value in fields.raw.items():
        if name in refused and value not in (None, ""):
            raise fields.refused(name, refused[name])
