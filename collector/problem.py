"""What all answers have in common, whoever makes them, the application or the server: CORS, and problem documents.

Source: RFC 9457 (problem documents), Fetch standard (CORS).
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

Environ = Mapping[str, Any]
Headers = list[tuple[str, str]]

PROBLEM_TYPE = "application/problem+json"

#: On every answer: its type is what it says, and any page may load it.
_ALWAYS = [
    ("Vary", "Origin"),
    ("Access-Control-Expose-Headers", "Warning, Retry-After"),
    ("X-Content-Type-Options", "nosniff"),
    ("Cross-Origin-Resource-Policy", "cross-origin"),
]


class Cors:
    """The headers of every answer, errors included; without them a script sees a network error, no status.

    ``origins`` are those whose pages may read answers: ``https://shop.example``, ``https://*.shop.example`` for every
    host below it, ``*`` for all. The origin is echoed, because Chromium drops JSON beacons on ``*``; credentials are
    allowed because beacons always send them, and no cookie is ever read. A request without Origin needs none of that.

    Pages of other origins are not kept from sending, only from reading answers and from what needs a preflight (JSON
    by its own type, API keys): that is all that CORS does, it proves nobody's identity.
    """

    def __init__(self, origins: Sequence[str] = ("*",)) -> None:
        self._all = "*" in origins
        patterns = [re.escape(origin).replace(r"\*", "[a-z0-9.-]+") for origin in origins]
        self._pattern = re.compile("|".join(patterns) or "(?!)")

    def headers(self, environ: Environ) -> Headers:
        """What to put on the answer to this request."""
        origin = environ.get("HTTP_ORIGIN", "")
        if self._all and not (origin and origin.isascii() and origin.isprintable()):
            return [*_ALWAYS, ("Access-Control-Allow-Origin", "*")]
        if self._all or self._pattern.fullmatch(origin):
            return [*_ALWAYS, ("Access-Control-Allow-Origin", origin), ("Access-Control-Allow-Credentials", "true")]
        return [*_ALWAYS]


def problem(status: str, detail: str, members: Mapping[str, Any] | None = None) -> bytes:
    """A problem document; ``members`` stand in it beside what all such documents have."""
    document = {"type": "about:blank", "title": status[4:], "status": int(status[:3]), "detail": detail}
    return json.dumps(document | dict(members or {})).encode("ascii")
