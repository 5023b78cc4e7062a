"""Serve a WSGI application beside the real work of a process: its commands, or its figures.

The server is the standard library's, with limits: 8 requests at a time (more are hung up on), 64 KiB of body, 10 s for
a request to arrive. It speaks plain HTTP: beyond this machine put TLS or a tunnel in front.
"""

import contextlib
import io
import logging
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any, cast
from wsgiref.simple_server import ServerHandler, WSGIRequestHandler

WsgiApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

log = logging.getLogger(__name__)

REQUESTS_MAX = 8
BODY_MAX_BYTES = 64 * 1024
LINE_MAX_BYTES = 8 * 1024
ARRIVE_S = 10.0
IDLE_S = 5.0
_POLL_S = 0.1


@contextlib.contextmanager
def serving(listener: socket.socket, app: WsgiApp) -> Iterator[None]:
    """Serve it in threads of its own while the context lasts; closes the socket."""
    server = _Server(listener, app)
    thread = threading.Thread(target=server.serve_forever, args=(_POLL_S,), name="small-server", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


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
            log.warning("too many requests at a time, one is hung up on")
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
        log.info("a client's connection broke", exc_info=sys.exc_info()[1])


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
        log.debug("request received", extra={"method": self.command, "path": self.path})

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
