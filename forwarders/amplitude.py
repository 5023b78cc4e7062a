"""Forward events to Amplitude, by its HTTP API of version 2.

Ack:    200 for a request of up to ``events_per_request`` events.
Repeat: harmless for seven days: ``insert_id`` is the event's id. See amplitude_event.py for how an event looks.
Settings: [forwarders.amplitude], see `Settings`.

    200 with {"code": 200} taken; where ``events_ingested`` is less than what was sent, halves are sent, as under 400
    200 with another code  as that status
    2xx otherwise          Unavailable: it is not Amplitude that answers, but a proxy or somebody's login page
    400 with indexes       these events are refused, the others sent again at once
    400 about the key, or  Unavailable, until a person acts
    not Amplitude's JSON
    400 otherwise, 413     halves are sent; an event that is alone is refused. After 413 later requests are no larger
    429 with senders       their events wait 30 s, in their order; all others of the batch are sent at once. Of a sender
                           of whom nothing is taken after such a wait, half as much is sent in one request
    429, daily quota       refused: they can be replayed tomorrow, and what is behind them does not wait until then
    429, 5xx, 401, …       Unavailable, for as long as Retry-After says

Of a batch that could not be finished, what was taken and what was refused is remembered, and not sent again.
"""

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final, Literal, NamedTuple

import msgspec
from msgspec import Meta

from formats.event import Event
from formats.event_json import EventJson
from forwarders.amplitude_event import AmplitudeShaper, EventMapping, Shaped, Unshapable
from forwarders.amplitude_reply import REASON_MAX_CHARS, Answer
from forwarders.contract import Refused, Unavailable
from forwarders.http_endpoint import HttpEndpoint, NoReply, Reply, check_url, retry_after_s
from forwarders.secrets import given_secret, read_pseudonyms

HOSTS: Final = {"us": "https://api2.amplitude.com", "eu": "https://api.eu.amplitude.com"}
PATHS: Final = {"httpapi": "/2/httpapi", "batch": "/batch"}
REQUEST_MAX_BYTES: Final = 1_000_000
THROTTLED_S: Final = 30.0
HEADERS: Final = {"Content-Type": "application/json", "Accept": "application/json"}


@dataclass(frozen=True)
class Settings:
    """``[forwarders.amplitude]``.

    ``api_key`` comes from the environment only; ``api_key_file`` holds it instead. ``url`` is for a proxy of one's own,
    in place of the ``region``'s. ``user_id``, ``device_id``, ``device_id_from``: payload members, by path
    (``user.id``); ``hmac_key_file`` holds the key of the pseudonym that ``device_id_from`` gives. ``timeout_s`` is for
    a batch, with all requests that it takes. ``events``: ``[forwarders.amplitude.events.NAME]``, see `EventMapping`.
    """

    api_key: str = field(default="", repr=False, metadata={"secret": True})
    api_key_file: Path | None = None
    region: Literal["us", "eu"] = "us"
    api: Literal["httpapi", "batch"] = "httpapi"
    url: str = ""
    ca_file: Path | None = None
    timeout_s: Annotated[float, Meta(gt=0)] = 30.0
    gzip: bool = False
    events_per_request: Annotated[int, Meta(ge=1, le=2000)] = 1000
    user_id: str = "user_id"
    device_id: str = "device_id"
    device_id_from: list[str] = field(default_factory=list)
    hmac_key_file: Path | None = None
    min_id_length: Annotated[int, Meta(ge=1, le=5)] = 5
    events: dict[str, EventMapping] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.url:
            check_url(self.url, "the key in api_key_file")
        if self.device_id_from and self.hmac_key_file is None:
            raise ValueError("device_id_from needs hmac_key_file")


class Waiting(NamedTuple):
    """One event that is still to be sent: its position in the batch, and how it looks."""

    position: int
    shaped: Shaped

    @property
    def sender(self) -> str:
        """Whose order and rate it is part of."""
        return self.shaped.user or self.shaped.device


@dataclass
class Progress:
    """How far a batch is. ``held``: senders that have to wait; ``refused``: why, by position."""

    batch: Sequence[Event]
    waiting: list[Waiting] = field(default_factory=list)
    taken: set[str] = field(default_factory=set)
    refused: dict[int, str] = field(default_factory=dict)
    held: set[str] = field(default_factory=set)
    successful: set[str] = field(default_factory=set)  # senders of whom something was taken

    def done(self, events: Iterable[Waiting]) -> None:
        """These are with Amplitude."""
        self.taken.update(self.batch[each.position].id for each in events)
        self.successful.update(each.sender for each in events)


class AmplitudeForwarder:
    """Sends batches through one connection, in requests one after the other. See the module."""

    identical_repeats = False

    def __init__(
        self, name: str, settings: Settings, endpoint: HttpEndpoint, api_key: str, shaper: AmplitudeShaper
    ) -> None:
        self.name = name
        self._settings = settings
        self._endpoint = endpoint
        self._api_key = api_key
        self._shaper = shaper
        self._head = b'{"api_key":%b,"options":{"min_id_length":%d},"events":[' % (
            msgspec.json.encode(api_key),
            settings.min_id_length,
        )
        self._bytes_max = REQUEST_MAX_BYTES
        self._deadline = 0.0
        self._taken: set[str] = set()  # ids of what was taken of a batch that could not be finished
        self._found: dict[str, str] = {}  # and of what was refused, with the reason
        self._pace: dict[str, int] = {}  # how many events of a throttled sender go into one request

    def send(self, batch: Sequence[Event]) -> None:
        """See the contract; within ``timeout_s``."""
        self._deadline = time.monotonic() + self._settings.timeout_s
        progress = Progress(batch)
        self._prepare(progress)
        try:
            while part := self._next_part(progress):
                self._deliver(part, progress)
            if progress.held:
                raise Unavailable(f"amplitude: 429 for {len(progress.held)} senders, theirs waits", THROTTLED_S)
        except Unavailable:
            self._taken = progress.taken - {""}
            self._found = {batch[n].id: reason for n, reason in progress.refused.items() if batch[n].id}
            raise
        self._taken, self._found, self._pace = set(), {}, {}
        if progress.refused:
            reasons = dict.fromkeys(progress.refused.values())
            raise Refused(list(progress.refused), "; ".join(reasons)[:REASON_MAX_CHARS])

    def close(self) -> None:
        """Close the connection."""
        self._endpoint.close()

    def _prepare(self, progress: Progress) -> None:
        """Shape what is still to be sent; what Amplitude would never take is refused."""
        for position, event in enumerate(progress.batch):
            if event.id in self._taken:
                progress.taken.add(event.id)
            elif event.id in self._found:
                progress.refused[position] = self._found[event.id]
            else:
                try:
                    progress.waiting.append(Waiting(position, self._shaper.shape(event)))
                except Unshapable as exc:
                    progress.refused[position] = f"amplitude: {exc}"

    def _next_part(self, progress: Progress) -> list[Waiting]:
        """Take from ``waiting`` what fits into one request: of each sender the first ones, in their order."""
        part: list[Waiting] = []
        left: list[Waiting] = []
        counts: Counter[str] = Counter()
        size = len(self._head)
        for index, each in enumerate(progress.waiting):
            sender = each.sender
            if sender in progress.held:
                continue
            if counts[sender] == self._pace.get(sender):
                left.append(each)
                continue
            size += len(each.shaped.body) + 1
            if len(part) == self._settings.events_per_request or (part and size >= self._bytes_max):
                left += progress.waiting[index:]
                break
            part.append(each)
            counts[sender] += 1
        progress.waiting = left
        return part

    def _deliver(self, part: list[Waiting], progress: Progress) -> None:
        """Send one request, and what is left of it, until all of it is taken, refused or held. Errors: Unavailable."""
        while part := [each for each in part if each.sender not in progress.held]:
            reply = self._post(part)
            answer = Answer(reply.text)
            status = answer.code if reply.status == 200 else reply.status
            ingested = answer.ingested(len(part))
            if status == 200 and ingested >= len(part):
                progress.done(part)
                return
            reason = f"amplitude: {status} {self._without_key(answer.error)}".rstrip()
            if status == 200:
                reason += f", but {ingested} of {len(part)} events were ingested"
            if status == 429:
                self._hold(part, answer, Unavailable(reason, retry_after_s(reply.retry_after) or THROTTLED_S), progress)
            elif status in (200, 413) or (status == 400 and answer.is_about_events):
                invalid = answer.invalid(len(part))
                if not invalid and len(part) > 1:
                    self._deliver_halves(part, status, progress)
                    return
                invalid = invalid or {0: ""}
                for index, what in invalid.items():
                    progress.refused[part[index].position] = f"{reason}: {what}".rstrip(": ")
                part = [each for index, each in enumerate(part) if index not in invalid]
            elif status is None or 200 <= status < 300:
                sentence = f'answers {reply.status}, but not as Amplitude does, with {{"code": 200}}: is the url right?'
                raise Unavailable(f"amplitude: {sentence}", retry_after_s(reply.retry_after))
            else:
                raise Unavailable(reason, retry_after_s(reply.retry_after))

    def _deliver_halves(self, part: list[Waiting], status: int, progress: Progress) -> None:
        if status == 413:
            self._bytes_max = min(self._bytes_max, self._size(part) // 2)
        middle = len(part) // 2
        for half in (part[:middle], part[middle:]):
            self._deliver(half, progress)

    def _hold(self, part: list[Waiting], answer: Answer, unavailable: Unavailable, progress: Progress) -> None:
        """Sort out who has to wait, and who has no events left today. Errors: Unavailable when nobody is named."""
        ids = {part[index].sender for index in answer.throttled_events(len(part))} | answer.throttled
        exhausted, counts = answer.exhausted, Counter(each.sender for each in part)
        named = False
        for each in [*part, *progress.waiting]:
            own = {each.shaped.user, each.shaped.device}
            if own & exhausted:
                progress.refused[each.position] = "amplitude: its sender has no events left today, replay it tomorrow"
                named = True
            elif own & ids:
                progress.held.add(each.sender)
                named = True
        if not named:
            raise unavailable
        progress.waiting = [each for each in progress.waiting if each.position not in progress.refused]
        part[:] = [each for each in part if each.position not in progress.refused]
        for sender in progress.held - progress.successful:
            if counts[sender]:
                self._pace[sender] = max(1, counts[sender] // 2)

    def _post(self, part: Sequence[Waiting]) -> Reply:
        timeout_s = self._deadline - time.monotonic()
        if timeout_s <= 0:
            raise Unavailable(f"amplitude: not done within {self._settings.timeout_s:g} s, goes on with what is left")
        body = b"%b%b]}" % (self._head, b",".join([each.shaped.body for each in part]))
        try:
            return self._endpoint.post(PATHS[self._settings.api], body, HEADERS, timeout_s)
        except NoReply as exc:
            raise Unavailable(f"amplitude: {exc}") from exc

    def _size(self, part: Sequence[Waiting]) -> int:
        return sum(len(each.shaped.body) + 1 for each in part) + len(self._head)

    def _without_key(self, text: str) -> str:
        return text.replace(self._api_key, "***")


def from_settings(settings: Settings, *, name: str, to_json: EventJson, instance: str) -> AmplitudeForwarder:
    """Make the forwarder; it connects at the first batch.

    Errors: OSError for a file that cannot be read, ValueError for one that does not hold what it should, or no key.
    """
    api_key = given_secret(settings.api_key, settings.api_key_file, "api_key")
    shaper = AmplitudeShaper(
        name,
        to_json,
        read_pseudonyms(settings.hmac_key_file),
        settings.events,
        user_id=settings.user_id,
        device_id=settings.device_id,
        device_id_from=settings.device_id_from,
        min_id_length=settings.min_id_length,
    )
    endpoint = HttpEndpoint(settings.url or HOSTS[settings.region], settings.ca_file, compress=settings.gzip)
    return AmplitudeForwarder(name, settings, endpoint, api_key, shaper)
