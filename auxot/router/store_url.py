"""PURE: a Redis URL, read and checked, and the same URL fit for a log.

    redis://[[user]:password@]host[:port][/db][?options]        TCP
    rediss://...                                                TCP with TLS
    unix://[[user]:password@]/path/to/socket[?options]

Options have the names that redis-py gave them: `db`, `username`, `password`, and for TLS `ssl_cert_reqs` (`required`,
`none`), `ssl_check_hostname`, `ssl_ca_certs`, `ssl_ca_path`, `ssl_certfile`, `ssl_keyfile`, `ssl_password`. Any other
option is refused rather than ignored. User, password and option values are percent-decoded.

No error text here quotes the URL or a piece of it that might be a misplaced password.
"""

from __future__ import annotations

from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import attrs

from auxot.core.errors import ConfigError

DEFAULT_PORT = 6379
_SCHEMES = ("redis", "rediss", "unix")
_PLAIN_OPTIONS = ("db", "username", "password")
_TLS_OPTIONS = (
    "ssl_cert_reqs",
    "ssl_check_hostname",
    "ssl_ca_certs",
    "ssl_ca_path",
    "ssl_certfile",
    "ssl_keyfile",
    "ssl_password",
)
# redis-py's, which people bring along
_OTHER_OPTIONS = frozenset(
    {
        *("decode_responses", "encoding", "encoding_errors", "health_check_interval", "max_connections", "protocol"),
        *("retry_on_timeout", "socket_connect_timeout", "socket_keepalive", "socket_timeout", "client_name", "timeout"),
        *("ssl_ca_data", "ssl_ciphers", "ssl_min_version", "ssl_validate_ocsp"),
    }
)


@attrs.frozen(kw_only=True)
class TlsOptions:
    """How a `rediss://` server is verified and how we show who we are. Paths are of PEM files; `ca_path`: a folder."""

    verify: bool = True
    check_hostname: bool = True
    ca_certs: str | None = None
    ca_path: str | None = None
    certfile: str | None = None
    keyfile: str | None = None
    keyfile_password: str | None = attrs.field(default=None, repr=False)


@attrs.frozen(kw_only=True)
class RedisAddress:
    """Where Redis is and who we are there. `socket_path` is set for `unix://`, `host` otherwise; `tls` for `rediss://`."""

    label: str  # for logs and errors
    host: str = ""
    port: int = DEFAULT_PORT
    socket_path: str | None = None
    db: int = 0
    username: str | None = None
    password: str | None = attrs.field(default=None, repr=False)
    tls: TlsOptions | None = None


def redacted_url(url: str) -> str:
    """Return the URL without user, password and options, fit for logs.

    Where it cannot be told for certain what is password and what is address, only the scheme is left.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in _SCHEMES:
        return "***"
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port is not None else ""
    except ValueError:  # an unescaped / ? or # in the password shifts the parts
        return f"{scheme}://***"
    if "@" in f"{parts.path}{parts.query}{parts.fragment}" or (scheme != "unix" and not parts.hostname):
        return f"{scheme}://***"
    host = parts.netloc.rpartition("@")[2].removesuffix(port) if rest else ""
    return f"{scheme}://{host}{port}{parts.path}"


def parse_redis_url(url: str) -> RedisAddress:
    """Read a Redis URL.

    Raises:
        ConfigError: a scheme, part or option that is not supported; one line, without the password.
    """
    parts = _split(url)
    options = _options(parts)
    return RedisAddress(
        label=redacted_url(url),
        host=unquote(parts.hostname or ""),
        port=parts.port or DEFAULT_PORT,
        socket_path=unquote(parts.path) if parts.scheme == "unix" else None,
        db=_db(parts, options),
        username=unquote(parts.username or "") or options.get("username"),
        password=unquote(parts.password or "") or options.get("password"),
        tls=_tls(options) if parts.scheme == "rediss" else None,
    )


def _split(url: str) -> SplitResult:
    scheme = url.partition("://")[0] if "://" in url else ""
    if scheme not in _SCHEMES:
        shown = f"{scheme}://" if scheme.replace("+", "").replace("-", "").isalnum() else "this form"
        raise ConfigError(f"AUXOT_REDIS_URL: {shown} is not supported; use redis://, rediss:// or unix://")
    try:
        parts = urlsplit(url)
        _ = None if _has_several_hosts(parts) else parts.port  # read, and checked, on access only
    except ValueError:
        raise ConfigError(
            "AUXOT_REDIS_URL: the host and port cannot be read; write / ? # @ : in a password as %2F %3F %23 %40 %3A"
        ) from None  # the cause's text may quote the password
    if parts.fragment:
        raise ConfigError("AUXOT_REDIS_URL: unexpected '#'; write it as %23 in a password")
    if parts.scheme == "unix" and (parts.netloc.rpartition("@")[2] or not parts.path):
        raise ConfigError("AUXOT_REDIS_URL: unix:// needs an absolute path, as in unix:///run/redis/redis.sock")
    if parts.scheme != "unix" and not parts.hostname:
        raise ConfigError(f"AUXOT_REDIS_URL: {parts.scheme}:// needs a host")
    if _has_several_hosts(parts):
        raise ConfigError("AUXOT_REDIS_URL: several hosts are not supported (no sentinel, no cluster)")
    return parts


def _has_several_hosts(parts: SplitResult) -> bool:
    return "," in parts.netloc.rpartition("@")[2]


def _options(parts: SplitResult) -> dict[str, str]:
    known = _PLAIN_OPTIONS + (_TLS_OPTIONS if parts.scheme == "rediss" else ())
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    for name in options:
        if name not in known:
            shown = name if name in _OTHER_OPTIONS or name in _TLS_OPTIONS else "an option"  # or part of a password
            raise ConfigError(f"AUXOT_REDIS_URL: {shown} is not supported here; known options: {', '.join(known)}")
    return options


def _db(parts: SplitResult, options: dict[str, str]) -> int:
    text = options.get("db", "" if parts.scheme == "unix" else parts.path.strip("/"))
    if text and not (text.isascii() and text.isdigit()):
        raise ConfigError("AUXOT_REDIS_URL: the database must be a number, as in redis://host:6379/0")
    return int(text or "0")


def _tls(options: dict[str, str]) -> TlsOptions:
    return TlsOptions(
        verify=_choice(options, "ssl_cert_reqs", {"required": True, "none": False}),
        check_hostname=_choice(options, "ssl_check_hostname", {"true": True, "false": False}),
        ca_certs=options.get("ssl_ca_certs"),
        ca_path=options.get("ssl_ca_path"),
        certfile=options.get("ssl_certfile"),
        keyfile=options.get("ssl_keyfile"),
        keyfile_password=options.get("ssl_password"),
    )


def _choice(options: dict[str, str], name: str, choices: dict[str, bool]) -> bool:
    """Return the value of an option with a few words to choose from; the first one is the default."""
    word = options.get(name, next(iter(choices))).lower()
    if word not in choices:
        raise ConfigError(f"AUXOT_REDIS_URL: {name} must be one of {', '.join(choices)}")
    return choices[word]
