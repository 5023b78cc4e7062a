"""Serve the admin door: on ``<spool>/control.sock``, always, and on ``[admin] bind``, when that is set.

The flusher's process serves both, in threads of its own, for as long as it holds the spool's LOCK; so there is one
control.sock at most, and a file of that name that nobody listens on is left over and replaced. It is 0600: who may
open it may do everything. A TCP address asks each request for a key with the scope ``admin``; a ``unix:`` one is 0600
like the other. The server is the standard library's, with limits: 8 requests at a time (more are hung up on), 64 KiB
of body, 10 s for a request to arrive. It speaks plain HTTP: beyond this machine put TLS or a tunnel in front.
"""

import contextlib
import io
import logging
import os
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast
from wsgiref.simple_server import ServerHandler, WSGIRequestHandler

from collector import ports
from collector.control import Control
from collector.control_client import SOCKET_NAME
from collector.keys import Guard, Keys, no_guard
from collector.resources.admin import WsgiApp, admin_app
from collector.settings import Settings
from forwarders.flusher import Flusher
from spool.directory import SpoolDirectory

log = logging.getLogger(__name__)

REQUESTS_MAX = 8
BODY_MAX_BYTES = 64 * 1024
LINE_MAX_BYTES = 8 * 1024
ARRIVE_S = 10.0
IDLE_S = 5.0
_POLL_S = 0.1


@contextlib.contextmanager
def serving(settings: Settings, directory: SpoolDirectory, flusher: Flusher) -> Iterator[None]:
    """Serve the doors while the context lasts. One that cannot be opened is logged: forwarding matters more."""
    control = Control(settings, directory, flusher=flusher)
    with contextlib.ExitStack() as doors:
        with _tolerating(str(directory.path / SOCKET_NAME)):
            doors.enter_context(_serve(_control_socket(directory.path), control, no_guard))
        if settings.admin.bind:
            with _tolerating(settings.admin.bind):
                guard = _guard(settings)
                doors.enter_context(_serve(ports.listener(settings.admin.bind), control, guard))
                log.info("the admin door is open", extra={"bind": settings.admin.bind})
        yield
    with contextlib.suppress(OSError):
        (directory.path / SOCKET_NAME).unlink()


def _guard(settings: Settings) -> Guard:
    if settings.admin.bind.startswith("unix:"):
        return no_guard
    assert settings.auth.keys_file is not None  # checked with the settings
    return Keys(settings.auth.keys_file).guard("admin")


@contextlib.contextmanager
def _tolerating(place: str) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        log.error("cannot take commands here", extra={"place": place, "error": str(exc)})


@contextlib.contextmanager
def _serve(listener: socket.socket, control: Control, guard: Guard) -> Iterator[None]:
    server = _Server(listener, admin_app(control, guard))
    thread = threading.Thread(target=server.serve_forever, args=(_POLL_S,), name="admin", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


def _control_socket(spool: Path) -> socket.socket:
    """Listen on ``control.sock``. By way of the directory's descriptor: see `collector.control_client.connect`."""
    folder = os.open(spool, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(SOCKET_NAME, dir_fd=folder)
        return ports.socket_file(f"/proc/self/fd/{folder}/{SOCKET_NAME}")
    finally:
        os.close(folder)


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """One listening socket; a daemon thread for each request."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, listener: socket.socket, app: WsgiApp) -> None:
        socketserver.BaseServer.__init__(self, listener.getsockname(), _Handler)
        self.socket = listener
        self.base_environ = {"SERVER_NAME": "collector", "SERVER_PORT": "0", "SCRIPT_NAME": "", "GATEWAY_INTERFACE": ""}
        self._app = app
        self._room = threading.BoundedSemaphore(REQUESTS_MAX)

    def get_app(self) -> WsgiApp:
        """For wsgiref's handler."""
        return self._app

    def get_request(self) -> tuple[socket.socket, Any]:
        """Take a connection; where that fails for want of descriptors it would be tried again without end."""
        try:
            return super().get_request()
        except OSError:
            time.sleep(_POLL_S)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Hand a connection to a thread, or hang up."""
        if not self._room.acquire(blocking=False):
            log.warning("too many commands at a time, one is hung up on")
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """In that thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away, mostly."""
        log.info("a command's connection broke", exc_info=sys.exc_info()[1])


class _Handler(WSGIRequestHandler):
    """One request: read whole within its time, then handled."""

    timeout = IDLE_S
    server: _Server

    def setup(self) -> None:
        """Called for each connection."""
        if self.request.family == socket.AF_UNIX:
            self.client_address = ("unix", 0)  # what wsgiref expects of any client
        super().setup()

    def handle(self) -> None:
        """Read the request, answer it, and be done: one request a connection."""
        overdue = threading.Timer(ARRIVE_S, self._hang_up)
        overdue.daemon = True
        overdue.start()
        try:
            body = self._read()
        finally:
            overdue.cancel()
        if body is not None:
            output = cast(IO[bytes], self.wfile)
            handler = ServerHandler(io.BytesIO(body), output, sys.stderr, self.get_environ(), multithread=True)
            handler.request_handler = self  # type: ignore[attr-defined]  # as wsgiref itself does it
            handler.run(self.server.get_app())

    def log_message(self, format: str, *args: Any) -> None:
        """What is done is logged where it is done."""
        log.debug("command received", extra={"method": self.command, "path": self.path})

    def _read(self) -> bytes | None:
        """The body of the request; None when it cannot be read, which is then answered."""
        self.requestline = self.request_version = self.command = self.path = ""
        self.raw_requestline = self.rfile.readline(LINE_MAX_BYTES + 1)
        if len(self.raw_requestline) > LINE_MAX_BYTES:
            self.send_error(414)
            return None
        if not self.raw_requestline or not self.parse_request():
            return None
        length = self.headers.get("Content-Length", "0")
        if "Transfer-Encoding" in self.headers or not length.isdecimal():
            self.send_error(411)
            return None
        if int(length) > BODY_MAX_BYTES:
            self.send_error(413)
            return None
        return self.rfile.read(int(length))

    def _hang_up(self) -> None:
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
