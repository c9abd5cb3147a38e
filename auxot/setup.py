"""The keys and texts of `auxot-router setup`: nothing here prints, and only `write_env` touches the disk.

Each call makes fresh keys. A key is told once, in plain text; the router keeps hashes, in the variables of
`config.RouterConfig`.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs

from auxot.config import DEFAULT_MODEL
from auxot.core.errors import AuxotError, ConfigError
from auxot.core.keys import KEY_NAME, STANDARD, Profile, Role, generate_key, hash_key, key_digest

DEFAULT_CLI_MODEL = "opus"
TOOLS_VARIABLE = "AUXOT_TOOLS_KEY_HASH"
HASH_VARIABLES = {
    Role.WORKER: "AUXOT_ADMIN_KEY_HASH",
    Role.API: "AUXOT_API_KEY_HASH",
    Role.TOOLS: TOOLS_VARIABLE,
}
_SAVE_NOW = "Save these keys now: only their hashes are kept, they cannot be shown again."


@attrs.frozen
class NewKey:
    """A key and the hash of it. The key is a secret, `repr` leaves it out."""

    role: Role
    key: str = attrs.field(repr=False)
    phc: str = attrs.field(repr=False)


def make_key(role: Role, profile: Profile = STANDARD) -> NewKey:
    """Make a key and its hash; blocking, see `core.keys`."""
    key = generate_key(role)
    return NewKey(role, key, hash_key(key, profile))


def make_keys(*roles: Role, profile: Profile = STANDARD) -> dict[Role, NewKey]:
    """Make a key for each role."""
    return {role: make_key(role, profile) for role in roles}


def env_text(keys: Mapping[Role, NewKey], settings: Mapping[str, str]) -> str:
    """Return the text of a `.env` file.

    Args:
        keys: whose hashes go in; a role without a new key gets a comment.
        settings: further variables and their values.
    """
    lines = ["# Written by Auxot. Hashes only: the keys themselves are not in this file."]
    for role, variable in HASH_VARIABLES.items():
        if role in keys:
            lines.append(hash_line(keys[role]))
        elif role is Role.TOOLS:
            lines.append(f"# {variable}='' (none, or as it is set already)")
    lines += [f"{variable}={quoted(value)}" for variable, value in settings.items()]
    lines += [
        "# AUXOT_REDIS_URL=redis://127.0.0.1:6379/0",
        "# AUXOT_ALLOWED_TOOLS=web_fetch,web_search",
    ]
    return "\n".join(lines) + "\n"


def hash_line(key: NewKey) -> str:
    """Return a key's line of a `.env` file: single quotes, because of the `$` in a hash."""
    return f"{HASH_VARIABLES[key.role]}='{key.phc}'"


def quoted(value: str) -> str:
    """Return a value as both `.env` files and shells read it back; plain words stay plain.

    Raises:
        ConfigError: a character that the two read differently.
    """
    if not value.isprintable() or "'" in value or "\\" in value:
        raise ConfigError(f"{value!r}: quotes, backslashes and control characters cannot stand in a .env file")
    return shlex.quote(value) if value else ""


def key_text(keys: Mapping[Role, NewKey]) -> str:
    """Return the sections that show each key and say where it goes."""
    return "\n\n".join([*("\n".join(_section(key)) for key in keys.values()), _SAVE_NOW])


def env_section(keys: Mapping[Role, NewKey], settings: Mapping[str, str]) -> str:
    """Return the `.env` text with a line above it that says what to do with it."""
    return "Put this into the router's .env file, or set it as environment:\n\n" + env_text(keys, settings)


def fly_text(keys: Mapping[Role, NewKey], settings: Mapping[str, str]) -> str:
    """Return a script for Fly.io: keys as comments, one command that sets the hashes, what to do next."""
    hashes = [f"{HASH_VARIABLES[key.role]}='{key.phc}'" for key in keys.values()]
    values = [f"{variable}={quoted(value)}" for variable, value in settings.items() if value]
    return "\n".join(
        [
            f"# {_SAVE_NOW}",
            *(f"# {_TITLES[key.role]}: {key.key}" for key in keys.values()),
            "",
            " \\\n  ".join(["fly secrets set", *hashes, *values]),
            "",
            "# Then run `fly deploy`, and keep one machine running: workers hold a connection to it.",
        ]
    )


def tools_key_text(key: NewKey) -> str:
    """Return the text of `setup --new-tools-key`."""
    what_to_do = "Put this line into the router's .env file in place of the old one, and restart the router:"
    return "\n\n".join([key_text({key.role: key}), what_to_do, hash_line(key)])


def api_key_text(name: str) -> str:
    """Return the text of `setup --new-api-key`: a key, and its entry for the file of API keys.

    Raises:
        ConfigError: the name cannot be one of a key.
    """
    if not KEY_NAME.fullmatch(name) or name == "default":
        raise ConfigError(f"{name!r} cannot be the name of a key: letters, digits and ._@-, at most 64, not 'default'")
    key = generate_key(Role.API)
    usage = "\n".join(f"  {line}" for line in _USAGE[Role.API])
    entry = "\n".join(
        [
            "[[key]]",
            f'name = "{name}"',
            f'sha256 = "{key_digest(key).hex()}"',
            "# max_concurrent = 8",
            "# requests_per_minute = 600",
            '# priority = "batch"',
            "# weight = 2",
        ]
    )
    what_to_do = "Put this into the file that AUXOT_API_KEYS_FILE names; a running router reads it within seconds:"
    return "\n\n".join([f"API key {name}:  {key}\n{usage}", _SAVE_NOW, what_to_do, entry])


def settings_for(*, model: str | None, is_cli: bool) -> dict[str, str]:
    """Return the variables beside the hashes, for GPU workers or for CLI workers; ConfigError as `quoted`."""
    quoted(model or "")
    if not is_cli:
        return {"AUXOT_MODEL": model or DEFAULT_MODEL}
    return {
        "AUXOT_WORKER_TYPE": "cli",
        "AUXOT_CLI_TYPE": "claude",
        "AUXOT_MODEL": model or DEFAULT_CLI_MODEL,
        "AUXOT_CLI_TOOLS": "",
    }


def refuse_existing(file: Path) -> None:
    """Raise AuxotError if there is something at that path: hashes in use are not to be lost."""
    if file.exists() or file.is_symlink():
        raise AuxotError(f"{file.name} exists already: move it away first, or run setup without --write-env")


def write_env(file: Path, content: str) -> None:
    """Write a new file that only its owner can read (mode 0600).

    Raises:
        AuxotError: it exists, or cannot be written; nothing is left behind then.
    """
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as exc:
        raise AuxotError(f"{file.name} cannot be written: {exc.strerror}") from exc
    try:
        with open(descriptor, "w", encoding="utf-8") as stream:  # noqa: PTH123 - a descriptor has no path
            stream.write(content)
    except OSError as exc:
        file.unlink(missing_ok=True)
        raise AuxotError(f"{file.name} cannot be written: {exc.strerror}") from exc


_TITLES = {Role.WORKER: "GPU key", Role.API: "API key", Role.TOOLS: "Tools key"}
_USAGE = {
    Role.WORKER: (
        "For the machines that compute:",
        "AUXOT_ROUTER_URL=wss://<router> AUXOT_GPU_KEY=<this key> auxot-worker --model-path <file.gguf>",
    ),
    Role.API: (
        "For the programs that ask:",
        "OPENAI_BASE_URL=https://<router>/api/openai OPENAI_API_KEY=<this key>",
        "ANTHROPIC_BASE_URL=https://<router>/api/anthropic ANTHROPIC_API_KEY=<this key>",
    ),
    Role.TOOLS: (
        "For the machines that run tools:",
        "AUXOT_ROUTER_URL=wss://<router> AUXOT_TOOLS_KEY=<this key> auxot-tools",
    ),
}


def _section(key: NewKey) -> Iterator[str]:
    yield f"{_TITLES[key.role]}:  {key.key}"
    yield from (f"  {line}" for line in _USAGE[key.role])
