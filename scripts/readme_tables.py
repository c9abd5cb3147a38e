"""Write the tables of settings and of request fields into README.md, between `<!-- table: NAME -->` and `<!-- end -->`.

python scripts/readme_tables.py           rewrite the file
python scripts/readme_tables.py --check   exit code 1 if it is not up to date
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

from auxot.config import RouterConfig, WorkerConfig
from auxot.knobs import rows
from auxot.router.dialects import anthropic_fields, responses_fields
from auxot.router.dialects.field_table import FieldRule, Status
from auxot.router.dialects.openai_completions_request import COMPLETION_EXTENSIONS
from auxot.router.dialects.openai_fields import CHAT_FIELDS, COMPLETION_FIELDS, EMBEDDING_FIELDS
from auxot.router.dialects.openai_request import CHAT_EXTENSIONS

README = Path(__file__).parent.parent / "README.md"
_MARKED = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
_LLAMA_NOTE = "llama-server's own"


def settings_table(cls: type) -> str:
    """Return the settings of a configuration class as a Markdown table."""
    lines = ["| variable | flag | default | what it is |", "|---|---|---|---|"]
    lines += [f"| {_code(row.variable)} | {_code(row.flag)} | {_code(row.default)} | {row.help} |" for row in rows(cls)]
    return "\n".join(lines) + "\n"


def fields_table(rules: Iterable[FieldRule]) -> str:
    """Return what becomes of each field of a request: lists of the plain ones, a table of those that need a word."""
    rules = list(rules)
    plain = [rule.name for rule in rules if rule.status is Status.HONOURED and not rule.note]
    llama = [rule.name for rule in rules if rule.note == _LLAMA_NOTE]
    noted = [rule for rule in rules if rule.note and rule.note != _LLAMA_NOTE]
    unnoted = [rule for rule in rules if rule.status is not Status.HONOURED and not rule.note]
    parts = [f"Honoured: {_list(plain)}.\n"]
    if llama:
        parts.append(f"llama-server's own fields, honoured too: {_list(llama)}.\n")
    lines = ["| field | | |", "|---|---|---|"]
    lines += [f"| `{rule.name}` | {rule.status.value} | {rule.note} |" for rule in [*noted, *unnoted]]
    return "\n".join(parts) + "\n" + "\n".join(lines) + "\n"


def _list(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


TABLES: Mapping[str, Callable[[], str]] = {
    "auxot-router": partial(settings_table, RouterConfig),
    "auxot-worker": partial(settings_table, WorkerConfig),
    "chat": lambda: fields_table((*CHAT_FIELDS, *CHAT_EXTENSIONS)),
    "completions": lambda: fields_table((*COMPLETION_FIELDS, *COMPLETION_EXTENSIONS)),
    "embeddings": lambda: fields_table(EMBEDDING_FIELDS),
    "responses": lambda: fields_table(responses_fields.field_rules()),
    "messages": lambda: fields_table(anthropic_fields.rows()),
}


def with_tables(text: str) -> str:
    """Return the text with every marked table renewed."""
    return _MARKED.sub(lambda match: match[1] + TABLES[match[2]]() + match[3], text)


def main() -> int:
    """Run the command line; return the exit code."""
    current = README.read_text(encoding="utf-8")
    renewed = with_tables(current)
    if "--check" in sys.argv[1:]:
        if renewed != current:
            print("README.md: its tables are out of date: run scripts/readme_tables.py")
        return int(renewed != current)
    README.write_text(renewed, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
