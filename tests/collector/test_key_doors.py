"""A collector whose POST doors, and figures, want an API key: who gets in, and what the others are told."""

import contextlib
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from collector.app import create_app
from collector.settings import load
from tests.collector.worker_server import Client, Reply
from tests.services.child import wait_until
from tests.services.collector import RunningCollector, stored_events

EVENT = "/rest/1.0/event"
SHOP = {"Origin": "https://shop.example", "Content-Type": "application/json"}


def command(collector: RunningCollector, *arguments: str) -> str:
    """Run ``collector keys ...``; what it prints."""
    run = [sys.executable, "-m", "collector", "--config", str(collector.config), "keys", *arguments]
    return subprocess.run(run, capture_output=True, text=True, check=True).stdout.strip()


def body(*names: str) -> bytes:
    return json.dumps([{"eventName": name, "payload": {}} for name in names]).encode()


def api_keys(collector: RunningCollector) -> tuple[str, str]:
    """What the health report says of the keys."""
    items = json.loads(collector.get("/1.0/healthcheck")[2])["items"]
    [item] = [item for item in items if item["type"] == "ApiKeysHealthCheck"]
    return item["code"], item["message"]


class Unread(io.BytesIO):
    """A body that nobody may look at."""

    def read(self, *_: object) -> bytes:
        raise AssertionError("the body was read")


def test_under_any_server_a_key_is_judged_before_the_body_is_read(tmp_path: Path) -> None:
    settings = {"SPOOL__PATH": tmp_path / "spool", "AUTH__KEYS_FILE": tmp_path / "keys.toml"}
    environ = {f"COLLECTOR_{name}": str(value) for name, value in settings.items()}
    (tmp_path / "keys.toml").touch()
    app = create_app(load(None, environ | {"COLLECTOR_AUTH__POST_REQUIRES_KEY": "true"}))
    request: dict[str, Any] = {"REQUEST_METHOD": "POST", "PATH_INFO": EVENT, "CONTENT_LENGTH": "8000000"}
    request |= {"SERVER_NAME": "x", "SERVER_PORT": "80", "wsgi.url_scheme": "http", "wsgi.errors": io.StringIO()}
    answers: list[str] = []

    app(request | {"wsgi.input": Unread()}, lambda status, headers, exc_info=None: answers.append(status))
    app.close()

    assert answers == ["401 Unauthorized"]


@pytest.fixture(scope="module")
def collector(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCollector]:
    base = tmp_path_factory.mktemp("keys")
    auth = {"keys_file": str(base / "keys.toml"), "post_requires_key": True, "read_requires_key": True}
    with RunningCollector(base, auth=auth, http={"access_log": True, "workers": 2}) as running:
        yield running


@pytest.fixture(scope="module")
def keys(collector: RunningCollector) -> dict[str, str]:
    """A key for each purpose; known to both workers."""
    made = {
        "all": command(collector, "add", "--note", "all events"),
        "shop": command(collector, "add", "--name", "Shop*"),
        "admin": command(collector, "add", "--scope", "admin"),
        "read": command(collector, "add", "--scope", "read"),
    }
    known = 0

    def all_know() -> bool:
        nonlocal known
        known = known + 1 if collector.get("/metrics", {"X-API-Key": made["read"]})[0] == 200 else 0
        return known >= 20

    wait_until(all_know, 15, "both workers know the keys")
    return made


def test_who_gets_in_where(collector: RunningCollector, keys: dict[str, str]) -> None:
    bearer = {name: {"Authorization": f"Bearer {key}"} for name, key in keys.items()}
    for method, path, headers, status in [
        ("POST", EVENT, bearer["all"], 202),
        ("POST", EVENT, {"X-API-Key": keys["all"]}, 202),
        ("POST", EVENT + "/", bearer["all"], 202),
        ("POST", "/rest/1.0/beacon", bearer["all"], 202),
        ("POST", EVENT, {}, 401),
        ("POST", EVENT + "/", {}, 401),
        ("POST", "/rest/1.0/beacon", {}, 401),
        ("POST", f"{EVENT}?key={keys['all']}", {}, 401),
        ("POST", EVENT, {"X-API-Key": keys["all"][:-3] + "xyz"}, 401),
        ("POST", EVENT, bearer["admin"], 403),
        ("GET", "/1?v=Open,", {}, 202),
        ("GET", "/metrics", {}, 401),
        ("GET", "/1.0/healthcheck", {}, 401),
        ("GET", "/healthcheck", bearer["all"], 403),
        ("GET", "/metrics", bearer["read"], 200),
        ("GET", "/1.0/healthcheck", bearer["read"], 200),
        ("GET", "/livez", {}, 200),
        ("GET", "/readyz", {}, 200),
        ("GET", EVENT, {}, 405),
        ("OPTIONS", EVENT, {}, 204),
        ("POST", "/nowhere", {}, 404),
    ]:
        answered, answer, text = collector.request(
            method, path, body("Any") if method == "POST" else None, SHOP | headers
        )

        assert answered == status, (method, path)
        assert answer["Access-Control-Allow-Origin"] == SHOP["Origin"]
        if status in (401, 403):
            assert answer["WWW-Authenticate"].startswith('Bearer realm="collector"')
            assert answer["Content-Type"] == "application/problem+json"
            assert json.loads(text)["status"] == status


def test_names_are_judged_event_by_event(collector: RunningCollector, keys: dict[str, str]) -> None:
    headers = {"X-API-Key": keys["shop"], "Content-Type": "application/json"}

    some = collector.request("POST", EVENT, body("Other1", "ShopA", "Other2"), headers)
    none = collector.request("POST", EVENT, body("Other3", "Other4"), headers)
    mixed = collector.request("POST", EVENT, b'[{"bad": 1}, {"eventName": "Other5", "payload": {}}]', headers)

    assert (some[0], some[1]["Warning"]) == (
        202,
        '199 - "[1 successes] [2 failures] [the API key may not send events of this name, at event 0]"',
    )
    wanted = collector.request("POST", EVENT, body("Other3", "Other4"), headers | {"Prefer": "return=representation"})

    assert (wanted[0], [each["index"] for each in json.loads(wanted[2])["results"]]) == (403, [0, 1])
    assert none[0] == 403
    assert [each["index"] for each in json.loads(none[2])["failures"]] == [0, 1]
    assert mixed[0] == 400
    names = [event.name for event in stored_events(collector.spool)]
    assert "ShopA" in names
    assert not [name for name in names if name.startswith("Other")]


def test_collector_send_brings_a_key_and_keeps_what_was_rejected(
    collector: RunningCollector, keys: dict[str, str], tmp_path: Path
) -> None:
    key_file, rejected = tmp_path / "key", tmp_path / "rejected.jsonl"
    key_file.write_text(keys["shop"] + "\n")
    run = [sys.executable, "-m", "collector", "--config", str(collector.config), "send"]
    run += ["--key-file", str(key_file), "--rejected", str(rejected)]
    events = b'{"eventName": "ShopSent", "payload": {}}\n{"eventName":\n"Other6", "payload": {}}\n'

    sent = subprocess.run(run, input=events, capture_output=True, check=False)
    without = subprocess.run([*run[:6]], input=events, capture_output=True, check=False)

    assert (sent.returncode, sent.stdout) == (1, b"1 events accepted, 1 rejected\n")
    assert sent.stderr == b"event 2: the API key may not send events of this name\n"
    assert rejected.read_bytes() == b'{"eventName": "Other6", "payload": {}}\n'
    assert (without.returncode, without.stderr.startswith(b"401: an API key is needed")) == (1, True)


@pytest.mark.parametrize("framing", [b"Content-Length: 2000000", b"Transfer-Encoding: chunked"])
def test_a_body_is_not_read_for_who_may_not_send_it(
    collector: RunningCollector, keys: dict[str, str], framing: bytes
) -> None:
    def ask(*headers: bytes) -> Reply:
        head = [b"POST " + EVENT.encode() + b" HTTP/1.1", b"Host: a", b"Content-Type: application/json", framing]
        with Client(collector.port) as client:
            return client.ask(b"\r\n".join([*head, *headers, b"", b""]))  # and not a byte of the body

    assert ask().status == 401
    assert ask(b"Expect: 100-continue").status == 401
    assert ask(b"X-API-Key: " + keys["admin"].encode()).status == 403
    assert ask(b"Expect: 100-continue", b"X-API-Key: " + keys["all"].encode()).status == 100


def test_a_client_that_sends_its_body_all_the_same_reads_the_answer(collector: RunningCollector) -> None:
    with Client(collector.port) as client:
        with contextlib.suppress(OSError):
            client.send(f"POST {EVENT} HTTP/1.1\r\nHost: a\r\nContent-Length: 60000\r\n\r\n".encode() + bytes(60_000))
        assert client.reply().status == 401
        assert client.is_closed()


def test_no_key_is_ever_written_anywhere(collector: RunningCollector, keys: dict[str, str]) -> None:
    collector.get(f"/1?v=Query,&key={keys['all']}", {"Referer": f"http://a/?k={keys['all']}"})
    collector.request("POST", EVENT, b"[nonsense", {"X-API-Key": keys["all"], "Content-Type": "application/json"})
    wait_until(lambda: collector.log.read_text().count("/1 ") > 0, what="the access log")

    log = collector.log.read_text()
    listed = command(collector, "ls")
    for key in keys.values():
        assert key[12:] not in log + listed + (collector.base / "keys.toml").read_text()
        assert key[3:11] in listed


def test_a_revoked_key_is_refused_without_a_restart(collector: RunningCollector, keys: dict[str, str]) -> None:
    key = command(collector, "add")
    headers = {"X-API-Key": key, "Content-Type": "application/json"}

    wait_until(lambda: collector.request("POST", EVENT, body("Mine"), headers)[0] == 202, 5, "the key is known")
    command(collector, "revoke", key)

    refused = 0

    def all_refuse() -> bool:
        nonlocal refused
        refused = refused + 1 if collector.request("POST", EVENT, body("Mine"), headers)[0] == 401 else 0
        return refused >= 20

    wait_until(all_refuse, 15, "both workers refuse it")


def test_beacons_can_be_let_in_without_a_key(tmp_path: Path) -> None:
    auth = {"keys_file": str(tmp_path / "keys.toml"), "post_requires_key": True, "beacon_requires_key": False}
    with RunningCollector(tmp_path, auth=auth) as running:
        assert running.post(body("Beacon"), "text/plain", "/rest/1.0/beacon")[0] == 202
        status, headers, _ = running.post(body("Event"))
        assert status == 503  # there is no file of keys yet: a client must not drop its events for that
        assert headers["Retry-After"]
        assert api_keys(running)[0] == "ERROR"
        key = command(running, "add")
        with_key = {"Content-Type": "application/json", "X-API-Key": key}
        wait_until(lambda: running.request("POST", EVENT, body("Event"), with_key)[0] == 202, 5, "the file is noticed")
        (tmp_path / "keys.toml").write_text("[[[")
        wait_until(lambda: api_keys(running)[0] == "WARN", 5, "the health report says that it is broken")
        assert running.request("POST", EVENT, body("Event"), with_key)[0] == 202
