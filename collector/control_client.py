"""The way of commands to a flusher that runs: HTTP over ``<spool>/control.sock``."""

import http.client
import json
import os
import socket
from pathlib import Path
from typing import Any

from collector.control import SKIP_TIMEOUT_S, Control, ControlError, Controls, Report
from collector.settings import Settings
from forwarders.skipping import Choice
from spool.directory import SpoolDirectory

SOCKET_NAME = "control.sock"
TIMEOUT_S = SKIP_TIMEOUT_S + 15


def reach(settings: Settings, directory: SpoolDirectory) -> Controls:
    """The flusher's own operations when it answers, else ours on the same files."""
    try:
        connect(directory.path).close()
    except OSError:
        from collector.wiring import build_flusher

        return Control(settings, directory, make_flusher=lambda: build_flusher(settings))
    return RemoteControl(directory.path)


def connect(spool: Path, timeout_s: float = 5.0) -> socket.socket:
    """A connection to the flusher of a spool. Errors: OSError when there is none.

    By way of a descriptor of the directory: the address of a socket holds 107 bytes, a path may have more.
    """
    folder = os.open(spool, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        client.settimeout(timeout_s)
        client.connect(f"/proc/self/fd/{folder}/{SOCKET_NAME}")
    except BaseException:
        client.close()
        raise
    finally:
        os.close(folder)
    return client


class RemoteControl:
    """The operations, done by the flusher at the other end of the socket. Errors: ControlError."""

    def __init__(self, spool: Path) -> None:
        self._spool = spool

    def collection(self) -> Report:
        """As `Control.collection`."""
        return self._ask("GET", "/collection")

    def switch_collection(self, *, on: bool, reason: str, dry_run: bool) -> Report:
        """As `Control.switch_collection`."""
        return self._ask("PUT", "/collection", on=on, reason=reason, dry_run=dry_run)

    def forwarders(self) -> list[Report]:
        """As `Control.forwarders`."""
        return list(self._ask("GET", "/forwarders")["forwarders"])

    def pause(self, name: str, *, reason: str, dry_run: bool) -> Report:
        """As `Control.pause`."""
        return self._order(name, "pause", reason=reason, dry_run=dry_run)

    def resume(self, name: str, *, dry_run: bool) -> Report:
        """As `Control.resume`."""
        return self._order(name, "resume", dry_run=dry_run)

    def flush(self, name: str, *, quarantined: bool, dry_run: bool) -> Report:
        """As `Control.flush`."""
        return self._order(name, "flush", quarantined=quarantined, dry_run=dry_run)

    def skip(self, name: str, choice: Choice, *, dry_run: bool) -> Report:
        """As `Control.skip`."""
        return self._order(name, "skip", dry_run=dry_run, **choice.__dict__)

    def _order(self, name: str, order: str, **body: Any) -> Report:
        return self._ask("POST", f"/forwarders/{name}/{order}", **body)

    def _ask(self, method: str, path: str, **body: Any) -> Report:
        client = http.client.HTTPConnection("localhost")
        try:
            client.sock = connect(self._spool, TIMEOUT_S)
            client.request(method, path, json.dumps(body) if body else None, {"Content-Type": "application/json"})
            response = client.getresponse()
            answer: Report = json.loads(response.read())
        except (OSError, ValueError, http.client.HTTPException) as exc:
            raise ControlError(503, f"{self._spool / SOCKET_NAME}: the flusher gave no answer: {exc}") from exc
        finally:
            client.close()
        if response.status != 200:
            raise ControlError(response.status, str(answer.get("detail", response.reason)))
        return answer
