"""Forward events to InfluxDB: one point per event, one request per 5000 of them.

Ack:    204 from the write endpoint of 2.x (``/api/v2/write``), or of 1.x (``/write``), as ``api`` says.
Repeat: harmless; the same event is the same point, see line_protocol.py, which also says what a point looks like.
Settings: [forwarders.influxdb], see `Settings`.

    204                                 taken
    400, 422, 201 with a text           some lines are refused, often while the others are taken ("partial write"):
                                        halves are written until the refused lines are found; writing a line again
                                        changes nothing. With one bad line that takes at most log2(n) + 1 requests more
    413                                 halves are written, and so are later batches of that size
    401, 403, 404, 400 about a bucket   Unavailable, until a person acts
    429, 5xx, anything else, no answer  Unavailable, for as long as Retry-After says

With ``retention_days`` the bucket (1.x: database and retention policy) is made when it is missing, and changed when it
keeps data for another time: before the first write, and again after a failure.

A field whose type differs from the one it had before is refused by the server, and its event goes to quarantine.
That is why every name of events has a measurement of its own by default: field 1 of one pixel is a text, of another
a number. The cost is the same, a series for each name, since the name is a tag in any case.
"""

import logging
import re
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final, Literal, Protocol

from msgspec import Meta

from formats.event import Event
from formats.event_json import EventJson
from forwarders.contract import Refused, Unavailable
from forwarders.http_endpoint import NoReply, Reply, check_url
from forwarders.influx_endpoint import WriteEndpoint
from forwarders.influx_reply import REASON_MAX_CHARS, Rejection, RetentionFailed, judge
from forwarders.influx_v1 import DAY_S, WriteEndpointV1
from forwarders.line_mapping import EventMapping, check_mappings
from forwarders.line_protocol import LineShaper
from forwarders.secrets import read_secret
from forwarders.tag_guard import TagGuard

log = logging.getLogger(__name__)

POINTS_PER_REQUEST: Final = 5000
HOUR_NS: Final = 3600 * 10**9

#: What the flusher does by default for this forwarder: several requests, so that one is shaped while one is answered.
FLUSH_DEFAULTS: Final = {"batch_max_events": 20_000, "batch_max_bytes": 16 * 1024 * 1024}

Point = tuple[int, str]  # an event's position in the batch, and its line

_STRING_VALUE: Final = re.compile(r'="(?:[^"\\]|\\.)*"')
_NUMBER_VALUE: Final = re.compile(r"=-?[\d.]+(?:e[-+]?\d+)?")


@dataclass(frozen=True)
class Settings:
    """``[forwarders.influxdb]``.

    ``api``: of a server of version 2 (``org``, ``bucket``, and ``token_file`` with the API token; without it none is
    sent) or 1 (``bucket`` is the database, ``retention_policy`` empty for its default one, ``username`` and
    ``password_file``). ``ca_file``: who has signed the server's certificate; without it the system's authorities.
    ``timeout_s`` is for a batch, with all requests it takes. ``measurement`` may hold ``{event}``, the event's name.
    ``retention_days``: see the module. ``tag_values_max``, ``tag_values_over``: see tag_guard.py; 0 is no limit.
    ``events``: mappings by event name, ``[forwarders.influxdb.events.NAME]``.
    """

    url: str = "http://127.0.0.1:8086"
    api: Literal["v1", "v2"] = "v2"
    org: str = ""
    bucket: str = "events"
    retention_policy: str = ""
    token_file: Path | None = None
    username: str = ""
    password_file: Path | None = None
    ca_file: Path | None = None
    timeout_s: Annotated[float, Meta(gt=0)] = 30.0
    gzip: bool = False
    retention_days: Annotated[float, Meta(ge=1 / 24)] | None = None  # the servers take no less than an hour
    measurement: str = "{event}"
    tag_values_max: Annotated[int, Meta(ge=0)] = 10_000
    tag_values_over: Literal["field", "refuse"] = "field"
    events: dict[str, EventMapping] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_url(self.url, "the token in token_file")
        others = {"v1": ("token_file", "org"), "v2": ("retention_policy", "username", "password_file")}[self.api]
        for key in others:
            if getattr(self, key):
                raise ValueError(f'{key} is not for api = "{self.api}"')
        check_mappings(self.events)


class Endpoint(Protocol):
    """A server's write endpoint, of either version."""

    def post(self, lines: bytes, timeout_s: float) -> Reply: ...

    def keep_for(self, retention_s: int, timeout_s: float) -> str: ...

    def close(self) -> None: ...


class InfluxForwarder:
    """Writes batches through one connection. See the module.

    Thread: requests go out from one thread of its own, one at a time, so that points can be shaped meanwhile.
    """

    identical_repeats = False

    def __init__(
        self,
        name: str,
        endpoint: Endpoint,
        timeout_s: float,
        shaper: LineShaper,
        to_json: EventJson,
        retention_s: int | None,
    ) -> None:
        self.name = name
        self._endpoint = endpoint
        self._timeout_s = timeout_s
        self._shaper = shaper
        self._to_json = to_json
        self._retention_s = retention_s
        self._is_kept = retention_s is None
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
            self._keep()
            for start in range(0, len(batch), POINTS_PER_REQUEST):
                end = min(start + POINTS_PER_REQUEST, len(batch))
                points = self._points(batch, range(start, end), refused)  # while the server reads the ones before
                if in_flight:
                    self._sort_out(in_flight[0], in_flight[1].result(), refused)
                in_flight = points, self._sender.submit(self._write, points)
            if in_flight:
                self._sort_out(in_flight[0], in_flight[1].result(), refused)
        except Unavailable:
            self._is_kept = self._retention_s is None  # who knows what there is afterwards
            self._found = {batch[n].id: reason for n, reason in refused.items() if batch[n].id}
            raise
        self._found = {}
        if refused:
            raise Refused(list(refused), "; ".join(dict.fromkeys(refused.values()))[:REASON_MAX_CHARS])

    def close(self) -> None:
        """Close the connection."""
        self._sender.shutdown()
        self._endpoint.close()

    def _keep(self) -> None:
        """See that the server keeps the points as long as the settings say. Errors: Unavailable."""
        if self._is_kept or self._retention_s is None:
            return
        try:
            changed = self._endpoint.keep_for(self._retention_s, self._timeout_s)
        except (NoReply, RetentionFailed) as exc:
            raise Unavailable(f"influxdb: retention_days: {exc}") from exc
        self._is_kept = True
        if changed:
            extra = {"forwarder": self.name, "what": changed, "seconds": self._retention_s}
            log.info("how long points are kept was set", extra=extra)

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
    endpoint: Endpoint
    if settings.api == "v1":
        password = read_secret(settings.password_file, "a password") if settings.password_file else ""
        credentials = f"{settings.username}:{password}" if settings.username else ""
        endpoint = WriteEndpointV1(
            settings.url, settings.bucket, settings.retention_policy, credentials, settings.ca_file, gzip=settings.gzip
        )
    else:
        token = read_secret(settings.token_file, "a token") if settings.token_file else ""
        endpoint = WriteEndpoint(settings.url, settings.org, settings.bucket, token, settings.ca_file, settings.gzip)
    guard = TagGuard(name, settings.tag_values_max, refuses=settings.tag_values_over == "refuse")
    shaper = LineShaper(settings.measurement, settings.events, guard)
    retention_s = None if settings.retention_days is None else round(settings.retention_days * DAY_S)
    return InfluxForwarder(name, endpoint, settings.timeout_s, shaper, to_json, retention_s)
