"""Who sent a request: what its headers say, and the client's address behind trusted proxies."""

import ipaddress
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from formats.pixel import Sender

#: Reads a WSGI environ.
SenderReader = Callable[[Mapping[str, Any]], Sender]

REMEMBERED_CHARS = 256  # some ten hops; a header may be 64 KiB, and thousands of those would stay in memory
HOPS_MAX = 32  # proxies of ours in a row; a header may name 6,000, at 12 µs each
ADDRESS_MAX_CHARS = 64  # an IPv6 address with its zone, brackets and port

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def parse_address(text: str) -> _Address | None:
    """An address as proxies write it: ``1.2.3.4``, ``1.2.3.4:80``, ``2001:db8::1``, ``[2001:db8::1]:80``."""
    text = text.strip()
    if len(text) > ADDRESS_MAX_CHARS:
        return None
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        return address.ipv4_mapped
    return address


def _from_the_right(forwarded_for: str) -> Iterator[str]:
    """Those of the header's last HOPS_MAX entries that are not blank, the last one first."""
    end = len(forwarded_for)
    for _ in range(HOPS_MAX):
        comma = forwarded_for.rfind(",", 0, end)
        text = forwarded_for[comma + 1 : end].strip()
        if text:
            yield text
        if comma < 0:
            return
        end = comma


def client_ip_finder(trusted_proxies: Sequence[str]) -> Callable[[str, str], str]:
    """Make the function that tells a client's address from the peer's and ``X-Forwarded-For``.

    The function takes both as text and returns the address as text, or "" when what it ends at is no
    address. Only a peer inside ``trusted_proxies`` (CIDR) is believed: then the header is walked from
    the right, and the first address that is not a trusted proxy is the client; when all are, the
    leftmost, or the last of HOPS_MAX. A peer that is a unix socket ("") is the machine's own proxy, and trusted.
    """
    networks = [ipaddress.ip_network(cidr, strict=False) for cidr in trusted_proxies]

    def trusted(address: _Address) -> bool:
        return any(address.version == network.version and address in network for network in networks)

    def find(peer: str, forwarded_for: str) -> str:
        peer_address = parse_address(peer) if peer else None
        if forwarded_for and (not peer or (peer_address and trusted(peer_address))):
            hop: _Address | None = None
            for text in _from_the_right(forwarded_for):
                hop = parse_address(text)
                if hop is None:
                    return ""
                if not trusted(hop):
                    break
            if hop:
                return str(hop)
        return str(peer_address) if peer_address else ""

    remembered = lru_cache(maxsize=8192)(find)  # a browser comes back with the same two texts; parsing costs 5 µs

    def client_ip(peer: str, forwarded_for: str) -> str:
        short = len(forwarded_for) <= REMEMBERED_CHARS
        return remembered(peer, forwarded_for) if short else find(peer, forwarded_for)

    return client_ip


def sender_reader(trusted_proxies: Sequence[str]) -> SenderReader:
    """Make the function that reads the sender of a request, and stamps its arrival."""
    client_ip = client_ip_finder(trusted_proxies)

    def sender_of(environ: Mapping[str, Any]) -> Sender:
        get = environ.get
        return Sender(
            time.time_ns() // 1_000_000,
            get("HTTP_REFERER", ""),
            get("HTTP_USER_AGENT", ""),
            client_ip(get("REMOTE_ADDR", ""), get("HTTP_X_FORWARDED_FOR", "")),
            get("HTTP_DNT") == "1" or get("HTTP_SEC_GPC") == "1",
        )

    return sender_of
