"""What is to be downloaded, how patiently, and what is told of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from urllib.parse import urlsplit

import attrs

MIB = 1024 * 1024


@attrs.frozen(kw_only=True)
class Source:
    """One file of a site.

    Attributes:
        name: what people call it: its file name.
        url: where it is; redirects are followed.
        size_bytes: what it must have.
        sha256: what it must be, in hexadecimal; None where nobody says.
        headers: for the site itself, not for those that it redirects to; may hold a token.
    """

    name: str
    url: str
    size_bytes: int
    sha256: str | None = None
    headers: Mapping[str, str] = attrs.field(factory=dict, repr=False)

    @property
    def host(self) -> str:
        """The site's name, for errors."""
        return urlsplit(self.url).netloc.rpartition("@")[2]


@attrs.frozen(kw_only=True)
class Patience:
    """How a download goes on when the network does not.

    Attributes:
        connections: how many fetch parts of one file at the same time.
        segment_bytes: size of these parts.
        connect_s, read_s: how long a connection may take to open, and to say the next thing.
        stall_bytes, stall_s: a connection that brings less than that in that time is given up.
        max_failures: tries in a row that may bring next to nothing.
        first_delay_s, max_delay_s: pause after the first such try, doubled after each further one up to the second.
    """

    connections: int = 4
    segment_bytes: int = 64 * MIB
    connect_s: float = 15.0
    read_s: float = 30.0
    stall_bytes: int = 64 * 1024
    stall_s: float = 60.0
    max_failures: int = 8
    first_delay_s: float = 1.0
    max_delay_s: float = 30.0

    def delay_s(self, n_failures: int) -> float:
        """Return the pause after that many failures in a row."""
        return float(min(self.max_delay_s, self.first_delay_s * 2 ** max(0, n_failures - 1)))


@attrs.frozen(kw_only=True)
class FetchProgress:
    """How far a download is. `doing`: "downloading" or "verifying"."""

    name: str
    doing: str
    done_bytes: int
    total_bytes: int
    bytes_per_s: float


Report = Callable[[FetchProgress | str], None]
