"""The WSGI application: the table of routes, and what a server needs to know of it.

Under any WSGI server ``app(environ, start_response)`` answers after the request's record is committed.
collector/worker.py does better: it puts a list into ``environ["collector.held"]``, collects the records of
an event-loop tick there, and calls `CollectorApp.commit` once before any of that tick's replies goes. While it is
being stopped, ``environ["collector.stopping"]`` is there.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

import falcon

from collector.entrance import open_entrance
from collector.health import Health
from collector.intake import Held, Intake
from collector.keys import Guard, KeyRefused, Keys, no_guard
from collector.limits import Limits
from collector.metrics import Counters, exposition
from collector.pixel_rate import PixelRate
from collector.problem import PROBLEM_TYPE, Cors, Headers, problem
from collector.resources.answers import refused
from collector.resources.events import EventsResource, EventsShortcut, RepeatedEvents, beacon_format, event_format
from collector.resources.health import HealthcheckResource, LivenessResource, MetricsResource, ReadinessResource
from collector.resources.pixel import PixelResource, PixelShortcut, RepeatedPixel
from collector.resources.robots import RobotsResource
from collector.resources.script import DemoResource, ScriptResource
from collector.sender import sender_reader
from collector.settings import AuthSettings, Settings, load
from forwarders.flush_settings import Names
from spool.watermark import retry_after_s

REFUSED_BODY_MAX_BYTES = 16 * 1024
EVENT = "/rest/1.0/event"
BEACON = "/rest/1.0/beacon"


class CollectorApp:
    """The application of one process: Falcon's routes over one intake."""

    def __init__(
        self,
        routes: falcon.App[Any, Any],
        shortcuts: Mapping[tuple[str, str], PixelShortcut | EventsShortcut],
        keys: Keys | None,
        guards: Mapping[str, Guard],
        cors: Cors,
        intake: Intake,
        counters: Counters,
        settings: Settings,
    ) -> None:
        self._routes = routes
        self._shortcuts = shortcuts
        self._keys = keys
        self._guards = guards
        self.common_headers = cors.headers
        self._intake = intake
        self._counters = counters
        http = settings.http
        self.max_body_bytes = http.max_body_bytes
        self.limits = Limits(
            max_buffered_bytes=http.max_buffered_bytes,
            header_timeout_s=http.header_timeout_s,
            body_timeout_s=http.body_timeout_s,
            body_min_bytes_per_s=http.body_min_bytes_per_s,
            idle_timeout_s=http.idle_timeout_s,
            reuse_port=http.reuse_port,
        )

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        shortcut = self._shortcuts.get((environ["REQUEST_METHOD"], environ["PATH_INFO"]))
        if shortcut is not None:
            reason = self.refuse_all() if "collector.held" in environ else None
            if reason is not None:
                status, headers, body = self.unavailable(environ, reason)
                start_response(status, headers)
                return [body]
            answer = shortcut.answer(environ, start_response)
            if answer is not None:
                if not environ["collector.held"]:  # filtered: what is held is counted when it is known how it ends
                    self._counters.count_answer(environ["PATH_INFO"], "202")
                return answer
        return self._routes(environ, start_response)

    def shortcut(self, environ: dict[str, Any]) -> RepeatedPixel | RepeatedEvents | None:
        """What answers further requests with the path and headers of this one without Falcon and WSGI, if anything."""
        if not self._intake.is_plain:
            return None
        shortcut = self._shortcuts.get((environ["REQUEST_METHOD"], environ["PATH_INFO"]))
        return shortcut.repeated(environ) if shortcut is not None else None

    def unwanted(self, environ: Mapping[str, Any]) -> str | None:
        """Why the body of this request is not to be read, or None: nothing is taken now, or not from this client.

        A small body is read all the same while nothing is taken: a connection that could not go on afterwards would
        cost its client, and us, more than the body.
        """
        reason = self._intake.refusal()
        if (
            reason is not None
            and int(environ.get("CONTENT_LENGTH") or REFUSED_BODY_MAX_BYTES + 1) <= REFUSED_BODY_MAX_BYTES
        ):
            reason = None
        if reason is None and self._guards and environ["REQUEST_METHOD"] == "POST":
            guard = self._guards.get(environ["PATH_INFO"].rstrip("/"), no_guard)
            try:
                guard(environ)
            except KeyRefused as exc:
                reason = exc.reason
        return reason

    def waits_for_disk(self, held: Sequence[Held]) -> bool:
        """Whether `commit` of these may take as long as the disk likes."""
        return self._intake.waits_for_disk(held)

    def commit(self, held: Sequence[Held]) -> str | None:
        """Store what one tick's requests held. None: done; otherwise the reason why nothing of it is stored.

        Its requests are counted as answered 202 then, also where the server had given up waiting for a disk that hung.
        """
        reason = self._intake.commit(held)
        if reason is None:
            for path, count in Counter([record.path for record in held]).items():
                self._counters.count_answer(path, "202", count)
        return reason

    def unavailable(self, environ: Mapping[str, Any], reason: str) -> tuple[str, Headers, bytes]:
        """The 503 of a request whose records could not be committed."""
        self._counters.count_answer(environ.get("PATH_INFO", ""), "503")
        headers = [("Content-Type", PROBLEM_TYPE), ("Retry-After", str(retry_after_s())), *self.common_headers(environ)]
        return falcon.HTTP_503, headers, problem(falcon.HTTP_503, reason)

    def refuse_all(self) -> str | None:
        """Why all are refused that a shortcut could answer, or None; for one that is told so: it is counted by kind."""
        return self._intake.refuse()

    def refused(self, environ: Mapping[str, Any], status: str) -> None:
        """Count an answer of the server's own, or one of `unavailable` that it sends again."""
        self._counters.count_answer(environ.get("PATH_INFO", ""), status)

    def observe(self, connections: int, buffered_bytes: int) -> None:
        """Publish what only the server knows, and how the spool is."""
        self._counters.set("connections", connections)
        self._counters.set("buffered_bytes", buffered_bytes)
        self._intake.publish()

    def maintain(self) -> None:
        """To be called every 0.1 s: the interval's sync, sealing by age, probing a full disk."""
        self._intake.maintain()
        if self._keys is not None:
            self._keys.look()
            self._counters.set("api_keys_state", self._keys.state)

    def close(self) -> None:
        """Seal the open segment; the last call."""
        self._intake.close()


class _EveryAnswer:
    """Falcon middleware: 405 for methods Falcon never heard of; common headers and counters, on errors too."""

    def __init__(self, counters: Counters, cors: Cors) -> None:
        self._counters = counters
        self._cors = cors

    def process_resource(self, req: falcon.Request, resp: falcon.Response, resource: object, params: object) -> None:
        if req.method not in falcon.COMBINED_METHODS:  # Falcon's answer is 400
            raise falcon.HTTPMethodNotAllowed(
                [method for method in ("GET", "POST") if hasattr(resource, f"on_{method.lower()}")] + ["OPTIONS"]
            )

    def process_response(self, req: falcon.Request, resp: falcon.Response, resource: object, succeeded: bool) -> None:
        for name, value in self._cors.headers(req.env):
            (resp.append_header if name == "Vary" else resp.set_header)(name, value)
        if not req.env.get("collector.held"):  # what is held is counted when it is known how it ends
            self._counters.count_answer(req.path, str(resp.status))


def _problem_for(req: falcon.Request, resp: falcon.Response, error: falcon.HTTPError) -> None:
    """Falcon's own refusals (unknown path, wrong method) as problem documents."""
    resp.content_type = PROBLEM_TYPE
    status = str(error.status)
    if isinstance(error, falcon.HTTPRouteNotFound):
        detail = "there is nothing at this address"
    elif isinstance(error, falcon.HTTPMethodNotAllowed):
        detail = f"{req.method} is not possible here, but {resp.get_header('Allow')}"
    else:
        detail = error.description or error.title or status[4:]
    resp.data = problem(status, detail)


def _refuse_key(req: falcon.Request, resp: falcon.Response, error: KeyRefused, params: object) -> NoReturn:
    raise refused(error.status, error.reason, error.headers)


def _guards(auth: AuthSettings, keys: Keys | None) -> tuple[dict[str, Guard], Guard]:
    """Who is asked for a key: the POST doors that are, by path, and whoever reads figures."""
    if keys is None:
        return {}, no_guard
    doors = ([EVENT, BEACON] if auth.beacon_requires_key else [EVENT]) if auth.post_requires_key else []
    return dict.fromkeys(doors, keys.guard("post")), keys.guard("read") if auth.read_requires_key else no_guard


def create_app(settings: Settings | None = None) -> CollectorApp:
    """Wire the application: one writer, one intake, the routes.

    Without ``settings`` they are read as every command reads them: ``COLLECTOR_CONFIG`` and ``COLLECTOR_*``.
    Errors: SettingsError, SpoolError.
    """
    settings = settings or load(None, os.environ)
    http = settings.http
    entrance = open_entrance(settings)
    directory, counters, intake = entrance.directory, entrance.counters, entrance.intake
    sender_of = sender_reader(http.trusted_proxies)
    health = Health(directory, entrance.watermark, settings)
    limit = http.max_body_bytes
    cors = Cors(http.cors_origins)
    rate = PixelRate(http.pixel_rate_per_s, http.pixel_burst) if http.pixel_rate_per_s else None
    keys = Keys(settings.auth.keys_file) if settings.auth.keys_file else None
    guards, read_guard = _guards(settings.auth, keys)

    routes: falcon.App[Any, Any] = falcon.App(middleware=[_EveryAnswer(counters, cors)])
    routes.req_options.strip_url_path_trailing_slash = True
    routes.set_error_serializer(_problem_for)
    routes.add_error_handler(KeyRefused, _refuse_key)
    routes.add_route("/1", PixelResource(intake, sender_of, rate, base64=False))
    routes.add_route("/2", PixelResource(intake, sender_of, rate, base64=True))
    for path, format_of in ((EVENT, event_format), (BEACON, beacon_format)):
        guard = guards.get(path, no_guard)
        routes.add_route(path, EventsResource(intake, sender_of, guard, max_body_bytes=limit, format_of=format_of))
    routes.add_route("/1.0/healthcheck", HealthcheckResource(health, read_guard))
    routes.add_route("/healthcheck", HealthcheckResource(health, read_guard))
    routes.add_route("/livez", LivenessResource())
    routes.add_route("/readyz", ReadinessResource(intake))
    routes.add_route("/robots.txt", RobotsResource())
    routes.add_route("/metrics", MetricsResource(lambda: exposition(directory.metrics), read_guard))
    shown = Names(settings.browser.events)
    fields = {name: each.fields for name, each in settings.events.items() if each.fields and shown.wants(name)}
    routes.add_route("/collector.js", ScriptResource(fields))
    if settings.browser.demo:
        routes.add_route("/demo", DemoResource())
    shortcuts: dict[tuple[str, str], PixelShortcut | EventsShortcut] = {
        ("GET", "/1"): PixelShortcut(intake, sender_of, rate, cors, base64=False),
        ("GET", "/2"): PixelShortcut(intake, sender_of, rate, cors, base64=True),
    }
    if EVENT not in guards and intake.takes_all:
        shortcuts["POST", EVENT] = EventsShortcut(intake, sender_of, cors)
    return CollectorApp(routes, shortcuts, keys, guards, cors, intake, counters, settings)
