"""Amplitude's HTTP API as its documentation has it: takes what that takes, refuses what that refuses, forgets nothing.

Limits: 2,000 events and 1 MiB a request (413); ids of 5 characters and known ones only, whole milliseconds, names that
are not reserved, properties of 40 levels (400, with indexes, and nothing of the request is taken); ``eps`` events a
second for a user or device over 30 s (429, and nothing is taken). An ``insert_id`` of a device is taken once.
"""

import gzip
import json
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from tests.services.scripted_http import Answer, Request, ScriptedHttp

API_KEY: Final = "an-api-key-of-the-tests"
EVENTS_MAX: Final = 2000
BODY_MAX_BYTES: Final = 1024 * 1024
WINDOW_S: Final = 30
KNOWN_KEYS: Final = {
    "event_type", "user_id", "device_id", "time", "insert_id", "event_properties", "user_properties", "session_id",
}  # fmt: skip
NOBODY: Final = {"anonymous", "nil", "none", "null", "n/a", "na", "undefined", "unknown", "", "{}", "0", "-1", "lmy47d"}


class FakeAmplitude:
    """One project.

    ``events``: what was taken, in its order, repeats left out. ``next_answers``: given instead, the first one first.
    ``eps``: None for no limit. ``clock``: seconds. ``exhausted``: users without events left on this day.
    """

    def __init__(self, *, eps: float | None = None, clock: Callable[[], float] = lambda: 0.0) -> None:
        self.events: list[dict[str, Any]] = []
        self.next_answers: list[Answer] = []
        self.exhausted: set[str] = set()
        self._eps = eps
        self._clock = clock
        self._seen: set[tuple[str, str]] = set()
        self._recent: list[tuple[float, str]] = []
        self.http = ScriptedHttp(self._answer)

    @property
    def ids(self) -> list[str]:
        return [event["insert_id"] for event in self.events]

    def close(self) -> None:
        self.http.close()

    def _answer(self, request: Request) -> Answer:
        if self.next_answers:
            return self.next_answers.pop(0)
        if request.path not in ("/2/httpapi", "/batch") or request.headers.get("Content-Type") != "application/json":
            return Answer(404, "<html>")
        body = request.body
        if request.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        if len(body) > BODY_MAX_BYTES:
            return reply(413, error="Payload too large")
        try:
            document = json.loads(body, parse_constant=_refuse)
        except ValueError:
            return reply(400, error="Invalid JSON request body")
        if document.get("api_key") != API_KEY:
            return reply(400, error=f"Invalid API key: {document.get('api_key')}")
        events = document.get("events")
        if not events:
            return reply(400, error="Request missing required field", missing_field="events")
        if len(events) > EVENTS_MAX:
            return reply(413, error="Too many events in request")
        problems = self._problems(events, document.get("options", {}).get("min_id_length", 5))
        if problems:
            return reply(400, error="Invalid field values on some events", **problems)
        return self._throttle(events) or self._take(events, len(body))

    def _problems(self, events: list[dict[str, Any]], min_id_length: int) -> dict[str, dict[str, list[int]]]:
        problems: dict[str, dict[str, list[int]]] = {}

        def bad(kind: str, field: str, index: int) -> None:
            problems.setdefault(kind, {}).setdefault(field, []).append(index)

        for index, event in enumerate(events):
            if not isinstance(event.get("event_type"), str) or not event["event_type"]:
                bad("events_with_missing_fields", "event_type", index)
            elif event["event_type"].startswith("[Amplitude]"):
                bad("events_with_invalid_fields", "event_type", index)
            if not event.get("user_id") and not event.get("device_id"):
                bad("events_with_missing_fields", "user_id", index)
            for key in ("user_id", "device_id"):
                value = event.get(key, "a valid id")
                if not isinstance(value, str) or value.lower() in NOBODY:
                    bad("events_with_invalid_fields", key, index)
                elif len(value) < min_id_length:
                    bad("events_with_invalid_id_lengths", key, index)
            if type(event.get("time")) is not int:
                bad("events_with_invalid_fields", "time", index)
            properties = event.get("event_properties", {})
            if not isinstance(properties, dict) or depth(properties) > 41 or len(properties) > 1024:
                bad("events_with_invalid_fields", "event_properties", index)
            if "!" in event.get("event_type", ""):  # what no documentation says, and so nobody can know before
                bad("events_with_invalid_fields", "event_type", index)
            for key in event.keys() - KNOWN_KEYS:
                bad("events_with_invalid_fields", key, index)
        return problems

    def _throttle(self, events: list[dict[str, Any]]) -> Answer | None:
        now = self._clock()
        self._recent = [each for each in self._recent if each[0] > now - WINDOW_S]
        senders = [event.get("user_id") or event["device_id"] for event in events]
        counts = Counter(senders) + Counter(sender for _, sender in self._recent)
        over = {
            sender: counts[sender] / WINDOW_S
            for sender in set(senders)
            if sender in self.exhausted or (self._eps is not None and counts[sender] > self._eps * WINDOW_S)
        }
        if not over:
            self._recent += [(now, sender) for sender in senders]
            return None
        users = {sender: rate for sender, rate in over.items() if any(e.get("user_id") == sender for e in events)}
        return reply(
            429,
            error="Too many requests for some devices and users",
            eps_threshold=self._eps,
            throttled_users={sender: rate for sender, rate in users.items() if sender not in self.exhausted},
            throttled_devices={sender: rate for sender, rate in over.items() if sender not in users},
            throttled_events=[index for index, sender in enumerate(senders) if sender in over],
            exceeded_daily_quota_users=dict.fromkeys(self.exhausted & set(senders), 500_000),
            exceeded_daily_quota_devices={},
        )

    def _take(self, events: list[dict[str, Any]], size: int) -> Answer:
        for event in events:
            key = event["device_id"], event["insert_id"]
            if key not in self._seen:
                self._seen.add(key)
                self.events.append(event)
        return reply(200, events_ingested=len(events), payload_size_bytes=size, server_upload_time=1)


def reply(status: int, **members: object) -> Answer:
    return Answer(status, json.dumps({"code": status, **members}), {"Content-Type": "application/json"})


def depth(value: object) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(depth, inner), default=0) if isinstance(value, dict | list) else 0


def _refuse(text: str) -> None:
    raise ValueError(text)
