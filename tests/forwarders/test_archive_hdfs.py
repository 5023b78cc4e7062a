"""The archive in HDFS: the same names and bytes as in a directory, whole or not at all."""

import errno
import itertools
import json
import resource
import threading
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
from forwarders.webhdfs import HdfsStore
from tests.services.child import wait_until
from tests.services.hadoop import BLOCK_BYTES, USER, Hadoop
from tests.services.scripted_http import Answer, ScriptedHttp
from tests.services.tcp_proxy import TcpProxy

TOKEN = "the-token-of-hdfs"


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who runs the tests is nobody to these servers."""
    for name in ("HADOOP_USER_NAME", "HADOOP_DELEGATION_TOKEN"):
        monkeypatch.delenv(name, raising=False)


def settings_of(hdfs: Hadoop, directory: str, port: int = 0, **more: object) -> Settings:
    more = {"timeout_s": 5.0, "compression": "zstd", **more}
    return Settings(hdfs.url(directory, port), credentials_file=hdfs.credentials(), **more)  # type: ignore[arg-type]


def forwarder_to(settings: Settings) -> Forwarder:
    return from_settings(settings, name="archive", to_json=EventJson({}), instance="a" * 32)


def events_in(settings: Settings) -> list[str]:
    """The ids of all events that a reader finds."""
    store = open_store(settings)
    read = zstandard.ZstdDecompressor().decompressobj
    return [
        json.loads(line)["id"]
        for each in store.files()
        for line in read().decompress(store.read(each.name)).splitlines()
    ]


def drafts_in(settings: Settings) -> list[str]:
    return [each.name for each in open_store(settings).files(".tmp")]


class Directory:
    """A directory of HDFS as the contract suite's destination, behind a proxy that can break."""

    ordered = False
    shows_repeats = False

    def __init__(self, hdfs: Hadoop, proxy: TcpProxy) -> None:
        directory = f"of a test/{uuid.uuid4().hex}"
        self._proxy = proxy
        self._front = settings_of(hdfs, directory, proxy.port)
        self._behind = settings_of(hdfs, directory)

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


@pytest.fixture
def destination(hdfs: Hadoop, proxy_to: Callable[[int], TcpProxy]) -> Destination:
    return Directory(hdfs, proxy_to(hdfs.port))


@pytest.mark.server
class TestHdfsArchiveContract(ForwarderContract):
    pass


@pytest.mark.server
def test_files_have_the_names_bytes_and_modes_of_local_ones(hdfs: Hadoop, tmp_path: Path) -> None:
    settings = settings_of(hdfs, uuid.uuid4().hex)
    events = make_events(20, name="a b/../é") + make_events(20, name=".x")
    forwarder_to(settings).send(events)
    forwarder_to(Settings(str(tmp_path), compression="zstd")).send(events)

    store = open_store(settings)
    local = {str(path.relative_to(tmp_path)): path.read_bytes() for path in tmp_path.rglob("*.zst")}
    assert {each.name: store.read(each.name) for each in store.files()} == local
    assert len(local) == 2
    for name in local:
        for below, mode in [(name, "640"), (name.rpartition("/")[0], "750")]:
            path = f"{settings.path.partition(str(hdfs.port))[2]}/{below}"
            status = hdfs.ask("GET", path, "GETFILESTATUS")["FileStatus"]
            assert (status["owner"], status["permission"]) == (USER, mode)


@pytest.mark.server
def test_a_lost_answer_costs_and_doubles_nothing(hdfs: Hadoop, proxy_to: Callable[[int], TcpProxy]) -> None:
    """Of the NameNode: to each of the requests for a file, in turn."""
    proxy = proxy_to(hdfs.port)
    directory = uuid.uuid4().hex
    events = make_events(30)
    lost = 0
    for lost_from in itertools.count(1, 400):
        proxy.cut_after_bytes = lost_from
        forwarder = forwarder_to(settings_of(hdfs, directory, proxy.port))
        try:
            forwarder.send(events)
            break
        except Unavailable:
            lost += 1
        finally:
            forwarder.close()
    proxy.cut_after_bytes = None
    behind = settings_of(hdfs, directory)
    forwarder = forwarder_to(behind)
    forwarder.send(events)

    assert lost > 3
    assert sorted(events_in(behind)) == sorted(ids(events))


@pytest.mark.server
@pytest.mark.slow
def test_a_server_that_is_killed_in_the_middle_of_a_file_costs_and_doubles_nothing(hdfs: Hadoop) -> None:
    """And nobody sees half of one. What it leaves behind goes with the next attempt."""
    settings = settings_of(hdfs, uuid.uuid4().hex, compression="none", timeout_s=10.0)
    path = settings.path.partition(str(hdfs.port))[2]
    forwarder = forwarder_to(settings)
    delivered = make_events(3)
    forwarder.send(delivered)
    for files, server in enumerate(("datanode", "namenode"), 1):
        events = make_events(100)
        for event in events:
            event.payload = b'{"text":"%s"}' % (b"x" * 150_000)  # 15 blocks together
        reasons: list[str] = []

        def send(events: list[Event] = events, reasons: list[str] = reasons) -> None:
            try:
                forwarder.send(events)
            except Unavailable as exc:
                reasons.append(exc.reason)

        def half_written() -> bool:
            drafts = hdfs.ask("GET", f"{path}/.tmp", "LISTSTATUS")["FileStatuses"]["FileStatus"]
            return any(each["length"] >= BLOCK_BYTES for each in drafts)

        sender = threading.Thread(target=send)
        sender.start()
        wait_until(half_written, 20, "a draft has blocks")
        hdfs.kill(server)
        hdfs.start(server)
        sender.join(30)
        assert reasons or server == "namenode"  # which the DataNode waits for
        assert len(open_store(settings).files()) <= files + (not reasons)
        send_until_taken(forwarder, events)
        delivered += events
        assert drafts_in(settings) == []
    forwarder.send(delivered[:3])

    found = {each.name: each.size for each in open_store(settings).files()}
    assert len(found) == 3
    lines = [line for name in found for line in open_store(settings).read(name).splitlines()]
    assert sorted(json.loads(line)["id"] for line in lines) == sorted(ids(delivered))


@pytest.mark.server
def test_drafts_that_were_left_go_after_a_day_and_are_never_read(hdfs: Hadoop) -> None:
    settings = settings_of(hdfs, uuid.uuid4().hex)
    path = settings.path.partition(str(hdfs.port))[2]
    store = HdfsStore(settings.path, credentials_file=hdfs.credentials(), timeout_s=5)
    store.put("x/kept", b"1")
    for name in ("old", "new"):
        store.put(f".tmp/{name}", b"half of a li")
    hdfs.ask("PUT", f"{path}/.tmp/old", "SETTIMES", modificationtime="1795000000000")
    assert events_in(settings_of(hdfs, "nowhere")) == []
    assert [each.name for each in store.files()] == ["x/kept"]

    forwarder_to(settings).send(make_events(1))

    assert drafts_in(settings) == [".tmp/new"]
    store.put("x/kept", b"2")  # not the same bytes: as after another version of zstd
    assert not store.create("x/kept", b"3")
    assert store.read("x/kept") == b"2"
    with pytest.raises(FileNotFoundError):
        store.read("x/gone")


@pytest.mark.server
def test_what_a_person_must_mend_is_unavailable_in_time(
    hdfs: Hadoop, proxy_to: Callable[[int], TcpProxy], tmp_path: Path
) -> None:
    """Somebody who may not, nobody there, one who never answers, and a server that is another one."""
    somebody = tmp_path / "credentials"
    somebody.touch(0o600)
    somebody.write_text("HADOOP_USER_NAME=somebody\n")
    hanging = proxy_to(hdfs.port)
    hanging.blackhole = True
    cases = [
        (
            Settings(hdfs.url("x"), credentials_file=somebody),
            "AccessControlException: .*user=somebody",
        ),
        (settings_of(hdfs, "x", 1), "Connection refused"),
        (settings_of(hdfs, "x", hanging.port, timeout_s=0.5), "no answer in time"),
        (settings_of(hdfs, "x", hdfs.data_port), "HTTP status|Exception"),
    ]
    for settings, said in cases:
        with pytest.raises(Unavailable, match=said) as caught:
            forwarder_to(settings).send(make_events(1))
        assert settings.path in caught.value.reason
    forwarder_to(mine := settings_of(hdfs, uuid.uuid4().hex)).send(make_events(1))
    (name,) = (each.name for each in open_store(mine).files())
    with pytest.raises(OSError, match=r"AccessControlException: .*user=somebody"):
        open_store(Settings(mine.path, credentials_file=somebody)).read(name)


def test_the_token_stands_in_requests_alone_and_no_other_answer_is_taken_for_hdfs(tmp_path: Path) -> None:
    """A NameNode that quotes it, ones that send us elsewhere, and what is none."""
    said = json.dumps({"RemoteException": {"exception": "InvalidToken", "message": f"{TOKEN} is old\n\tat java"}})
    nothing = json.dumps({"FileStatuses": {"FileStatus": []}})
    cases = [
        ("LISTSTATUS", Answer(403, said), "InvalidToken: … is old"),
        ("LISTSTATUS", Answer(404, "no such page"), "HTTP status 404: Scripted"),
        ("LISTSTATUS", Answer(200, "hello"), "the answer to LISTSTATUS is no JSON"),
        ("LISTSTATUS", Answer(200, "[1]"), "the answer to LISTSTATUS is not one of HDFS"),
        ("CREATE", Answer(200, "{}"), "expected to be sent on to a DataNode by http"),
    ]
    place = "http://127.0.0.1:65536/webhdfs/v1/x?delegation="
    no_port = Answer(307, "", {"Location": place + TOKEN})
    cases.append(("CREATE", no_port, f"LocationParseError: Failed to parse: {place}…"))
    for place in ("ftp://127.0.0.1/webhdfs/v1/x", "http://[/webhdfs/v1", "/webhdfs/v1"):
        answer = Answer(307, "", {"Location": f"{place}?delegation={TOKEN}"})
        cases.append(("CREATE", answer, "expected to be sent on to a DataNode by http"))
    credentials = tmp_path / "credentials"
    credentials.touch(0o600)
    credentials.write_text(f"HADOOP_USER_NAME=anna\nHADOOP_DELEGATION_TOKEN={TOKEN}\n")
    rest = list(cases)
    server = ScriptedHttp(lambda request: rest[0][1] if f"op={rest[0][0]}" in request.path else Answer(200, nothing))
    settings = Settings(f"webhdfs{server.url[4:]}/x", credentials_file=credentials, timeout_s=5)
    try:
        for _, _, text in cases:
            with pytest.raises(Unavailable) as caught:
                forwarder_to(settings).send(make_events(1))
            rest.pop(0)
            assert caught.value.reason == f"archive: {settings.path}: {text}"
    finally:
        server.close()

    assert all(f"delegation={TOKEN}" in each.path and "anna" not in each.path for each in server.requests)


def test_files_that_the_local_disk_does_not_take_whole_cost_no_connection() -> None:
    """More of them than the store has connections; it would wait for one of those for ever."""
    server = ScriptedHttp(
        lambda request: (
            Answer(200, "x" * (3 << 20))
            if request.path.endswith("datanode")
            else Answer(307, "", {"Location": f"{server.url}/webhdfs/v1/x?datanode"})
        )
    )
    store = HdfsStore(f"webhdfs{server.url[4:]}/x", timeout_s=5)
    done: list[str] = []

    def work() -> None:
        for _ in range(9):
            try:
                with store.fetched("a"):
                    done.append("whole")
            except OSError as exc:
                done.append(errno.errorcode.get(exc.errno or 0, str(exc)))

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    reader = threading.Thread(target=work, daemon=True)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        reader.start()
        reader.join(15)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        server.close()

    assert done == ["EFBIG"] * 9
