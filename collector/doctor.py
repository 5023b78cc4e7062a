"""Ask Google Analytics' validation about events as a forwarder would send them; nothing is counted."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from collector.settings import ForwarderSettings, Settings
from collector.wiring import event_json
from formats.event import Event, Granularity, PayloadKind
from forwarders.ga4_event import Unshapable

GA4 = "google-analytics"


class Finding(NamedTuple):
    """What is said against one event of one forwarder; ``messages`` is empty when nothing is."""

    forwarder: str
    event: str
    messages: list[str]


def of_type(settings: Settings, kind: str, name: str | None) -> list[ForwarderSettings]:
    """The forwarders of a type, or the one with that name."""
    return [each for each in settings.forwarders if each.type == kind and name in (None, each.name)]


def sample(now_ms: int) -> Event:
    """An event of no meaning that keeps to every rule."""
    payload = b'{"engagement_time_msec":1}'
    return Event("collector_doctor", now_ms, Granularity.HOURLY, PayloadKind.JSON, payload, "json", now_ms, "0" * 32)


def validate(settings: Settings, forwarders: Sequence[ForwarderSettings], events: Sequence[Event]) -> Iterator[Finding]:
    """Ask about each event, as each of the forwarders would send it.

    Errors: OSError, ValueError for settings that make no forwarder; Unavailable where Google does not answer.
    """
    from forwarders.google_analytics import from_settings  # its library is an extra

    to_json = event_json(settings)
    for each in forwarders:
        forwarder = from_settings(each.own, name=each.name, to_json=to_json, instance="doctor")
        try:
            for event in events:
                try:
                    messages = forwarder.validate(event, each.own.timeout_s)
                except Unshapable as exc:
                    messages = [str(exc)]
                yield Finding(each.name, event.name, messages)
        finally:
            forwarder.close()
