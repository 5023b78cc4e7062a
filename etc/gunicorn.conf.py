"""The application under gunicorn's own command, without the flusher that `collector serve` starts beside it.

    COLLECTOR_CONFIG=/etc/collector.toml gunicorn -c etc/gunicorn.conf.py 'collector.app:create_app()'

The numbers come from the collector's settings; gunicorn's command line still wins over them. Events wait in the
spool until a flusher (`collector flush`) forwards them.
"""

import os

from collector import logs
from collector.http_server import gunicorn_settings
from collector.settings import load

settings = load(None, os.environ)
logs.setup(settings.log)
globals().update(gunicorn_settings(settings))
