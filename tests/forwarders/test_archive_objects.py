"""The archive in an object store: the same names and bytes as in a directory, whole or not at all."""

import gzip
import hashlib
import json
import os
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from contract_suite import Destination, ForwarderContract, ids, make_events, send_until_taken

from formats.event import Event
from formats.event_json import EventJson
from forwarders.archive import Settings, from_settings, open_store
from forwarders.contract import Forwarder, Unavailable
from forwarders.object_store import ObjectStore
from tests.services.scripted_http import Answer, Request, ScriptedHttp
from tests.services.seaweed import BUCKET, SECRET, Seaweed
from tests.services.tcp_proxy import TcpProxy

INSTANCE = "a" * 32


def settings_of(s3: Seaweed, prefix: str, port: int = 0, **more: object) -> Settings:
    endpoint = f"http://127.0.0.1:{port or s3.port}"
    more = {"timeout_s": 5.0, **more}
    return Settings(
        f"s3://{BUCKET}/{prefix}",
        endpoint=endpoint,
        region="us-east-1",
        credentials_file=s3.credentials(),
        **more,  # type: ignore[arg-type]
    )


def forwarder_to(settings: Settings) -> Forwarder:
    return from_settings(settings, name="archive", to_json=EventJson({}), instance=INSTANCE)


def events_in(settings: Settings) -> list[str]:
    """The ids of all events that a reader of the bucket finds."""
    store = open_store(settings)
    found = []
    for each in store.files():
        data = store.read(each.name)
        if each.name.endswith(".gz"):
            data = gzip.decompress(data)
        elif each.name.endswith(".zst"):
            data = zstandard.ZstdDecompressor().decompressobj().decompress(data)
        found += [json.loads(line)["id"] for line in data.splitlines()]
    return found


class Bucket:
    """A prefix of a bucket as the contract suite's destination, behind a proxy that can break."""

    ordered = False
    shows_repeats = False

    def __init__(self, s3: Seaweed, proxy: TcpProxy, compression: str) -> None:
        prefix = f"of a test/{uuid.uuid4().hex}"
        self._proxy = proxy
        self._front = settings_of(s3, prefix, proxy.port, compression=compression)
        self._behind = settings_of(s3, prefix)

    def forwarder(self) -> Forwarder:
        return forwarder_to(self._front)

    def delivered(self) -> list[str]:
        return events_in(self._behind)

    def break_down(self) -> None:
        self._proxy.refuse = True
        self._proxy.reset_all()

    def restore(self) -> None:
        self._proxy.refuse = False

    def poison(self) -> Callable[[Event], Event] | None:
        return None


@pytest.fixture(params=["none", "zstd"])
def destination(s3: Seaweed, proxy_to: Callable[[int], TcpProxy], request: pytest.FixtureRequest) -> Destination:
    return Bucket(s3, proxy_to(s3.port), request.param)


@pytest.mark.server
class TestObjectArchiveContract(ForwarderContract):
    pass


@pytest.mark.server
def test_objects_have_the_names_and_bytes_of_local_files(s3: Seaweed, tmp_path: Path) -> None:
    settings = settings_of(s3, uuid.uuid4().hex, compression="zstd")
    events = make_events(20, name="a b/../é") + make_events(20, name=".x")
    forwarder_to(settings).send(events)
    forwarder_to(Settings(str(tmp_path), compression="zstd")).send(events)

    store = open_store(settings)
    local = {str(path.relative_to(tmp_path)): path.read_bytes() for path in tmp_path.rglob("*.zst")}
    assert {each.name: store.read(each.name) for each in store.files()} == local
    assert len(local) == 2


@pytest.mark.server
def test_a_lost_answer_costs_and_doubles_nothing(s3: Seaweed, proxy_to: Callable[[int], TcpProxy]) -> None:
    proxy = proxy_to(s3.port)
    prefix = uuid.uuid4().hex
    forwarder = forwarder_to(settings_of(s3, prefix, proxy.port))
    events = make_events(30)
    answers = 0
    for lost_from in (1, 400, 700):  # somewhere in the answers to the question for manifests, and to the put
        proxy.cut_after_bytes = lost_from
        try:
            forwarder.send(events)
        except Unavailable:
            answers += 1
    proxy.cut_after_bytes = None
    send_until_taken(forwarder, events)

    assert answers
    assert sorted(events_in(settings_of(s3, prefix))) == sorted(ids(events))


@pytest.mark.server
def test_what_a_person_must_mend_is_unavailable_and_holds_no_secret(
    s3: Seaweed, proxy_to: Callable[[int], TcpProxy], tmp_path: Path
) -> None:
    """A wrong secret, no bucket, nobody there, and one who never answers; none takes longer than it may."""
    wrong = tmp_path / "credentials"
    wrong.touch(0o600)
    wrong.write_text("AWS_ACCESS_KEY_ID=ak\nAWS_SECRET_ACCESS_KEY=another-secret\n")
    hanging = proxy_to(s3.port)
    hanging.blackhole = True
    good = settings_of(s3, "x")
    cases = [
        (Settings(good.path, endpoint=good.endpoint, region="us-east-1", credentials_file=wrong), "403 Forbidden"),
        (Settings("s3://nobody", endpoint=good.endpoint, region="us-east-1", credentials_file=good.credentials_file),
         "404 Not Found NoSuchBucket"),
        (settings_of(s3, "x", 1), "error sending request"),
        (settings_of(s3, "x", hanging.port, timeout_s=0.5), "error sending request"),
    ]  # fmt: skip
    for settings, said in cases:
        with pytest.raises(Unavailable) as caught:
            forwarder_to(settings).send(make_events(1))
        assert said in caught.value.reason
        assert settings.path in caught.value.reason
        assert SECRET not in caught.value.reason
        assert "another-secret" not in caught.value.reason


def test_an_answer_that_cannot_be_believed_is_unavailable_and_the_same_key_is_put_again(tmp_path: Path) -> None:
    """A wrong ETag over what is right (as with encryption), over what is wrong, and an error after the upload."""
    objects: dict[str, bytes] = {}
    faults = ["500", "torn"]

    def answer(request: Request) -> Answer:
        path = request.path.partition("?")[0]
        if request.method == "PUT":
            if path in objects and request.headers.get("if-none-match") == "*":
                return Answer(412, "<Error><Code>PreconditionFailed</Code></Error>")
            fault = faults.pop(0) if faults else ""
            objects[path] = request.body[:10] if fault == "torn" else request.body
            return (
                Answer(500, "<Error><Code>InternalError</Code></Error>") if fault == "500" else Answer(200, "", WRONG)
            )
        if path in objects:
            when = {"Last-Modified": "Sun, 22 Nov 2026 10:15:00 GMT"}
            return Answer(200, objects[path].decode(), {**WRONG, **when})
        return Answer(200, '<?xml version="1.0"?><ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>')

    WRONG = {"ETag": f'"{hashlib.md5(b"other").hexdigest()}"'}
    events = make_events(5)
    server = ScriptedHttp(answer)
    try:
        credentials = tmp_path / "credentials"
        credentials.touch(0o600)
        credentials.write_text("AWS_ACCESS_KEY_ID=k\nAWS_SECRET_ACCESS_KEY=s\n")
        endpoint = server.url
        settings = Settings("s3://b/x", endpoint=endpoint, region="us-east-1", credentials_file=credentials)
        forwarder = forwarder_to(settings)
        with pytest.raises(Unavailable, match="500"):
            forwarder.send(events)
        objects.clear()  # as a service may that answered 500
        with pytest.raises(Unavailable, match="something else"):
            forwarder.send(events)
        forwarder.send(events)
        forwarder.send(events)
    finally:
        server.close()

    (name,) = objects
    assert [json.loads(line)["id"] for line in objects[name].splitlines()] == ids(events)
    assert {each.path.partition("?")[0] for each in server.requests if each.method == "PUT"} == {name}


@pytest.mark.server
def test_a_forked_process_neither_hangs_nor_dies_of_a_library_that_it_shares(s3: Seaweed) -> None:
    """The flusher finds out what kills it by letting children of its own do it."""
    settings = settings_of(s3, uuid.uuid4().hex)
    forwarder_to(settings).send(make_events(1))
    begun = time.monotonic()
    child = os.fork()
    if not child:
        try:
            forwarder_to(settings).send(make_events(1))
        except Unavailable:
            os._exit(7)
        finally:
            os._exit(1)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert time.monotonic() - begun < 5


def test_credentials_that_others_can_read_or_nobody_can_are_said_when_the_forwarder_is_made(tmp_path: Path) -> None:
    path = tmp_path / "credentials"
    path.write_text("AWS_SECRET_ACCESS_KEY=hunter2\nnonsense hunter3\n")
    for mode, said in [(0o644, "chmod o="), (0o600, ":2: expected NAME=VALUE")]:
        path.chmod(mode)
        with pytest.raises(ValueError, match=said) as caught:
            ObjectStore("s3://b/x", credentials_file=path, timeout_s=1)
        assert "hunter" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "lines"),
    [
        ("s3://bucket/x", "AWS_ACCESS_KEY_ID=a\nAWS_SECRET_ACCESS_KEY=hunter2\n"),
        ("gs://bucket/x", "# a test's\nexport GOOGLE_SKIP_SIGNATURE=true\n"),
        ("az://container/x", "AZURE_STORAGE_ACCOUNT_NAME=me\nAZURE_STORAGE_ACCOUNT_KEY=aHVudGVyMg==\n"),
    ],
)
def test_each_service_takes_its_credentials_and_another_address(tmp_path: Path, url: str, lines: str) -> None:
    path = tmp_path / "credentials"
    path.touch(0o600)
    path.write_text(lines)
    forwarder = forwarder_to(
        Settings(url, endpoint="http://127.0.0.1:1", region="r", credentials_file=path, timeout_s=5)
    )

    with pytest.raises(Unavailable, match=f"{url}: HTTP error: error sending request"):
        forwarder.send(make_events(1))


def test_what_a_killed_compaction_had_on_this_disk_goes_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    for pid in (child, os.getpid()):
        (tmp_path / f"collector-archive-{pid}-x").mkdir()
        (tmp_path / f"collector-archive-{pid}-x" / "draft").touch()
    store = ObjectStore("s3://b/x", region="r", timeout_s=1)

    with store.locked() as exclusive, store.draft() as draft:
        draft.touch()
        assert not exclusive
        assert len(list(tmp_path.iterdir())) == 2
    assert [path.name for path in tmp_path.iterdir()] == [f"collector-archive-{os.getpid()}-x"]


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and proxies of whoever runs the tests are not for these servers."""
    for name in list(os.environ):
        if name.startswith("AWS_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
