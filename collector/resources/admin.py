"""The admin door: what `collector.control` does, over HTTP with JSON.

    GET  /collection                                 {"on", "reason", "since_ms"}
    PUT  /collection                {"on", "reason"}
    GET  /forwarders                                 {"forwarders": [{"forwarder", "state", …}]}
    POST /forwarders/NAME/pause     {"reason"}
    POST /forwarders/NAME/resume
    POST /forwarders/NAME/flush     {"quarantined"}
    POST /forwarders/NAME/skip      {"everything"} or {"segments"} or {"before_ns"}

Each POST and PUT also takes {"dry_run": true}. What was not done is answered with a problem document.
"""

from typing import Any, TypeVar

import falcon
import msgspec

from collector.control import ControlError, Controls, Report
from collector.keys import Guard, KeyRefused
from collector.problem import PROBLEM_TYPE, problem
from collector.small_server import WsgiApp
from forwarders.skipping import Choice
from spool.directory import SpoolError

T = TypeVar("T", bound=msgspec.Struct)


class CollectionOrder(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``PUT /collection``."""

    on: bool
    reason: str = ""
    dry_run: bool = False


class Order(msgspec.Struct, forbid_unknown_fields=True):
    """The body of an order to a forwarder; each order looks at its own keys."""

    reason: str = ""
    quarantined: bool = False
    everything: bool = False
    segments: int = 0
    before_ns: int = 0
    dry_run: bool = False


def admin_app(control: Controls, guard: Guard) -> WsgiApp:
    """The application; ``guard`` is asked before each request."""
    routes: falcon.App[Any, Any] = falcon.App(middleware=[_Guarded(guard)])
    routes.add_route("/collection", _Collection(control))
    routes.add_route("/forwarders", _Forwarders(control))
    routes.add_route("/forwarders/{name}/{order}", _Orders(control))
    routes.set_error_serializer(_problem)
    routes.add_error_handler(KeyRefused, _refuse_key)
    routes.add_error_handler(ControlError, _not_done)
    routes.add_error_handler((OSError, SpoolError), _disk)
    return routes


class _Guarded:
    """Falcon middleware: who may."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    def process_request(self, req: falcon.Request, resp: falcon.Response) -> None:
        self._guard(req.env)


class _Collection:
    def __init__(self, control: Controls) -> None:
        self._control = control

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        resp.media = self._control.collection()

    def on_put(self, req: falcon.Request, resp: falcon.Response) -> None:
        order = _read(req, CollectionOrder)
        resp.media = self._control.switch_collection(on=order.on, reason=order.reason, dry_run=order.dry_run)


class _Forwarders:
    def __init__(self, control: Controls) -> None:
        self._control = control

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        resp.media = {"forwarders": self._control.forwarders()}


class _Orders:
    def __init__(self, control: Controls) -> None:
        self._control = control

    def on_post(self, req: falcon.Request, resp: falcon.Response, name: str, order: str) -> None:
        resp.media = self._do(name, order, _read(req, Order))

    def _do(self, name: str, order: str, said: Order) -> Report:
        match order:
            case "pause":
                return self._control.pause(name, reason=said.reason, dry_run=said.dry_run)
            case "resume":
                return self._control.resume(name, dry_run=said.dry_run)
            case "flush":
                return self._control.flush(name, quarantined=said.quarantined, dry_run=said.dry_run)
            case "skip":
                if (said.everything, said.segments > 0, said.before_ns > 0).count(True) != 1:
                    raise ControlError(400, "expected one of everything, segments and before_ns")
                choice = Choice(said.everything, said.segments, said.before_ns)
                return self._control.skip(name, choice, dry_run=said.dry_run)
        raise ControlError(404, f"{order}: expected pause, resume, flush or skip")


def _read(req: falcon.Request, shape: type[T]) -> T:
    try:
        return msgspec.json.decode(req.env["wsgi.input"].read() or b"{}", type=shape)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise ControlError(400, f"the body cannot be read: {exc}") from exc


def _answer(resp: falcon.Response, status: str, detail: str) -> None:
    resp.status = status
    resp.content_type = PROBLEM_TYPE
    resp.data = problem(status, detail)


def _problem(req: falcon.Request, resp: falcon.Response, error: falcon.HTTPError) -> None:
    _answer(resp, str(error.status), error.description or error.title or str(error.status))


def _refuse_key(req: falcon.Request, resp: falcon.Response, error: KeyRefused, params: object) -> None:
    _answer(resp, error.status, error.reason)
    resp.set_headers(error.headers)


def _not_done(req: falcon.Request, resp: falcon.Response, error: ControlError, params: object) -> None:
    _answer(resp, falcon.code_to_http_status(error.status), str(error))


def _disk(req: falcon.Request, resp: falcon.Response, error: Exception, params: object) -> None:
    _answer(resp, falcon.HTTP_500, str(error))
