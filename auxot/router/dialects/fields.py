"""Typed reads from a request's JSON, which refuse what is wrong and name the field that it stands in.

    Fields(body).number("temperature", 0, 2)             -> float | None, or RefusedError(param="temperature")
    Fields(body).objects("messages")[2].string("role")   -> str | None, or RefusedError(param="messages[2].role")

A null counts as an absent field everywhere: clients write both. Texts of errors never quote values, which can be
prompts or secrets.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Self

import attrs
import orjson

from auxot.core.errors import ErrorCode, RefusedError

# The JSON encoder gives up at 254 levels, the job around a value has a few of its own, and no honest schema is deep.
MAX_DEPTH = 100
_MARGIN = 254 - MAX_DEPTH
_BEYOND_INT64 = 2**63  # the JSON encoder would give up, and no reader has a place for it


def parse_object(body: bytes, *, invalid: str) -> dict[str, Any]:
    """Read a request's body.

    Args:
        body: JSON, UTF-8.
        invalid: how the message begins when it is not JSON, as the dialect words it (`Invalid JSON: `).

    Raises:
        RefusedError: not JSON, not UTF-8, or not an object.
    """
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as exc:
        raise RefusedError(ErrorCode.INVALID_REQUEST, f"{invalid}{exc}") from exc
    if type(value) is not dict:
        raise RefusedError(ErrorCode.INVALID_REQUEST, f"{invalid}the body must be an object")
    return value


class WebImage(str):
    """The address of an image on the web, and the field that it was read from. JSON writers take it for its text.

    It never gets as far as a worker: `router.images` puts the image itself in its place.
    """

    __slots__ = ("field",)
    field: str

    def __new__(cls, url: str, *, field: str) -> Self:
        """Make one."""
        self = super().__new__(cls, url)
        self.field = field
        return self


@attrs.frozen
class Fields:
    """One JSON object of a request.

    Attributes:
        raw: the object.
        path: where it stands in the body; empty for the body itself.
        dotted: whether an index is written `messages.2` (Anthropic) and not `messages[2]` (OpenAI).
    """

    raw: dict[str, Any]
    path: str = ""
    dotted: bool = False

    def refused(self, name: str, reason: str) -> RefusedError:
        """Return the error about one field; without a name about this object."""
        where = self.where(name) if name else self.path
        return RefusedError(ErrorCode.INVALID_REQUEST, f"{where}: {reason}", param=where)

    def where(self, name: str) -> str:
        """Return a field's full name."""
        return f"{self.path}.{name}" if self.path else name

    def get(self, name: str) -> Any:
        """Return a field's value unchecked; None if it is absent."""
        return self.raw.get(name)

    def string(self, name: str) -> str | None:
        """Read a string."""
        value = self.raw.get(name)
        if value is None or type(value) is str:
            return value
        raise self.refused(name, "must be a string")

    def required_string(self, name: str) -> str:
        """Read a string that must be there and not be empty."""
        value = self.string(name)
        if value is None:
            raise self.refused(name, "Field required")
        if not value:
            raise self.refused(name, "must not be empty")
        return value

    def word(self, name: str, words: Iterable[str]) -> str | None:
        """Read a string that is one of `words`."""
        value = self.string(name)
        if value is None or value in words:
            return value
        raise self.refused(name, f"must be one of {', '.join(sorted(words))}")

    def boolean(self, name: str) -> bool | None:
        """Read true or false."""
        value = self.raw.get(name)
        if value is None or type(value) is bool:
            return value
        raise self.refused(name, "must be true or false")

    def number(self, name: str, low: float = -math.inf, high: float = math.inf) -> float | None:
        """Read a number from `low` to `high`; integers stay integers."""
        value = self.raw.get(name)
        if value is None:
            return None
        if type(value) not in (int, float):
            raise self.refused(name, "must be a number")
        self._check_range(name, value, (low, high))
        number: float = value
        return number

    def integer(self, name: str, low: float = -math.inf, high: float = math.inf) -> int | None:
        """Read an integer from `low` to `high`; `5.0` is one, as some languages have only one kind of number."""
        value = self.raw.get(name)
        if value is None:
            return None
        if type(value) not in (int, float) or value != int(value):
            raise self.refused(name, "must be an integer")
        self._check_range(name, value, (low, high))
        if not -_BEYOND_INT64 <= value < _BEYOND_INT64:
            raise self.refused(name, "is too large")
        return int(value)

    def _check_range(self, name: str, value: float, bounds: tuple[float, float]) -> None:
        low, high = bounds
        if low <= value <= high:
            return
        if math.isinf(high):
            raise self.refused(name, f"must be at least {low:g}")
        raise self.refused(name, f"must be between {low:g} and {high:g}")

    def array(self, name: str) -> list[Any] | None:
        """Read an array of anything."""
        value = self.raw.get(name)
        if value is None or type(value) is list:
            return value
        raise self.refused(name, "must be an array")

    def strings(self, name: str) -> list[str] | None:
        """Read an array of strings."""
        value = self.array(name)
        if value is None or all(type(item) is str for item in value):
            return value
        raise self.refused(name, "must be an array of strings")

    def objects(self, name: str) -> list[Fields] | None:
        """Read an array of objects."""
        value = self.array(name)
        if value is None:
            return None
        return [self._item(name, index, item) for index, item in enumerate(value)]

    def _item(self, name: str, index: int, item: Any) -> Fields:
        path = f"{self.where(name)}.{index}" if self.dotted else f"{self.where(name)}[{index}]"
        if type(item) is not dict:
            raise Fields({}, path).refused("", "must be an object")
        return Fields(item, path, self.dotted)

    def object(self, name: str) -> Fields | None:
        """Read an object."""
        value = self.raw.get(name)
        if value is None:
            return None
        if type(value) is not dict:
            raise self.refused(name, "must be an object")
        return Fields(value, self.where(name), self.dotted)

    def required_object(self, name: str) -> Fields:
        """Read an object that must be there."""
        value = self.object(name)
        if value is None:
            raise self.refused(name, "Field required")
        return value

    def opaque_object(self, name: str) -> dict[str, Any] | None:
        """Read an object that is passed on as it is, such as a JSON schema: only its depth is bounded."""
        value = self.object(name)
        if value is None:
            return None
        self.check_depth(name, value.raw)
        return value.raw

    def check_depth(self, name: str, value: Any) -> None:
        """Refuse a value that is nested more than MAX_DEPTH levels deep.

        The JSON encoder counts for us, in C: it gets the value inside as many arrays as it may have levels more.
        """
        for _ in range(_MARGIN):
            value = [value]
        try:
            orjson.dumps(value)
        except TypeError as exc:
            raise self.refused(name, f"is nested more than {MAX_DEPTH} levels deep") from exc
