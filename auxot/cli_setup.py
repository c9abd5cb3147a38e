"""`auxot-router setup`: makes keys, and tells what the router must know of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from auxot import setup
from auxot.core.errors import ConfigError
from auxot.core.keys import Role
from auxot.knobs import DOTENV, Parser

Say = Callable[[object], None]


def setup_help() -> str:
    """Return what `auxot-router setup --help` shows."""
    return _setup_parser().format_help()


def run_setup(argv: Sequence[str], say: Say) -> int:
    """Make the keys that the arguments ask for, and show or write them; return the exit code.

    Raises:
        ConfigError: flags that do not go together, or a file that is there already.
    """
    options = _setup_parser().parse_args(argv)
    alone = (options.new_tools_key, options.fly, options.new_api_key is not None, options.cli or options.write_env)
    if sum(alone) > 1:
        raise ConfigError(
            "--new-api-key, --new-tools-key and --fly stand alone; only --cli and --write-env go together"
        )
    if options.new_tools_key:
        say(setup.tools_key_text(setup.make_key(Role.TOOLS)))
        return 0
    if options.new_api_key is not None:
        say(setup.api_key_text(options.new_api_key))
        return 0
    settings = setup.settings_for(model=options.model, is_cli=options.cli)
    file = Path.cwd() / DOTENV
    if options.write_env:
        setup.refuse_existing(file)  # before keys are shown that nothing would know
    keys = setup.make_keys(*_roles(is_cli=options.cli))
    if options.fly:
        say(setup.fly_text(keys, settings))
    elif options.write_env:
        setup.write_env(file, setup.env_text(keys, settings))
        say(f"{setup.key_text(keys)}\n\nWrote {file}: start `auxot-router` in this folder.")
    else:
        say(f"{setup.key_text(keys)}\n\n{setup.env_section(keys, settings)}")
    return 0


def _setup_parser() -> Parser:
    parser = Parser(prog="auxot-router setup", description="Make keys, and tell what the router must know of them.")
    parser.add_argument("--model", metavar="NAME", help="the model that the router serves")
    parser.add_argument("--write-env", action="store_true", help=f"write ./{DOTENV} (mode 0600) in place of showing it")
    parser.add_argument("--fly", action="store_true", help="show the commands for Fly.io")
    parser.add_argument("--cli", action="store_true", help="for workers that run coding assistants")
    parser.add_argument("--new-tools-key", action="store_true", help="make one key for tools workers, nothing else")
    parser.add_argument("--new-api-key", metavar="NAME", help="make one more API key, for the file of API keys")
    return parser


def _roles(*, is_cli: bool) -> tuple[Role, ...]:
    if is_cli or os.environ.get(setup.TOOLS_VARIABLE):  # a tools key in use stays in use
        return (Role.WORKER, Role.API)
    return (Role.WORKER, Role.TOOLS, Role.API)
