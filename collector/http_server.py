"""The HTTP server: gunicorn with our worker class, built from settings. ``python -m collector.http_server`` runs it.

gunicorn starts the workers, starts a dead one again and replaces them all at SIGHUP. Settings are then read
again; if they will not do, the old ones stay. An address never changes by a reload.

Why not gunicorn's command line: its settings would repeat ours. Who wants it all the same has
etc/gunicorn.conf.py, which takes them from `gunicorn_settings`.
"""

import logging
import math
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from gunicorn.app.base import BaseApplication
from gunicorn.errors import AppImportError
from gunicorn.glogging import Logger

from collector import logs
from collector.app import CollectorApp, create_app
from collector.parent import end_with
from collector.settings import Settings, load
from collector.tables import SettingsError
from spool.directory import SpoolError

log = logging.getLogger(__name__)

HUNG_AFTER_S = 90  # a sick disk can hold one fdatasync for a minute, and killing its worker mends nothing
BAD_SETTINGS = 78


class GunicornLogger(Logger):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's own messages and its access log, by our handlers."""

    def setup(self, cfg: Any) -> None:
        """Called by gunicorn at start and at each reload."""
        self.cfg = cfg
        self._access_log_enabled = cfg.accesslog is not None
        self.error_log.propagate = self.access_log.propagate = True
        self.error_log.setLevel(logging.WARNING)
        self.access_log.setLevel(logging.INFO)


class HttpServer(BaseApplication):  # type: ignore[misc]  # gunicorn has no types
    """What gunicorn asks for its settings and for the application.

    Errors: SettingsError from the first reading; later ones are logged and change nothing.
    """

    def __init__(self, read_settings: Callable[[], Settings]) -> None:
        self._read_settings = read_settings
        self.settings = read_settings()
        super().__init__()

    def load_config(self) -> None:
        """Called by gunicorn at start and at each reload."""
        for name, value in gunicorn_settings(self.settings).items():
            self.cfg.set(name, value)

    def reload(self) -> None:
        """Read the settings again; called by gunicorn at SIGHUP."""
        try:
            fresh = self._read_settings()
        except SettingsError as exc:
            log.error("settings not reloaded", extra={"reason": str(exc)})
        else:
            if fresh.http.binds != self.settings.http.binds:
                log.warning("http.bind changes at a restart only", extra={"bind": self.settings.http.binds})
            self.settings = replace(fresh, http=replace(fresh.http, bind=self.settings.http.bind))
            logs.setup(self.settings.log)
        super().reload()

    def load(self) -> CollectorApp:
        """Make the application; called in each worker."""
        try:
            return create_app(self.settings)
        except (SettingsError, SpoolError) as exc:
            raise AppImportError(str(exc)) from exc


def gunicorn_settings(settings: Settings) -> dict[str, Any]:
    """What gunicorn needs to know, under gunicorn's names."""
    http = settings.http
    return {
        "bind": http.binds,
        "workers": http.workers,
        "worker_class": "collector.worker.Worker",
        "worker_tmp_dir": "/dev/shm" if os.access("/dev/shm", os.W_OK) else None,  # noqa: S108 - no disk in a heartbeat
        "timeout": HUNG_AFTER_S,
        "graceful_timeout": math.ceil(http.graceful_timeout_s),
        "keepalive": math.ceil(http.idle_timeout_s),
        "max_requests": http.max_requests,
        "max_requests_jitter": http.max_requests_jitter,
        "accesslog": "-" if http.access_log else None,
        "certfile": http.certfile or None,
        "keyfile": http.keyfile or None,
        "control_socket_disable": True,
        "logger_class": GunicornLogger,
        "proc_name": "collector",
        "post_fork": _post_fork,
    }


def _post_fork(arbiter: Any, worker: Any) -> None:
    end_with(worker.ppid, signal.SIGTERM)  # a worker whose master was killed still answers what it has


def main() -> int:
    """Serve HTTP until SIGTERM, with the settings of the environment; returns the exit code."""
    try:
        server = HttpServer(lambda: load(None, os.environ))
    except SettingsError as exc:
        print(exc, file=sys.stderr)
        return BAD_SETTINGS
    logs.setup(server.settings.log)
    server.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
