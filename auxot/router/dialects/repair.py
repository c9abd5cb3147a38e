r"""Arguments of tool calls that are not quite JSON: models break off, write one comma or one bracket too many.

Clients send such a call again with every later turn, and a chat template that parses it fails each time. What can only
have been meant in one way is repaired; the caller refuses the rest.

    ""  null                    -> {}
    {"a": 1, "b": [2            -> {"a": 1, "b": [2]}   broken off: what is open is closed,
    {"a": 1, "b": tr            -> {"a": 1, "b": true}  a word is finished,
    {"a": 1, "b":               -> {"a": 1}             a member without a value is left out
    {"a": 1,}                   -> {"a": 1}             a comma before the end
    {"a": 1}}                   -> {"a": 1}             closed once more
    {"a": "one<line feed>"}     -> {"a": "one\n"}       control characters, as JSON spells them
    "{\"a\": 1}"                -> {"a": 1}             encoded twice
"""

from __future__ import annotations

import json
import re
from typing import Any

import attrs
import orjson

_TOKEN = re.compile(
    r"""
      (?P<space>   [ \t\r\n]+ )
    | (?P<string>  "(?:[^"\\]|\\.)*" )
    | (?P<cut>     "(?:[^"\\]|\\.)*\\?\Z )     # a string that the text breaks off in
    | (?P<scalar>  [-+.0-9A-Za-z]+ )
    | (?P<mark>    [][{}:,] )
    """,
    re.VERBOSE | re.DOTALL,
)
_CONTROL = re.compile(r"[\x00-\x1f]")
_CUT_ESCAPE = re.compile(r"(?<!\\)((?:\\\\)*)\\(?:u[0-9a-fA-F]{0,3})?\Z")
_CUT_PAIR = re.compile(r"(?<!\\)((?:\\\\)*)\\u[dD][89abAB][0-9a-fA-F]{2}\Z")  # the first half of a surrogate pair
_CLOSERS = re.compile(r"[\s\]}]*\Z")
_CUT_NUMBER = re.compile(r"-|-?[0-9]+(\.|(\.[0-9]+)?[eE][-+]?)")
_CLOSERS_OF_VALUES = ("}", "]")
_NO_VALUE = ("{", "[", ",", ":")
_MAX_TOKENS = 20_000  # each costs a microsecond or two
_MAX_DEPTH = 100
_WORDS = ("true", "false", "null")
_CLOSER = {"{": "}", "[": "]"}


def repair_json_object(text: str) -> str | None:
    """Return a JSON object as text: the very same text if it is one.

    Args:
        text: what a model or a client wrote for one.

    Returns:
        The object, or None where it is not certain what was meant.
    """
    if not text.strip():
        return "{}"
    value = _parsed(text)
    if value is _BROKEN:
        repaired = _Repair().run(text)
        return repaired if type(_parsed(repaired or "")) is dict else None
    if type(value) is dict:
        return text
    if value is None:
        return "{}"
    return value if type(value) is str and type(_parsed(value)) is dict else None


_BROKEN = object()


def _parsed(text: str) -> Any:
    try:
        return orjson.loads(text)
    except (orjson.JSONDecodeError, UnicodeEncodeError):
        return _BROKEN


@attrs.define
class _Repair:
    """One pass over the tokens of a broken text. `_written` is always the beginning of good JSON."""

    _written: list[str] = attrs.field(factory=list)
    _open: list[str] = attrs.field(factory=list)  # brackets
    _members: list[int] = attrs.field(factory=list)  # where, in `_written`, each open bracket's last member begins

    def run(self, text: str) -> str | None:
        """Return the repaired text, which may still be no JSON; None where it cannot be repaired."""
        position = 0
        while position < len(text):
            token = _TOKEN.match(text, position)
            if token is None or len(self._written) > _MAX_TOKENS or len(self._open) > _MAX_DEPTH:
                return None
            position = token.end()
            if not self._take(token, is_last=position == len(text)):
                return None
            if self._written and not self._open:  # the object is closed
                return "".join(self._written) if _CLOSERS.match(text, position) else None
        if not self._drop_unfinished():
            return None
        while self._open:
            self._close()
        return "".join(self._written)

    def _take(self, token: re.Match[str], *, is_last: bool) -> bool:
        kind, text = token.lastgroup, token.group()
        if kind == "space":
            return True
        if not self._open:
            return text == "{" and self._take_mark(text)
        if kind == "mark":
            return self._take_mark(text)
        if kind == "string":
            text = _CONTROL.sub(_escaped, text)
        elif kind == "cut":
            text = _CONTROL.sub(_escaped, _finished_string(text))
        elif is_last:
            text = _finished_scalar(text)
        self._written.append(text)
        return True

    def _take_mark(self, mark: str) -> bool:
        if mark in "{[":
            self._open.append(mark)
            self._written.append(mark)
            self._members.append(len(self._written))
        elif mark in "}]":
            if _CLOSER[self._open[-1]] != mark:
                return False
            self._drop_comma()
            self._close()
        else:
            if mark == "," and self._written[-1] in _NO_VALUE:
                return False
            self._written.append(mark)
            if mark == ",":
                self._members[-1] = len(self._written)
        return True

    def _drop_unfinished(self) -> bool:
        """Leave out what the text breaks off in, where it cannot be finished; False where more is wrong than that."""
        begin = self._members[-1]
        member = self._written[begin:]
        if member and member[-1] not in _CLOSERS_OF_VALUES:
            key, value = (member[:2], member[2:]) if self._open[-1] == "{" else ([], member)
            is_key_whole = not key or (key[0][0] == '"' and key[1:] in ([], [":"]))
            is_cut = not value or _CUT_NUMBER.fullmatch(value[0])
            if len(value) > 1 or not is_key_whole:
                return False
            if is_cut:
                del self._written[begin:]
        self._drop_comma()
        return True

    def _drop_comma(self) -> None:
        if self._written and self._written[-1] == ",":
            self._written.pop()

    def _close(self) -> None:
        self._written.append(_CLOSER[self._open.pop()])
        self._members.pop()


def _finished_string(text: str) -> str:
    """Close a string that the text breaks off in; half an escape is left out."""
    whole = _CUT_ESCAPE.sub(r"\1", text)
    return _CUT_PAIR.sub(r"\1", whole) + '"'


def _finished_scalar(text: str) -> str:
    """Finish a word; a number stands as far as it goes."""
    return next((word for word in _WORDS if word.startswith(text)), text)


def _escaped(control: re.Match[str]) -> str:
    return json.dumps(control.group())[1:-1]
