"""``collector doctor ga4``, against a fake that validates by the documented rules."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from collector.cli import cli
from tests.services.google_analytics import FakeGoogleAnalytics
from tests.services.scripted_http import Answer

Doctor = Callable[..., Result]


@pytest.fixture
def google() -> Iterator[FakeGoogleAnalytics]:
    fake = FakeGoogleAnalytics(lambda: time.time_ns() // 1_000_000)
    yield fake
    fake.close()


@pytest.fixture
def doctor(tmp_path: Path, google: FakeGoogleAnalytics) -> Doctor:
    """Runs the command with two forwarders of the type, ``ga`` and ``other``, and one of another."""
    config = tmp_path / "collector.toml"
    table = f'type = "google-analytics"\nurl = "{google.http.url}"\nmeasurement_id = "G-1"\n'
    table += f'api_secret_file = "{tmp_path}/secret"\n'
    config.write_text(
        f'[spool]\npath = "{tmp_path}/spool"\n[forwarders.archive]\n[forwarders.ga]\n{table}[forwarders.other]\n{table}'
    )
    (tmp_path / "secret").write_text("secret")

    def run(*arguments: str, text: str | None = None) -> Result:
        return CliRunner().invoke(cli, ["-c", str(config), "doctor", *arguments], input=text)

    return run


def test_a_made_up_event_is_validated_for_every_forwarder(doctor: Doctor, google: FakeGoogleAnalytics) -> None:
    result = doctor("ga4")

    assert (result.exit_code, result.stdout.splitlines()) == (
        0,
        [
            "ga: collector_doctor: nothing against it",
            "other: collector_doctor: nothing against it",
            "not looked at: whether measurement_id and api_secret are right",
        ],
    )
    assert {each.path.partition("?")[0] for each in google.http.requests} == {"/debug/mp/collect"}
    assert google.events == []


def test_what_google_or_a_rule_has_against_an_event_is_printed_and_ends_with_1(
    doctor: Doctor, google: FakeGoogleAnalytics, tmp_path: Path
) -> None:
    message = {"validationCode": "NAME_INVALID", "fieldPath": "events", "description": "no good"}
    google.next_answers = [Answer(200, json.dumps({"validationMessages": [message]}))]
    events = '[{"eventName":"Fine","payload":{}},{"eventName":"a b","payload":{}},{"eventName":"Good","payload":{}}]'

    result = doctor("ga4", "--forwarder", "ga", "--json", "-", text=events)

    assert result.exit_code == 1
    assert [(each["event"], bool(each["messages"])) for each in json.loads(result.stdout)] == [
        ("Fine", True), ("a b", True), ("Good", False),
    ]  # fmt: skip
    assert json.loads(result.stdout)[0]["messages"] == ["NAME_INVALID events no good"]


@pytest.mark.parametrize(
    ("arguments", "text", "code", "said"),
    [
        (["--forwarder", "archive"], None, 1, "no forwarder of type google-analytics has the name archive"),
        (["-"], "[1]", 1, "1 events cannot be read; number 0"),
        (["-"], "[]", 1, "there is no event"),
    ],
)
def test_what_cannot_be_asked_is_said(doctor: Doctor, arguments: list[str], text: str, code: int, said: str) -> None:
    result = doctor("ga4", *arguments, text=text)

    assert result.exit_code == code
    assert said in result.stderr


def test_who_does_not_answer_is_1_and_a_secret_that_is_none_is_78(
    doctor: Doctor, google: FakeGoogleAnalytics, tmp_path: Path
) -> None:
    google.next_answers = [Answer(503)]
    unavailable = doctor("ga4")
    (tmp_path / "secret").write_text("")
    without = doctor("ga4")

    assert (unavailable.exit_code, unavailable.stderr) == (1, "google-analytics: answers 503\n")
    assert (without.exit_code, "expected the api_secret" in without.stderr) == (78, True)
