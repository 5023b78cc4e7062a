"""Events as lines: a table of texts, and what a real server gives back of any event."""

import json
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from formats.event import Event, Granularity, PayloadKind
from forwarders.line_mapping import EventMapping
from forwarders.line_protocol import FLATTEN_DEPTH, LineShaper, offset_ns
from forwarders.line_text import STRING_MAX_BYTES, Unwritable, array_text
from forwarders.tag_guard import TagGuard
from tests.services.influx import Influx

TIME_MS = 1_795_342_500_000
ID = "7f3a0000000000000000000000000001-40-0"


def event(name: str = "Order", *, time_ms: int = TIME_MS, source: str = "json", id: str = ID) -> Event:
    return Event(name, time_ms, Granularity.HOURLY, PayloadKind.JSON, b"{}", source, TIME_MS, id)


def shaper_of(
    measurement: str, mappings: dict[str, EventMapping] | None = None, *, limit: int = 0, refuses: bool = False
) -> LineShaper:
    return LineShaper(measurement, mappings or {}, TagGuard("influxdb", limit, refuses=refuses))


def shaped(payload: dict[str, Any], mapping: EventMapping | None = None, name: str = "Order") -> str:
    """Series and fields of an event, without ``count=1`` and the time."""
    shaper = shaper_of("events", {name: mapping} if mapping else {})
    once, twice = (shaper.line(event(name), payload) for _ in range(2))
    assert once == twice, "what is remembered about keys must not change the line"
    line, _, _ = once.rpartition(" ")
    assert line.endswith("count=1")
    return line.removesuffix("count=1").rstrip(", ")


PAYLOADS: list[tuple[dict[str, Any], str]] = [
    ({}, ""),
    ({"amount": 12.5, "items": 3, "big": 2**53 + 1}, "amount=12.5,items=3,big=9007199254740993"),
    ({"negative": -0.0, "tiny": 5e-324, "huge": 1e308}, "negative=-0.0,tiny=5e-324,huge=1e+308"),
    ({"yes": True, "no": False, "nothing": None, "empty": ""}, 'yes=true,no=false,empty=""'),
    ({"text": 'a "b" \\ c, d=e\nf'}, 'text="a \\"b\\" \\\\ c, d=e\nf"'),
    ({"ends": "\\"}, 'ends="\\\\"'),
    ({"a b,c=d": 1}, "a\\ b\\,c\\=d=1"),
    ({'a"b\\c\nd': 1}, "a_b_c_d=1"),
    ({"": 1, "_": 2, "_id": 3}, "x=1,x_=2,x_id=3"),
    ({"time": 1, "count": 2, "event": 3, "source": 4}, "time_=1,count_=2,event_=3,source_=4"),
    ({"time": 1, "time_": 2}, "time_=1,time__=2"),
    ({"time_": 1, "time": 2}, "time_=1,time__=2"),
    ({"a": {"b": 1, "c": {"d": True}}}, "a_b=1,a_c_d=true"),
    ({"a_b": 1, "a": {"b": 2}}, "a_b=1,a_b_=2"),
    ({"a": {}}, ""),
    ({"list": [1, "é", None, {"k": b"\x00\xff"}]}, 'list="[1,\\"é\\",null,{\\"k\\":\\"AP8=\\"}]"'),
    ({"bytes": b"\x00\xff"}, 'bytes="AP8="'),
    ({"at": datetime(2026, 11, 22, 10, 15, tzinfo=UTC)}, 'at="2026-11-22T10:15:00Z"'),
    ({"list": [datetime(2026, 11, 22, 10, 15, tzinfo=UTC)]}, 'list="[\\"2026-11-22T10:15:00Z\\"]"'),
    ({"half": "\ud800"}, 'half="\ud800"'),
    ({"too_big": 10**400, "inf": float("inf")}, f'too_big_str="{10**400}",inf_str="inf"'),
    ({"n": 10**30}, "n=1e+30"),
    ({"1": "x", "2": True}, '1="x",2=true'),
]


@pytest.mark.parametrize(("payload", "fields"), PAYLOADS, ids=[str(list(payload))[:40] for payload, _ in PAYLOADS])
def test_a_payload_becomes_these_fields(payload: dict[str, Any], fields: str) -> None:
    assert shaped(payload) == f"events,event=Order,source=json {fields}".rstrip()


def test_objects_below_the_last_level_are_json_text() -> None:
    payload: dict[str, Any] = {"leaf": 1}
    for level in "dcba":
        payload = {level: payload}

    assert FLATTEN_DEPTH == 4
    assert shaped(payload).endswith(' a_b_c_d="{\\"leaf\\":1}"')


def test_texts_are_cut_at_64_kib_between_characters() -> None:
    fields = shaped({"text": "é" * STRING_MAX_BYTES, "more": "x" * STRING_MAX_BYTES}).partition(" ")[2]
    text, more = (field.partition("=")[2].strip('"') for field in fields.split(","))

    assert text == "é" * (STRING_MAX_BYTES // 2)
    assert more == "x" * STRING_MAX_BYTES
    assert len(shaped({"text": "x" + "é" * STRING_MAX_BYTES}).partition('="')[2].encode()) == STRING_MAX_BYTES


@pytest.mark.parametrize(
    ("mapping", "expected"),
    [
        (EventMapping(measurement="orders"), 'orders,event=Order,source=json page="/a b",amount=5,user_id="u"'),
        (EventMapping(measurement="m {event}"), 'm\\ Order,event=Order,source=json page="/a b",amount=5,user_id="u"'),
        (EventMapping(tags=["page"]), 'events,event=Order,page=/a\\ b,source=json amount=5,user_id="u"'),
        (EventMapping(tags=["user_id", "absent"]), 'events,event=Order,source=json,user_id=u page="/a b",amount=5'),
        (EventMapping(fields=["amount"]), "events,event=Order,source=json amount=5"),
        (EventMapping(drop=["user_id", "page"]), "events,event=Order,source=json amount=5"),
        (EventMapping(fields=["amount", "page"], drop=["page"]), "events,event=Order,source=json amount=5"),
        (
            EventMapping(tags=["page"], fields=["amount"], rename={"page": "path", "amount": "eur"}),
            "events,event=Order,path=/a\\ b,source=json eur=5",
        ),
        (
            EventMapping(rename={"page": "amount"}),
            'events,event=Order,source=json amount="/a b",amount_=5,user_id="u"',
        ),
        (
            EventMapping(tags=["page"], rename={"page": "event", "amount": "event_"}),
            'events,event=Order,event_=/a\\ b,source=json event__=5,user_id="u"',
        ),
    ],
)
def test_a_mapping_says_what_becomes_of_the_keys(mapping: EventMapping, expected: str) -> None:
    assert shaped({"page": "/a b", "amount": 5, "user": {"id": "u"}}, mapping) == expected


@pytest.mark.parametrize(
    ("name", "series"),
    [
        ("a b,c=d", "events,event=a\\ b\\,c\\=d,source=json"),
        ("#x", "events,event=#x,source=json"),
        ("ends\\", "events,event=ends\\_,source=json"),
        ('"', 'events,event=",source=json'),
        ("名", "events,event=名,source=json"),
    ],
)
def test_a_name_is_a_tag(name: str, series: str) -> None:
    assert shaped({}, name=name) == series


@pytest.mark.parametrize(
    ("measurement", "escaped"),
    [("{event}", "x#a=b"), ("_system", "x_system"), ("", "x"), ("a\\ b", "a_\\ b"), ("a,b", "a\\,b")],
)
def test_a_measurement_is_never_a_comment_or_the_servers_own(measurement: str, escaped: str) -> None:
    assert shaper_of(measurement).line(event("#a=b"), {}).startswith(f"{escaped},event=#a\\=b,")


def test_the_time_is_the_events_with_an_offset_that_is_its_own() -> None:
    line = shaper_of("events").line(event(), {})

    assert line.endswith(f" {TIME_MS * 10**6 + offset_ns(ID)}")
    assert 0 <= offset_ns(ID) < 10**6


def test_events_of_one_request_never_have_the_same_time() -> None:
    record = f"{uuid.uuid4().hex}-1a40"

    assert len({offset_ns(f"{record}-{index:x}") for index in range(100_000)}) == 100_000


def test_any_text_is_an_id() -> None:
    for text in ("", "-", "x", "a-b-nothex", "é-\ud7ff"):
        assert 0 <= offset_ns(text) < 10**6


@pytest.mark.parametrize("time_ms", [-62_135_596_800_000, 253_402_300_799_999, -9_223_372_036_856, 9_223_372_036_855])
def test_times_that_64_bits_of_ns_do_not_hold_are_unwritable(time_ms: int) -> None:
    with pytest.raises(Unwritable, match="1677 to 2262"):
        shaper_of("events").line(event(time_ms=time_ms), {})


def test_tags_that_are_too_long_together_are_unwritable() -> None:
    with pytest.raises(Unwritable, match="65535"):
        shaped({"page": "x" * 70_000}, EventMapping(tags=["page"]))


def test_hostile_keys_do_not_pile_up() -> None:
    shaper = shaper_of("events")
    for number in range(25_000):
        shaper.line(event(f"name{number}"), {f"key{number}": 1, f"_{number}": 2})

    plan = shaper._plain
    assert max(len(plan._series), len(plan._kept), len(plan._changed)) <= 10_000


# What a server gives back

Write = Callable[[list[str]], tuple[str, int, str]]


@pytest.fixture
def write(influx: Influx) -> Write:
    """Write lines to a bucket of their own: its name, the status and what the server says."""

    def write(lines: list[str]) -> tuple[str, int, str]:
        bucket = influx.create("lines")
        url = f"{influx.server_url}/write?db={bucket}&precision=n"
        request = urllib.request.Request(url, "\n".join(lines).encode(), method="POST")
        try:
            with urllib.request.urlopen(request, timeout=20) as reply:
                return bucket, reply.status, ""
        except urllib.error.HTTPError as exc:
            return bucket, exc.code, exc.read().decode()

    return write


plain_text = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=12)
awkward_text = st.text(st.sampled_from("ab,= \"\\#é'_{}名"), min_size=1, max_size=8)
any_text = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=12)
keys = (plain_text | awkward_text).filter(lambda key: key and key[0] != "_" and not set(key) & set('"\\'))
scalars = (
    any_text
    | awkward_text
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
)
names = (plain_text | awkward_text).filter(lambda name: name and not name.endswith("\\"))


# Tags with too many values


@given(
    st.lists(st.text() | st.text(st.characters(categories=["Cs", "Cc"])) | st.integers() | st.booleans() | st.floats())
)
def test_an_array_is_the_json_that_pythons_own_encoder_writes(values: list[Any]) -> None:
    assert array_text(values) == json.dumps(values, ensure_ascii=False, separators=(",", ":"))


def lines_of(shaper: LineShaper, *events: tuple[str, dict[str, Any]]) -> list[str]:
    return [shaper.line(event(name), payload).rpartition(" ")[0].removesuffix(",count=1") for name, payload in events]


def test_beyond_the_limit_a_tags_values_are_a_field(caplog: pytest.LogCaptureFixture) -> None:
    shaper = shaper_of("events", {"Order": EventMapping(tags=["shop"]), "Visit": EventMapping(tags=["shop"])}, limit=2)
    payloads = [{"shop": each} for each in ("a", "b", "c d", "a", "c d")]

    lines = lines_of(shaper, *[("Order", each) for each in payloads], ("Visit", {"shop": "e"}))

    assert lines == [
        "events,event=Order,shop=a,source=json count=1",
        "events,event=Order,shop=b,source=json count=1",
        'events,event=Order,source=json shop_untagged="c d"',
        "events,event=Order,shop=a,source=json count=1",
        'events,event=Order,source=json shop_untagged="c d"',
        "events,event=Visit,shop=e,source=json count=1",
    ]
    (record,) = caplog.records
    assert record.__dict__.items() >= {"events": "Order", "tag": "shop", "limit": 2}.items()
    assert "c d" not in str(record.__dict__), "what events hold is not for the log"


def test_beyond_the_limit_names_of_events_are_other_and_a_field_and_mapped_ones_are_not_counted() -> None:
    shaper = shaper_of("{event}", {"Order": EventMapping()}, limit=2)
    names = ("Order", "a", "b", "c", "c", "a", "Order")

    assert lines_of(shaper, *[(name, {"event_untagged": 1}) for name in names])[2:5] == [
        "b,event=b,source=json event_untagged_=1",
        'other,source=json event_untagged_=1,event_untagged="c"',
        'other,source=json event_untagged_=1,event_untagged="c"',
    ]
    assert lines_of(shaper, ("a", {}), ("Order", {})) == [
        "a,event=a,source=json count=1", "Order,event=Order,source=json count=1",
    ]  # fmt: skip


def test_events_beyond_the_limit_can_be_refused() -> None:
    shaper = shaper_of("events", {"Order": EventMapping(tags=["shop"])}, limit=1, refuses=True)

    assert shaper.line(event(), {"shop": "a"})
    with pytest.raises(Unwritable, match="the tag shop has 1 values already"):
        shaper.line(event(), {"shop": "b"})
    assert shaper.line(event(), {"shop": "a"})


# Integers


def test_integers_are_what_the_mapping_calls_so() -> None:
    mapping = EventMapping(integers=["n", "m"], rename={"m": "k"})

    assert (
        shaped({"n": 2**63 - 1, "m": 5.0, "o": 5}, mapping)
        == "events,event=Order,source=json n=9223372036854775807i,k=5i,o=5"
    )
    assert shaped({"n": None}, mapping) == "events,event=Order,source=json"
    for wrong in (1.5, "1", True, 2**63, [1]):
        with pytest.raises(Unwritable, match="an integer is none"):
            shaped({"n": wrong}, mapping)


@pytest.mark.server
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(names, st.dictionaries(keys, scalars, max_size=5)), min_size=1, max_size=40))
def test_a_server_gives_back_what_was_sent(
    influx: Influx, write: Write, sent: list[tuple[str, dict[str, Any]]]
) -> None:
    """Names and values come back the same, one point an event. Numbered keys: a column has one type in a query."""
    payloads = [{f"{key}{n}": value for key, value in payload.items()} for n, (_, payload) in enumerate(sent)]
    events = [event(name, id=f"7f3a-40-{n:x}") for n, (name, _) in enumerate(sent)]
    shaper = shaper_of("events")
    bucket, status, said = write([shaper.line(*each) for each in zip(events, payloads, strict=True)])

    assert (status, said) == (204, "")
    rows = {row["time"]: row for row in influx.query('SELECT * FROM "events" GROUP BY "event", "source"', bucket)}
    assert len(rows) == len(events)
    for each, payload in zip(events, payloads, strict=True):
        row = rows[each.time_ms * 10**6 + offset_ns(each.id)]
        assert (row["event"], row["source"], row["count"]) == (each.name, "json", 1)
        back = {key: float(row[key]) if type(row[key]) is int else row[key] for key in payload}
        assert back == payload


@pytest.mark.server
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            (any_text | awkward_text).filter(bool),
            st.dictionaries(any_text | awkward_text, scalars | st.integers() | st.lists(any_text, max_size=2)),
        ),
        min_size=1,
        max_size=40,
    )
)
def test_a_server_takes_every_event(influx: Influx, write: Write, sent: list[tuple[str, dict[str, Any]]]) -> None:
    """Whatever is in its measurement, its keys and its tags, it is one point, and its neighbours are others."""
    lines = []
    for n, (name, payload) in enumerate(sent):
        measurement = f"{{event}} {n}" if n % 2 else f"{n} {{event}}"  # of its own: keys have a type for each
        shaper = shaper_of(measurement, {name: EventMapping(tags=list(payload)[:2])})
        lines.append(shaper.line(event(name, id=f"7f3a-40-{n:x}"), payload))
    bucket, status, said = write([*lines, "last n=1 1"])

    assert (status, said) == (204, "")
    counted = influx.query("SELECT count(count) FROM /.*/", bucket)
    assert sum(row["count"] for row in counted) == len(sent)
    assert influx.query("SELECT n FROM last", bucket) == [{"time": 1, "n": 1}]
