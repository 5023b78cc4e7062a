"""An HTTP server whose answers a test makes up: for what no real server can be brought to say."""

import ssl
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class Answer:
    """``drip_s``: the answer goes out a byte at a time with that pause, from the status line on."""

    status: int = 204
    body: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    drip_s: float = 0


@dataclass
class Request:
    """One request as it came."""

    path: str
    method: str
    headers: dict[str, str]
    body: bytes

    @property
    def lines(self) -> list[str]:
        return self.body.decode().splitlines()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that resets its connection is no error of ours."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class ScriptedHttp:
    """Answers each request with what ``answer`` makes of it, and keeps the ``requests``.

    ``certificate`` and ``key``: files; with them it speaks TLS.
    """

    def __init__(
        self, answer: Callable[[Request], Answer], certificate: Path | None = None, key: Path | None = None
    ) -> None:
        self.answer = answer
        self.requests: list[Request] = []
        self.closing = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                request = Request(self.path, self.command, dict(self.headers.items()), body)
                outer.requests.append(request)
                answer = outer.answer(request)
                head = [f"HTTP/1.1 {answer.status} Scripted"]
                head += [f"{name}: {value}" for name, value in answer.headers.items()]
                if answer.status != 204:
                    head.append(f"Content-Length: {len(answer.body.encode())}")
                shown = answer.body if self.command != "HEAD" else ""
                self._put(("\r\n".join(head) + "\r\n\r\n" + shown).encode(), answer.drip_s)

            do_PUT = do_GET = do_HEAD = do_POST

            do_GET = do_PATCH = do_POST

            def _put(self, data: bytes, drip_s: float) -> None:
                try:
                    if not drip_s:
                        self.wfile.write(data)
                    for byte in data if drip_s else b"":
                        self.wfile.write(bytes([byte]))
                        if outer.closing.wait(drip_s):
                            return
                except OSError:  # the client has had enough
                    self.close_connection = True

            def log_message(self, format: str, *args: object) -> None:
                """Nothing: pytest shows what a test needs."""

        self._server = _Server(("127.0.0.1", 0), Handler)
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate, key)
            # Without the handshake: accept() would wait for it, and all other clients with it.
            self._server.socket = context.wrap_socket(self._server.socket, True, do_handshake_on_connect=False)
        scheme = "https" if certificate else "http"
        self.url = f"{scheme}://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)
