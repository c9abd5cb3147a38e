"""`python -m auxot` is `auxot`."""

from __future__ import annotations

from auxot.cli import auxot

if __name__ == "__main__":
    auxot()
