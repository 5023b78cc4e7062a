"""Forward events to MongoDB: one document per event, one unordered insert per batch and collection.

A database and a collection for all, or for each event name: mongo_names.py. Indexes: mongo_indexes.py.

Ack:    write concern "majority" with journal, waited for inside send(), for documents that were there already too.
Repeat: harmless; ``_id`` is the event's id, and a duplicate key on ``_id`` counts as delivered.
Settings: [forwarders.mongodb], see `Settings`.

What a document looks like: bson_document.py.

What does not work, and what becomes of it:

    down, no primary, time-out, connection lost, write concern not met        Unavailable
    credentials, rights, anything else that is said about the whole insert    Unavailable, until a person acts
    an error of a document that says nothing about it, see `NOT_NOW`          Unavailable
    a document breaks the collection's validator, or a unique index           Refused
    above 16 MiB, deeper than 100 levels, a NUL in a key, broken Unicode      Refused, without asking the server

Why the driver does not try again by itself: the flusher does, with pauses, and shows that it does.
"""

import logging
import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final

import pymongo
from bson.raw_bson import RawBSONDocument
from msgspec import Meta
from pymongo.collection import Collection
from pymongo.errors import BulkWriteError, OperationFailure, PyMongoError
from pymongo.uri_parser import parse_uri

from formats.event import Event
from formats.event_json import EventJson
from forwarders.bson_document import DocumentShape, encode
from forwarders.contract import Refused, Unavailable
from forwarders.mongo_indexes import Indexes, parse_index
from forwarders.mongo_names import check_collection, check_database, collection_name, database_name

SERVER_SELECTION_MAX_S: Final = 5.0
CLOSE_MAX_S: Final = 2.0
REASON_MAX_CHARS: Final = 300
DUPLICATE_KEY: Final = 11000
UNAUTHORIZED: Final = 13
DAY_S: Final = 86_400

#: Codes of single documents' errors that are about the server: its disk, time, memory, quota, network, primary, rights.
NOT_NOW: Final = frozenset(
    (
        6, 7, 13, 24, 46, 50, 63, 89, 91, 112, 133, 134, 146, 150, 189, 202, 262, 365, 8000, 9001, 10058, 10107,
        11600, 11601, 11602, 13388, 13435, 13436, 14031, 16500,
    )
)  # fmt: skip

_TIMEOUTS: Final = re.compile(r" \(configured timeouts: [^)]*\)")


@dataclass(frozen=True)
class Settings:
    """``[forwarders.mongodb]``.

    ``uri``: ``mongodb://user:password@host:port,.../?option=value`` or ``mongodb+srv://``, with the options of the
    driver (``tls``, ``tlsCAFile``, ``authSource``, ``replicaSet``, ...). ``uri_file`` is a file that holds it instead.
    ``database`` and ``collection`` may hold ``{event}``, the event's name, escaped as mongo_names.py says. Names come
    from clients, and each new one makes a collection: choose it where they are known to be few.
    ``document``: see bson_document.py. ``indexes``: see mongo_indexes.py.
    ``timeout_ms`` is for a batch. ``ttl_days``: the server deletes an event so long after it was received; the index
    for that is made at the first event. An event's own date would not do: an old one would be deleted at once.
    """

    uri: str = "mongodb://127.0.0.1:27017/"
    uri_file: Path | None = None
    database: str = "events"
    collection: str = "events"
    document: DocumentShape = "event"
    indexes: list[str] = field(default_factory=list)
    timeout_ms: Annotated[int, Meta(ge=1)] = 30_000
    ttl_days: Annotated[int, Meta(ge=1, le=24_855)] | None = None  # the server counts in seconds of 31 bits

    def __post_init__(self) -> None:
        check_uri(self.uri)
        check_database(self.database)
        check_collection(self.collection)
        for index in self.indexes:
            parse_index(index)
        if self.ttl_days is not None and self.document != "event":
            raise ValueError(
                f'ttl_days: needs document = "event": a date to count from, which "{self.document}" has not'
            )


#: An event's position in the batch, and its document.
Prepared = tuple[int, RawBSONDocument]
#: The names of a database and of a collection in it.
Place = tuple[str, str]


class MongoForwarder:
    """Sends batches through one connection. See the module.

    Owner: the thread that calls; the driver has threads of its own, which watch the servers.
    """

    identical_repeats = False

    def __init__(
        self, name: str, client: pymongo.MongoClient[dict[str, Any]], settings: Settings, to_json: EventJson
    ) -> None:
        self.name = name
        self._client = client
        self._settings = settings
        self._to_json = to_json
        self._threads_before = set(threading.enumerate())
        ttl_days = settings.ttl_days
        self._indexes = Indexes(settings.indexes, None if ttl_days is None else ttl_days * DAY_S)
        self._inserted: set[str] = set()  # ids of the collections that were done when a batch failed at another one

    def send(self, batch: Sequence[Event]) -> None:
        """See the contract; within ``timeout_ms``."""
        self._inserted.intersection_update([event.id for event in batch])
        places: dict[Place, list[Prepared]] = {}
        refused: dict[int, str] = {}
        for position, event in enumerate(batch):
            if event.id in self._inserted:
                continue
            try:
                raw = RawBSONDocument(encode(event, self._to_json, self._settings.document))
            except ValueError as exc:
                refused[position] = f"mongodb: {exc}"
            else:
                database = database_name(self._settings.database, event.name)
                collection = collection_name(self._settings.collection, event.name)
                places.setdefault((database, collection), []).append((position, raw))
        with pymongo.timeout(self._settings.timeout_ms / 1000):
            for place, documents in places.items():
                rejected = self._insert(self._collection(place), documents)
                refused.update(rejected)
                self._inserted.update(batch[n].id for n, _ in documents if n not in rejected)
        self._inserted.clear()
        if refused:
            raise Refused(list(refused), "; ".join(dict.fromkeys(refused.values()))[:REASON_MAX_CHARS])

    def close(self) -> None:
        """End the connections, and the driver's threads."""
        with pymongo.timeout(CLOSE_MAX_S):  # it tells the server
            self._client.close()
        deadline = time.monotonic() + CLOSE_MAX_S  # the driver does not wait for them; they look up twice a second
        for thread in set(threading.enumerate()) - self._threads_before:
            if thread.name.startswith("pymongo_"):
                thread.join(max(0.0, deadline - time.monotonic()))

    def _collection(self, place: Place) -> Collection[dict[str, Any]]:
        database, collection = place
        return self._client.get_database(
            database,
            write_concern=pymongo.WriteConcern("majority", j=True),
            read_preference=pymongo.ReadPreference.PRIMARY,
        )[collection]

    def _insert(self, collection: Collection[dict[str, Any]], documents: Sequence[Prepared]) -> dict[int, str]:
        """Insert; returns what the server refuses for good, by position. Errors: Unavailable."""
        raws = [raw for _, raw in documents]
        try:
            self._indexes.ensure(collection)
            details = _insert_many(collection, raws)
            rejected = judge(details)
            doubtful = [each["index"] for each in details.get("writeErrors", ()) if each["code"] == DUPLICATE_KEY]
            ids = [raws[index]["_id"] for index in doubtful if index in rejected]
            present = _present(collection, ids) if ids else set()
        except PyMongoError as exc:
            raise Unavailable(f"mongodb: {_reason(exc)}") from exc
        return {documents[n][0]: reason for n, reason in rejected.items() if raws[n]["_id"] not in present}


def _insert_many(collection: Collection[dict[str, Any]], raws: Sequence[RawBSONDocument]) -> Mapping[str, Any]:
    """Insert; returns what the server says about single documents. Errors: PyMongoError."""
    try:
        collection.insert_many(raws, ordered=False)
    except BulkWriteError as exc:
        return exc.details  # and no more of it: its text, which a traceback shows, holds the events
    return {}


def _present(collection: Collection[dict[str, Any]], ids: Sequence[str]) -> set[str]:
    """Which events are there: sent again, one may be told that it is its own duplicate in another unique index.

    MongoDB looks at ``_id`` first, other servers do not.
    """
    try:
        return {found["_id"] for found in collection.find({"_id": {"$in": ids}}, {"_id": 1})}
    except OperationFailure as exc:
        if exc.code != UNAUTHORIZED:
            raise
        return set()  # who may only write has to believe the server


def judge(details: Mapping[str, Any]) -> dict[int, str]:
    """What the errors of an insert mean: the documents that will never be taken, by index, each with the reason.

    Errors: Unavailable, also when only some of the documents are concerned: repeating the others is harmless.
    """
    for error in details.get("writeConcernErrors", ()):
        raise Unavailable(f"mongodb: write concern not met: {_words(error)}")
    errors = [error for error in details.get("writeErrors", ()) if not _is_there_already(error)]
    for error in errors:
        if error["code"] in NOT_NOW:
            raise Unavailable(f"mongodb: {_words(error)}")
    return {error["index"]: f"mongodb: {_words(error)}" for error in errors}


def _is_there_already(error: Mapping[str, Any]) -> bool:
    """Whether it is the event itself that stands in its way, and not another one with the same value elsewhere."""
    if error["code"] != DUPLICATE_KEY:
        return False
    if "keyPattern" in error:  # since 4.4
        return list(error["keyPattern"]) == ["_id"]
    return re.search(r" index: (\S+\.\$)?_id_ ", error.get("errmsg", "").partition("{")[0]) is not None


def _words(error: Mapping[str, Any]) -> str:
    """What a server says, on one line, without the documents that it quotes."""
    message = " ".join(str(error.get("errmsg", "")).partition("{")[0].split())
    return f"{error.get('code', '')} {message}".strip()[:REASON_MAX_CHARS]


def _reason(exc: PyMongoError) -> str:
    details = getattr(exc, "details", None)
    if isinstance(details, Mapping) and "errmsg" in details:
        return _words(details)
    text = _TIMEOUTS.sub("", str(exc)).partition(", Timeout: ")[0].partition(", full error: ")[0]
    return " ".join(text.split())[:REASON_MAX_CHARS]


def check_uri(uri: str) -> None:
    """ValueError without a word of what is in it: a password with a / in it may be anywhere."""
    if re.match(r"mongodb\+srv://.", uri):
        return  # its hosts and some of its options are in the DNS
    try:
        parse_uri(uri)
    except OSError as exc:
        raise ValueError(f"uri: a file that it names cannot be read: {exc.strerror}") from None
    except (PyMongoError, ValueError, TypeError):
        raise ValueError(
            "uri: expected mongodb[+srv]://user:password@host:port/?option=value, user and password percent-encoded, "
            "and options that the driver knows"
        ) from None


def from_settings(settings: Settings, *, name: str, to_json: EventJson, instance: str) -> MongoForwarder:
    """Make the forwarder; it connects at the first batch.

    Errors: OSError for a file that cannot be read, ValueError for one that does not hold what it should.
    """
    uri = settings.uri
    if settings.uri_file is not None:
        uri = settings.uri_file.read_text().strip()
        check_uri(uri)
    # At level debug the driver logs what it sends, which is events.
    logging.getLogger("pymongo").setLevel(logging.WARNING)
    client: pymongo.MongoClient[dict[str, Any]] = pymongo.MongoClient(
        uri,
        connect=False,
        maxPoolSize=1,
        retryWrites=False,
        serverSelectionTimeoutMS=int(min(settings.timeout_ms, SERVER_SELECTION_MAX_S * 1000)),
        # Asked when an insert fails, a server says within half a second who is primary; one that is to say it by
        # itself was measured to take ten. And it is a thread and a connection less for each server.
        serverMonitoringMode="poll",
        appname=f"collector {name} {instance}",
    )
    return MongoForwarder(name, client, settings, to_json)
