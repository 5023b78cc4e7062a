"""The MongoDB forwarder against a real server, one that is killed, and one that fails as it is told."""

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pymongo
import pytest
from bson.decimal128 import Decimal128
from contract_suite import Destination, ForwarderContract, ids, make_events, send_until_taken
from pymongo.monitoring import CommandListener

from formats.event import Event, Granularity, PayloadKind
from formats.event_json import EventJson
from forwarders.contract import Refused, Unavailable
from forwarders.mongo_names import collection_name, database_name
from forwarders.mongodb import MongoForwarder, Settings, from_settings, judge
from tests.services.mongo import Mongo
from tests.services.tcp_proxy import TcpProxy

INSTANCE = "5b0c8a6e-0000-4000-8000-000000000000"
TO_JSON = EventJson({"Typed": ["flag", "amount", "label"]})
TIME_MS = 1_795_342_500_000


def make(settings: Settings) -> MongoForwarder:
    return from_settings(settings, name="mongodb", to_json=TO_JSON, instance=INSTANCE)


@contextmanager
def forwarding(settings: Settings) -> Iterator[MongoForwarder]:
    forwarder = make(settings)
    try:
        yield forwarder
    finally:
        forwarder.close()


@pytest.fixture
def database(mongo: Mongo) -> str:
    """The name of a database that no other test has."""
    return f"test{uuid.uuid4().hex[:8]}"


@pytest.fixture(scope="module")
def shared(mongo: Mongo) -> Iterator[tuple[MongoForwarder, str]]:
    """A forwarder with a time limit of a second, and its database: to end one takes half a second."""
    settings = Settings(uri=mongo.uri, database=f"shared{uuid.uuid4().hex[:8]}", timeout_ms=1000)
    with forwarding(settings) as forwarder:
        yield forwarder, settings.database


def json_event(payload: bytes, *, name: str = "Order") -> Event:
    event_id = f"{uuid.uuid4().hex}-40-0"
    return Event(name, TIME_MS, Granularity.HOURLY, PayloadKind.JSON, payload, "json", TIME_MS, event_id)


def with_payload(event: Event, payload: bytes) -> Event:
    return Event(event.name, event.time_ms, event.granularity, event.kind, payload, "json", TIME_MS, event.id)


def stored(mongo: Mongo, database: str, collection: str = "events") -> list[str]:
    return [found["_id"] for found in mongo.client[database][collection].find({}, {"_id": 1})]


# The contract


class MongoDestination:
    ordered = False
    shows_repeats = False

    def __init__(self, server: Mongo, proxy: TcpProxy, database: str) -> None:
        self._server = server
        self._proxy = proxy
        self._database = database
        server.client[database].create_collection("events", validator={"payload.poison": {"$exists": False}})

    def forwarder(self) -> MongoForwarder:
        # directConnection: else the driver goes where the server says that it is
        uri = f"mongodb://127.0.0.1:{self._proxy.port}/?directConnection=true"
        return make(self.settings(uri))

    def settings(self, uri: str) -> Settings:
        return Settings(uri=uri, database=self._database, timeout_ms=1000)

    def delivered(self) -> list[str]:
        return stored(self._server, self._database)

    def break_down(self) -> None:
        self._proxy.refuse = True
        self._proxy.reset_all()

    def restore(self) -> None:
        self._proxy.refuse = False

    def poison(self) -> Callable[[Event], Event]:
        return lambda event: with_payload(event, b'{"poison":1}')


@pytest.fixture
def destination(mongo: Mongo, database: str, proxy_to: Callable[[int], TcpProxy]) -> Destination:
    return MongoDestination(mongo, proxy_to(mongo.port), database)


@pytest.mark.server
class TestMongodbContract(ForwarderContract):
    pass


class DestinationOfMessages(MongoDestination):
    """Raw messages, in a collection of its own for each name."""

    def __init__(self, server: Mongo, proxy: TcpProxy, database: str) -> None:
        super().__init__(server, proxy, database)
        server.client[database].create_collection(
            "raw.contract", validator={"message": {"$not": {"$regex": '"poison":1'}}}
        )

    def settings(self, uri: str) -> Settings:
        shape: dict[str, Any] = {"document": "message", "collection": "raw.{event}", "indexes": ["created"]}
        return Settings(uri=uri, database=self._database, timeout_ms=2000, **shape)

    def delivered(self) -> list[str]:
        collections = self._server.client[self._database].list_collection_names()
        return [each for name in collections for each in stored(self._server, self._database, name)]


@pytest.mark.server
class TestMongodbMessagesContract(ForwarderContract):
    @pytest.fixture
    def destination(self, mongo: Mongo, database: str, proxy_to: Callable[[int], TcpProxy]) -> Destination:
        return DestinationOfMessages(mongo, proxy_to(mongo.port), database)


# What a server has afterwards


@pytest.mark.server
def test_an_event_is_a_document_that_queries_find(mongo: Mongo, database: str) -> None:
    typed = Event(
        "Typed", TIME_MS, Granularity.DAILY, PayloadKind.FIELDS,
        [(1, "bool", True), (2, "i64", 7), (9, "double", 0.5), (2, "i32", 8)], "get_v1", TIME_MS + 7, "a-40-0",
    )  # fmt: skip
    order = json_event(b'{"user":{"id":"anna"},"amount":1.5,"items":[1,null,true]}')
    with forwarding(Settings(uri=mongo.uri, database=database)) as forwarder:
        forwarder.send([typed, order])

    events = mongo.client[database]["events"]
    assert events.find_one({"_id": "a-40-0"}) == {
        "_id": "a-40-0",
        "eventName": "Typed",
        "eventDate": datetime(2026, 11, 22, 10, 15),
        "eventGranularity": "DAILY",
        "receivedDate": datetime(2026, 11, 22, 10, 15, 0, 7000),
        "source": "get_v1",
        "payload": {"flag": True, "amount": 8, "9": 0.5},
        "types": {"flag": "bool", "amount": "i32", "9": "double"},
    }
    found = events.find_one({"payload.user.id": "anna", "eventDate": {"$gte": datetime(2026, 11, 22, tzinfo=UTC)}})
    assert found is not None
    assert found["_id"] == order.id
    assert found["payload"]["items"] == [1, None, True]
    assert "types" not in found


@pytest.mark.server
def test_integers_beyond_64_bits_stay_exact_and_comparable(mongo: Mongo, shared: tuple[MongoForwarder, str]) -> None:
    forwarder, database = shared
    numbers = [2**63 - 1, -(2**63), 2**63, -(2**64), 10**34 - 1, 10**34]
    payload = b'{"n":[%s],"x":{"y":%d}}' % (b",".join(b"%d" % n for n in numbers), 2**70)
    forwarder.send([json_event(payload)])

    (found,) = mongo.client[database]["events"].find({"payload.x.y": {"$gt": 2**62}})
    assert found["payload"]["n"] == [
        2**63 - 1,
        -(2**63),
        Decimal128("9223372036854775808"),
        Decimal128("-18446744073709551616"),
        Decimal128("9" * 34),
        "1" + "0" * 34,
    ]


@pytest.mark.server
def test_keys_are_stored_as_they_were_sent(mongo: Mongo, shared: tuple[MongoForwarder, str]) -> None:
    forwarder, database = shared
    payload = {"a.b": 1, "$set": {"$inc": 1, ".": 2}, "": 3, "_id": 4, "$oid": 5, "é\n": 6}
    event = json_event(b'{"a.b":1,"$set":{"$inc":1,".":2},"":3,"_id":4,"$oid":5,"\xc3\xa9\\n":6}')
    forwarder.send([event])

    (found,) = mongo.client[database]["events"].find({"_id": event.id})
    assert found["payload"] == payload


@pytest.mark.server
@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b'{"a":{"b\\u0000c":1}}', "NUL"),
        (b'{"t":"%s"}' % (b"x" * (17 << 20)), "bytes, MongoDB takes at most 16777216"),
        (b'{"a":' * 99 + b"1" + b"}" * 99, None),
        (b'{"a":' * 100 + b"1" + b"}" * 100, "deeper than 100 levels"),
        (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "deeper than 100 levels"),
        (b'{"a":"' + b"[" * 200 + b'"}', None),
        (b'{"a":"\\ud800","n":%s}' % (b"9" * 30), "not valid Unicode"),
        (b'{"a\\u0000":%s}' % (b"9" * 30), "NUL"),
    ],
)
def test_an_odd_event_is_stored_or_refused_alone(
    mongo: Mongo, shared: tuple[MongoForwarder, str], payload: bytes, reason: str | None
) -> None:
    forwarder, database = shared
    batch = make_events(5)
    batch[3] = with_payload(batch[3], payload)
    if reason is None:
        forwarder.send(batch)
    else:
        with pytest.raises(Refused, match=reason) as caught:
            forwarder.send(batch)
        assert caught.value.positions == [3]

    missing = set(ids(batch)) - set(stored(mongo, database))
    assert missing == ({batch[3].id} if reason else set())


@pytest.mark.server
def test_dates_at_the_ends_of_the_calendar_are_stored(mongo: Mongo, shared: tuple[MongoForwarder, str]) -> None:
    forwarder, database = shared
    events = [json_event(b"{}", name="Calendar"), json_event(b"{}", name="Calendar")]
    events[0].time_ms, events[1].time_ms = -62_135_596_800_000, 253_402_300_799_999
    forwarder.send(events)

    found = mongo.client[database]["events"].find({"eventName": "Calendar"}, sort=[("eventDate", 1)])
    assert [each["eventDate"].year for each in found] == [1, 9999]


@pytest.mark.server
def test_a_collection_for_each_name_takes_any_name(mongo: Mongo, database: str) -> None:
    names = ["Order", "order", "$cmd", "system.users", ".a..b.", "名" * 85, "a b", "..", "a.b"]
    events = [json_event(b"{}", name=name) for name in names]
    with forwarding(Settings(uri=mongo.uri, database=database, collection="{event}")) as forwarder:
        forwarder.send(events)

    assert [stored(mongo, database, collection_name("{event}", name)) for name in names] == [
        [each] for each in ids(events)
    ]
    assert {"Order", "order", "%24cmd", "system%2Eusers", "%2Ea.%2Eb%2E", "a.b"} <= set(
        mongo.client[database].list_collection_names()
    )


@pytest.mark.server
def test_a_failure_at_one_collection_repeats_no_other(mongo: Mongo, database: str) -> None:
    """However many collections a batch goes to, each attempt gets further."""
    inserts: list[str] = []

    class Listener(CommandListener):
        def started(self, event: pymongo.monitoring.CommandStartedEvent) -> None:
            if event.command_name == "insert":
                inserts.append(event.command["insert"])
                concerns.append(event.command["writeConcern"])

        def succeeded(self, event: pymongo.monitoring.CommandSucceededEvent) -> None:
            if len(inserts) == 2:
                mongo.fail(1, errorCode=189)

        def failed(self, event: pymongo.monitoring.CommandFailedEvent) -> None:
            pass

    concerns: list[dict[str, Any]] = []
    client: pymongo.MongoClient[dict[str, Any]] = pymongo.MongoClient(
        mongo.uri, event_listeners=[Listener()], retryWrites=False, serverMonitoringMode="poll"
    )
    settings = Settings(uri=mongo.uri, database=database, collection="{event}")
    forwarder = MongoForwarder("mongodb", client, settings, TO_JSON)
    batch = [json_event(b'{"a\\u0000":1}' if name == "b" else b"{}", name=name) for name in "abcd"]
    with pytest.raises(Unavailable, match="189"):
        forwarder.send(batch)
    with pytest.raises(Refused, match="NUL") as caught:
        forwarder.send(batch)
    forwarder.close()

    assert caught.value.positions == [1]
    assert inserts == ["a", "c", "d", "d"]
    assert concerns == [{"w": "majority", "j": True}] * 4


@pytest.mark.server
def test_a_uri_cannot_weaken_what_delivered_means(mongo: Mongo, database: str) -> None:
    mongo.client[database].create_collection("events", validator={"payload.poison": {"$exists": False}})
    with forwarding(Settings(uri=f"{mongo.uri}?w=0", database=database)) as forwarder, pytest.raises(Refused):
        forwarder.send([json_event(b'{"poison":1}')])


@pytest.mark.server
def test_old_events_expire_by_when_they_were_received(mongo: Mongo, database: str) -> None:
    """The index is made once, and follows the setting."""
    for days in (30, 30, 7):
        with forwarding(Settings(uri=mongo.uri, database=database, ttl_days=days)) as forwarder:
            forwarder.send(make_events(2))
            forwarder.send(make_events(2))

    _, index = mongo.client[database]["events"].list_indexes()
    assert dict(index["key"]) == {"receivedDate": 1}
    assert index["expireAfterSeconds"] == 7 * 86_400


@pytest.mark.server
def test_indexes_are_made_once_and_what_is_there_stays(
    mongo: Mongo, database: str, caplog: pytest.LogCaptureFixture
) -> None:
    events = mongo.client[database]["events"]
    events.create_index("payload.n", unique=True)
    commands: list[str] = []
    mongo_settings = Settings(
        uri=mongo.uri, database=database, ttl_days=1, indexes=["payload.n", "eventName, -eventDate"]
    )
    for _ in range(2):
        with forwarding(mongo_settings) as forwarder:
            forwarder.send(make_events(2, first=10 * len(commands)))
            forwarder.send(make_events(2, first=10 * len(commands) + 2))
        commands.append("sent")

    assert {index["name"]: dict(index["key"]) for index in events.list_indexes()} == {
        "_id_": {"_id": 1},
        "payload.n_1": {"payload.n": 1},
        "receivedDate_1": {"receivedDate": 1},
        "eventName_1_eventDate_-1": {"eventName": 1, "eventDate": -1},
    }
    assert events.count_documents({}) == 8
    said = [record for record in caplog.records if "differs" in record.message]
    assert [(each.collection, each.index) for each in said] == [(f"{database}.events", "payload.n")] * 2  # type: ignore[attr-defined]


@pytest.mark.server
def test_a_database_and_a_collection_for_each_name(mongo: Mongo, database: str) -> None:
    names = ["Order", "order", "admin", "a.b"]
    events = [json_event(b"{}", name=name) for name in names]
    prefix = database[-6:]
    settings = Settings(uri=mongo.uri, database=prefix + "{event}", collection="of.{event}", indexes=["payload.n"])
    with forwarding(settings) as forwarder:
        forwarder.send(events)
        forwarder.send(events)

    databases = [f"{prefix}%4Frder", f"{prefix}order", f"{prefix}admin", f"{prefix}a%2Eb"]
    assert [stored(mongo, each, f"of.{name}") for each, name in zip(databases, names, strict=True)] == [
        [each] for each in ids(events)
    ]


@pytest.mark.server
def test_raw_messages_are_stored_as_clowders_debug_worker_does(mongo: Mongo, database: str) -> None:
    """The message of an event as JSON, or what Clowder itself publishes: the payload as it was sent."""
    clowder = b'{"category": "view_resource", "type": "dataset", "created": 1614791187000}'
    event = json_event(clowder)
    odd = json_event(b'{"a.b": {"$set": 1.50, "\\u0000": 99999999999999999999}}')
    typed = Event("Typed", TIME_MS, Granularity.DAILY, PayloadKind.FIELDS, [(1, "bool", True)], "get_v1", 7, "t-40-0")
    place = {"database": database, "collection": "eventsink.messages"}
    with forwarding(Settings(uri=mongo.uri, document="payload", **place)) as forwarder:
        forwarder.send([event, odd, typed])
    with forwarding(Settings(uri=mongo.uri, document="message", database=database)) as forwarder:
        forwarder.send([typed])

    messages = mongo.client[database]["eventsink.messages"]
    assert list(messages.find({})) == [
        {"_id": event.id, "created": TIME_MS, "message": clowder.decode()},
        {"_id": odd.id, "created": TIME_MS, "message": '{"a.b": {"$set": 1.50, "\\u0000": 99999999999999999999}}'},
        {"_id": "t-40-0", "created": 7, "message": '{"flag":true}'},
    ]
    assert [each["message"] for each in mongo.client[database]["events"].find({})] == [TO_JSON.line(typed).decode()]


# What a server refuses


@pytest.mark.server
def test_the_reason_for_a_refusal_holds_nothing_of_the_event(mongo: Mongo, database: str) -> None:
    """Another event's value in a unique index is a refusal; its own, sent before, is not."""
    mongo.client[database]["events"].create_index("payload.user", unique=True)
    first, second = json_event(b'{"user":"anna"}'), json_event(b'{"user":"anna"}')
    with forwarding(Settings(uri=mongo.uri, database=database)) as forwarder:
        forwarder.send([first])
        with pytest.raises(Refused, match="11000 E11000 duplicate key error") as caught:
            forwarder.send([first, second])

    assert caught.value.positions == [1]
    assert "anna" not in caught.value.reason
    assert caught.value.__cause__ is caught.value.__context__ is None
    assert stored(mongo, database) == [first.id]


@pytest.mark.parametrize(
    ("error", "refused"),
    [
        ({"code": 11000, "keyPattern": {"_id": 1}, "errmsg": "E11000 …"}, False),
        ({"code": 11000, "keyPattern": {"user": 1}, "errmsg": "E11000 … index: _id_ "}, True),
        ({"code": 11000, "keyPattern": {"_id": 1, "user": 1}, "errmsg": "E11000 …"}, True),
        ({"code": 11000, "errmsg": 'E11000 … collection: d.c index: _id_ dup key: { : "a" }'}, False),
        ({"code": 11000, "errmsg": 'E11000 … index: d.c.$_id_ dup key: { : "a" }'}, False),
        ({"code": 11000, "errmsg": 'E11000 … index: user_1 dup key: { : " index: _id_ " }'}, True),
        ({"code": 121, "errmsg": "Document failed validation"}, True),
    ],
)
def test_only_a_duplicate_of_the_id_is_there_already(error: dict[str, Any], refused: bool) -> None:
    """Servers before 4.4 have no keyPattern."""
    assert list(judge({"writeErrors": [{"index": 3, **error}]})) == ([3] if refused else [])


@pytest.mark.parametrize("code", [14031, 112, 16500, 11602])
def test_an_error_about_the_server_refuses_no_document(code: int) -> None:
    validation = {"index": 0, "code": 121, "errmsg": "Document failed validation"}
    with pytest.raises(Unavailable, match=f"{code} no"):
        judge({"writeErrors": [validation, {"index": 1, "code": code, "errmsg": "no\nspace"}]})


# Servers that fail


@pytest.mark.server
def test_what_was_acknowledged_survives_a_server_that_is_killed(mongo: Mongo, database: str) -> None:
    """Small batches: of large ones SecantusDB loses none even when it is told not to sync."""
    origin = uuid.uuid4()
    batches = [make_events(20, first=20 * n, origin=origin) for n in range(2000)]
    with forwarding(Settings(uri=mongo.uri, database=database, timeout_ms=1000)) as forwarder:
        forwarder.send(batches[0])
        killer = threading.Timer(1, mongo.kill)
        killer.start()
        taken = 1 + _send_until_unavailable(forwarder, batches[1:])
        killer.join()
        with pytest.raises(Unavailable, match="Connection refused"):
            forwarder.send(batches[taken])
        mongo.start()
        kept = set(stored(mongo, database))
        send_until_taken(forwarder, batches[taken])

    assert kept >= {event.id for batch in batches[:taken] for event in batch}
    found = stored(mongo, database)
    assert sorted(found) == sorted(event.id for batch in batches[: taken + 1] for event in batch)


@pytest.mark.server
@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        ({"closeConnection": True}, "connection closed"),
        ({"errorCode": 10107}, "10107 "),
        ({"errorCode": 91}, "91 "),
        ({"errorCode": 13}, "13 "),
        ({"errorCode": 8000}, "8000 "),
        ({"writeConcernError": {"code": 64, "errmsg": "too slow"}}, "write concern not met: 64"),
        ({"writeConcernError": {"code": 91, "errmsg": "shutdown"}}, "write concern not met: 91"),
        ({"blockConnection": True, "blockTimeMS": 1500}, "timed out"),
    ],
)  # fmt: skip
def test_a_failure_of_the_insert_is_unavailable_at_once_and_gone_when_it_is_over(
    mongo: Mongo, shared: tuple[MongoForwarder, str], failure: dict[str, Any], reason: str
) -> None:
    forwarder, database = shared
    events = make_events(20)
    forwarder.send(make_events(1))
    mongo.fail(1, **failure)
    started = time.monotonic()
    with pytest.raises(Unavailable, match=reason) as caught:
        forwarder.send(events)
    send_until_taken(forwarder, events)

    assert time.monotonic() - started < 3
    assert "\n" not in caught.value.reason
    assert set(ids(events)) <= set(stored(mongo, database))


@pytest.mark.server
def test_a_network_that_swallows_everything_is_unavailable_and_recovers(
    mongo: Mongo, database: str, proxy_to: Callable[[int], TcpProxy]
) -> None:
    proxy = proxy_to(mongo.port)
    uri = f"mongodb://127.0.0.1:{proxy.port}/?directConnection=true"
    with forwarding(Settings(uri=uri, database=database, timeout_ms=1000)) as forwarder:
        forwarder.send(make_events(1))
        proxy.blackhole = True
        started = time.monotonic()
        with pytest.raises(Unavailable, match="timed out"):
            forwarder.send(make_events(10))
        assert time.monotonic() - started < 2
        proxy.blackhole = False
        send_until_taken(forwarder, make_events(10))

    assert len(stored(mongo, database)) >= 11


@pytest.mark.server
@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("mongodb://user:hunter2@127.0.0.1:{port}/", "18 authentication failed"),
        ("mongodb://user:hunter2@127.0.0.1:1,127.0.0.1:2/", "127.0.0.1:[12]: .*refused,127.0.0.1:[12]: .*refused$"),
        ("mongodb://user:hunter2@127.0.0.1:{port}/?replicaSet=another", "another"),
        ("mongodb+srv://user:hunter2@nowhere.invalid/", "DNS"),
    ],
)
def test_what_a_person_must_mend_is_unavailable_and_says_so_without_secrets(
    mongo: Mongo, caplog: pytest.LogCaptureFixture, uri: str, reason: str
) -> None:
    caplog.set_level(logging.DEBUG)
    settings = Settings(uri=uri.format(port=mongo.port), timeout_ms=500)
    with forwarding(settings) as forwarder, pytest.raises(Unavailable, match=f"(?i)^mongodb: .*{reason}") as caught:
        forwarder.send([json_event(b'{"user":"anna"}')])

    for text in (caught.value.reason, caplog.text):
        assert "hunter2" not in text
        assert "anna" not in text


# Settings


@pytest.mark.parametrize(
    "uri",
    [
        "127.0.0.1:27017",
        "http://user:secret@h",
        "mongodb://user:sec/ret@h/",
        "mongodb://user:secret@h:port/",
        "mongodb://h/?secret=1",
        "mongodb://h/?tls=secret",
        "mongodb+srv://",
        "",
    ],
)
def test_a_bad_uri_is_refused_without_repeating_it(uri: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected mongodb") as caught:
        Settings(uri=uri)
    (tmp_path / "uri").write_text(uri)
    with pytest.raises(ValueError, match="expected mongodb"):
        make(Settings(uri_file=tmp_path / "uri"))

    assert "sec" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_a_certificate_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a file that it names cannot be read: No such file"):
        Settings(uri=f"mongodb://h/?tls=true&tlsCAFile={tmp_path}/ca.pem")


@pytest.mark.parametrize("collection", ["", "a$", "system.x", ".a", "a.", "a..b", "x" * 81, "{name}", "{event}{event}"])
def test_a_bad_collection_is_refused(collection: str) -> None:
    with pytest.raises(ValueError, match="collection: expected"):
        Settings(collection=collection)


@pytest.mark.parametrize("database", ["", "a.b", "a b", "{event}{event}", "a/b", "x" * 64, "x" * 21 + "{event}"])
def test_a_bad_database_is_refused(database: str) -> None:
    with pytest.raises(ValueError, match="database: expected"):
        Settings(database=database)


@pytest.mark.parametrize(
    ("pattern", "name", "collection"),
    [
        ("events", "Order", "events"),
        ("{event}", "Order", "Order"),
        ("raw.{event}.v1", "a.b", "raw.a.b.v1"),
        ("{event}", "a$b%", "a%24b%25"),
        ("{event}", "é", "%C3%A9"),
        ("{event}.users", "system", "system%2Eusers"),
        ("{event}", "x" * 100, "x" * 100),
        ("{event}", "x" * 101, "x" * 80 + "~c675a2e604b0cd12"),
    ],
)
def test_names_of_collections_are_safe(pattern: str, name: str, collection: str) -> None:
    assert collection_name(pattern, name) == collection


@pytest.mark.parametrize(
    ("pattern", "name", "database"),
    [
        ("events", "Order", "events"),
        ("{event}", "order-1_a", "order-1_a"),
        ("{event}", "Order", "%4Frder"),
        ("{event}", 'a.b$/\\ "', "a%2Eb%24%2F%5C%20%22"),
        ("{event}", "admin", "%61dmin"),
        ("{event}", "config", "%63onfig"),
        ("x{event}", "admin", "xadmin"),
        ("{event}_db", "x" * 43, "x" * 43 + "_db"),
        ("{event}_db", "x" * 44, "x" * 26 + "~4105d609cdfcf79a_db"),
        ("x" * 20 + "{event}", "名" * 85, "x" * 20 + "%E5%90%8D%E5%90%8D%E5%90%8" + "~7cbde65b06c7265d"),
    ],
)
def test_names_of_databases_are_safe(pattern: str, name: str, database: str) -> None:
    """No two differ in case alone, and none is the server's own."""
    made = database_name(Settings(database=pattern).database, name)
    assert made == database
    assert len(made.encode()) <= 63


@pytest.mark.parametrize(
    "index", ["", "a,", "a, a", "$a", "a b", "a..b", "a.", ".a", "-", ",".join(map(str, range(33)))]
)
def test_a_bad_index_is_refused(index: str) -> None:
    with pytest.raises(ValueError, match="indexes: expected"):
        Settings(indexes=[index])


def test_documents_that_cannot_expire_are_not_told_to() -> None:
    with pytest.raises(ValueError, match="ttl_days"):
        Settings(document="payload", ttl_days=1)


def _send_until_unavailable(forwarder: MongoForwarder, batches: Sequence[Sequence[Event]]) -> int:
    """How many were taken."""
    for number, batch in enumerate(batches):
        try:
            forwarder.send(batch)
        except Unavailable:
            return number
    raise AssertionError(f"{len(batches)} batches were taken, nothing happened")
