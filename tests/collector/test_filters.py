"""Filters drop what they match, and only that."""

import json
from pathlib import Path

import pytest

from collector.filters import Filters
from collector.settings import FilterSettings
from formats.event import Event, Granularity, PayloadKind
from formats.pixel import Sender
from tests.collector.test_privacy import DOORS, collector, stored

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "ning.json").read_text())
CASES = [case for case in VECTORS if case["group"] == "filter"]


def event(name: str) -> Event:
    return Event(name, 0, Granularity.HOURLY, PayloadKind.JSON, b"{}")


def sender(referer: str = "", user_agent: str = "", client_ip: str = "") -> Sender:
    return Sender(0, referer, user_agent, client_ip)


def by_name(patterns: list[str], value: str, only: bool) -> bool:
    filters = Filters(FilterSettings(event_name=patterns, event_name_only=only))
    return not filters.keep([event(value)], sender())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_the_published_cases_hold_for_names(case: dict) -> None:
    request = case["request"]
    if request["value"] is None:
        filters = Filters(FilterSettings(referer_host=request["patterns"], user_agent=request["patterns"]))
        dropped = not filters.keep([event("E")], sender())
    else:
        dropped = by_name(request["patterns"], request["value"], request["inclusion"])

    assert dropped is case["expect"]["event_filtered_out"]


@pytest.mark.parametrize(
    ("settings", "matching"),
    [
        (FilterSettings(referer_host=["^spam\\."]), sender(referer="http://spam.example/x")),
        (FilterSettings(referer_path=["secret"]), sender(referer="http://a.example/secret?x")),
        (FilterSettings(ip=["^10\\.0\\."]), sender(client_ip="10.0.0.1")),
        (FilterSettings(user_agent=["(?i)bot"]), sender(user_agent="GoogleBot/2")),
        (FilterSettings(user_agent=["бот"]), sender(user_agent="бот".encode().decode("latin-1"))),  # as WSGI has it
    ],
)
def test_each_list_looks_at_its_own_part_of_the_sender(settings: FilterSettings, matching: Sender) -> None:
    filters = Filters(settings)

    assert filters.keep([event("A"), event("B")], matching) == []
    other = sender("http://a.example/spam.", "Mozilla", "1.10.0.1")
    assert filters.keep([event("A"), event("B")], other) == [event("A"), event("B")]


@pytest.mark.parametrize(
    ("key", "pattern", "headers"),
    [
        ("event_name", "^View$", {}),
        ("ip", r"^192\.0\.2\.77$", {}),
        ("ip", r"^203\.0\.113\.9$", {"peer": "127.0.0.1", "HTTP_X_FORWARDED_FOR": "6.6.6.6, 203.0.113.9, 10.0.0.1"}),
        ("user_agent", "Bot", {"HTTP_USER_AGENT": "GoogleBot/2"}),
        ("referer_host", "^spam", {"HTTP_REFERER": "https://user@spam.example/x"}),
        ("referer_path", "^/x", {"HTTP_REFERER": "https://spam.example/x"}),
    ],
)
def test_a_filter_counts_at_every_door_and_the_sender_is_told_202(
    tmp_path: Path, key: str, pattern: str, headers: dict[str, str]
) -> None:
    with collector(tmp_path, filters={key: [pattern]}) as send:
        for door in DOORS:
            path, body, content_type = door.values
            if path != "scribe" or not any(name.startswith("HTTP") for name in headers):
                assert send(path, body, content_type, **headers) == "202", door.id
        assert stored(tmp_path) == []

        assert send("/1?v=Other,s", peer="192.0.2.78") == "202"
        assert [each.name for each in stored(tmp_path)] == ["Other"]


def test_names_are_judged_one_by_one() -> None:
    filters = Filters(FilterSettings(event_name=["^Debug"]))

    assert filters.keep([event("DebugA"), event("View"), event("ADebug")], sender()) == [event("View"), event("ADebug")]
