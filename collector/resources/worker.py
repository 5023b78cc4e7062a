"""What an event worker answers over HTTP: ``/metrics``, ``/healthcheck`` (also ``/1.0/healthcheck``) and ``/livez``."""

from collections.abc import Callable
from typing import Any

import falcon

from collector.keys import no_guard
from collector.resources.health import HealthcheckResource, LivenessResource, MetricsResource, Reports
from collector.small_server import WsgiApp


def worker_app(health: Reports, exposition: Callable[[], bytes]) -> WsgiApp:
    """The application."""
    routes: falcon.App[Any, Any] = falcon.App()
    healthcheck = HealthcheckResource(health, no_guard)
    routes.add_route("/healthcheck", healthcheck)
    routes.add_route("/1.0/healthcheck", healthcheck)
    routes.add_route("/metrics", MetricsResource(exposition, no_guard))
    routes.add_route("/livez", LivenessResource())
    return routes
