"""What InfluxDB's answers say about the lines of a request; influxdb.py has the table. Pure."""

import re
from typing import Final, NamedTuple

import msgspec

from forwarders.contract import Unavailable
from forwarders.http_endpoint import Reply, retry_after_s

REASON_MAX_CHARS: Final = 300

_ABOUT_LINES: Final = re.compile(r"partial write|unable to parse|type conflict|retention|parsing failed|max key length")
_ABOUT_THE_REQUEST: Final = re.compile(r"\b(bucket|database|org|orgID|organization|precision)\b", re.IGNORECASE)
_DROPPED: Final = re.compile(r"\bdropped=(\d+)")
_QUOTED_LINE: Final = re.compile(r"unable to parse '.*'", re.DOTALL)


class RetentionFailed(Exception):
    """A server cannot be asked how long it keeps data, or does not let us say it. The text is what it says."""


class Rejection(NamedTuple):
    """The server does not take some line of a request. ``dropped``: how many, when it says so; else 0."""

    reason: str
    dropped: int


def judge(reply: Reply) -> Rejection | None:
    """What a reply says about the lines; None: all are taken. Errors: Unavailable, when it is not about lines."""
    status, message = reply.status, message_of(reply.text)
    reason = f"influxdb: {status} {message}".rstrip()
    if status == 204 or (status == 201 and not reply.text):
        return None
    is_about_lines = _ABOUT_LINES.search(reply.text) or not _ABOUT_THE_REQUEST.search(reply.text)
    is_partial = status == 500 and "partial write" in reply.text  # early 2.x
    if status in (201, 413, 422) or (status == 400 and is_about_lines) or is_partial:
        dropped = _DROPPED.search(reply.text)
        return Rejection(reason, int(dropped[1]) if dropped else 0)
    if 200 <= status < 300:
        reason = f"influxdb: answers {status} instead of 204: is this the write endpoint?"
    elif 300 <= status < 400:
        reason = f"influxdb: answers with a redirect ({status}), which is not followed: is the url right?"
    raise Unavailable(reason, retry_after_s(reply.retry_after))


def message_of(text: str) -> str:
    """What a server says in words, on one line, without the lines that it quotes."""
    try:
        body = msgspec.json.decode(text, type=dict[str, object])
        text = str(body.get("message") or body.get("error") or text)
    except msgspec.DecodeError:
        pass  # 1.x proxies answer with HTML or plain text
    text = " ".join(_QUOTED_LINE.sub("unable to parse a line", text).split())
    return text[:REASON_MAX_CHARS]
