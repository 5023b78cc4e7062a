"""What must not be kept never reaches the disk, at no door; everything else does, as it was sent."""

import base64
import gzip
import hashlib
import hmac
import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgpack
import pytest

from collector.app import CollectorApp, create_app
from collector.metrics import read_all
from collector.privacy import truncated_address
from collector.settings import SettingsError, load
from formats.event import Event
from formats.pixel import Sender
from formats.scribe_message import decode_log
from tests.formats.smile_encoder import smile
from tests.services.collector import stored_events, to_toml

KEY = b"0123456789abcdef0123456789abcdef"
SECRET = "anna.secret@example.org"
HASH = hmac.new(KEY, SECRET.encode(), hashlib.sha256).hexdigest()
NOON_MS = 1_230_897_600_000
SENT_MS = NOON_MS + 1_234_567
HOUR_MS = 3_600_000
OPTED_OUT = ({"HTTP_DNT": "1"}, {"HTTP_SEC_GPC": "1"})


@contextmanager
def collector(base: Path, **tables: dict[str, Any]) -> Iterator[Callable[..., Any]]:
    """Gives a function that sends one request to an application with these tables, and returns its status."""
    key_file = base / "hmac.key"
    key_file.write_bytes(KEY + b"\n")
    key_file.chmod(0o600)
    for table in tables.values():
        table |= {"hmac_key_file": str(key_file)} if table.get("hmac") else {}
    settings = {"spool": {"path": str(base / "spool"), "min_free_bytes": 0}} | {
        name.replace("__", "."): table for name, table in tables.items()
    }
    (base / "collector.toml").write_text(to_toml(settings))
    app = create_app(load(base / "collector.toml", {}))
    try:
        yield lambda *request, **headers: ask(app, *request, **headers)
    finally:
        app.close()


def ask(
    app: CollectorApp, path: str, body: bytes = b"", content_type: str = "", *,
    peer: str = "192.0.2.77", whole: bool = False, **headers: str,
) -> Any:  # fmt: skip
    """The status of the reply; or, ``whole``, with its headers and body. The path ``scribe`` is that listener's way."""
    if path == "scribe":
        return (
            "202"
            if app._intake.accept_parts("scribe", decode_log(body, 0, 1), Sender(1, client_ip=peer)).taken
            else "400"
        )
    path, _, query = path.partition("?")
    environ = {
        "REQUEST_METHOD": "POST" if content_type else "GET", "PATH_INFO": path, "QUERY_STRING": query,
        "CONTENT_TYPE": content_type, "CONTENT_LENGTH": str(len(body)), "SERVER_NAME": "x", "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1", "REMOTE_ADDR": peer, "wsgi.input": io.BytesIO(body),
        "wsgi.errors": io.StringIO(), "wsgi.url_scheme": "http", "SCRIPT_NAME": "", **headers,
    }  # fmt: skip
    replies: list[tuple[str, Any]] = []
    text = b"".join(app(environ, lambda status, headers, exc_info=None: replies.append((status, headers))))
    [(status, answered)] = replies
    return (status[:3], {name.lower(): value for name, value in answered}, text) if whole else status[:3]


def stored(base: Path) -> list[Event]:
    return stored_events(base / "spool")


def bytes_on_disk(base: Path) -> bytes:
    return b"".join(path.read_bytes() for path in (base / "spool").rglob("*") if path.is_file())


def thrift(*texts: str) -> bytes:
    fields = [b"\x0b" + number.to_bytes(2, "big") + len(text).to_bytes(4, "big") + text.encode()
              for number, text in enumerate(texts, 1)]  # fmt: skip
    return b"".join(fields) + b"\x00"


def log_call(category: str, *messages: bytes) -> bytes:
    """The arguments of Scribe's ``Log``."""
    entries = [
        b"".join(b"\x0b\x00" + bytes([n]) + len(text).to_bytes(4, "big") + text for n, text in enumerate(texts, 1))
        for texts in ((category.encode(), message) for message in messages)
    ]
    return b"\x0f\x00\x01\x0c" + len(entries).to_bytes(4, "big") + b"".join(e + b"\0" for e in entries) + b"\0"


PAYLOAD = {"email": SECRET, "user": {"email": SECRET, "age": 42}, "page": "/shop"}
EVENT = {"eventName": "View", "payload": PAYLOAD}
JSON = json.dumps(EVENT).encode()
DOORS = [
    pytest.param("/1?v=View,sx,s" + SECRET, b"", "", id="pixel"),
    pytest.param("/2?v=View,sx,s" + SECRET, b"", "", id="base64-pixel"),
    pytest.param("/rest/1.0/event", JSON, "application/json", id="json"),
    pytest.param("/rest/1.0/event", JSON.replace(b"email", rb"\u0065mail"), "application/json", id="escapes"),
    pytest.param("/rest/1.0/event", JSON.decode().encode("utf-16"), "application/json", id="utf-16"),
    pytest.param("/rest/1.0/beacon", JSON, "text/plain", id="beacon"),
    pytest.param("/rest/1.0/event", msgpack.packb(EVENT), "application/msgpack", id="msgpack"),
    pytest.param("/rest/1.0/event", smile(EVENT), "application/json+smile", id="smile"),
    pytest.param("/rest/1.0/event?name=View", thrift("x", SECRET), "application/thrift", id="thrift"),
    pytest.param("scribe", log_call("View", json.dumps(PAYLOAD).encode()), "", id="scribe"),
    pytest.param("scribe", log_call("View", base64.b64encode(thrift("x", SECRET))), "", id="scribe-thrift"),
]


@pytest.mark.parametrize(("path", "body", "content_type"), DOORS)
@pytest.mark.parametrize("how", ["drop", "hmac"])
def test_what_is_dropped_or_hashed_reaches_the_disk_at_no_door(
    tmp_path: Path, how: str, path: str, body: bytes, content_type: str
) -> None:
    privacy = {how: ["email", "user.email"]}
    with collector(tmp_path, privacy=privacy, events__View={"fields": ["page", "email"]}) as send:
        assert send(path, body, content_type) == "202"
        (event,) = stored(tmp_path)

    on_disk = bytes_on_disk(tmp_path)
    assert SECRET.encode() not in on_disk
    assert (HASH.encode() in on_disk) is (how == "hmac")
    if isinstance(event.payload, list):
        assert event.payload == [(1, "string", "x"), (2, "string", HASH)][: 1 if how == "drop" else 2]
        return
    kept = msgpack.unpackb(event.payload) if content_type == "application/msgpack" else json.loads(event.payload)
    hashed = {"email": HASH} if how == "hmac" else {}
    assert kept == {**hashed, "user": {**hashed, "age": 42}, "page": "/shop"}


def test_without_a_rule_for_its_name_a_payload_stays_byte_for_byte(tmp_path: Path) -> None:
    with collector(tmp_path, events__Other={"fields": []}, events__Other__privacy={"drop": ["email"]}) as send:
        for body in (
            b'{"eventName":"View","payload": {"email" : 1.0e0 }}',
            b'{"eventName":"Other","payload":{"x": 1 }}',
        ):
            assert send("/rest/1.0/event", body, "application/json") == "202"

        assert [event.payload for event in stored(tmp_path)] == [b'{"email" : 1.0e0 }', b'{"x": 1 }']


def test_a_key_of_an_events_own_table_counts_in_place_of_the_one_for_all(tmp_path: Path) -> None:
    own = {"drop": ["b"]}
    with collector(tmp_path, privacy={"drop": ["a"], "hmac": ["c"]}, events__View__privacy=own) as send:
        for name in ("View", "Other"):
            body = json.dumps({"eventName": name, "payload": {"a": 1, "b": 2, "c": SECRET}}).encode()
            send("/rest/1.0/event", body, "application/json")

        view, other = (json.loads(event.payload) for event in stored(tmp_path))
    assert (view, other) == ({"a": 1, "c": HASH}, {"b": 2, "c": HASH})


def test_a_variable_wins_over_a_table_of_one_event(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(
        '[privacy]\ndrop = ["a"]\n[events.View.privacy]\ndrop = ["b"]\ncoarsen_time_ms = 7'
    )
    variables = {"View__PRIVACY__DROP": '["c"]', "O__PRIVACY__COARSEN_TIME_MS": "9"}
    settings = load(tmp_path / "c.toml", {f"COLLECTOR_EVENTS__{key}": value for key, value in variables.items()})

    view, other = settings.events["View"].privacy, settings.events["O"].privacy
    assert view
    assert other
    assert (view.drop, view.coarsen_time_ms, other.drop, other.coarsen_time_ms) == (["c"], 7, ["a"], 9)


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.77", "192.0.2.0"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1::"),
        ("::1", "::"),
        ("::ffff:192.0.2.77", "192.0.2.0"),
        ("fe80::1%eth0", "fe80::"),
        ("192.0.2.77:443", "192.0.2.0"),
        ("[2001:db8:1:2::3]:443", "2001:db8:1::"),
        ("192.0.2.77, 10.0.0.1", ""),
        ("anna", ""),
        ("", ""),
    ],
)
def test_an_address_is_cut_to_its_network(address: str, network: str) -> None:
    assert truncated_address(address) == network


def test_addresses_are_cut_in_pixels_and_in_named_members(tmp_path: Path) -> None:
    payload = {"ip": "198.51.100.23", "list": [{"ip": "2001:db8:1:2::9"}, {"ip": 7}], "x": "198.51.100.23 kept"}
    with collector(tmp_path, privacy={"truncate_ip": True, "ip_keys": ["ip", "list.ip"]}) as send:
        send("/1?v=View,xip,s192.0.2.77,s192.0.2.7", peer="192.0.2.77")
        body = json.dumps({"eventName": "View", "payload": payload}).encode()
        send("/rest/1.0/event", body, "application/json")

        pixel, posted = stored(tmp_path)
    assert pixel.payload == [(1, "string", "192.0.2.0"), (2, "string", "192.0.2.0"), (3, "string", "192.0.2.7")]
    assert json.loads(posted.payload) == {
        "ip": "198.51.100.0", "list": [{"ip": "2001:db8:1::"}, {"ip": ""}], "x": "198.51.100.23 kept"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("event_date", "kept"),
    [
        (SENT_MS, NOON_MS),
        (str(SENT_MS), str(NOON_MS)),
        ("2009-01-02T13:20:34.567+01:00", "2009-01-02T12:00:00.000Z"),
        (-1, -HOUR_MS),
        (-62_135_596_799_999, -62_135_596_800_000),
    ],
)
def test_times_are_cut_in_the_event_the_payload_and_the_time_of_arrival(
    tmp_path: Path, event_date: Any, kept: Any
) -> None:
    with collector(tmp_path, privacy={"coarsen_time_ms": HOUR_MS}) as send:
        body = json.dumps({"eventName": "View", "payload": {"eventDate": event_date, "n": SENT_MS}}).encode()
        send("/rest/1.0/event", body, "application/json")

        (event,) = stored(tmp_path)
    assert event.time_ms % HOUR_MS == event.received_ms % HOUR_MS == 0
    assert json.loads(event.payload) == {"eventDate": kept, "n": SENT_MS}


def test_the_date_that_a_pixel_annotates_is_cut_too(tmp_path: Path) -> None:
    with collector(tmp_path, privacy={"coarsen_time_ms": HOUR_MS}) as send:
        send(f"/1?v=View,xdate,s{SENT_MS}&date={SENT_MS}")

        (event,) = stored(tmp_path)
    assert event.payload == [(1, "i64", NOON_MS), (2, "string", str(SENT_MS))]


@pytest.mark.parametrize("signal", OPTED_OUT)
@pytest.mark.parametrize(
    ("honour_dnt", "pixel", "posted"),
    [
        ("ignore", [(1, "string", "192.0.2.0"), (2, "string", "Mozilla"), (3, "string", "x")], {"u": HASH, "n": 1}),
        ("anonymise", [(1, "string", ""), (2, "string", ""), (3, "string", "x")], {"n": 1}),
        ("drop", None, None),
    ],
)
def test_who_asks_not_to_be_tracked_gets_what_the_settings_say(
    tmp_path: Path, signal: dict[str, str], honour_dnt: str, pixel: Any, posted: Any
) -> None:
    privacy = {"honour_dnt": honour_dnt, "hmac": ["u"], "truncate_ip": True}
    with collector(tmp_path, privacy=privacy) as send:
        statuses = [
            send("/1?v=View,xip,xua,sx", HTTP_USER_AGENT="Mozilla", **signal),
            send(
                "/rest/1.0/event",
                json.dumps({"eventName": "View", "payload": {"u": SECRET, "n": 1}}).encode(),
                "application/json",
                **signal,
            ),
        ]
        send("/1?v=Other,xip", HTTP_DNT="0")
        *events, other = stored(tmp_path)
        filtered = sum(n for name, n in read_all(tmp_path / "spool/_metrics").http.items() if "/filtered" in name)

    assert statuses == ["202", "202"]
    assert other.payload == [(1, "string", "192.0.2.0")]
    if pixel is None:
        assert (events, filtered) == ([], 2)
    else:
        assert [events[0].payload, json.loads(events[1].payload), filtered] == [pixel, posted, 0]


def test_filters_see_what_is_not_kept(tmp_path: Path) -> None:
    with collector(tmp_path, privacy={"truncate_ip": True}, filters={"ip": [r"^192\.0\.2\.77$"]}) as send:
        assert send("/1?v=View,xip", peer="192.0.2.77") == "202"
        assert send("/1?v=View,xip", peer="192.0.2.78") == "202"

        assert len(stored(tmp_path)) == 1


def test_an_event_that_is_too_large_to_be_looked_through_fails_alone(tmp_path: Path) -> None:
    members = b",".join(b'"%d":1' % i for i in range(70_000))
    huge = b'{"eventName":"View","payload":{"email":1,' + members + b"}}"
    body = gzip.compress(b'[{"eventName":"View","payload":{"n":1}},' + huge + b"]")
    with collector(tmp_path, privacy={"drop": ["email"]}) as send:
        assert send("/rest/1.0/event", body, "application/json", HTTP_CONTENT_ENCODING="gzip") == "202"
        assert send("/rest/1.0/event", huge, "application/json") == "400"

        assert [event.payload for event in stored(tmp_path)] == [b'{"n":1}']


def test_a_large_thrift_body_is_edited_as_a_small_one(tmp_path: Path) -> None:
    """Its fields come packed."""
    fields = thrift(SECRET, "kept", "x" * 300_000, "more")
    head = (10).to_bytes(1, "big") + SENT_MS.to_bytes(8, "big") + (5).to_bytes(4, "big") + b"DAILY"
    text = b"\x0b\0\0\0\0\0\4View"
    frame = head + text + b"\x0b\0\1" + len(fields).to_bytes(4, "big") + fields + b"\0"
    with collector(tmp_path, privacy={"drop": ["1"]}) as send:
        assert send("/rest/1.0/event", frame, "application/thrift") == "202"

        (event,) = stored(tmp_path)
    assert event.payload == [(2, "string", "kept"), (3, "string", "x" * 300_000), (4, "string", "more")]
    assert SECRET.encode() not in bytes_on_disk(tmp_path)


@pytest.mark.parametrize(
    ("table", "text", "error"),
    [
        ("privacy", 'hmac = ["u"]', 'privacy.hmac = ["u"]: needs hmac_key_file'),
        ("privacy", 'ip_keys = ["u"]', 'privacy.ip_keys = ["u"]: needs truncate_ip = true'),
        ("events.V.privacy", 'drop = ["a..b"]', 'drop = "a..b": expected a key, or keys joined by dots'),
        ("events.V.privacy", "colour = 1", "events.V.privacy.colour: no such setting"),
        ("events.V", "privacy = 1", "events.V.privacy = 1: expected a table"),
        ("privacy", 'honour_dnt = "yes"', 'expected "ignore" or "drop" or "anonymise"'),
        ("privacy", 'hmac_key_file = "open.key"', "others can read or write it: chmod 640 "),
        ("privacy", 'hmac_key_file = "short.key"', "holds 5 bytes, expected 16 to 4096"),
        ("privacy", 'hmac_key_file = "none.key"', "cannot be read: No such file or directory"),
        ("events.V.privacy", 'hmac_key_file = "."', "is no file"),
    ],
)
def test_what_is_wrong_is_said_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: str, text: str, error: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, key, mode in (("open.key", KEY, 0o644), ("short.key", b"short\n", 0o600)):
        Path(name).write_bytes(key)
        Path(name).chmod(mode)
    Path("collector.toml").write_text(f"[{table}]\n{text}")

    with pytest.raises(SettingsError) as caught:
        load(Path("collector.toml"), {})
    (said,) = caught.value.errors
    assert error in said
