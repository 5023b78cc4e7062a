"""The client's address is the first that no trusted proxy can have written."""

import tracemalloc

import pytest

from collector.sender import client_ip_finder, sender_reader

PRIVATE = ["127.0.0.0/8", "10.0.0.0/8", "::1/128", "fd00::/8"]


@pytest.mark.parametrize(
    ("peer", "forwarded_for", "client"),
    [
        ("203.0.113.9", "", "203.0.113.9"),
        ("203.0.113.9", "1.2.3.4", "203.0.113.9"),  # nobody believes a stranger
        ("127.0.0.1", "1.2.3.4", "1.2.3.4"),
        ("127.0.0.1", "6.6.6.6, 1.2.3.4", "1.2.3.4"),  # the client wrote 6.6.6.6 itself
        ("127.0.0.1", "6.6.6.6, 1.2.3.4, 10.0.0.7", "1.2.3.4"),
        ("127.0.0.1", "10.0.0.8,10.0.0.7", "10.0.0.8"),  # all trusted: the leftmost
        ("127.0.0.1", ",4.5.6.7", "4.5.6.7"),
        ("127.0.0.1", "4.5.6.7,", "4.5.6.7"),
        ("127.0.0.1", " , ", "127.0.0.1"),
        ("127.0.0.1", "unknown", ""),
        ("127.0.0.1", "256.1.2.3", ""),
        ("127.0.0.1", "1.2.3.4, unknown, 10.0.0.7", ""),
        ("127.0.0.1", "1.2.3.4:5678", "1.2.3.4"),
        ("127.0.0.1", "[2001:db8::1]:443", "2001:db8::1"),
        ("127.0.0.1", "2001:db8::1", "2001:db8::1"),
        ("127.0.0.1", "6.6.6.6" + ",10.0.0.7" * 32, "10.0.0.7"),  # nobody has so many proxies
        ("127.0.0.1", "9" * 60_000, ""),
        ("::ffff:127.0.0.1", "1.2.3.4", "1.2.3.4"),
        ("::1", "1.2.3.4", "1.2.3.4"),
        ("", "1.2.3.4", "1.2.3.4"),  # behind a unix socket
        ("", "", ""),
    ],
)
def test_the_client_is_the_rightmost_untrusted_address(peer: str, forwarded_for: str, client: str) -> None:
    assert client_ip_finder(PRIVATE)(peer, forwarded_for) == client


def test_without_trusted_proxies_the_header_is_never_believed() -> None:
    assert client_ip_finder([])("127.0.0.1", "1.2.3.4") == "127.0.0.1"


def test_a_sender_is_read_from_the_environ() -> None:
    environ = {
        "HTTP_REFERER": "http://a.example/p",
        "HTTP_USER_AGENT": "ua",
        "REMOTE_ADDR": "10.1.1.1",
        "HTTP_X_FORWARDED_FOR": "1.2.3.4",
    }

    sender = sender_reader(PRIVATE)(environ)

    assert (sender.referer, sender.user_agent, sender.client_ip) == ("http://a.example/p", "ua", "1.2.3.4")
    assert sender.received_ms > 1_700_000_000_000


def test_long_headers_are_not_remembered() -> None:
    client_ip = client_ip_finder(PRIVATE)
    tracemalloc.start()
    try:
        for i in range(100):
            assert client_ip("127.0.0.1", "x" * 60_000 + f"{i}, 1.2.3.4") == "1.2.3.4"
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert held < 100_000
