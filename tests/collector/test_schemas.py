"""An event that is not as its schema says is refused with a reason, or kept for a person; the others go on."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import msgpack
import pytest

from collector.json_schemas import SchemaErrors, load_schemas
from collector.settings import SettingsError, load
from tests.collector.test_privacy import collector, stored, thrift
from tests.services.child import wait_until
from tests.services.collector import REPOSITORY, RunningCollector, archived_events

TYPES = {"page": "string", "n": "integer", "x": "number", "ok": "boolean", "at": "date"}
RULES: dict[str, dict[str, Any]] = {
    "events__View": {"fields": ["page", "n"], "required": ["page"]}, "events__View__types": TYPES
}  # fmt: skip


@contextmanager
def schema_files(base: Path, **files: Any) -> Iterator[Path]:
    """A directory with these files; underscores in names are dots, texts are written as they are."""
    directory = base / "schemas"
    directory.mkdir()
    for name, schema in files.items():
        text = schema if isinstance(schema, str) else json.dumps(schema)
        (directory / f"{name.replace('__', '%2F')}.json").write_text(text)
    yield directory


def said(tmp_path: Path, **files: Any) -> list[str]:
    with schema_files(tmp_path, **files) as directory, pytest.raises(SchemaErrors) as caught:
        load_schemas(directory)
    return caught.value.errors


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        ({"page": "/"}, None),
        ({"page": "/", "n": 3, "x": 1.5, "ok": False, "at": 1230865445006, "other": []}, None),
        ({"page": "/", "n": None, "x": 10**400, "at": "2009-01-02T03:04:05Z"}, None),
        ({}, "page is missing"),
        ({"page": None}, "page is missing"),
        ({"page": 1}, "page is no string"),
        ({"page": "/", "n": 1.0}, "n is no integer"),
        ({"page": "/", "n": True}, "n is no integer"),
        ({"page": "/", "x": "1"}, "x is no number"),
        ({"page": "/", "ok": 1}, "ok is no boolean"),
        ({"page": "/", "at": "soon"}, "at is no date"),
        ({"page": "/", "at": " "}, "at is no date"),
        ({"page": "/", "at": [1]}, "at is no date"),
    ],
)
def test_types_and_required_members_are_what_the_settings_say(tmp_path: Path, payload: Any, reason: str | None) -> None:
    with collector(tmp_path, **RULES) as send:
        status, headers, body = send("/rest/1.0/event", event(payload), "application/json", whole=True)

    if reason is None:
        assert (status, headers.get("warning")) == ("202", None)
    else:
        assert status == "400"
        assert headers["warning"] == f'199 - "[0 successes] [1 failures] [{reason}, at event 0]"'
        assert json.loads(body)["failures"] == [{"index": 0, "reason": reason}]


def event(payload: Any, name: str = "View") -> bytes:
    return json.dumps({"eventName": name, "payload": payload}).encode()


@pytest.mark.parametrize(
    ("path", "body", "content_type", "status"),
    [
        ("/1?v=View,s%2Fshop,43", b"", "", "202"),
        ("/1?v=View,43,43", b"", "", "400"),
        ("/1?v=View,,43", b"", "", "400"),
        ("/2?v=View,s,d1", b"", "", "400"),
        ("/rest/1.0/event", msgpack.packb({"eventName": "View", "payload": {"page": b"x"}}), "x-msgpack", "202"),
        ("/rest/1.0/event", msgpack.packb({"eventName": "View", "payload": {"page": 1}}), "x-msgpack", "400"),
        ("/rest/1.0/event?name=View", thrift("/"), "thrift", "202"),
        ("/rest/1.0/event?name=View", thrift("/", "x"), "thrift", "400"),
        ("/rest/1.0/event?name=Other", thrift("/", "x"), "thrift", "202"),
    ],
)  # fmt: skip
def test_every_door_looks_at_the_schema(tmp_path: Path, path: str, body: bytes, content_type: str, status: str) -> None:
    with collector(tmp_path, **RULES) as send:
        assert send(path, body, content_type and f"application/{content_type}") == status
        assert len(stored(tmp_path)) == int(status == "202")


def test_failures_of_reader_and_schema_are_told_in_order_and_cost_no_other_event(tmp_path: Path) -> None:
    good, bad = {"eventName": "View", "payload": {"page": "/"}}, {"eventName": "View", "payload": {}}
    body = json.dumps([good, 1, bad, good, 2, 3, bad, {"eventName": "Other", "payload": {}}, *[bad] * 30, 4]).encode()
    with collector(tmp_path, **RULES) as send:
        status, headers, _ = send("/rest/1.0/event", body, "application/json", whole=True)
        refused = send("/rest/1.0/event", json.dumps([1, bad, 2, bad]).encode(), "application/json", whole=True)

        assert (status, len(stored(tmp_path))) == ("202", 3)
    assert headers["warning"].startswith('199 - "[3 successes] [36 failures] [not an object')
    assert headers["warning"].endswith(', at event 1]"')
    assert [each["index"] for each in json.loads(refused[2])["failures"]] == [0, 1, 2, 3]


def test_a_client_that_asks_is_told_which_events_violated_a_schema(tmp_path: Path) -> None:
    body = json.dumps([{"eventName": "View", "payload": payload} for payload in ({"page": "/"}, {}, {"page": 1})])
    prefer = {"HTTP_PREFER": "return=representation"}
    with collector(tmp_path, **RULES) as send:
        _, _, answer = send("/rest/1.0/event", body.encode(), "application/json", whole=True, **prefer)

    results = json.loads(answer)["results"]
    assert [(each["index"], each["status"], each.get("reason")) for each in results] == [
        (0, "accepted", None), (1, "failed", "page is missing"), (2, "failed", "page is no string")
    ]  # fmt: skip


def test_filters_come_before_schemas(tmp_path: Path) -> None:
    with collector(tmp_path, **RULES, filters={"event_name": ["View"]}) as send:
        assert send("/rest/1.0/event", event({}), "application/json") == "202"
        assert stored(tmp_path) == []


def test_a_payload_too_large_to_be_checked_is_a_violation(tmp_path: Path) -> None:
    with collector(tmp_path, **RULES) as send:
        assert send("/rest/1.0/event", event({"page": "x" * 600_000}), "application/json") == "400"
        assert send("/rest/1.0/event", event({"page": "x" * 600_000}, "Other"), "application/json") == "202"


USER = {"$defs": {"user": {"type": "object", "required": ["id"], "properties": {"id": {"type": "integer"}}}}}
VIEW = {"properties": {"user": {"$ref": "common.json#/$defs/user"}, "page": {"pattern": "^/"}}, "required": ["page"]}


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        ({"page": "/", "user": {"id": 1}}, None),
        ({}, "it is not as its schema says at /required (page is missing)"),
        ({"page": "x"}, "it is not as its schema says at /properties/page/pattern"),
        ({"page": "/", "user": {}}, "it is not as its schema says at /properties/user/required (id is missing)"),
        ({"page": "/", "user": {"id": "x"}}, "it is not as its schema says at /properties/user/properties/id/type"),
    ],
)  # fmt: skip
def test_a_json_schema_is_applied_and_may_use_other_files(tmp_path: Path, payload: Any, reason: str | None) -> None:
    with schema_files(tmp_path, View=VIEW, common=USER, a__b={"type": "object"}) as directory:
        check = load_schemas(directory)["View"]
        assert sorted(load_schemas(directory)) == ["View", "a/b", "common"]

    assert check(payload) == reason


def test_a_schema_that_calls_itself_for_ever_fails_the_event_and_nothing_else(tmp_path: Path) -> None:
    with schema_files(tmp_path, Loop={"$ref": "#"}) as directory:
        assert load_schemas(directory)["Loop"]({}) == "its schema cannot be applied to it: RecursionError"


def test_everything_that_is_wrong_with_the_files_is_said_at_once_with_its_place(tmp_path: Path) -> None:
    errors = said(
        tmp_path,
        A={"properties": {"x": {"type": "text"}, "y": {"minimum": "3"}}},
        B="{",
        C=[1],
        D={"$schema": "http://example.org/own"},
        E={"properties": {"x": {"pattern": "("}}, "patternProperties": {"[": {}}},
        F={"properties": {"x": {"$ref": "missing.json"}, "y": {"$ref": "#/$defs/none"}}},
        G__x={"const": {"$ref": "only data"}},
    )

    assert [error.split(": ")[:2] for error in errors[:1]] == [["B.json", "is not JSON"]]
    assert {tuple(error.split(": ")[:2]) for error in errors[1:]} == {
        ("A.json", "/properties/x/type"),
        ("A.json", "/properties/y/minimum"),
        ("C.json", "is neither an object nor true or false"),
        ("D.json", "/$schema"),
        ("E.json", "/patternProperties"),
        ("E.json", "/properties/x/pattern"),
        ("F.json", "/properties/x/$ref"),
        ("F.json", "/properties/y/$ref"),
    }


def test_what_the_settings_say_of_schemas_is_checked_at_the_start(tmp_path: Path) -> None:
    with schema_files(tmp_path, A={"type": "text"}, B="") as directory:
        config = tmp_path / "c.toml"
        config.write_text(f'[schemas]\ndirectory = "{directory}"\n[events.V]\ntypes = {{a = "text"}}')
        with pytest.raises(SettingsError) as types:
            load(config, {})
        config.write_text(f'[schemas]\ndirectory = "{directory}"')
        with pytest.raises(SettingsError) as files:
            load(config, {})

    assert "expected a table, each value" in types.value.errors[0]
    assert [("A.json: /type" in error, "B.json" in error) for error in files.value.errors] == [
        (False, True),
        (True, False),
    ]


def test_a_reference_to_another_machine_is_an_error_and_never_followed(tmp_path: Path) -> None:
    asked: list[str] = []

    class Trap(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)

    server = HTTPServer(("127.0.0.1", 0), Trap)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/schema.json"
        errors = said(tmp_path, A={"$ref": url}, B={"$id": url + "/b", "properties": {"x": {"$ref": "other.json"}}})
    finally:
        server.shutdown()
        server.server_close()

    assert asked == []
    assert [error.split(": ")[1] for error in errors] == ["/$ref", "/properties/x/$ref"]


@pytest.mark.slow
def test_what_violates_a_schema_waits_in_quarantine_and_a_replay_brings_it_everywhere(tmp_path: Path) -> None:
    """From the door to two destinations: the accounts balance before and after, and the id stays."""
    archives = {f"forwarders__{name}": {"type": "archive", "path": str(tmp_path / name), "batch_max_age_s": 0}
                for name in ("one", "two")}  # fmt: skip
    rules = {"events__View": {"required": ["page"], "on_violation": "quarantine"}}

    def archived(name: str) -> dict[str, Any]:
        return {each["id"]: each["payload"] for each in archived_events(tmp_path / name)}

    def run(*command: str) -> str:
        return collector_command(running.config, *command)

    with RunningCollector(tmp_path, spool={"segment_max_age_s": 0.2}, **archives, **rules) as running:
        body = json.dumps([{"eventName": "View", "payload": payload} for payload in ({"page": "/"}, {"n": 1})]).encode()
        assert (running.post(body)[0], running.get("/1?v=View,s")[0]) == (202, 202)
        wait_until(lambda: archived("one") and archived("two"), 10, "the good one is there")
        wait_until(lambda: len(json.loads(run("quarantine", "ls", "--json"))) >= 2, 10, "the others are kept")
        items = json.loads(run("quarantine", "ls", "--json"))
        before = archived("one")
        assert {(each["owner"], each["error"]) for each in items} == {
            ("one", "page is missing"),
            ("two", "page is missing"),
        }
        assert list(before.values()) == [{"page": "/"}]
        run("audit")
        run("quarantine", "replay", "--all")
        wait_until(lambda: not json.loads(run("quarantine", "ls", "--json")), 15, "quarantine is empty")
        wait_until(lambda: len(archived("one")) == len(archived("two")) == 3, 15, "all of them are everywhere")
        run("audit")

    assert archived("one") == archived("two")
    assert sorted(map(str, archived("one").values())) == sorted(map(str, [{"page": "/"}, {"n": 1}, {"1": ""}]))


def collector_command(config: Path, *command: str) -> str:
    """What a command prints; it must succeed."""
    return subprocess.run(
        [sys.executable, "-m", "collector", *command, "--config", str(config)],
        check=True,
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
    ).stdout


@pytest.mark.slow
def test_schemas_are_read_again_at_sighup_and_broken_ones_leave_all_as_it_is(tmp_path: Path) -> None:
    with (
        schema_files(tmp_path, View={"required": ["a"]}) as directory,
        RunningCollector(tmp_path, schemas={"directory": str(directory)}) as running,
    ):

        def status(payload: Any) -> int:
            return running.post(event(payload))[0]

        def reload(text: str) -> None:
            (directory / "View.json").write_text(text)
            assert running.process is not None
            running.process.send_signal(signal.SIGHUP)

        assert (status({"a": 1}), status({"b": 1})) == (202, 400)
        reload('{"required": 3}')
        wait_until(lambda: "View.json: /required" in running.log.read_text(), 10, "it says what is wrong")
        assert (status({"a": 1}), status({"b": 1})) == (202, 400)
        reload('{"required": ["b"]}')
        wait_until(lambda: status({"b": 1}) == 202, 15, "the new schema counts")
        wait_until(lambda: status({"a": 1}) == 400, 5, "the old one does not")
