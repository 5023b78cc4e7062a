"""What must not be kept of events: left out, hashed or made less exact before anything of it reaches the disk.

By event name, as ``[privacy]`` and ``[events.NAME.privacy]`` say:

    drop             the named members of the payload are left out
    hmac             their values become HMAC-SHA-256 of the value as text (UTF-8), 64 hex digits; null stays null
    truncate_ip      addresses lose what tells one person: IPv4 keeps 24 bits, IPv6 48. In the fields of pixels and
                     Thrift structs that are the sender's address (``xip``), and in the members ``ip_keys``, where a
                     text that is no address becomes empty
    coarsen_time_ms  the event's time, ``eventDate`` in the payload, fields that are the event's time (``xdate``) and
                     the time of arrival are cut to a multiple of it
    honour_dnt       of a sender with ``DNT: 1`` or ``Sec-GPC: 1``: ``drop`` filters its events; ``anonymise`` also
                     leaves out the members of ``hmac`` and ``ip_keys``, and empties fields that are the sender's
                     address or user agent

How members are named and found is in `formats.payload_edit`. Where two rules name a member, the first of the list
above counts. Filters and schemas have seen the event before, as it was sent.
"""

import hmac
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta

from collector.event_settings import EventSettings, PrivacySettings, read_hmac_key
from collector.sender import parse_address
from formats.event import TIME_MIN_MS, Event, Field, FormatError
from formats.event_json import usable_names
from formats.payload_edit import Edit, Edits, Value
from formats.pixel import Sender, header_text

#: Told of an event that cannot be taken, and why.
Failed = Callable[[Event, str], None]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_IPV4_BITS, _IPV6_BITS = 24, 48


class Privacy:
    """The rules for all events. Owner: one process; it holds the keys of ``hmac_key_file``. Errors: OSError."""

    def __init__(self, default: PrivacySettings, events: Mapping[str, EventSettings]) -> None:
        self._default = _Rule.made(default, [])
        self._by_name = {name: _Rule.made(each.privacy or default, each.fields) for name, each in events.items()}
        self.idle = not any((self._default, *self._by_name.values()))

    def apply(self, events: list[Event], sender: Sender, failed: Failed) -> tuple[list[Event], int]:
        """Edit the events in their place.

        Returns those that may be kept, and how coarse the time must be at which they are said to have arrived (ms): as
        the coarsest of them, since a record says it once. ``failed`` is told of events that cannot be edited, and why.
        """
        kept: list[Event] = []
        coarsest_ms = 0
        for event in events:
            rule = self._by_name.get(event.name, self._default)
            if rule is not None:
                if sender.opted_out and rule.drops_opted_out:
                    continue
                try:
                    rule.apply(event, sender)
                except FormatError as exc:
                    failed(event, exc.reason)
                    continue
                coarsest_ms = max(coarsest_ms, rule.coarsen_time_ms)
            kept.append(event)
        return kept, coarsest_ms


class _Rule:
    """What is done with the events of one name."""

    def __init__(self, settings: PrivacySettings, field_names: list[str]) -> None:
        names = usable_names(field_names)
        self.coarsen_time_ms = settings.coarsen_time_ms
        self.drops_opted_out = settings.honour_dnt == "drop"
        self._anonymises = settings.honour_dnt == "anonymise"
        self._truncates = settings.truncate_ip
        edits: dict[str, Edit] = {}
        if settings.coarsen_time_ms:
            edits["eventDate"] = _coarse_date
        edits |= dict.fromkeys(settings.ip_keys, _truncated)
        if settings.hmac and settings.hmac_key_file is not None:
            edits |= dict.fromkeys(settings.hmac, _hashed_with(read_hmac_key(settings.hmac_key_file)))
        edits |= dict.fromkeys(settings.drop, _left_out)
        self._edits = Edits(edits, names) if edits else None
        without = edits | dict.fromkeys([*settings.hmac, *settings.ip_keys], _left_out)
        self._anonymising = Edits(without, names) if without else None

    @classmethod
    def made(cls, settings: PrivacySettings, field_names: list[str]) -> "_Rule | None":
        """The rule of these settings; None when they want nothing."""
        wants = (
            settings.drop,
            settings.hmac,
            settings.truncate_ip,
            settings.coarsen_time_ms,
            settings.honour_dnt != "ignore",
        )
        return cls(settings, field_names) if any(wants) else None

    def apply(self, event: Event, sender: Sender) -> None:
        """Edit the event in its place. Errors: FormatError."""
        anonymises = self._anonymises and sender.opted_out
        exact_ms = event.time_ms
        event.time_ms = coarse(exact_ms, self.coarsen_time_ms)
        edits = self._anonymising if anonymises else self._edits
        if edits is not None:
            edits.apply(event)
        if isinstance(event.payload, list):
            event.payload = self._fields(event.payload, exact_ms, event.time_ms, sender, anonymises=anonymises)

    def _fields(
        self, fields: list[Field], exact_ms: int, time_ms: int, sender: Sender, *, anonymises: bool
    ) -> list[Field]:
        """The fields, without the event's exact time and the sender's address: they do not say who filled them in."""
        instead: dict[tuple[str, object], str | int] = {}
        if self.coarsen_time_ms:
            instead["i64", exact_ms] = time_ms
        if anonymises:
            instead["string", header_text(sender.user_agent)] = ""
            instead["string", sender.client_ip] = ""
        elif self._truncates and sender.client_ip:
            instead["string", sender.client_ip] = truncated_address(sender.client_ip)
        if not instead:
            return fields
        return [(number, kind, instead.get((kind, value), value)) for number, kind, value in fields]


def truncated_address(text: str) -> str:
    """The network of an address: /24 for IPv4, /48 for IPv6. "" for what is no address."""
    address = parse_address(text)
    if address is None:
        return ""
    cut = address.max_prefixlen - (_IPV4_BITS if address.version == 4 else _IPV6_BITS)
    return str(type(address)(int(address) >> cut << cut))


def coarse(time_ms: int, step_ms: int) -> int:
    """The time cut to a multiple of a step; as it is for a step of 0."""
    return max(TIME_MIN_MS, time_ms - time_ms % step_ms) if step_ms else time_ms


def _left_out(value: Value, time_ms: int) -> None:
    return None


def _hashed_with(key: bytes) -> Edit:
    def hashed(value: Value, time_ms: int) -> Value | str:
        if value.kind == "null":
            return value
        return hmac.digest(key, value.text.encode(), "sha256").hex()

    return hashed


def _truncated(value: Value, time_ms: int) -> Value | str:
    if value.kind == "null":
        return value
    return truncated_address(value.text) if value.kind == "text" else ""


def _coarse_date(value: Value, time_ms: int) -> Value | str | int:
    """``eventDate`` as the event's time, in the form in which it was sent."""
    if value.kind == "number":
        return time_ms
    if value.kind != "text" or not value.text.strip():
        return value
    if value.text.lstrip("-").isdigit():
        return str(time_ms)
    return (_EPOCH + timedelta(milliseconds=time_ms)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
