"""How a configuration is read: knobs, and the sources in which they are looked up.

A configuration is an attrs class whose fields carry a `Knob`: variable, flag, kind of value, help. `config` holds
those classes, `kinds` the kinds of values, and here is the machinery:

    flags  >  environment  >  ./.env  >  default

A variable that is set but empty counts as not set (compose files write them so). Anything else that cannot be used
is one `ConfigError` that names where it stands, what stands there (unless it is a secret) and what is allowed.
`.env` has the syntax of python-dotenv, without interpolation: a `$` is a `$`, as key hashes need it.
"""

from __future__ import annotations

import argparse
import functools
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import attrs
from dotenv.parser import parse_stream

from auxot.core.errors import ConfigError
from auxot.core.keys import has_key_shape, redact
from auxot.core.logs import Level
from auxot.kinds import Kind, show_duration

DOTENV = ".env"
MAX_DOTENV_BYTES = 1024 * 1024
MAX_QUOTED_CHARS = 80  # how much of a bad value an error repeats

HELP_COLUMN = 30  # wide enough for the longest flag

_KNOB = "knob"

C = TypeVar("C")


@attrs.frozen(kw_only=True)
class Knob:
    """One setting. `variable` or `flag` may be missing, not both; a secret's value is not shown."""

    variable: str | None
    flag: str | None
    kind: Kind
    help: str
    is_secret: bool


@attrs.frozen(kw_only=True)
class Row:
    """One line of the table of settings, for the documentation and `--help`; all texts, "" where there is none."""

    name: str
    variable: str
    flag: str
    default: str
    help: str


def knob(
    variable: str | None,
    kind: Kind,
    *,
    help: str,  # noqa: A002 - argparse's word for it
    flag: str | None = "",
    is_secret: bool = False,
) -> dict[str, Knob]:
    """Return the metadata of a configuration's field.

    Args:
        variable: the environment variable, None if there is none.
        kind: what values it takes.
        help: a phrase for the table of settings.
        flag: the flag; None if there is none; "": made from the variable, AUXOT_MAX_PARALLEL -> --max-parallel.
        is_secret: never shown in an error.
    """
    if flag == "" and variable is not None:
        flag = "--" + variable.removeprefix("AUXOT_").lower().replace("_", "-")
    return {_KNOB: Knob(variable=variable, flag=flag or None, kind=kind, help=help, is_secret=is_secret)}


def knobs_of(cls: type) -> dict[str, Knob]:
    """Return the knobs of a configuration class by field name, in order."""
    return {field.name: field.metadata[_KNOB] for field in attrs.fields(cls) if _KNOB in field.metadata}


def rows(cls: type) -> Iterator[Row]:
    """Yield the table of a configuration class's settings, in order."""
    defaults = {field.name: field.default for field in attrs.fields(cls)}
    for name, one in knobs_of(cls).items():
        default = "" if one.is_secret else _show(name, one, defaults[name])
        yield Row(name=name, variable=one.variable or "", flag=one.flag or "", default=default, help=one.help)


def flag_parser(cls: type, *, prog: str, usage: str | None = None, epilog: str | None = None) -> Parser:
    """Return the parser of a configuration class's flags: values stay text, absent flags stay absent."""
    parser = Parser(prog=prog, usage=usage, epilog=epilog)
    defaults = {row.name: row.default for row in rows(cls)}
    for name, one in knobs_of(cls).items():
        if one.flag is None:
            continue
        notes = [one.variable or "", f"default {defaults[name]}" if defaults[name] else ""]
        note = ", ".join(filter(None, notes))
        parser.add_argument(
            one.flag,
            dest=name,
            metavar=one.kind.metavar,
            nargs="?" if one.kind.bare is not None else None,
            const=one.kind.bare,
            default=argparse.SUPPRESS,
            help=f"{one.help} [{note}]".replace("%", "%%") if note else one.help.replace("%", "%%"),
        )
    return parser


class Parser(argparse.ArgumentParser):
    """An argument parser that raises `ConfigError` in place of leaving the program, and knows no abbreviations."""

    def __init__(
        self, *, prog: str, usage: str | None = None, description: str | None = None, epilog: str | None = None
    ) -> None:
        super().__init__(
            prog=prog,
            usage=usage,
            description=description,
            epilog=epilog,
            add_help=False,
            allow_abbrev=False,
            formatter_class=functools.partial(argparse.RawDescriptionHelpFormatter, max_help_position=HELP_COLUMN),
        )

    def parse_args(self, args: Sequence[str]) -> argparse.Namespace:  # type: ignore[override]  # ours takes less
        """Parse all arguments; ConfigError names the first that is not known, without a value: it may be a key."""
        known, unknown = self.parse_known_args(args)
        if unknown:
            name = unknown[0].partition("=")[0]
            self.error(f"unknown argument {redact(name) if has_key_shape(name) else name}")
        return known

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print."""
        raise ConfigError(f"{message} (see `{self.prog} --help`)")


def read_dotenv(folder: Path) -> dict[str, str]:
    """Read the `.env` file of a folder; nothing if there is none.

    Raises:
        ConfigError: it cannot be read, or a line is not `NAME=value`.
    """
    file = folder / DOTENV
    try:
        with file.open("rb") as stream:
            content = stream.read(MAX_DOTENV_BYTES + 1)
        lines = content.decode("utf-8-sig")
    except FileNotFoundError:
        return {}
    except OSError as exc:
        raise ConfigError(f"{DOTENV} cannot be read: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{DOTENV} is not UTF-8 text") from exc
    if len(content) > MAX_DOTENV_BYTES:
        raise ConfigError(f"{DOTENV} is larger than {MAX_DOTENV_BYTES} bytes")
    return _parse_dotenv(lines)


def load(
    cls: type[C], flags: Mapping[str, str], variables: Mapping[str, str], *, dotenv: Mapping[str, str], **fields: Any
) -> C:
    """Build a configuration from its sources.

    Args:
        cls: an attrs class whose fields carry knobs.
        flags: values of flags by field name, as `flag_parser` yields them.
        variables: the environment.
        dotenv: the `.env` file.
        fields: defaults in place of those of the class; values of fields that have no knob.

    Raises:
        ConfigError: a value that is not allowed, or none for a field that has no default.
    """
    for name, one in knobs_of(cls).items():
        found = _find(name, one, flags=flags, variables=variables, dotenv=dotenv)
        if found is not None:
            fields[name] = _parse(one, *found)
    for field in attrs.fields(cls):  # type: ignore[arg-type]  # attrs cannot say "an attrs class" of a type variable
        if field.default is attrs.NOTHING and field.name not in fields:
            raise ConfigError(_missing(field.metadata[_KNOB]))
    return cls(**fields)


def given_texts(
    cls: type, flags: Mapping[str, str], variables: Mapping[str, str], *, dotenv: Mapping[str, str]
) -> dict[str, str]:
    """Return what is given for a configuration class, by variable: texts, not checked; paths are made absolute."""
    texts = {}
    for name, one in knobs_of(cls).items():
        found = _find(name, one, flags=flags, variables=variables, dotenv=dotenv)
        if found is not None and one.variable is not None:
            is_path = isinstance(value := _parse(one, *found), Path)
            texts[one.variable] = str(value.absolute()) if is_path else found[1]
    return texts


def _find(
    name: str, one: Knob, *, flags: Mapping[str, str], variables: Mapping[str, str], dotenv: Mapping[str, str]
) -> tuple[str, str] | None:
    """Return where a knob's value stands and its text, or None."""
    if one.flag is not None and name in flags:
        return one.flag, flags[name]
    variable = one.variable
    if variable is None:
        return None
    source, where = (variables, variable) if variable in variables else (dotenv, f"{variable} (in {DOTENV})")
    value = source.get(variable, "").strip()
    return (where, value) if value else None


def _parse(one: Knob, where: str, given: str) -> Any:
    try:
        return one.kind.parse(given)
    except ValueError:
        shown = "" if one.is_secret else f", got {_quote(given)}"
        raise ConfigError(f"{where}: expected {one.kind.allowed}{shown}") from None  # the cause may quote a secret


def _missing(one: Knob) -> str:
    ways = " or ".join(filter(None, (one.variable, one.flag)))
    return f"{ways} is required: {one.help}"


def _quote(given: str) -> str:
    return repr(given if len(given) <= MAX_QUOTED_CHARS else given[:MAX_QUOTED_CHARS] + "...")


def _parse_dotenv(lines: str) -> dict[str, str]:
    variables = {}
    for binding in parse_stream(io.StringIO(lines)):
        if binding.error or (binding.key is not None and binding.value is None):
            raise ConfigError(f"{DOTENV}, line {binding.original.line}: expected NAME=value")
        if binding.key is not None and binding.value is not None:
            variables[binding.key] = binding.value
    return variables


def _show(name: str, one: Knob, default: Any) -> str:
    """Write a default as one would set it; those of functions and None say nothing."""
    if isinstance(default, attrs.Factory):  # type: ignore[arg-type]  # a class at run time, a function for mypy
        default = default.factory()
    if default is attrs.NOTHING or default in (None, ()):
        return ""
    if one.kind.show is not None:
        return one.kind.show(default)
    if name.endswith("_s"):
        return show_duration(default)
    if isinstance(default, Path):
        return re.sub(f"^{re.escape(str(Path.home()))}(?=/|$)", "~", str(default))
    if isinstance(default, Level):
        return default.word
    return str(default).lower() if isinstance(default, bool) else str(default)
