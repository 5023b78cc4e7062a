"""The answers that several doors give: the pixel, preflights, the Warning header, refusals."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import falcon

from collector.problem import PROBLEM_TYPE, Headers, problem
from collector.resources.results import APPLIED
from formats.event import FormatError
from spool.watermark import retry_after_s

#: A 1x1 transparent GIF.
PIXEL = bytes.fromhex("47494638396101000100800000000000ffffff21f90401000000002c00000000010001000002024401003b")
NOT_CACHED = "private, no-cache, no-transform, proxy-revalidate"
WARNING_MAX_CHARS = 512
FAILURES_SHOWN = 20


def preflight_headers(methods: str) -> Headers:
    """What an OPTIONS request is told on top: which methods and headers a page may use, for a day."""
    return [
        ("Access-Control-Allow-Methods", methods),
        ("Access-Control-Allow-Headers", "Authorization, Content-Encoding, Content-Type, Prefer, X-API-Key"),
        ("Access-Control-Max-Age", "86400"),
        ("Allow", methods),
    ]


def warning(accepted: int, failed: int, first: FormatError) -> str:
    """The Warning header of a request with failures: printable ASCII, at most WARNING_MAX_CHARS."""
    reason = "".join(char if " " <= char <= "~" and char not in '"\\\\' else "?" for char in first.reason)
    head = f'199 - "[{accepted} successes] [{failed} failures] ['
    tail = f', at event {first.at}]"'
    return head + reason[: WARNING_MAX_CHARS - len(head) - len(tail)] + tail


def refused(status: str, detail: str, headers: Headers | None = None) -> falcon.HTTPStatus:
    """An answer other than 202, to be raised: a problem document that says what is wrong."""
    return falcon.HTTPStatus(
        status, [("Content-Type", PROBLEM_TYPE), *(headers or [])], problem(status, detail).decode()
    )


def malformed(
    detail: str,
    failures: Sequence[FormatError],
    failed: int,
    status: str = falcon.HTTP_400,
    results: Mapping[str, Any] | None = None,
) -> falcon.HTTPStatus:
    """400, or 403: nothing of the request could be accepted. It lists the first failures, or ``results`` instead."""
    headers = [("Content-Type", PROBLEM_TYPE), ("Warning", warning(0, failed, failures[0]))]
    if results is None:
        shown = [{"index": each.at, "reason": each.reason} for each in failures[:FAILURES_SHOWN]]
        results = {"failed": failed, "failures": shown}
    else:
        headers.append(APPLIED)
    return falcon.HTTPStatus(status, headers, problem(status, detail, results).decode())


def too_many(reason: str, wait_s: float) -> falcon.HTTPStatus:
    """429: the client is over its rate for so long."""
    return refused(falcon.HTTP_429, reason, [("Retry-After", str(math.ceil(wait_s)))])


def unavailable(reason: str) -> falcon.HTTPStatus:
    """503: nothing of the request is promised; come back later."""
    return refused(falcon.HTTP_503, reason, [("Retry-After", str(retry_after_s()))])
