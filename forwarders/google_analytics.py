"""Forward events to Google Analytics 4, by its Measurement Protocol.

Ack:    a 2xx without a body for a request of up to 25 events of one client. Google gives it to whatever arrives, also
        under a wrong secret: so what it would drop is refused before (ga4_event.py), and `collector doctor ga4` asks
        its validation.
Repeat: counts twice, for Google knows no repeats. After a lost answer up to ``connections`` requests are sent again,
        after a kill one batch; ``event_id_param`` sends along the id by which queries can tell.
Settings: [forwarders.google-analytics], see `Settings`.

    2xx, no body    taken
    2xx with a body Unavailable: it is not Google that answers, but a proxy or somebody's login page
    413             halves are sent; an event that is alone is refused
    anything else   Unavailable, for as long as Retry-After says. What was taken of a batch is remembered

A request is for one client, so that many clients are many requests; up to ``connections`` of them are under way at a
time, those of one client one after the other.
"""

import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final, Literal
from urllib.parse import urlencode

import msgspec
from msgspec import Meta

from formats.event import Event
from formats.event_json import EventJson
from forwarders.contract import Refused, Unavailable
from forwarders.ga4_event import EVENT_MAX_BYTES, EventMapping, Ga4Shaper, Shaped, Unshapable
from forwarders.ga4_rules import EVENTS_PER_REQUEST, wrong_with_name
from forwarders.http_endpoint import HttpEndpoint, NoReply, Reply, check_url, retry_after_s
from forwarders.secrets import given_secret, read_pseudonyms

HOSTS: Final = {"global": "https://www.google-analytics.com", "eu": "https://region1.google-analytics.com"}
COLLECT: Final = "/mp/collect"
REASON_MAX_CHARS: Final = 300
HEADERS: Final = {"Content-Type": "application/json"}
_MEASUREMENT_ID: Final = re.compile("G-[A-Z0-9]+")

#: What the flusher does by default for this forwarder: what may be counted twice after a kill.
FLUSH_DEFAULTS: Final = {"batch_max_events": 1000}


@dataclass(frozen=True)
class Settings:
    """``[forwarders.google-analytics]``.

    ``api_secret`` comes from the environment only; ``api_secret_file`` holds it instead. ``url`` is for a proxy of
    one's own, in place of the ``region``'s. ``client_id``, ``client_id_from``, ``user_id``: payload members, by path
    (``user.id``); ``hmac_key_file`` holds the key of the pseudonym that ``client_id_from`` gives. ``timeout_s`` is for
    a batch, with all requests that it takes. ``events``: see `EventMapping`.
    """

    measurement_id: str = ""
    api_secret: str = field(default="", repr=False, metadata={"secret": True})
    api_secret_file: Path | None = None
    region: Literal["global", "eu"] = "global"
    url: str = ""
    ca_file: Path | None = None
    timeout_s: Annotated[float, Meta(gt=0)] = 30.0
    connections: Annotated[int, Meta(ge=1, le=64)] = 8
    client_id: str = "client_id"
    client_id_from: list[str] = field(default_factory=list)
    hmac_key_file: Path | None = None
    user_id: str = ""
    event_id_param: str = ""
    invalid: Literal["refuse", "clean"] = "refuse"
    late: Literal["refuse", "without_time"] = "refuse"
    events: dict[str, EventMapping] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.url:
            check_url(self.url, "the secret in api_secret_file")
        if self.measurement_id and not _MEASUREMENT_ID.fullmatch(self.measurement_id):
            raise ValueError("measurement_id: expected G- and capitals or digits, as in the data stream's details")
        if self.client_id_from and self.hmac_key_file is None:
            raise ValueError("client_id_from needs hmac_key_file")
        if self.event_id_param and (wrong := wrong_with_name(self.event_id_param)):
            raise ValueError(f"event_id_param: such a name {wrong}")


@dataclass
class Sent:
    """What became of one client's events: positions taken, and refused with why; and what stood in the way."""

    taken: list[int] = field(default_factory=list)
    refused: dict[int, str] = field(default_factory=dict)
    unavailable: Unavailable | None = None


class GoogleAnalyticsForwarder:
    """Sends batches through some connections at a time. See the module.

    Thread: requests go out from threads of its own.
    """

    identical_repeats = False

    def __init__(self, name: str, settings: Settings, endpoint: HttpEndpoint, query: str, shaper: Ga4Shaper) -> None:
        self.name = name
        self._settings = settings
        self._endpoint = endpoint
        self._query = query
        self._shaper = shaper
        self._threads = ThreadPoolExecutor(settings.connections, thread_name_prefix="ga4")
        self._deadline = 0.0
        self._taken: set[str] = set()  # ids of what was taken of a batch that could not be finished
        self._found: dict[str, str] = {}  # and of what was refused, with the reason

    def send(self, batch: Sequence[Event]) -> None:
        """See the contract; within ``timeout_s``."""
        self._deadline = time.monotonic() + self._settings.timeout_s
        refused: dict[int, str] = {}
        broken = threading.Event()
        clients = self._clients(batch, refused)
        futures = [self._threads.submit(self._send_all, each, broken) for each in clients]
        outcomes = [future.result() for future in futures]
        for outcome in outcomes:
            refused.update(outcome.refused)
            self._taken.update(batch[n].id for n in outcome.taken)
        self._taken.discard("")
        if unavailable := next((each.unavailable for each in outcomes if each.unavailable), None):
            self._found = {batch[n].id: reason for n, reason in refused.items() if batch[n].id}
            raise unavailable
        self._taken, self._found = set(), {}
        if refused:
            raise Refused(list(refused), "; ".join(dict.fromkeys(refused.values()))[:REASON_MAX_CHARS])

    def validate(self, event: Event, timeout_s: float) -> list[str]:
        """What Google's validation says against one event; it counts nothing. Errors: Unshapable, Unavailable."""
        self._deadline = time.monotonic() + timeout_s
        reply = self._post("/debug" + COLLECT, [self._shaper.shape(event)], strictly=True)
        if reply.status != 200:
            raise _unavailable(reply)
        try:
            messages = msgspec.json.decode(reply.text, type=dict[str, list[dict[str, str]]])["validationMessages"]
        except (msgspec.DecodeError, KeyError) as exc:
            raise Unavailable("google-analytics: answers without validationMessages: is the url right?") from exc
        keys = ("validationCode", "fieldPath", "description")
        return [" ".join(filter(None, (each.get(key) for key in keys))) for each in messages]

    def close(self) -> None:
        """Close the connections."""
        self._threads.shutdown()
        self._endpoint.close()

    def _clients(self, batch: Sequence[Event], refused: dict[int, str]) -> list[list[tuple[int, Shaped]]]:
        """Shape what is still to be sent, by client; what breaks a rule is refused."""
        self._taken.intersection_update([event.id for event in batch])
        clients: dict[tuple[str, str], list[tuple[int, Shaped]]] = {}
        for position, event in enumerate(batch):
            if event.id in self._taken:
                continue
            if event.id in self._found:
                refused[position] = self._found[event.id]
                continue
            try:
                shaped = self._shaper.shape(event)
            except Unshapable as exc:
                refused[position] = f"google-analytics: {exc}"
            else:
                clients.setdefault((shaped.client, shaped.user), []).append((position, shaped))
        return list(clients.values())

    def _send_all(self, events: Sequence[tuple[int, Shaped]], broken: threading.Event) -> Sent:
        """Send one client's events, in their order, until something stands in the way."""
        sent = Sent()
        try:
            for part in _requests(events):
                if broken.is_set():
                    raise Unavailable("google-analytics: other requests of the batch fail")
                self._send_part(part, sent)
        except Unavailable as exc:
            if not broken.is_set():
                sent.unavailable = exc
            broken.set()
        return sent

    def _send_part(self, part: Sequence[tuple[int, Shaped]], sent: Sent) -> None:
        reply = self._post(COLLECT, [shaped for _, shaped in part])
        if 200 <= reply.status < 300 and not reply.text:
            sent.taken += [position for position, _ in part]
        elif reply.status != 413:
            raise _unavailable(reply)
        elif len(part) == 1:
            sent.refused[part[0][0]] = "google-analytics: 413, it is too large"
        else:
            middle = len(part) // 2
            self._send_part(part[:middle], sent)
            self._send_part(part[middle:], sent)

    def _post(self, path: str, events: Sequence[Shaped], *, strictly: bool = False) -> Reply:
        head = {"client_id": events[0].client}
        if events[0].user:
            head["user_id"] = events[0].user
        if strictly:
            head["validation_behavior"] = "ENFORCE_RECOMMENDATIONS"
        body = b'%b,"events":[%b]}' % (msgspec.json.encode(head)[:-1], b",".join([each.body for each in events]))
        timeout_s = self._deadline - time.monotonic()
        if timeout_s <= 0:
            raise Unavailable(
                f"google-analytics: not done within {self._settings.timeout_s:g} s, goes on with what is left"
            )
        try:
            return self._endpoint.post(path + self._query, body, HEADERS, timeout_s)
        except NoReply as exc:
            raise Unavailable(f"google-analytics: {exc}") from exc


def _requests(events: Sequence[tuple[int, Shaped]]) -> Iterator[Sequence[tuple[int, Shaped]]]:
    """One client's events as requests within the limits."""
    start, size = 0, 0
    for index, (_, shaped) in enumerate(events):
        if index - start == EVENTS_PER_REQUEST or (index > start and size + len(shaped.body) >= EVENT_MAX_BYTES):
            yield events[start:index]
            start, size = index, 0
        size += len(shaped.body) + 1
    yield events[start:]


def _unavailable(reply: Reply) -> Unavailable:
    reason = f"google-analytics: answers {reply.status}"
    if 200 <= reply.status < 300:
        reason += " with a text, which Google does not: is the url right?"
    return Unavailable(reason, retry_after_s(reply.retry_after))


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def from_settings(
    settings: Settings, *, name: str, to_json: EventJson, instance: str, now_ms: Callable[[], int] = _now_ms
) -> GoogleAnalyticsForwarder:
    """Make the forwarder; it connects at the first batch.

    Errors: OSError for a file that cannot be read, ValueError for one that does not hold what it should, or where the
    measurement id or the secret is missing.
    """
    if not settings.measurement_id:
        raise ValueError("measurement_id: there is none: it is in the data stream's details, G- and some letters")
    secret = given_secret(settings.api_secret, settings.api_secret_file, "api_secret")
    shaper = Ga4Shaper(
        name,
        to_json,
        read_pseudonyms(settings.hmac_key_file),
        settings.events,
        client_id=settings.client_id,
        client_id_from=settings.client_id_from,
        user_id=settings.user_id,
        event_id_param=settings.event_id_param,
        cleans=settings.invalid == "clean",
        late=settings.late,
        now_ms=now_ms,
    )
    url = settings.url or HOSTS[settings.region]
    endpoint = HttpEndpoint(url, settings.ca_file, connections=settings.connections)
    query = "?" + urlencode({"measurement_id": settings.measurement_id, "api_secret": secret})
    return GoogleAnalyticsForwarder(name, settings, endpoint, query, shaper)
