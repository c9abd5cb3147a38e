from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auxot.core.errors import ConfigError
from auxot.router.store_url import RedisAddress, TlsOptions, parse_redis_url, redacted_url

TLS_URL = (
    "rediss://h?ssl_cert_reqs=none&ssl_check_hostname=False&ssl_ca_certs=/ca&ssl_ca_path=/cas"
    "&ssl_certfile=/cert&ssl_keyfile=/key&ssl_password=s"
)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://localhost", RedisAddress(label="redis://localhost", host="localhost")),
        ("redis://h:1/2", RedisAddress(label="redis://h:1/2", host="h", port=1, db=2)),
        ("redis://[::1]:1/", RedisAddress(label="redis://[::1]:1/", host="::1", port=1)),
        ("redis://h?db=3", RedisAddress(label="redis://h", host="h", db=3)),
        ("redis://:p%40%2F@h", RedisAddress(label="redis://h", host="h", password="p@/")),
        ("redis://b%C3%A9:p@h", RedisAddress(label="redis://h", host="h", username="bé", password="p")),
        ("redis://h?username=u&password=p%3D", RedisAddress(label="redis://h", host="h", username="u", password="p=")),
        ("rediss://h:1", RedisAddress(label="rediss://h:1", host="h", port=1, tls=TlsOptions())),
        (
            TLS_URL,
            RedisAddress(
                label="rediss://h",
                host="h",
                tls=TlsOptions(
                    verify=False,
                    check_hostname=False,
                    ca_certs="/ca",
                    ca_path="/cas",
                    certfile="/cert",
                    keyfile="/key",
                    keyfile_password="s",
                ),
            ),
        ),
        ("unix:///run/r.sock", RedisAddress(label="unix:///run/r.sock", socket_path="/run/r.sock")),
        (
            "unix://u:p@/run/r%20s?db=1",
            RedisAddress(label="unix:///run/r%20s", socket_path="/run/r s", db=1, username="u", password="p"),
        ),
    ],
)
def test_a_url_is_read(url: str, address: RedisAddress) -> None:
    """The router talks to another server, database or account than it was told."""
    assert parse_redis_url(url) == address


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "this form is not supported"),
        ("localhost:6379", "this form is not supported"),
        ("redis:localhost", "this form is not supported"),
        ("REDIS://h", "REDIS:// is not supported"),
        ("http://h", "http:// is not supported; use redis://, rediss:// or unix://"),
        ("redis+sentinel://h/mymaster", "redis+sentinel:// is not supported"),
        ("redis+cluster://h", "redis+cluster:// is not supported"),
        ("redis://h1:1,h2:2/0", "several hosts are not supported"),
        ("redis://h1,h2/0", "no sentinel, no cluster"),
        ("redis://", "needs a host"),
        ("redis:///0", "needs a host"),
        ("redis://h:99999", "cannot be read"),
        ("redis://h:port", "cannot be read"),
        ("redis://:pa/ss@h", "%2F"),
        ("redis://h/zero", "must be a number"),
        ("redis://h?db=-1", "must be a number"),
        ("redis://h?socket_timeout=5", "socket_timeout is not supported here"),
        ("redis://h?ssl_cert_reqs=none", "ssl_cert_reqs is not supported here"),
        ("rediss://h?ssl_cert_reqs=maybe", "ssl_cert_reqs must be one of required, none"),
        ("rediss://h?ssl_check_hostname=1", "must be one of true, false"),
        ("redis://:p#x@h", "%23"),
        ("redis://h#x", "unexpected '#'"),
        ("unix://relative/path", "absolute path"),
        ("unix://", "absolute path"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_in_one_line(url: str, reason: str) -> None:
    """A URL is half understood, and the router runs with the rest."""
    with pytest.raises(ConfigError) as caught:
        parse_redis_url(url)
    assert reason in str(caught.value)
    assert str(caught.value).startswith("AUXOT_REDIS_URL: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://user:secret@h:1/2?password=secret", "redis://h:1/2"),
        ("redis://:sec@ret@h/0", "redis://h/0"),
        ("redis://:sec/ret@h/0", "redis://***"),
        ("redis://u:1/ret@h/0", "redis://***"),
        ("redis://:sec?ret@h", "redis://***"),
        ("redis://u:1?ret@h", "redis://***"),
        ("redis://u:1#ret@h", "redis://***"),
        ("redis://h?password=s@cret", "redis://***"),
        ("unix://u:secret@/run/r.sock?db=1", "unix:///run/r.sock"),
        ("secret", "***"),
        ("gopher://secret", "***"),
    ],
)
def test_a_url_in_a_log_holds_no_secret(url: str, shown: str) -> None:
    """The password of Redis stands in the logs."""
    assert redacted_url(url) == shown


@given(
    secret=st.text(min_size=1, max_size=8).map(lambda text: f"Zq{text}qZ"),
    form=st.sampled_from(
        [
            "redis://:{}@host",
            "redis://user:{}@host:6379/0",
            "redis://user:1{}@host",
            "unix://:{}@/run/x",
            "rediss://host?password={}",
            "rediss://host?ssl_password={}&x={}",
            "redis+sentinel://:{}@host",
        ]
    ),
    is_quoted=st.booleans(),
)
def test_no_password_is_ever_shown(secret: str, form: str, is_quoted: bool) -> None:
    """Some password, quoted or not, gets into a log or an error text."""
    text = quote(secret, safe="") if is_quoted else secret
    url = form.replace("{}", text)
    shown = redacted_url(url)
    try:
        address = parse_redis_url(url)
    except ConfigError as exc:
        shown += str(exc)
    else:
        shown += repr(address)
    assert "Zq" not in shown
    assert "qZ" not in shown
