"""Serve the admin door: on ``<spool>/control.sock``, always, and on ``[admin] bind``, when that is set.

The flusher's process serves both, in threads of its own, for as long as it holds the spool's LOCK; so there is one
control.sock at most, and a file of that name that nobody listens on is left over and replaced. It is 0600: who may
open it may do everything. A TCP address asks each request for a key with the scope ``admin``; a ``unix:`` one is 0600
like the other. The server is collector/small_server.py.
"""

import contextlib
import logging
import os
import socket
from collections.abc import Iterator

from collector import ports, small_server
from collector.control import Control
from collector.control_client import SOCKET_NAME
from collector.keys import Guard, Keys, no_guard
from collector.resources.admin import admin_app
from collector.settings import Settings
from forwarders.flusher import Flusher
from spool.directory import SpoolDirectory

log = logging.getLogger(__name__)


@contextlib.contextmanager
def serving(settings: Settings, directory: SpoolDirectory, flusher: Flusher) -> Iterator[None]:
    """Serve the doors while the context lasts. One that cannot be opened is logged: forwarding matters more."""
    control = Control(settings, directory, flusher=flusher)
    with contextlib.ExitStack() as doors:
        with _tolerating(str(directory.path / SOCKET_NAME)):
            doors.enter_context(small_server.serving(_control_socket(directory), admin_app(control, no_guard)))
        if settings.admin.bind:
            with _tolerating(settings.admin.bind):
                app = admin_app(control, _guard(settings))
                doors.enter_context(small_server.serving(ports.listener(settings.admin.bind), app))
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


def _control_socket(spool: SpoolDirectory) -> socket.socket:
    """Listen on ``control.sock``. By way of the directory's descriptor: see `collector.control_client.connect`."""
    folder = os.open(spool.sealed / os.pardir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(SOCKET_NAME, dir_fd=folder)
        return ports.socket_file(f"/proc/self/fd/{folder}/{SOCKET_NAME}")
    finally:
        os.close(folder)
