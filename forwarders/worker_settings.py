"""What every ``[workers.NAME]`` table can say: which queue an event worker takes from, and how."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from formats.event import FormatError, check_name
from forwarders.amqp_connection import check_urls

PREFETCH_MAX = 65_535  # AMQP has 16 bits for it


@dataclass(frozen=True)
class WorkerSettings:
    """The keys that all workers share; the others are those of the destination's own module.

    ``amqp_url``, ``amqp_url_file``, ``amqp_ca_file``: as ``url``, ``url_file`` and ``ca_file`` of
    ``[forwarders.rabbitmq]``.
    ``queue`` must be there, unless ``exchange`` is given: then a quorum queue is made where there is none, and bound
    with each of ``binding_keys``.
    ``dead_letter_queue``: where messages go that the destination will never take, "" for the queue's name and
    ``.dead``. It is made where there is none.
    ``foreign_name``: messages that are JSON objects but no events of a collector become events of this name, "" for the
    dead letters; see formats/event_message.py.
    ``batch_max_...``: as with forwarders. ``prefetch``: messages that the broker hands out ahead of their answers, all
    of which are in memory; None: twice ``batch_max_events``.
    ``hold_max_s``: for so long messages are kept from other workers while the destination is not available; then they
    go back to the queue. RabbitMQ itself takes them back after its ``consumer_timeout`` (30 minutes), less politely:
    it is less than that.
    ``delivery_limit``: a message that was handed out so often and never answered goes to the dead letters; whole
    processes died of it. It takes a quorum queue to count that.
    ``metrics_bind``: where the worker answers ``/metrics`` and ``/healthcheck`` over HTTP, "" for nowhere.
    """

    queue: str = ""
    amqp_url: str | list[str] = "amqp://guest:guest@127.0.0.1:5672/%2f"
    amqp_url_file: Path | None = None
    amqp_ca_file: Path | None = None
    exchange: str = ""
    binding_keys: list[str] = field(default_factory=lambda: ["#"])
    dead_letter_queue: str = ""
    foreign_name: str = ""
    batch_max_events: Annotated[int, Meta(ge=1)] = 5000
    batch_max_bytes: Annotated[int, Meta(ge=1)] = 8 * 1024 * 1024
    batch_max_age_s: Annotated[float, Meta(ge=0)] = 1.0
    prefetch: Annotated[int, Meta(ge=1, le=PREFETCH_MAX)] | None = None
    hold_max_s: Annotated[float, Meta(gt=0, lt=1800)] = 600.0
    delivery_limit: Annotated[int, Meta(ge=4, le=1000)] = 10
    connect_timeout_s: Annotated[float, Meta(gt=0)] = 10.0
    heartbeat_s: Annotated[int, Meta(ge=1, le=3600)] = 30
    metrics_bind: str = ""

    def __post_init__(self) -> None:
        try:
            check_urls(self.amqp_url)
        except ValueError as exc:
            raise ValueError(f"amqp_{exc}") from None
        if self.foreign_name:
            try:
                check_name(self.foreign_name)
            except FormatError as exc:
                raise ValueError(f"foreign_name: {exc.reason}") from None
        for key in ("queue", "dead_letter_queue"):
            if len(getattr(self, key).encode()) > 255:
                raise ValueError(f"{key}: expected a name of at most 255 bytes")
        if self.queue and self.dead_letters_to == self.queue:
            raise ValueError("dead_letter_queue: expected another queue than the one that is read")
        if self.exchange and not self.binding_keys:
            raise ValueError('binding_keys: expected at least one, such as "#"')
        if not self.exchange and self.binding_keys not in ([], ["#"]):
            raise ValueError("binding_keys: nothing is bound without an exchange")

    @property
    def ahead(self) -> int:
        """Messages that the broker hands out ahead."""
        return self.prefetch or min(PREFETCH_MAX, 2 * self.batch_max_events)

    @property
    def dead_letters_to(self) -> str:
        """The queue of the dead letters."""
        return self.dead_letter_queue or f"{self.queue}.dead"
