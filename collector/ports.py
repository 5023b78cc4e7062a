"""Addresses to listen on: can this one be had, does HTTP answer there, how is it written as a URL.

An address is ``HOST:PORT``, ``[IPV6]:PORT`` or ``unix:PATH``, as ``http.bind`` has it.
"""

import errno
import os
import socket
import ssl
import stat
import time
from pathlib import Path

BACKLOG = 1024
_ANY = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - it is looked up, not bound


class CannotListen(Exception):
    """The address cannot be had; the text says why and what to do."""


def check(bind: str, wait_s: float = 3.0) -> None:
    """Bind the address for a moment, alone: SO_REUSEPORT would let a second collector share it unseen.

    An address in use is tried again for ``wait_s`` seconds: a collector that was just killed needs that long.
    Errors: CannotListen.
    """
    if bind.endswith(":0"):
        raise CannotListen(f"cannot listen on {bind}: port 0 is a different one for every worker; choose a port")
    until = time.monotonic() + wait_s
    while (reason := _refusal(bind)) is not None:
        if reason.errno != errno.EADDRINUSE or time.monotonic() >= until:
            raise CannotListen(f"cannot listen on {bind}: {_advice(bind, reason)}") from reason
        time.sleep(0.1)


def listener(bind: str) -> socket.socket:
    """Listen there, without SO_REUSEPORT; a socket file is 0600, and one that is left over is replaced.

    Errors: OSError.
    """
    family, address = _address(bind, local=False)
    if isinstance(address, str):
        _check_socket_file(bind, Path(address))
        Path(address).unlink(missing_ok=True)
        return socket_file(address)
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen()
    except BaseException:
        made.close()
        raise
    return made


def listeners(bind: str) -> list[socket.socket]:
    """Listen at every address of HOST:PORT: a name can have several, and no name means all.

    Or at a socket file, which has the rights that the umask leaves; one that is left over is replaced. Errors: OSError.
    """
    if bind.startswith("unix:"):
        path = Path(bind.removeprefix("unix:"))
        _check_socket_file(bind, path)
        path.unlink(missing_ok=True)
        at_file = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            at_file.bind(str(path))
            at_file.listen(BACKLOG)
        except OSError:
            at_file.close()
            raise
        return [at_file]
    host, _, port = bind.rpartition(":")
    found = socket.getaddrinfo(host.strip("[]") or None, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    made: list[socket.socket] = []
    try:
        for family, address in dict.fromkeys((family, address) for family, _, _, _, address in found):
            try:
                each = socket.socket(family, socket.SOCK_STREAM)
            except OSError:  # a machine without IPv6
                continue
            made.append(each)
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                each.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            each.bind(address)
            each.listen(BACKLOG)
    except OSError:
        for each in made:
            each.close()
        raise
    return made


def socket_file(path: str) -> socket.socket:
    """Listen on a new socket file that is its owner's alone, from the first moment on. Errors: OSError."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.fchmod(made.fileno(), 0o600)  # before bind(2), which makes the file with these rights
        made.bind(path)
        made.listen()
    except BaseException:
        made.close()
        raise
    return made


def answers(bind: str, wait_s: float = 1.0) -> bool:
    """Whether somebody accepts connections there."""
    try:
        _connect(bind, wait_s).close()
    except OSError:
        return False
    return True


def speaks_http(bind: str, *, tls: bool, wait_s: float = 0.3) -> bool:
    """Whether a request is answered there: a server whose workers are not yet up only accepts it."""
    try:
        with _connect(bind, wait_s) as client, _speak_tls(client) if tls else client as stream:
            stream.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            return stream.recv(5) == b"HTTP/"
    except OSError:
        return False


def url(bind: str, *, tls: bool = False) -> str:
    """How somebody on this machine reaches it; for a socket file its path."""
    if bind.startswith("unix:"):
        return bind
    host, _, port = bind.rpartition(":")
    host = f"[{_ANY['::']}]" if host == "[::]" else _ANY.get(host, host)
    return f"{'https' if tls else 'http'}://{host}:{port}"


def _refusal(bind: str) -> OSError | None:
    try:
        family, address = _address(bind, local=False)
        if isinstance(address, str):
            _check_socket_file(bind, Path(address))
            return None
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as exc:
        return exc
    return None


def _connect(bind: str, wait_s: float) -> socket.socket:
    family, address = _address(bind, local=True)
    client = socket.socket(family, socket.SOCK_STREAM)
    try:
        client.settimeout(wait_s)
        client.connect(address)
    except BaseException:
        client.close()
        raise
    return client


def _speak_tls(client: socket.socket) -> ssl.SSLSocket:
    """Without looking at the certificate: it is our own, and may name any host."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context.wrap_socket(client)


def _check_socket_file(bind: str, path: Path) -> None:
    """A socket file that nobody listens on is left over and will be replaced; anything else stays."""
    if path.exists():
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError(errno.EEXIST, "a file that is no socket is there", str(path))
        if answers(bind):
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    elif not os.access(path.parent, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, f"no socket can be made in {path.parent}")


def _address(bind: str, *, local: bool) -> tuple[socket.AddressFamily, str | tuple[str, int]]:
    """The address for bind(2), or with ``local`` for connect(2). Errors: OSError for a name that is not known."""
    if bind.startswith("unix:"):
        return socket.AF_UNIX, bind.removeprefix("unix:")
    host, _, port = bind.rpartition(":")
    host = host.strip("[]")
    if local:
        host = _ANY.get(host, host)
    found = socket.getaddrinfo(host or None, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, address = found[0]
    return family, (str(address[0]), int(address[1]))


def _advice(bind: str, reason: OSError) -> str:
    if reason.errno == errno.EADDRINUSE:
        return "another process listens there; stop it, or choose another address"
    if reason.errno == errno.EADDRNOTAVAIL:
        return "this machine has no such address; choose another address"
    if reason.errno == errno.EACCES and not bind.startswith("unix:"):
        return f"{reason.strerror}; ports below 1024 need the right to bind them (CAP_NET_BIND_SERVICE)"
    return reason.strerror or str(reason)
