"""Forward events to InfluxDB: one point per event, one request per 5000 of them.

Ack:    204 from the write endpoint of 2.x (``/api/v2/write``).
Repeat: harmless; the same event is the same point, see line_protocol.py, which also says what a point looks like.
Settings: [forwarders.influxdb], see `Settings`.

    204                                 taken
    400, 422, 201 with a text           some lines are refused, often while the others are taken ("partial write"):
                                        halves are written until the refused lines are found; writing a line again
                                        changes nothing. With one bad line that takes at most log2(n) + 1 requests more
    413                                 halves are written, and so are later batches of that size
    401, 403, 404, 400 about a bucket   Unavailable, until a person acts
    429, 5xx, anything else, no answer  Unavailable, for as long as Retry-After says

A field whose type differs from the one it had before is refused by the server, and its event goes to quarantine.
That is why every name of events has a measurement of its own by default: field 1 of one pixel is a text, of another
a number. The cost is the same, a series for each name, since the name is a tag in any case.
"""

import re
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final, NamedTuple

import msgspec
from msgspec import Meta

from formats.event import Event
from formats.event_json import EventJson
from forwarders.contract import Refused, Unavailable
from forwarders.http_endpoint import NoReply, Reply, check_url, retry_after_s
from forwarders.influx_endpoint import WriteEndpoint
from forwarders.line_protocol import EventMapping, LineShaper
from forwarders.secrets import read_secret

POINTS_PER_REQUEST: Final = 5000
HOUR_NS: Final = 3600 * 10**9
REASON_MAX_CHARS: Final = 300

#: What the flusher does by default for this forwarder: several requests, so that one is shaped while one is answered.
FLUSH_DEFAULTS: Final = {"batch_max_events": 20_000, "batch_max_bytes": 16 * 1024 * 1024}

Point = tuple[int, str]  # an event's position in the batch, and its line

_ABOUT_LINES: Final = re.compile(r"partial write|unable to parse|type conflict|retention|parsing failed|max key length")
_ABOUT_THE_REQUEST: Final = re.compile(r"\b(bucket|database|org|orgID|organization|precision)\b", re.IGNORECASE)
_DROPPED: Final = re.compile(r"\bdropped=(\d+)")
_QUOTED_LINE: Final = re.compile(r"unable to parse '.*'", re.DOTALL)
_STRING_VALUE: Final = re.compile(r'="(?:[^"\\]|\\.)*"')
_NUMBER_VALUE: Final = re.compile(r"=-?[\d.]+(?:e[-+]?\d+)?")


@dataclass(frozen=True)
class Settings:
    """``[forwarders.influxdb]``.

    ``token_file`` holds the API token; without it none is sent. ``ca_file``: who has signed the server's certificate;
    without it the system's authorities. ``timeout_s`` is for a batch, with all requests it takes. ``measurement`` may
    hold ``{event}``, the event's name. ``events``: mappings by event name, ``[forwarders.influxdb.events.NAME]``.
    """

    url: str = "http://127.0.0.1:8086"
    org: str = ""
    bucket: str = "events"
    token_file: Path | None = None
    ca_file: Path | None = None
    timeout_s: Annotated[float, Meta(gt=0)] = 30.0
    gzip: bool = False
    measurement: str = "{event}"
    events: dict[str, EventMapping] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_url(self.url, "the token in token_file")


class Rejection(NamedTuple):
    """The server does not take some line of a request. ``dropped``: how many, when it says so; else 0."""

    reason: str
    dropped: int


class InfluxForwarder:
    """Writes batches through one connection. See the module.

    Thread: requests go out from one thread of its own, one at a time, so that points can be shaped meanwhile.
    """

    identical_repeats = False

    def __init__(
        self, name: str, endpoint: WriteEndpoint, timeout_s: float, shaper: LineShaper, to_json: EventJson
    ) -> None:
        self.name = name
        self._endpoint = endpoint
        self._timeout_s = timeout_s
        self._shaper = shaper
        self._to_json = to_json
        self._sender = ThreadPoolExecutor(1, thread_name_prefix="influxdb")
        self._deadline = 0.0
        self._body_max_bytes: float = float("inf")
        self._found: dict[str, str] = {}  # what was refused of a batch that could not be finished in time, by id

    def send(self, batch: Sequence[Event]) -> None:
        """See the contract; within ``timeout_s``."""
        self._deadline = time.monotonic() + self._timeout_s
        refused = {n: self._found[event.id] for n, event in enumerate(batch) if event.id in self._found}
        in_flight: tuple[list[Point], Future[Rejection | None]] | None = None
        try:
            for start in range(0, len(batch), POINTS_PER_REQUEST):
                end = min(start + POINTS_PER_REQUEST, len(batch))
                points = self._points(batch, range(start, end), refused)  # while the server reads the ones before
                if in_flight:
                    self._sort_out(in_flight[0], in_flight[1].result(), refused)
                in_flight = points, self._sender.submit(self._write, points)
            if in_flight:
                self._sort_out(in_flight[0], in_flight[1].result(), refused)
        except Unavailable:
            self._found = {batch[n].id: reason for n, reason in refused.items() if batch[n].id}
            raise
        self._found = {}
        if refused:
            raise Refused(list(refused), "; ".join(dict.fromkeys(refused.values()))[:REASON_MAX_CHARS])

    def close(self) -> None:
        """Close the connection."""
        self._sender.shutdown()
        self._endpoint.close()

    def _points(self, batch: Sequence[Event], positions: Iterable[int], refused: dict[int, str]) -> list[Point]:
        """Shape events; what cannot be a point is refused."""
        points: list[Point] = []
        for position in positions:
            if position in refused:
                continue
            event = batch[position]
            try:
                points.append((position, self._shaper.line(event, self._to_json.fields(event))))
            except ValueError as exc:
                refused[position] = f"influxdb: {exc}"
        return points

    def _sort_out(self, points: list[Point], rejection: Rejection | None, refused: dict[int, str]) -> None:
        """Find the refused ones among points of which one at least is, and see that the others are taken."""
        if rejection:
            points.sort(key=_shape)  # what is refused together lies together: such a group is done with one request
        while rejection:
            bad, untested, last = self._isolate(points, rejection)
            refused.update((position, last.reason) for position, _ in bad)
            if not bad or (rejection.dropped == len(bad) and _in_one_shard(points)):
                return  # the server has said that it took the others
            points = untested
            rejection = self._write(points)

    def _isolate(self, points: list[Point], rejection: Rejection) -> tuple[list[Point], list[Point], Rejection]:
        """Find points that are refused, in at most log2(n) requests (one more for the last of them).

        Returns them, those that no accepted request has held yet, and the last rejection of a request with them.
        """
        suspects = points
        untested: list[Point] = []
        is_certain = True  # the suspects are all that the last rejection was about
        while len(suspects) > 1 and rejection.dropped != len(suspects):
            middle = 1 << ((len(suspects) - 1).bit_length() - 1)  # so that the way to the last one is the shortest
            head, tail = suspects[:middle], suspects[middle:]
            found = self._write(head)
            if found:
                untested = tail + untested
                suspects, rejection, is_certain = head, found, True
            else:
                suspects = tail
                is_certain = is_certain and bool(untested)
        if is_certain:
            return suspects, untested, rejection
        found = self._write(suspects)  # all else was taken: was the first rejection a mishap?
        if not found:
            return [], [], rejection
        return self._isolate(suspects, found)

    def _write(self, points: Sequence[Point]) -> Rejection | None:
        """Write the points; None: the server has them all. Errors: Unavailable."""
        if not points:
            return None
        body = "\n".join([line for _, line in points]).encode(errors="replace")
        if len(body) > self._body_max_bytes and len(points) > 1:
            return self._write_halves(points)
        timeout_s = self._deadline - time.monotonic()
        if timeout_s <= 0:
            raise Unavailable(f"influxdb: not done within {self._timeout_s:g} s, goes on with what is left")
        try:
            reply = self._endpoint.post(body, timeout_s)
        except NoReply as exc:
            raise Unavailable(f"influxdb: {exc}") from exc
        if reply.status == 413 and len(points) > 1:
            self._body_max_bytes = len(body) / 2
            return self._write_halves(points)
        return judge(reply)

    def _write_halves(self, points: Sequence[Point]) -> Rejection | None:
        middle = len(points) // 2
        rejections = [found for half in (points[:middle], points[middle:]) if (found := self._write(half))]
        if not rejections:
            return None
        counts = [rejection.dropped for rejection in rejections]
        return Rejection(rejections[0].reason, sum(counts) if all(counts) else 0)


def judge(reply: Reply) -> Rejection | None:
    """What a reply says about the lines; None: all are taken. Errors: Unavailable, when it is not about lines."""
    status, message = reply.status, _message(reply.text)
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


def _message(text: str) -> str:
    """What a server says in words, on one line, without the lines that it quotes."""
    try:
        body = msgspec.json.decode(text, type=dict[str, object])
        text = str(body.get("message") or body.get("error") or text)
    except msgspec.DecodeError:
        pass  # 1.x proxies answer with HTML or plain text
    text = " ".join(_QUOTED_LINE.sub("unable to parse a line", text).split())
    return text[:REASON_MAX_CHARS]


def _shape(point: Point) -> str:
    """A line without the values of its fields: what its keys are and of which type."""
    series_and_fields = point[1].rpartition(" ")[0]
    return _NUMBER_VALUE.sub("=0", _STRING_VALUE.sub('=""', series_and_fields))


def _in_one_shard(points: Sequence[Point]) -> bool:
    """Whether one shard holds all of them: of several, the server counts the drops of one. Shards are whole hours."""
    return len({int(line.rpartition(" ")[2]) // HOUR_NS for _, line in points}) == 1


def from_settings(settings: Settings, *, name: str, to_json: EventJson, instance: str) -> InfluxForwarder:
    """Make the forwarder; it connects at the first batch.

    Errors: OSError for a file that cannot be read, ValueError for one that does not hold a token.
    """
    token = read_secret(settings.token_file, "a token") if settings.token_file else ""
    endpoint = WriteEndpoint(settings.url, settings.org, settings.bucket, token, settings.ca_file, settings.gzip)
    shaper = LineShaper(settings.measurement, settings.events)
    return InfluxForwarder(name, endpoint, settings.timeout_s, shaper, to_json)
