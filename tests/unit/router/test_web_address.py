from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auxot.router.web_address import MAX_URL_CHARS, BadAddressError, is_public, parse_web_address, redirected


@pytest.mark.parametrize(
    ("url", "authority", "target"),
    [
        ("http://a.example", "a.example", "/"),
        ("HTTP://A.Example:80/x?y=z#f", "a.example", "/x?y=z"),
        ("https://a.example:443", "a.example", "/"),
        ("https://a.example:80/", "a.example:80", "/"),
        ("http://bücher.example/ä%20b?q=ü", "xn--bcher-kva.example", "/%C3%A4%20b?q=%C3%BC"),
        ("http://[::1]:8080/x", "[::1]:8080", "/x"),
        ("http://127.1/", "127.1", "/"),
    ],
)
def test_an_address_is_read(url, authority, target):
    """A picture would be asked for in the wrong place."""
    address = parse_web_address(url)
    assert (address.authority, address.target) == (authority, target)
    assert address.is_tls == url.startswith("https")


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "gopher://a/",
        "http:///x",
        "http://",
        "http://user:secret@a/",
        "http://a@169.254.169.254/",
        "http://a:99999/",
        "http://a:x/",
        "http://a/\r\nx: y",
        "http://a/b c",
        "http://a\\@b/",
        "http://[::1/",
        "http://" + "a" * 64 + ".example/",
        "http://a/" + "x" * MAX_URL_CHARS,
        "http://a\tb/",
    ],
)
def test_what_is_no_web_address_is_refused(url):
    """A request could be split in two, sent elsewhere than where it was checked, or read a file."""
    with pytest.raises(BadAddressError) as refused:
        parse_web_address(url)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "literal",
    [
        *("0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.255.255.254"),
        *("169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.192", "192.168.1.1", "198.18.0.1"),
        *("203.0.113.7", "224.0.0.1", "240.0.0.1", "255.255.255.255", "168.63.129.16"),
        *("::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "ff02::1", "2001:db8::1"),
        *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:a9fe:a9fe", "::7f00:1", "::10.0.0.1"),
        *("64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "2002:7f00:1::", "2002:a9fe:a9fe::", "2001:0:1::1"),
        *("a.example", "", "127.1", "0x7f000001"),
    ],
)
def test_what_is_not_of_the_public_internet_is_known(literal):
    """A stranger could read what only the router's machine or network may: metadata, a database, a printer."""
    assert not is_public(literal)


@pytest.mark.parametrize(
    "literal", ["1.1.1.1", "93.184.215.14", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"]
)
def test_public_addresses_are_public(literal):
    """No picture on the web could be fetched."""
    assert is_public(literal)


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_is_as_public_in_ipv6(address):
    """A private address could be spelt so that it passes."""
    expected = is_public(str(address))
    for spelt in (f"::ffff:{address}", f"64:ff9b::{address}"):
        assert is_public(spelt) == expected
    if address.is_private:
        assert not expected
    assert not is_public(str(ipaddress.IPv6Address((0x2002 << 112) | (int(address) << 80))))


def test_redirects_are_relative_to_where_they_stand():
    """A redirect would lead elsewhere, or past the rules of addresses."""
    address = parse_web_address("https://a.example/b/c?d")
    assert redirected(address, "e").url == "https://a.example/b/e"
    assert redirected(address, "//b.example/").host == "b.example"
    for bad in ("file:///etc/passwd", "", "http://[", "http://a@b/", "data:image/png;base64,AAAA"):
        if bad:
            with pytest.raises(BadAddressError):
                redirected(address, bad)
