"""The keys of `auxot up`: made on the first start, kept in `./.env` (mode 0600), found there on every later one.

The file holds the keys themselves beside their hashes, because router and worker run in one process here and the user
wants to see the API key again. `auxot-router setup` is for machines where they do not.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import attrs

from auxot.core.errors import AuxotError, ConfigError
from auxot.core.keys import Profile, Role, generate_key, hash_key
from auxot.knobs import DOTENV, read_dotenv

_VARIABLES = {
    Role.WORKER: ("AUXOT_GPU_KEY", "AUXOT_ADMIN_KEY_HASH"),
    Role.API: ("AUXOT_API_KEY", "AUXOT_API_KEY_HASH"),
}


@attrs.frozen(kw_only=True)
class LocalKeys:
    """Both keys and their hashes. Secrets: `repr` leaves them out."""

    gpu_key: str = attrs.field(repr=False)
    admin_key_hash: str = attrs.field(repr=False)
    api_key: str = attrs.field(repr=False)
    api_key_hash: str = attrs.field(repr=False)
    is_new: bool = False


def new_keys(profile: Profile) -> LocalKeys:
    """Make keys; blocking for as long as the profile takes, twice."""
    gpu_key, api_key = generate_key(Role.WORKER), generate_key(Role.API)
    return LocalKeys(
        gpu_key=gpu_key,
        admin_key_hash=hash_key(gpu_key, profile),
        api_key=api_key,
        api_key_hash=hash_key(api_key, profile),
        is_new=True,
    )


def load_or_make_keys(folder: Path, environ: Mapping[str, str], profile: Profile) -> LocalKeys:
    """Return the keys of a folder; made and kept in its `.env` if there are none.

    Raises:
        ConfigError: some are there and some are missing: which router they belong to cannot be told.
        AuxotError: the file cannot be written.
    """
    found = {**read_dotenv(folder), **environ}
    values = {name: found.get(name, "") for names in _VARIABLES.values() for name in names}
    missing = [name for name, value in values.items() if not value]
    if not missing:
        return LocalKeys(
            gpu_key=values["AUXOT_GPU_KEY"],
            admin_key_hash=values["AUXOT_ADMIN_KEY_HASH"],
            api_key=values["AUXOT_API_KEY"],
            api_key_hash=values["AUXOT_API_KEY_HASH"],
        )
    if len(missing) < len(values):
        raise ConfigError(f"{DOTENV} or the environment has some keys but not {', '.join(missing)}: add or remove them")
    keys = new_keys(profile)
    _append(folder / DOTENV, keys)
    return keys


def _append(file: Path, keys: LocalKeys) -> None:
    """Add the keys to the file, which from then on only its owner can read."""
    lines = (
        "",
        "# Keys of `auxot up` on this machine: secrets.",
        f"AUXOT_GPU_KEY={keys.gpu_key}",
        f"AUXOT_ADMIN_KEY_HASH='{keys.admin_key_hash}'",
        f"AUXOT_API_KEY={keys.api_key}",
        f"AUXOT_API_KEY_HASH='{keys.api_key_hash}'",
        "",
    )
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            os.fchmod(stream.fileno(), 0o600)
            stream.write("\n".join(lines))
    except OSError as exc:
        raise AuxotError(f"{file.name} cannot be written: {exc.strerror}") from exc
