"""``Prefer: return=representation``: a client learns what became of each event, and resends exactly what failed."""

import json
from collections.abc import Iterator
from typing import Any

import msgpack
import pytest

from collector.receipt import Receipt
from collector.resources.results import RESULTS_MAX, are_wanted, results
from formats.event import FormatError
from tests.formats.smile_encoder import smile
from tests.services.collector import RunningCollector, stored_events

GOOD = {"eventName": "Good", "payload": {}}
DROPPED = {"eventName": "Dropped", "payload": {}}
NAMELESS: dict[str, Any] = {"payload": {}}
WANTED = {"Prefer": "return=representation"}


@pytest.fixture(scope="module")
def collector(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCollector]:
    filters = {"event_name": ["^Dropped$"]}
    with RunningCollector(tmp_path_factory.mktemp("results"), filters=filters) as running:
        yield running


def post(
    collector: RunningCollector, body: bytes, content_type: str = "application/json", path: str = "/rest/1.0/event"
) -> tuple[int, Any, dict[str, Any]]:
    status, headers, text = collector.request("POST", path, body, WANTED | {"Content-Type": content_type})
    assert headers["Preference-Applied"] == "return=representation"
    return status, headers, json.loads(text)


def told(document: dict[str, Any]) -> str:
    """What became of each event, a letter each."""
    assert [each["index"] for each in document["results"]] == list(range(len(document["results"])))
    for each in document["results"]:
        assert bool(each.get("reason")) is (each["status"] == "failed")
    return "".join(each["status"][0] for each in document["results"])


@pytest.mark.parametrize(
    ("prefer", "wanted"),
    [
        ("return=representation", True),
        ("respond-async, Return=Representation; x=1", True),
        ('return="representation"', True),
        ("return = representation", True),
        ("return=minimal", False),
        ("return", False),
        ("x=return=representation", False),
        ("", False),
    ],
)
def test_a_client_asks_for_results_by_a_header(prefer: str, wanted: bool) -> None:
    assert are_wanted({"HTTP_PREFER": prefer}) is wanted


@pytest.mark.parametrize(
    ("events", "status", "letters"),
    [
        ([GOOD], 202, "a"),
        ([GOOD, NAMELESS, DROPPED, 42, GOOD], 202, "afafa"),
        ([DROPPED], 202, "a"),
        ([NAMELESS, 1], 400, "ff"),
    ],
)
def test_every_format_says_what_became_of_each_event(
    collector: RunningCollector, events: list[Any], status: int, letters: str
) -> None:
    for body, content_type, path in [
        (json.dumps(events).encode(), "application/json", "/rest/1.0/event"),
        ("\n".join(map(json.dumps, events)).encode(), "text/plain", "/rest/1.0/beacon"),
        (msgpack.packb(events), "application/msgpack", "/rest/1.0/event"),
        (smile(events), "application/json+smile", "/rest/1.0/event"),
    ]:
        answered, headers, document = post(collector, body, content_type, path)

        assert (answered, told(document)) == (status, letters), content_type
        assert (document["accepted"], document["failed"]) == (letters.count("a"), letters.count("f"))
        assert ("Warning" in headers) is ("f" in letters)
        assert headers["Content-Type"] == ("application/json" if status == 202 else "application/problem+json")


def test_resending_what_failed_makes_the_rest_whole(collector: RunningCollector) -> None:
    events: list[dict[str, Any]] = [{"eventName": f"Whole{i}", "payload": {}} for i in range(300)]
    broken = [each if i % 7 else {**each, "payload": None} for i, each in enumerate(events)]

    document = post(collector, json.dumps(broken).encode())[2]
    failed = [each["index"] for each in document["results"] if each["status"] == "failed"]
    again = post(collector, json.dumps([events[index] for index in failed]).encode())[2]

    assert (failed, again["failed"]) == (list(range(0, 300, 7)), 0)
    names = [event.name for event in stored_events(collector.spool) if event.name.startswith("Whole")]
    assert sorted(names) == sorted(each["eventName"] for each in events)


def test_what_stands_behind_a_syntax_error_is_not_listed(collector: RunningCollector) -> None:
    body = b"\n".join([json.dumps(GOOD).encode()] * 2 + [b"{nonsense"] + [json.dumps(GOOD).encode()] * 5)

    status, _, document = post(collector, body)

    assert (status, told(document)) == (202, "aaf")


def test_a_body_that_cannot_be_unpacked_is_one_failure(collector: RunningCollector) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip", "Prefer": "return=representation"}

    status, _, answer = collector.request("POST", "/rest/1.0/event", b"no gzip", headers)

    document = json.loads(answer)
    assert (status, document["accepted"], document["failed"], told(document)) == (400, 0, 1, "f")


def test_large_requests_list_what_failed_only_and_the_list_is_bounded(collector: RunningCollector) -> None:
    good = json.dumps(GOOD)

    some = post(collector, f"[{','.join([good] * RESULTS_MAX)},1]".encode())[2]
    many = post(collector, f"[{'1,' * 50_000}{good}]".encode())[2]

    assert (some["accepted"], some["failed"]) == (RESULTS_MAX, 1)
    assert [(each["index"], each["status"]) for each in some["results"]] == [(RESULTS_MAX, "failed")]
    assert (many["accepted"], many["failed"], len(many["results"])) == (1, 50_000, RESULTS_MAX)


def test_who_does_not_ask_gets_the_answers_as_ever(collector: RunningCollector) -> None:
    good = collector.post(json.dumps(GOOD).encode())
    bad = collector.post(json.dumps([NAMELESS]).encode())

    assert (good[0], good[1]["Preference-Applied"], good[2]) == (202, None, b"")
    assert (bad[0], bad[1]["Preference-Applied"]) == (400, None)
    assert json.loads(bad[2])["failures"][0]["index"] == 0


def test_a_receipt_with_filtered_events_tells_them_as_accepted() -> None:
    receipt = Receipt(accepted=1, filtered=1, failed=1, failures=[FormatError("bad", 1)])

    assert results(receipt) == {
        "accepted": 2,
        "failed": 1,
        "results": [
            {"index": 0, "status": "accepted"},
            {"index": 1, "status": "failed", "reason": "bad"},
            {"index": 2, "status": "accepted"},
        ],
    }
