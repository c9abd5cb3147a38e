import pytest

from auxot.router.cors import MAX_ALLOWED_HEADERS, Cors

APP = b"https://app.example.com"
SOME = Cors(frozenset({APP.decode(), "http://localhost:3000"}))
ANY = Cors(frozenset({"*"}))
WANTS_POST = (b"access-control-request-method", b"POST")


def test_a_page_of_a_named_origin_may_read_answers():
    """A browser would hide the answer, or its request id, from the page."""
    headers = dict(SOME.headers([(b"origin", APP)]))
    assert headers[b"access-control-allow-origin"] == APP
    assert headers[b"vary"] == b"origin"
    exposed = headers[b"access-control-expose-headers"].split(b", ")
    assert {
        b"x-request-id",
        b"request-id",
        b"server-timing",
        b"x-auxot-worker",
        b"x-auxot-route",
        b"retry-after",
    } == set(exposed)


@pytest.mark.parametrize("origin", [b"https://evil.example", APP + b".evil.example", b"null", b"", b"\xff"])
def test_a_page_of_another_origin_may_not(origin):
    """Any page that a user visits could use the router in the user's network."""
    assert SOME.headers([(b"origin", origin)]) == [(b"vary", b"origin")]
    assert SOME.preflight([(b"origin", origin), WANTS_POST]) == []


def test_no_origin_gets_no_permission_but_caches_are_told():
    """A cache would give a browser the answer that was made for curl."""
    assert SOME.headers([]) == [(b"vary", b"origin")]


def test_a_star_is_for_every_origin():
    """An operator who opens the router to all pages would still shut some out."""
    headers = dict(ANY.headers([(b"origin", b"null")]))
    assert headers[b"access-control-allow-origin"] == b"*"
    assert b"vary" not in headers


def test_a_preflight_allows_the_headers_that_the_page_wants_to_send():
    """An SDK in a browser would be stopped by its own telemetry headers."""
    wanted = b"authorization,x-stainless-arch, anthropic-dangerous-direct-browser-access"
    headers = dict(SOME.preflight([(b"origin", APP), WANTS_POST, (b"access-control-request-headers", wanted)]) or [])
    allowed = headers[b"access-control-allow-headers"]
    assert allowed == b"authorization, x-stainless-arch, anthropic-dangerous-direct-browser-access"
    assert b"POST" in headers[b"access-control-allow-methods"]


@pytest.mark.parametrize("wanted", [b"a\r\nset-cookie: x", b"x y", b"x" * 65, b""])
def test_what_is_no_headers_name_is_not_echoed(wanted):
    """A page could write headers of our answer."""
    headers = dict(SOME.preflight([(b"origin", APP), WANTS_POST, (b"access-control-request-headers", wanted)]) or [])
    assert wanted not in headers[b"access-control-allow-headers"] or not wanted
    assert b"authorization" in headers[b"access-control-allow-headers"]


def test_the_number_of_echoed_headers_is_bounded():
    """A preflight would be answered with megabytes."""
    wanted = b",".join(b"h%d" % n for n in range(10_000))
    headers = dict(ANY.preflight([(b"origin", APP), WANTS_POST, (b"access-control-request-headers", wanted)]) or [])
    assert len(headers[b"access-control-allow-headers"].split(b",")) == MAX_ALLOWED_HEADERS


def test_options_without_a_wanted_method_is_no_preflight():
    """An ordinary OPTIONS would be answered as if a browser had asked."""
    assert SOME.preflight([(b"origin", APP)]) is None
    assert SOME.preflight([WANTS_POST]) is None


def test_a_router_in_the_local_network_can_be_called_when_the_browser_asks():
    """Browsers would stop an allowed page that calls a private address."""
    asked = [(b"origin", APP), WANTS_POST, (b"access-control-request-private-network", b"true")]
    assert (b"access-control-allow-private-network", b"true") in (SOME.preflight(asked) or [])
