"""Write the tables of settings into README.md, between its `<!-- settings: NAME -->` marks.

python scripts/settings_tables.py           rewrite the file
python scripts/settings_tables.py --check   exit code 1 if it is not up to date
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from auxot.config import RouterConfig, WorkerConfig
from auxot.knobs import rows

README = Path(__file__).parent.parent / "README.md"
CLASSES: dict[str, type] = {"auxot-router": RouterConfig, "auxot-worker": WorkerConfig}
_MARKED = re.compile(r"(<!-- settings: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def table(cls: type) -> str:
    """Return the settings of a configuration class as a Markdown table."""
    lines = ["| variable | flag | default | what it is |", "|---|---|---|---|"]
    lines += [f"| {_code(row.variable)} | {_code(row.flag)} | {_code(row.default)} | {row.help} |" for row in rows(cls)]
    return "\n".join(lines) + "\n"


def with_tables(text: str) -> str:
    """Return the text with every marked table renewed."""
    return _MARKED.sub(lambda match: match[1] + table(CLASSES[match[2]]) + match[3], text)


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def main() -> int:
    """Run the command line; return the exit code."""
    current = README.read_text(encoding="utf-8")
    renewed = with_tables(current)
    if "--check" in sys.argv[1:]:
        if renewed != current:
            print("README.md: the tables of settings are out of date: run scripts/settings_tables.py")
        return int(renewed != current)
    README.write_text(renewed, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
