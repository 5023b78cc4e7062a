"""What load balancers, monitoring and people ask a running collector."""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import falcon

from collector.keys import Guard
from collector.resources.answers import unavailable

if TYPE_CHECKING:
    from collector.intake import Intake


class Reports(Protocol):
    """What makes health reports."""

    def report(self, location: str) -> dict[str, Any]: ...


class HealthcheckResource:
    """``GET /1.0/healthcheck[?pretty=true]``: the whole report; 500 when a part of it is an ERROR."""

    def __init__(self, health: Reports, guard: Guard) -> None:
        self._health = health
        self._guard = guard

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer the report."""
        self._guard(req.env)
        report: dict[str, Any] = self._health.report(location=req.uri.partition("?")[0])
        pretty = req.get_param("pretty", default="").lower() == "true"
        resp.data = json.dumps(report, indent=2 if pretty else None).encode()
        resp.content_type = "application/json; charset=UTF-8"
        resp.set_header("Cache-Control", "no-store")
        if any(item["code"] == "ERROR" for item in report["items"]):
            resp.status = falcon.HTTP_500


class LivenessResource:
    """``GET /livez``: this process answers."""

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer at once."""
        resp.content_type = "text/plain"
        resp.data = b"ok\n"

    on_head = on_get  # some load balancers ask so


class ReadinessResource:
    """``GET /readyz``: whether events would be taken now; 503 while draining or refusing."""

    def __init__(self, intake: "Intake") -> None:
        self._intake = intake

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer ok, or why not."""
        refusal = "this process is being stopped" if "collector.stopping" in req.env else self._intake.unready()
        if refusal is not None:
            raise unavailable(refusal)
        resp.content_type = "text/plain"
        resp.data = b"ok\n"

    on_head = on_get


class MetricsResource:
    """``GET /metrics``: all counters, for Prometheus; ``exposition`` gives them."""

    def __init__(self, exposition: Callable[[], bytes], guard: Guard) -> None:
        self._exposition = exposition
        self._guard = guard

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer the exposition."""
        self._guard(req.env)
        resp.data = self._exposition()
        resp.content_type = "text/plain; version=0.0.4; charset=utf-8"
