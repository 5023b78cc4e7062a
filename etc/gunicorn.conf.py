"""The application under gunicorn's own command, without the flusher that `collector serve` starts beside it.

    COLLECTOR_CONFIG=/etc/collector.toml gunicorn -c etc/gunicorn.conf.py 'collector.app:create_app()'

The numbers come from the collector's settings; gunicorn's command line still wins over them. Events wait in the
spool until a flusher (`collector flush`) forwards them.
"""

import os
from typing import Any

from collector import logs
from collector.app import CollectorApp
from collector.http_server import gunicorn_settings
from collector.settings import load

settings = load(None, os.environ)
logs.setup(settings.log)
globals().update(gunicorn_settings(settings))


def worker_exit(server: Any, worker: Any) -> None:
    """Let gunicorn's own workers seal their segment too; the collector's has done so."""
    app = getattr(worker, "wsgi", None)  # none if it could not be loaded
    if isinstance(app, CollectorApp):
        app.close()
