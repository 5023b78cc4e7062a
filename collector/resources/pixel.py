"""``GET /1`` and ``GET /2``: one event in the query string, answered with a picture of one pixel."""

import time
from collections.abc import Callable
from typing import Any

import falcon

from collector.intake import Held, Intake, Unavailable
from collector.pixel_rate import PixelRate
from collector.problem import Cors, Headers
from collector.resources.answers import NOT_CACHED, PIXEL, malformed, preflight_headers, too_many, unavailable
from collector.sender import SenderReader
from formats.event import Decoded, FormatError
from formats.pixel import Sender, parse_pixel


class PixelResource:
    """One pixel door; ``base64`` is ``/2``, whose numbers are written in base 64."""

    def __init__(self, intake: Intake, sender_of: SenderReader, rate: PixelRate | None, *, base64: bool) -> None:
        self._intake = intake
        self._sender_of = sender_of
        self._rate = rate
        self._base64 = base64
        self._source = "get_v2" if base64 else "get_v1"

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Store the event of ``v=``."""
        refusal = self._intake.refuse()
        if refusal is not None:
            raise unavailable(refusal)
        sender = self._sender_of(req.env)
        wait_s = self._rate.take(sender.client_ip) if self._rate is not None else 0.0
        if wait_s:
            raise too_many("this address sends more pixels than it may", wait_s)
        try:
            event = parse_pixel(req.query_string, base64=self._base64, sender=sender)
        except FormatError as exc:
            self._intake.reject(self._source, 1)
            raise malformed("the event in v= cannot be read", [exc], 1) from exc
        try:
            receipt = self._intake.accept(
                self._source, Decoded([event]), sender, path=req.path, held=req.env.get("collector.held")
            )
        except Unavailable as exc:
            raise unavailable(str(exc)) from exc
        if not receipt.taken:
            raise malformed("the event cannot be accepted", receipt.failures, receipt.failed)
        resp.status = falcon.HTTP_202
        resp.data = PIXEL
        resp.content_type = "image/gif"
        resp.set_header("Cache-Control", NOT_CACHED)

    def on_options(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer a preflight."""
        resp.status = falcon.HTTP_204
        resp.set_headers(preflight_headers("GET, OPTIONS"))


class PixelShortcut:
    """A good pixel answered without Falcon: the same reply as `PixelResource.on_get` gives, for less than half the CPU.

    Only for a server that holds (``collector.held``), while events are taken, and only for what is accepted: `answer`
    returns None for everything else, having done nothing, and the request takes the ordinary way.
    """

    def __init__(
        self, intake: Intake, sender_of: SenderReader, rate: PixelRate | None, cors: Cors, *, base64: bool
    ) -> None:
        self._intake = intake
        self._sender_of = sender_of
        self._rate = rate
        self._cors = cors
        self._base64 = base64
        self._source = "get_v2" if base64 else "get_v1"
        self._headers_without_origin = self._headers({})

    def answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes] | None:
        """Hold the event and start the reply, or None."""
        held = environ.get("collector.held")
        if held is None:
            return None
        sender = self._sender_of(environ)
        try:
            event = parse_pixel(environ["QUERY_STRING"], base64=self._base64, sender=sender)
        except FormatError:
            return None
        if self._intake.may_refuse(event.name):
            return None
        if self._rate is not None and self._rate.take(sender.client_ip):
            return None
        self._intake.accept(self._source, Decoded([event]), sender, path=environ["PATH_INFO"], held=held)
        headers = self._headers(environ) if "HTTP_ORIGIN" in environ else self._headers_without_origin
        start_response(falcon.HTTP_202, headers)
        return [PIXEL]

    def repeated(self, environ: dict[str, Any]) -> "RepeatedPixel":
        """What answers further pixels with the headers and the path of this one."""
        sender = self._sender_of(environ)
        path, headers = environ["PATH_INFO"], self._headers(environ)
        return RepeatedPixel(self._intake, self._rate, self._source, path, sender, headers, base64=self._base64)

    def _headers(self, environ: dict[str, Any]) -> Headers:
        return [("Content-Type", "image/gif"), ("Cache-Control", NOT_CACHED), *self._cors.headers(environ)]


class RepeatedPixel:
    """Pixels of which all but the query is known: neither environ nor WSGI call is made for them.

    A third of the CPU that `PixelShortcut` costs the worker. Only where no rule looks at events (`Intake.is_plain`).
    """

    status = falcon.HTTP_202
    content = PIXEL

    def __init__(
        self,
        intake: Intake,
        rate: PixelRate | None,
        source: str,
        path: str,
        sender: Sender,
        headers: Headers,
        *,
        base64: bool,
    ) -> None:
        self._intake = intake
        self._rate = rate
        self._source = source
        self._path = path
        self._sender = sender
        self._base64 = base64
        self.headers = headers

    def take(self, query: str, body: bytes) -> Held | None:
        """The record of one pixel, or None."""
        intake = self._intake
        if intake.refusal() is not None:
            return None
        received_ns = time.time_ns()
        sender = self._sender
        sender.received_ms = received_ns // 1_000_000
        try:
            event = parse_pixel(query, base64=self._base64, sender=sender)
        except FormatError:
            return None
        if self._rate is not None and self._rate.take(sender.client_ip):
            return None
        return intake.record(self._path, self._source, [event], sender.received_ms, received_ns)
