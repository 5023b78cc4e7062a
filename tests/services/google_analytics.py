"""Google Analytics' Measurement Protocol as documented: 204 to everything, and what breaks a rule is dropped.

``/debug/mp/collect`` says what is wrong and counts nothing; neither looks at whether the secret is right, as the real
one does not say it either: here a wrong one drops all.
"""

import json
import re
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from tests.services.scripted_http import Answer, Request, ScriptedHttp

SECRET: Final = "a-secret/of+the tests"
MEASUREMENT_ID: Final = "G-TESTS12345"
RESERVED: Final = {"ad_click", "app_update", "error", "first_open", "first_visit", "session_start", "user_engagement"}
PREFIX: Final = re.compile(r"_|firebase_|ga_|google_|gtag\.")
LONGER: Final = {"page_title": 300, "page_referrer": 420, "page_location": 1000}


class FakeGoogleAnalytics:
    """One data stream.

    ``events``: what it counts, each with its ``client_id``. ``dropped``: what it says nothing about, with the reasons.
    ``next_answers``: given instead, the first one first; nothing is counted then.
    """

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self.events: list[dict[str, Any]] = []
        self.dropped: list[tuple[dict[str, Any], list[dict[str, str]]]] = []
        self.next_answers: list[Answer] = []
        self._now_ms = now_ms
        self.http = ScriptedHttp(self._answer)

    def close(self) -> None:
        self.http.close()

    def _answer(self, request: Request) -> Answer:
        if self.next_answers:
            return self.next_answers.pop(0)
        url = urlsplit(request.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        document = json.loads(request.body)
        problems = self._problems(document, len(request.body))
        if url.path == "/debug/mp/collect":
            return Answer(200, json.dumps({"validationMessages": problems}))
        if url.path != "/mp/collect":
            return Answer(404, "<html>")
        if query != {"measurement_id": MEASUREMENT_ID, "api_secret": SECRET}:
            problems.append({"validationCode": "SECRET"})  # nobody is told
        if problems:
            self.dropped.append((document, problems))
        else:
            who = {key: document[key] for key in ("client_id", "user_id") if key in document}
            self.events += [{**who, **event} for event in document["events"]]
        return Answer(204)

    def _problems(self, document: dict[str, Any], size: int) -> list[dict[str, str]]:
        problems: list[dict[str, str]] = []

        def bad(code: str, path: str) -> None:
            problems.append({"validationCode": code, "fieldPath": path, "description": f"{path} breaks a rule"})

        if size > 130_000:
            bad("VALUE_OUT_OF_BOUNDS", "")
        if not isinstance(document.get("client_id"), str) or not document["client_id"]:
            bad("VALUE_REQUIRED", "client_id")
        if document.keys() - {"client_id", "user_id", "events", "validation_behavior"}:
            bad("VALUE_INVALID", "")
        if len(document["events"]) > 25:
            bad("EXCEEDED_MAX_ENTITIES", "events")
        for event in document["events"]:
            self._event_problems(event, bad)
        return problems

    def _event_problems(self, event: dict[str, Any], bad: Callable[[str, str], None]) -> None:
        if event.keys() - {"name", "params", "timestamp_micros"}:
            bad("VALUE_INVALID", "events")
        if event["name"] in RESERVED:
            bad("NAME_RESERVED", "events.name")
        _check_name(event["name"], "events.name", bad)
        params = event.get("params", {})
        if len(params) > 25:
            bad("EXCEEDED_MAX_ENTITIES", "events.params")
        for name, value in params.items():
            _check_name(name, f"events.params.{name}", bad)
            if name == "items" and isinstance(value, list):
                for key, inner in [pair for item in value for pair in item.items()]:
                    _check_value(key, inner, bad)
            else:
                _check_value(name, value, bad)
        micros = event.get("timestamp_micros", self._now_ms() * 1000)
        if type(micros) is not int or not -72 * 3600 * 10**6 <= micros - self._now_ms() * 1000 <= 0:
            bad("VALUE_OUT_OF_BOUNDS", "events.timestamp_micros")


def _check_name(name: str, path: str, bad: Callable[[str, str], None]) -> None:
    if len(name) > 40 or not re.fullmatch("[A-Za-z][A-Za-z0-9_]*", name):
        bad("NAME_INVALID", path)
    if PREFIX.match(name):
        bad("NAME_RESERVED", path)


def _check_value(name: str, value: object, bad: Callable[[str, str], None]) -> None:
    if type(value) not in (str, int, float):
        bad("VALUE_INVALID", f"events.params.{name}")
    elif isinstance(value, str) and len(value) > LONGER.get(name, 100):
        bad("VALUE_OUT_OF_BOUNDS", f"events.params.{name}")
