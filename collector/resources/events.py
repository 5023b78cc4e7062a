"""``POST /rest/1.0/event`` and ``POST /rest/1.0/beacon``: a body of events, judged one by one."""

import json
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qs

import falcon

from collector.intake import TOO_MUCH, Held, Intake, TooMuch, Unavailable
from collector.keys import Admitted, Guard
from collector.problem import Cors, Headers
from collector.receipt import Receipt
from collector.resources.answers import malformed, preflight_headers, refused, unavailable, warning
from collector.resources.body import BodyError, read_body
from collector.resources.results import APPLIED, RESULTS_MAX, are_wanted, results
from collector.sender import SenderReader
from formats.content_encoding import TooLarge, UnknownEncoding, decode_body
from formats.event import FAILURES_KEPT, Decoded, Defaults, FormatError, check_name
from formats.json_body import decode_json, decode_small_json
from formats.msgpack_body import decode_msgpack
from formats.smile_body import decode_smile
from formats.thrift_body import decode_thrift
from formats.times import parse_date, parse_granularity
from spool.record import EVENTS_MAX

Decoder = Callable[[bytes, Defaults], Iterator[Decoded]]

#: Content type → (the door's name, its decoder). A new body format is a line here and a module in formats/.
BODY_FORMATS: dict[str, tuple[str, Decoder]] = {
    "application/json": ("json", decode_json),
    "text/json": ("json", decode_json),
    "application/msgpack": ("msgpack", decode_msgpack),
    "application/x-msgpack": ("msgpack", decode_msgpack),
    "application/vnd.msgpack": ("msgpack", decode_msgpack),
    "application/json+smile": ("smile", decode_smile),
    "application/x-jackson-smile": ("smile", decode_smile),
    "application/thrift": ("thrift", decode_thrift),
    "application/x-thrift": ("thrift", decode_thrift),
    "application/vnd.apache.thrift.binary": ("thrift", decode_thrift),
    "ning/thrift": ("thrift", decode_thrift),
}
SHORTCUT_MAX_BYTES = 64 * 1024
FORBIDDEN_NAME = "the API key may not send events of this name"
BEACON_TYPES = ("text/plain", "application/json", "text/json", "")


def event_format(content_type: str) -> tuple[str, Decoder] | None:
    """What reads a body of the event door; parameters and case of the type are ignored."""
    essence = content_type.partition(";")[0].strip().lower()
    if essence.startswith("application/") and essence.endswith("+json"):
        return "json", decode_json
    return BODY_FORMATS.get(essence)


def beacon_format(content_type: str) -> tuple[str, Decoder] | None:
    """What reads a body of the beacon door: what browsers send without asking first is read as JSON."""
    essence = content_type.partition(";")[0].strip().lower()
    return ("beacon", decode_json) if essence in BEACON_TYPES else None


class _Offered:
    """The parts of a body as the intake may have them: what this API key may not send fails, and a body of nothing.

    ``forbidden``: how many events, of the parts so far, were refused for their names. Errors: TooMuch, from the first
    part on with which there are more events, good or bad, than a record may have: it is not read any further.
    """

    def __init__(self, parts: Iterator[Decoded], admitted: Admitted | None) -> None:
        self._parts = parts
        self._wants = admitted.names.wants if admitted is not None and not admitted.names.all else None
        self.forbidden = 0

    def __iter__(self) -> Iterator[Decoded]:
        wants, offered = self._wants, 0
        for part in self._parts:
            offered += part.size
            if offered > EVENTS_MAX:
                raise TooMuch(TOO_MUCH)
            if wants is not None:
                self._refuse(part, wants)
            yield part
        if not offered:
            nothing = Decoded()
            nothing.fail("the body holds no event")
            yield nothing

    def _refuse(self, part: Decoded, wants: Callable[[str], bool]) -> None:
        reasons = {index: FORBIDDEN_NAME for index, event in enumerate(part.events) if not wants(event.name)}
        if reasons:
            part.refuse(reasons)
            self.forbidden += len(reasons)


class EventsResource:
    """A door that takes bodies. ``format_of`` chooses the decoder by content type."""

    def __init__(
        self,
        intake: Intake,
        sender_of: SenderReader,
        guard: Guard,
        *,
        max_body_bytes: int,
        format_of: Callable[[str], tuple[str, Decoder] | None],
    ) -> None:
        self._intake = intake
        self._sender_of = sender_of
        self._guard = guard
        self._max_body_bytes = max_body_bytes
        self._format_of = format_of

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Store what can be read of the body, and say what could not."""
        refusal = self._intake.refuse()
        if refusal is not None:
            raise unavailable(refusal)
        admitted = self._guard(req.env)
        chosen = self._format_of(req.env.get("CONTENT_TYPE", ""))
        if chosen is None:
            raise refused(falcon.HTTP_415, "the Content-Type is none that this address understands")
        source, decode = chosen
        wants_results = are_wanted(req.env)
        try:
            body = self._read(req)
            sender = self._sender_of(req.env)
            failures_kept = RESULTS_MAX if wants_results else FAILURES_KEPT
            defaults = _defaults(req.query_string, sender.received_ms, failures_kept)
        except FormatError as exc:
            self._intake.reject(source, 1)
            report = results(Receipt(0, 0, 1, [exc])) if wants_results else None
            raise malformed(exc.reason, [exc], 1, results=report) from exc
        parts = _Offered(decode(body, defaults), admitted)
        try:
            receipt = self._intake.accept_parts(
                source, parts, sender, path=req.path, held=req.env.get("collector.held")
            )
        except Unavailable as exc:
            raise unavailable(str(exc)) from exc
        except TooMuch as exc:
            raise refused(falcon.HTTP_413, str(exc)) from exc
        report = results(receipt) if wants_results else None
        if not receipt.taken:
            status = falcon.HTTP_403 if receipt.failed == parts.forbidden else falcon.HTTP_400
            raise malformed("no event could be accepted", receipt.failures, receipt.failed, status, report)
        resp.status = falcon.HTTP_202
        resp.content_type = "text/plain"
        if report is not None:
            resp.content_type = "application/json"
            resp.set_headers([APPLIED])
            resp.data = json.dumps(report).encode("ascii")
        if receipt.failed:
            resp.set_header("Warning", warning(receipt.taken, receipt.failed, receipt.failures[0]))

    def on_options(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer a preflight."""
        resp.status = falcon.HTTP_204
        resp.set_headers(preflight_headers("POST, OPTIONS"))

    def _read(self, req: falcon.Request) -> bytes:
        try:
            body = read_body(req.env, self._max_body_bytes)
            self._intake.count_body(len(body))
            encoding = req.env.get("HTTP_CONTENT_ENCODING", "")
            return decode_body(body, encoding, self._max_body_bytes) if encoding else body
        except TooLarge as exc:
            too_large = f"the body is larger than {self._max_body_bytes} bytes"
            raise refused(falcon.HTTP_413, too_large, [("Connection", "close")]) from exc
        except UnknownEncoding as exc:
            raise refused(
                falcon.HTTP_415, "the Content-Encoding is none of gzip, deflate, zstd, or has more than two of them"
            ) from exc
        except BodyError as exc:
            raise FormatError(str(exc)) from exc


class EventsShortcut:
    """A body of good JSON events answered without Falcon: the same reply as `EventsResource.on_post` gives.

    It saves a quarter of the CPU of a request with one event. Only for a server that holds (``collector.held``), while
    events are taken, where no key is asked for and no rule can refuse an event, for plain requests whose events are all
    accepted: `answer` returns None for everything else, having done nothing, and the request takes the ordinary way.
    Small bodies only: such a one may be decoded twice.
    """

    def __init__(self, intake: Intake, sender_of: SenderReader, cors: Cors) -> None:
        self._intake = intake
        self._sender_of = sender_of
        self._cors = cors
        self._headers_without_origin = self._headers({})

    def answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes] | None:
        """Hold the events and start the reply, or None."""
        held = environ.get("collector.held")
        size = int(environ.get("CONTENT_LENGTH") or SHORTCUT_MAX_BYTES + 1)
        if held is None or size > SHORTCUT_MAX_BYTES or not self._is_plain(environ):
            return None
        stream = environ["wsgi.input"]
        body = stream.read()
        sender = self._sender_of(environ)
        decoded = decode_small_json(body, Defaults(time_ms=sender.received_ms))
        if decoded.failed or not decoded.events:
            stream.seek(0)
            return None
        self._intake.count_body(len(body))
        self._intake.accept("json", decoded, sender, path=environ["PATH_INFO"], held=held)
        start_response(
            falcon.HTTP_202, self._headers(environ) if "HTTP_ORIGIN" in environ else self._headers_without_origin
        )
        return [b""]

    def repeated(self, environ: dict[str, Any]) -> "RepeatedEvents | None":
        """What answers further bodies with the headers and the path of this one."""
        if not self._is_plain(environ):
            return None
        return RepeatedEvents(self._intake, environ["PATH_INFO"], self._headers(environ))

    def _is_plain(self, environ: dict[str, Any]) -> bool:
        """Whether nothing but the body says what is wanted."""
        return (
            environ.get("CONTENT_TYPE") == "application/json"
            and not environ["QUERY_STRING"]
            and "HTTP_CONTENT_ENCODING" not in environ
            and "HTTP_PREFER" not in environ
        )

    def _headers(self, environ: dict[str, Any]) -> Headers:
        return [("Content-Type", "text/plain"), *self._cors.headers(environ)]


class RepeatedEvents:
    """Bodies of JSON events of which all but the body is known: neither environ nor WSGI call is made for them.

    Only where no rule looks at events (`Intake.is_plain`).
    """

    status = falcon.HTTP_202
    content = b""

    def __init__(self, intake: Intake, path: str, headers: Headers) -> None:
        self._intake = intake
        self._path = path
        self.headers = headers

    def take(self, query: str, body: bytes) -> Held | None:
        """The record of one body, or None."""
        intake = self._intake
        if len(body) > SHORTCUT_MAX_BYTES or intake.refusal() is not None:
            return None
        received_ns = time.time_ns()
        received_ms = received_ns // 1_000_000
        decoded = decode_small_json(body, Defaults(time_ms=received_ms))
        if decoded.failed or not decoded.events:
            return None
        intake.count_body(len(body))
        return intake.record(self._path, "json", decoded.events, received_ms, received_ns)


def _defaults(query: str, now_ms: int, failures_kept: int) -> Defaults:
    """``name=``, ``date=`` and ``gr=``; a malformed one fails the request."""
    if not query:
        return Defaults(time_ms=now_ms, failures_kept=failures_kept)
    values = parse_qs(query, keep_blank_values=True)
    name, date, granularity = (values.get(key, [""])[0] for key in ("name", "date", "gr"))
    try:
        return Defaults(
            name=check_name(name) if name else None,
            time_ms=parse_date(date) if date.strip() else now_ms,
            granularity=parse_granularity(granularity),
            failures_kept=failures_kept,
        )
    except FormatError as exc:
        raise FormatError(f"name=, date= or gr= is malformed: {exc.reason}") from exc
