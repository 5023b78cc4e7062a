"""A WSGI application that defers its commit, for the tests of the worker; gunicorn runs it in a child process.

$STATE is a directory. A commit appends a line (JSON list of what was held) to ``commits`` there; ``pid``s of
processes that were closed go to ``closed``. Files in it change what happens: ``refusing`` (its text is the reason),
``broken`` (commits fail with its text), ``gate`` (a request for /wait goes on when it is gone), ``disk`` (commits
and maintenance go on when it is gone; each leaves its kind in ``at_disk`` before).
"""

import json
import os
import time
from pathlib import Path

from collector.limits import Limits

STATE = Path(os.environ["STATE"])


def _append(name: str, line: str) -> None:
    with (STATE / name).open("a") as file:
        file.write(line + "\n")


def _text(name: str) -> str | None:
    try:
        return (STATE / name).read_text()
    except FileNotFoundError:
        return None


class Closing(list):
    """An iterable with a close() that leaves a trace."""

    def close(self) -> None:
        _append("closed_iterables", "1")


class Shortcut:
    """Holds the query, or the length of the body; not when the query says "ordinary"."""

    status = "202 Accepted"
    headers = [("Content-Type", "text/plain"), ("X-Way", "shortcut")]  # noqa: RUF012 - as the real ones have it
    content = b"held"

    def take(self, query, body):
        if query == "bug":
            raise RuntimeError("a bug in a shortcut")
        return None if query == "ordinary" else query or f"{len(body)} bytes"


class App:
    """Answers by path; see `__call__`."""

    def __init__(self) -> None:
        self.limits = Limits(**json.loads(os.environ.get("LIMITS", "{}")))
        self.max_body_bytes = int(os.environ.get("MAX_BODY_BYTES", "1000000"))
        self.maintained = 0

    def __call__(self, environ, start_response):
        body = environ["wsgi.input"].read()
        held = environ["collector.held"]
        action = environ["PATH_INFO"].strip("/").partition("/")[0]
        return getattr(self, f"do_{action}", self.do_unknown)(environ, start_response, body, held)

    def do_unknown(self, environ, start_response, body, held):
        start_response("404 Not Found", [("Content-Type", "text/plain")])
        return [b"no such path"]

    def do_environ(self, environ, start_response, body, held):
        """What the application sees, as JSON."""
        seen = {key: value for key, value in environ.items() if isinstance(value, str | bool)}
        seen["body"] = body.decode("latin-1")
        start_response("200 OK", [("Content-Type", "application/json")])
        return [json.dumps(seen).encode()]

    def do_length(self, environ, start_response, body, held):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"%d %s" % (len(body), environ.get("CONTENT_LENGTH", "none").encode())]

    def do_hold(self, environ, start_response, body, held):
        """Hold the query or the body."""
        held.append(environ["QUERY_STRING"] or body.decode("latin-1")[:80])
        start_response("202 Accepted", [("Content-Type", "text/plain")])
        return [b"held"]

    def do_repeat(self, environ, start_response, body, held):
        """What the shortcut does, the ordinary way."""
        held.append(environ["QUERY_STRING"] or f"{len(body)} bytes")
        start_response("202 Accepted", [("Content-Type", "text/plain"), ("X-Way", "ordinary")])
        return [b"held"]

    def shortcut(self, environ):
        return Shortcut() if environ["PATH_INFO"] == "/repeat" else None

    def do_hold_and_raise(self, environ, start_response, body, held):
        held.append("never")
        raise RuntimeError("a bug")

    def do_hold_bad_header(self, environ, start_response, body, held):
        held.append("bad header")
        start_response("202 Accepted", [("X-Good", "1"), ("X-Bad", "a\r\nInjected: 1"), ("X-Snow", "\N{SNOWMAN}")])
        return [b"held"]

    def do_bad_header(self, environ, start_response, body, held):
        start_response("200 OK", [("X-Snow", "\N{SNOWMAN}")])
        return [b""]

    def do_raise(self, environ, start_response, body, held):
        start_response("200 OK", [])
        raise RuntimeError("a bug")

    def do_raise_late(self, environ, start_response, body, held):
        start_response("200 OK", [])
        held.append("never")
        yield b"some"
        raise RuntimeError("a late bug")

    def do_exit(self, environ, start_response, body, held):
        raise SystemExit(9)

    def do_exc_info(self, environ, start_response, body, held):
        start_response("200 OK", [("X-First", "1")])
        try:
            raise ValueError
        except ValueError as exc:
            start_response("418 I'm a teapot", [("X-Second", "1")], (ValueError, exc, None))
        return [b"tea"]

    def do_twice(self, environ, start_response, body, held):
        start_response("200 OK", [])
        start_response("200 OK", [])
        return [b""]

    def do_write(self, environ, start_response, body, held):
        write = start_response("200 OK", [])
        write(b"written, ")
        return [b"returned"]

    def do_iterable(self, environ, start_response, body, held):
        start_response("200 OK", [])
        return Closing([b"one, ", b"two, ", b"three"])

    def do_empty(self, environ, start_response, body, held):
        start_response("204 No Content", [("Content-Length", "0")])
        return []

    def do_wrong_length(self, environ, start_response, body, held):
        start_response("200 OK", [("Content-Length", "3")])
        return [b"seven!!"]

    def do_close(self, environ, start_response, body, held):
        start_response("200 OK", [("Connection", "close"), ("Transfer-Encoding", "chunked")])
        return [b"bye"]

    def do_large(self, environ, start_response, body, held):
        start_response("200 OK", [])
        return [b"x" * int(environ["QUERY_STRING"])]

    def do_wait(self, environ, start_response, body, held):
        """Block the thread that runs this until the gate is gone."""
        _append("waiting", environ["QUERY_STRING"])
        while (STATE / "gate").exists():
            time.sleep(0.01)
        held.append(environ["QUERY_STRING"])
        start_response("202 Accepted", [])
        return [b"waited"]

    def do_pid(self, environ, start_response, body, held):
        start_response("200 OK", [])
        return [str(os.getpid()).encode()]

    def unwanted(self, environ) -> str | None:
        return _text("refusing")

    def waits_for_disk(self, held) -> bool:
        return True

    def _use_disk(self, kind: str) -> None:
        if (STATE / "disk").exists():
            _append("at_disk", kind)
        while (STATE / "disk").exists():
            time.sleep(0.01)

    def commit(self, held) -> str | None:
        self._use_disk("commit")
        broken = _text("broken")
        if broken == "raise":
            raise OSError("a bug in commit")
        if broken is None:
            _append("commits", json.dumps(held))
        return broken

    def unavailable(self, environ, reason):
        return "503 Service Unavailable", [("Retry-After", "7"), ("X-Path", environ["PATH_INFO"])], reason.encode()

    def maintain(self) -> None:
        self._use_disk("maintain")
        self.maintained += 1
        if self.maintained == 3:
            _append("maintained", str(os.getpid()))
        if _text("broken") == "maintenance":
            _append("failed", "")
            raise OSError("a bug in maintain")

    def close(self) -> None:
        _append("closed", str(os.getpid()))


class Refusing(App):
    """Answers 503 itself while it refuses, as the real one does."""

    def __call__(self, environ, start_response):
        reason = self.unwanted(environ)
        if reason is not None and environ["REQUEST_METHOD"] == "POST":
            start_response("503 Service Unavailable", [("Retry-After", "9"), ("X-By", "app")])
            return [reason.encode()]
        return super().__call__(environ, start_response)


app = App()
refusing_app = Refusing()


def plain(environ, start_response):
    """An ordinary WSGI application: nothing deferred."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"held" if "collector.held" in environ else b"plain"]
