"""From the parts of a parsed request to a WSGI environ (PEP 3333), cheaply: this runs for every event.

What an application finds, beyond what PEP 3333 asks for:

    RAW_URI        the request target as it was sent
    PATH_INFO      the percent-decoded path, each byte one character (latin-1)
    QUERY_STRING   as it was sent
    REMOTE_ADDR    the peer; an IPv4 address that came through an IPv6 socket is written as IPv4.
                   "" on a unix socket: who connects there is on this machine and was let in by the
                   socket's permissions, so it is to be trusted like a proxy on loopback
    wsgi.input     the whole body, chunks put together; CONTENT_LENGTH is then its length

Headers whose name has an underscore are dropped, or ``X_Forwarded_For`` could pass for
``X-Forwarded-For``; so is ``Proxy``, which libraries take for a setting. Repeated headers are joined.
"""

import re
import socket
from typing import Any
from urllib.parse import unquote_to_bytes

Environ = dict[str, Any]

HTTP_10 = "HTTP/1.0"
HTTP_11 = "HTTP/1.1"

MAX_CACHED_NAMES = 1024
MAX_CACHED_NAME_BYTES = 64

_ABSOLUTE_FORM = re.compile(
    r"https?://((?:[A-Za-z0-9._~%!$&'()*+,;=-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?)([/?].*)?", re.I
)
_HOST = re.compile(r"(?:[A-Za-z0-9._~%!$&'()*+,;=-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?")

is_host = _HOST.fullmatch


class BadTarget(ValueError):
    """The request target is not one this server may be asked for."""


class HeaderKeys(dict[bytes, str]):
    """Header name as sent → environ key; "" for a header that is dropped. Bounded: clients invent names."""

    def __missing__(self, name: bytes) -> str:
        key = _environ_key(name)
        if len(self) < MAX_CACHED_NAMES and len(name) <= MAX_CACHED_NAME_BYTES:
            self[name] = key
        return key


def _environ_key(name: bytes) -> str:
    if b"_" in name:
        return ""
    key = name.decode("latin-1").upper().replace("-", "_")
    if key in ("CONTENT_TYPE", "CONTENT_LENGTH"):
        return key
    return "" if key == "PROXY" else "HTTP_" + key


def joined(key: str, first: str, second: str) -> str:
    """The value of a header that was sent twice."""
    return first + ("; " if key == "HTTP_COOKIE" else ",") + second


def set_target(environ: Environ, target: str) -> None:
    """Fill in what an origin-form target (``/path?query``) says."""
    path, _, query = target.partition("?")
    environ["RAW_URI"] = target
    environ["QUERY_STRING"] = query
    environ["PATH_INFO"] = unquote_to_bytes(path).decode("latin-1") if "%" in path else path


def set_any_target(environ: Environ, target: str) -> None:
    """As `set_target`, for every form of RFC 9112, 3.2 but CONNECT's.

    In absolute form the target's authority replaces Host. Errors: BadTarget.
    """
    if "#" in target:
        raise BadTarget("a fragment in the request target")
    if target.startswith("/"):
        set_target(environ, target)
    elif target == "*":
        if environ["REQUEST_METHOD"] != "OPTIONS":
            raise BadTarget("the target * is for OPTIONS only")
        environ["RAW_URI"] = environ["PATH_INFO"] = "*"
        environ["QUERY_STRING"] = ""
    else:
        absolute = _ABSOLUTE_FORM.fullmatch(target)
        if absolute is None:
            raise BadTarget("the request target is not a path or an http URL")
        authority, rest = absolute.groups()
        environ["HTTP_HOST"] = authority
        set_target(environ, rest if rest and rest.startswith("/") else "/" + (rest or ""))
        environ["RAW_URI"] = target


def server_environ(sock: socket.socket, *, tls: bool) -> Environ:
    """What all requests to one listening socket have in common."""
    address = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        name, port = "localhost", "443" if tls else "80"  # PEP 3333 wants both, and the path is neither
    else:
        name, port = address[0], str(address[1])
    return {
        "SERVER_NAME": name,
        "SERVER_PORT": port,
        "SCRIPT_NAME": "",
        "SERVER_PROTOCOL": HTTP_11,
        "wsgi.url_scheme": "https" if tls else "http",
        "wsgi.multithread": True,  # large bodies are handled in a thread of their own
    }


def peer_environ(peername: object) -> Environ:
    """REMOTE_ADDR and REMOTE_PORT of a connection; see above for unix sockets."""
    if not isinstance(peername, tuple):
        return {"REMOTE_ADDR": "", "REMOTE_PORT": ""}
    address: str = peername[0]
    if address.startswith("::ffff:") and "." in address:
        address = address[7:]
    return {"REMOTE_ADDR": address, "REMOTE_PORT": str(peername[1])}


def head_without_upgrade(environ: Environ, target: bytes) -> bytes:
    """The head of a request as bytes again, as if it had never asked for another protocol.

    For the parser, which stops reading after a request with Upgrade.
    """
    lines = [f"{environ['REQUEST_METHOD']} {target.decode('latin-1')} {environ['SERVER_PROTOCOL']}"]
    for key, value in environ.items():
        if key.startswith("HTTP_"):
            name = key[5:]
        elif key in ("CONTENT_TYPE", "CONTENT_LENGTH"):
            name = key
        else:
            continue
        if name == "CONNECTION":
            value = ",".join(option for option in value.split(",") if option.strip().lower() != "upgrade")
        if name != "UPGRADE":
            lines.append(f"{name.replace('_', '-')}: {value}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1")
