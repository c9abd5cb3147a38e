"""Addresses on the web that requests name: how they are read, and which machines they may lead to. Pure.

A router stands where it can see what strangers cannot: its own loopback, a private network, a cloud's metadata
service. So a name is resolved first, every address that it has must be one of the public internet, and the
connection is made to that very address. IPv6 has ways to spell an IPv4 address; what counts is the one inside.

Sources: RFC 6890 and IANA's registries of special-purpose addresses, RFC 6052 (64:ff9b::/96), RFC 3986.
"""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import quote, urljoin, urlsplit

import attrs

MAX_URL_CHARS = 8192
_DEFAULT_PORTS = {"http": 80, "https": 443}
_CONTROLS = re.compile(r"[\x00-\x20\x7f\\]")
_KEPT = "%/:=&?~+!$,;'@()*[]"  # what `quote` leaves as it is: the caller has quoted already
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# What the `ipaddress` of Python 3.11 takes for public: IETF's own, 6to4 and its relays, Teredo and other tunnels, NAT64
# in private networks, documentation, segment routing; and the host of a virtual machine in Azure.
_CLOSED = tuple(
    map(
        ipaddress.ip_network,
        (
            *("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32"),
            *("64:ff9b:1::/48", "2001::/23", "2002::/16", "3fff::/20", "5f00::/16"),
        ),
    )
)


class BadAddressError(ValueError):
    """An address that cannot be used; the text is for the client and quotes nothing."""


@attrs.frozen(kw_only=True)
class WebAddress:
    """An http or https URL, read.

    Attributes:
        url: the whole, what a redirect is relative to.
        host: a name in ASCII, or a literal IP address without brackets.
        target: path and query, as they stand in the request line.
    """

    url: str
    is_tls: bool
    host: str
    port: int
    target: str

    @property
    def authority(self) -> str:
        """The `Host` header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS["https" if self.is_tls else "http"] else f"{host}:{self.port}"


def parse_web_address(url: str) -> WebAddress:
    """Read a URL.

    Raises:
        BadAddressError: not http or https, no host, a user name, or nothing that a request line could hold.
    """
    if len(url) > MAX_URL_CHARS or _CONTROLS.search(url):
        raise BadAddressError("is not a URL")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        host = host if ":" in host else host.encode("idna").decode()
    except ValueError as exc:  # UnicodeError is one
        raise BadAddressError("is not a URL") from exc
    if parts.scheme not in _DEFAULT_PORTS or not host:
        raise BadAddressError("must be an http or https URL")
    if "@" in parts.netloc:
        raise BadAddressError("must not hold a user name")
    query = f"?{quote(parts.query, safe=_KEPT)}" if parts.query else ""
    return WebAddress(
        url=url,
        is_tls=parts.scheme == "https",
        host=host,
        port=port or _DEFAULT_PORTS[parts.scheme],
        target=(quote(parts.path, safe=_KEPT) or "/") + query,
    )


def redirected(address: WebAddress, location: str) -> WebAddress:
    """Return where a redirect leads; errors as `parse_web_address`."""
    try:
        return parse_web_address(urljoin(address.url, location))
    except ValueError as exc:
        raise BadAddressError("is redirected to what is not a URL") from exc


def is_public(literal: str) -> bool:
    """Whether a literal IP address belongs to the public internet.

    Not so: loopback, private and shared (CGNAT) networks, link-local addresses, where metadata services are,
    unique local ones, multicast, documentation, everything reserved, and IPv6 spellings of such IPv4 addresses.
    """
    try:
        address: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.ip_address(literal)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        address = _inner_ipv4(address) or address
    is_special = address.is_multicast or address.is_reserved or address.is_unspecified
    return address.is_global and not is_special and not any(address in network for network in _CLOSED)


def _inner_ipv4(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped
