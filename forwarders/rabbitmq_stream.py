"""Forward events to a RabbitMQ stream by the stream protocol: a log that many can read, from any point, repeatedly.

Ack:    the broker's confirm for every message: a majority of the stream's nodes has it. RabbitMQ leaves it to each
        node's system when that is on its disk, so a stream of one node is safe from kill -9, but not from a power cut.
Repeat: the broker recognises it. A batch is published under a name made of its messages; what of it was stored before,
        by this process or one that was killed, is not stored again. A batch that differs in one message, as a replay
        from quarantine does, has another name, so nothing is ever taken for a repeat that is none. RabbitMQ remembers
        the 255 latest names of a stream; a consumer that must be sure looks at the message_id too.
Order:  as accepted.
Settings: [forwarders.rabbitmq-stream], see `Settings`. A message: forwarders/stream_message.py.

A stream has no routing and no dead letters, and forgets its oldest beyond ``max_length_bytes`` and ``max_age_s``. It
costs a fraction of AMQP. To have events in queues and in a stream, forward to both, or bind a queue of type stream with
[forwarders.rabbitmq.consumers.NAME].

    down, unreachable, time-out, connection lost, an alarm, no stream, no right       Unavailable
        of all ``url``s, which are tried in their order whenever a connection is needed
    a message that does not fit into a frame of the broker (1 MiB unless configured)  Refused
"""

import hashlib
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal
from urllib.parse import unquote, urlsplit

from msgspec import Meta

from formats.event import Event
from formats.event_json import EventJson
from formats.event_msgpack import EventMsgpack
from forwarders.contract import Refused, Unavailable
from forwarders.stream_message import StreamShaper
from forwarders.stream_publisher import Address, StreamPublisher

PORT, TLS_PORT = 5552, 5551

#: What the flusher does by default for this forwarder: large batches, for the broker idles at the end of each.
FLUSH_DEFAULTS: Final = {"batch_max_events": 10_000, "batch_max_bytes": 16 * 1024 * 1024}

Seconds = Annotated[float, Meta(gt=0)]


@dataclass(frozen=True)
class Settings:
    """``[forwarders.rabbitmq-stream]``.

    ``url``: ``rabbitmq-stream://user:password@host:port/vhost`` or ``rabbitmq-stream+tls://``; characters such as / in
    a part are written %2F. Several are tried in their order. ``url_file`` is a file that holds them, one a line.
    ``ca_file``: who has signed the broker's certificate; without it the system's authorities.
    ``declare``: make the stream when it is missing, of ``max_length_bytes`` and ``max_age_s``.
    """

    url: str | list[str] = "rabbitmq-stream://guest:guest@127.0.0.1:5552/%2f"
    url_file: Path | None = None
    ca_file: Path | None = None
    stream: str = "events"
    declare: bool = True
    max_length_bytes: Annotated[int, Meta(ge=1_000_000)] = 10 * 1024**3
    max_age_s: Annotated[int, Meta(ge=1)] | None = None
    format: Literal["json", "msgpack"] = "json"
    connect_timeout_s: Seconds = 10.0  # for each address
    confirm_timeout_s: Seconds = 30.0  # for a whole batch
    heartbeat_s: Annotated[int, Meta(ge=1, le=3600)] = 30

    def __post_init__(self) -> None:
        for url in self.urls or [""]:
            parse_url(url, None)
        if not 0 < len(self.stream.encode()) <= 255:
            raise ValueError("stream: expected a name of 1 to 255 bytes")

    @property
    def urls(self) -> list[str]:
        """The addresses of the settings in the order in which they are tried, whichever way they were written."""
        return [self.url] if isinstance(self.url, str) else self.url

    def addresses(self) -> list[Address]:
        """Where to try, in that order. Errors: OSError and ValueError for a file that is not right."""
        urls = self.url_file.read_text().split() if self.url_file else self.urls
        return [parse_url(url, self.ca_file) for url in urls or [""]]

    @property
    def arguments(self) -> dict[str, str] | None:
        """What the stream is made with, None when it is not to be made."""
        if not self.declare:
            return None
        age = {"max-age": f"{self.max_age_s}s"} if self.max_age_s else {}
        return {"max-length-bytes": str(self.max_length_bytes), **age}


class StreamForwarder:
    """Sends batches through one connection, made when it is needed. See the module.

    ``broker`` is what reasons call the one that was tried last.
    """

    identical_repeats = True

    def __init__(
        self, name: str, settings: Settings, addresses: Sequence[Address], shaper: StreamShaper, connection_name: str
    ) -> None:
        self.name = name
        self.broker = str(addresses[0])
        self._settings = settings
        self._addresses = addresses
        self._shaper = shaper
        self._connection_name = connection_name
        self._publisher: StreamPublisher | None = None

    def send(self, batch: Sequence[Event]) -> None:
        """See the contract. At most one connection to each broker is waited for, plus ``confirm_timeout_s``."""
        publisher = self._connected()
        limit = publisher.message_max_bytes
        messages = [self._shaper.message(event) for event in batch]
        refused = [position for position, message in enumerate(messages) if len(message) > limit]
        taken = [message for message in messages if len(message) <= limit] if refused else messages
        if taken:
            try:
                publisher.publish(self._name_of(taken), taken, self._settings.confirm_timeout_s)
            except Unavailable as exc:
                self.close()
                raise Unavailable(f"{self.broker}: {exc.reason}") from exc
        if refused:
            raise Refused(refused, f"{self.broker}: more than {limit} bytes, which is all that fits into its frames")

    def close(self) -> None:
        """End the connection."""
        publisher, self._publisher = self._publisher, None
        if publisher is not None:
            publisher.close()

    def _name_of(self, messages: Sequence[bytes]) -> str:
        digest = hashlib.blake2b(digest_size=20)
        for message in messages:
            digest.update(len(message).to_bytes(4))
            digest.update(message)
        return f"{self._connection_name} {digest.hexdigest()}"

    def _connected(self) -> StreamPublisher:
        if self._publisher is not None and not self._publisher.is_usable:
            self.close()
        return self._publisher or self._connect()

    def _connect(self) -> StreamPublisher:
        """Connect to the first broker that lets us in. Unavailable says what is wrong with each."""
        settings, reasons = self._settings, []
        for address in self._addresses:
            self.broker = str(address)
            publisher = StreamPublisher(
                address,
                settings.stream,
                settings.arguments,
                heartbeat_s=settings.heartbeat_s,
                connection_name=self._connection_name,
            )
            try:
                publisher.open(settings.connect_timeout_s)
            except Unavailable as exc:
                publisher.close()
                reasons.append(f"{self.broker}: {exc.reason}")
            else:
                self._publisher = publisher
                return publisher
        raise Unavailable("; ".join(reasons))


def parse_url(url: str, ca_file: Path | None) -> Address:
    """Take an address apart. Errors: ValueError without a word of it: a password with a / in it may be anywhere."""
    try:
        parts = urlsplit(url)
        tls = {"rabbitmq-stream": False, "rabbitmq-stream+tls": True}[parts.scheme]
        port = parts.port or (TLS_PORT if tls else PORT)
        host, path = parts.hostname or "", parts.path.removeprefix("/")
        if not host or "/" in path or parts.query or parts.fragment:
            raise ValueError
    except (ValueError, KeyError):
        wanted = "rabbitmq-stream[+tls]://user:password@host:port/vhost, each part percent-encoded"
        raise ValueError(f"url: expected {wanted}") from None
    context = None
    if tls:
        context = ssl.create_default_context(cafile=ca_file)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
    user, password = unquote(parts.username or "guest"), unquote(parts.password or "guest")
    return Address(host, port, user, password, unquote(path) or "/", context)


def from_settings(settings: Settings, *, name: str, to_json: EventJson, instance: str) -> StreamForwarder:
    """Make the forwarder; it connects at the first batch.

    Errors: OSError for a file that cannot be read, ValueError for one that does not hold what it should.
    """
    line = to_json.line if settings.format == "json" else EventMsgpack(to_json).line
    shaper = StreamShaper(line, f"application/{settings.format}", instance)
    return StreamForwarder(name, settings, settings.addresses(), shaper, f"collector {name} {instance}")
