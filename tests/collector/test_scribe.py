"""The Scribe listener over its socket: what is answered, when, and what a client cannot do to it."""

import json
import os
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import thriftpy2
from thriftpy2.protocol.binary import TBinaryProtocolFactory
from thriftpy2.protocol.cybin import TCyBinaryProtocolFactory
from thriftpy2.rpc import make_client
from thriftpy2.transport.framed import TCyFramedTransportFactory, TFramedTransportFactory

from collector.metrics import read_all
from tests.formats.published import NOW_MS, case_id, fb303_cases, scribe_cases, shown
from tests.services.child import free_port, wait_until
from tests.services.collector import REPOSITORY, RunningCollector, archived_events, stored_events
from tests.services.scribe import OK, TRY_LATER, RunningListener, ScribeClient, call, log_call

scribe = thriftpy2.load(str(REPOSITORY / "etc/thrift/scribe.thrift"), module_name="scribe_thrift")
QUICK = {"idle_timeout_s": 1.0, "frame_timeout_s": 0.5, "max_connections": 800, "max_frame_bytes": 1_000_000}


@pytest.fixture(scope="module")
def listener(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningListener]:
    with RunningListener(tmp_path_factory.mktemp("listener")) as running:
        yield running
    assert "Traceback" not in running.log.read_text()


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningListener]:
    """A listener with little patience."""
    with RunningListener(tmp_path_factory.mktemp("strict"), scribe=QUICK) as running:
        yield running
    assert "Traceback" not in running.log.read_text()


def collection(listener: RunningListener, *what: str) -> None:
    """Switch it off or on, and wait until the listener has seen it."""
    command = [sys.executable, "-m", "collector", "--config", str(listener.config), "collection", *what]
    subprocess.run(command, check=True, cwd=REPOSITORY, capture_output=True)
    state = struct.pack(">i", 5 if what[0] == "off" else 2)
    with listener.client() as client:
        wait_until(lambda: client.ask(call("getStatus"))[-5:-1] == state, what=f"collection is {what[0]}")


def is_closed(client: ScribeClient) -> bool:
    """Whether the listener has closed the connection, without a word."""
    return client.receive() == b""


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


def counted(listener: RunningListener, name: str) -> int:
    return read_all(listener.spool / "_metrics").http[name]


@pytest.mark.parametrize("header", ["body_hex", "body_hex_strict"])
@pytest.mark.parametrize("case", scribe_cases(), ids=case_id)
def test_a_published_call_is_answered_and_stored(listener: RunningListener, case: dict[str, Any], header: str) -> None:
    before = {event.id for event in stored_events(listener.spool)}
    if case.get("setup"):
        collection(listener, "off")
    began_ms = time.time_ns() // 1_000_000

    with listener.client() as client:
        client.socket.sendall(bytes.fromhex(case["request"].get(header, case["request"]["body_hex"])))
        reply = client.receive()
    if case.get("setup"):
        collection(listener, "on")

    events = [event for event in stored_events(listener.spool) if event.id not in before]
    for event in events:
        assert event.source == "scribe"
        if event.time_ms == event.received_ms >= began_ms:
            event.time_ms = NOW_MS
    assert reply[-2] == {"OK": OK, "TRY_LATER": TRY_LATER}[case["expect"]["result"]]
    assert case["expect"].get("reply_hex", "")[8:] in (reply.hex(), "")
    assert [shown(event) for event in events] == case["expect"]["events"]


def test_published_questions_are_answered_to_the_byte(listener: RunningListener) -> None:
    """The last reply would be another one if an order, which has none, had been answered."""
    with listener.client() as client:
        for case in fb303_cases():
            client.socket.sendall(bytes.fromhex(case["request"]["body_hex"]))
            if "reply_hex" in case["expect"]:
                assert client.receive().hex() == case["expect"]["reply_hex"][8:], case["id"]
            elif case["id"] == "fb303-alive-since":
                assert client.receive()[-9:-5] == bytes(4)  # seconds, not milliseconds
        assert b"getName" in client.ask(call("getName"))


@pytest.mark.parametrize("accelerated", [True, False])
@pytest.mark.parametrize("strict_write", [True, False])
def test_thriftpy2s_clients_are_served(listener: RunningListener, accelerated: bool, strict_write: bool) -> None:
    protocols = TCyBinaryProtocolFactory if accelerated else TBinaryProtocolFactory
    transports = TCyFramedTransportFactory if accelerated else TFramedTransportFactory
    client = make_client(
        scribe.scribe,
        "127.0.0.1",
        listener.scribe_port,
        proto_factory=protocols(strict_read=False, strict_write=strict_write),
        trans_factory=transports(),
    )
    before = len(stored_events(listener.spool))

    assert client.Log([scribe.LogEntry("Client", f"5:{number}") for number in range(1000)]) == OK
    assert client.Log([]) == OK
    assert client.getName() == "Ning Scribed Service"
    assert abs(client.aliveSince() - time.time()) < 1000
    assert client.getCounters()["accepted"] >= 1000
    client.shutdown()
    client.reinitialize()
    assert client.getStatus() == 2
    client.close()

    events = stored_events(listener.spool)[before:]
    assert [event.payload for event in events] == [[(1, "string", str(number))] for number in range(1000)]
    assert len({event.id.rpartition("-")[0] for event in events}) == 1  # one record


def test_replies_come_in_order_whatever_is_asked(listener: RunningListener) -> None:
    """A large frame is decoded in another thread; what was sent behind it waits."""
    large = log_call(*[("Large", "x" * 1000)] * 2000, sequence=1)
    messages = [large, call("getName", sequence=2), log_call(("Small", "x"), sequence=3), call("nonsense", sequence=4)]

    with listener.client() as client:
        client.socket.sendall(b"".join(struct.pack(">i", len(each)) + each for each in messages))
        replies = [client.receive() for _ in messages]

    assert [reply[2:4] + reply[-5:-1] if b"Log" in reply else reply[3:4] for reply in replies] == [
        b"\0\2\0\0\0\0", b"\2", b"\0\2\0\0\0\0", b"\3",
    ]  # fmt: skip


def test_a_frame_may_come_in_any_pieces(listener: RunningListener) -> None:
    message = log_call(("Pieces", "x" * 50))
    data = struct.pack(">i", len(message)) + message
    with listener.client() as client:
        for byte in data:
            client.socket.sendall(bytes([byte]))
        client.socket.sendall(data + data[:3])
        results = [client.log_result(), client.log_result()]
        client.socket.sendall(data[3:])
        results.append(client.log_result())

    assert results == [OK] * 3


def test_a_call_that_wants_no_answer_is_stored_and_not_answered(listener: RunningListener) -> None:
    with listener.client() as client:
        client.send(log_call(("Oneway", "x")).replace(b"\x80\x01\x00\x01", b"\x80\x01\x00\x04"))
        assert client.ask(call("getStatus"))[-5:-1] == struct.pack(">i", 2)

    assert [event.name for event in stored_events(listener.spool)].count("Oneway") == 1


def test_a_client_that_closes_its_side_is_still_answered(listener: RunningListener) -> None:
    with listener.client() as client:
        client.send(log_call(*[("Half", "x" * 1000)] * 200))
        client.socket.shutdown(socket.SHUT_WR)
        assert client.log_result() == OK
        assert is_closed(client)


def test_what_is_not_a_log_is_refused_in_words_and_the_connection_stays(listener: RunningListener) -> None:
    rejected = counted(listener, "events_total/scribe/rejected")
    with listener.client() as client:
        for arguments in (
            b"\x0f\0\1\x0c\x7f\xff\xff\xff\0",
            b"\x0f\0\1\1\x7f\xff\xff\xff\0",  # list<void>
            b"\x0f\0\1\x0c\0\0\0\1\x0b\0\1\x7f\xff\xff\xff\0",
            b"",
        ):
            reply = client.ask(call("Log", arguments))
            assert reply.startswith(b"\x80\1\0\3\0\0\0\3Log\0\0\0\7"), reply
        assert client.log(("After", "x")) == OK

    assert counted(listener, "events_total/scribe/rejected") == rejected + 4


@pytest.mark.parametrize(
    "data",
    [
        b"\x7f\xff\xff\xff",
        b"\x80\1\0\1\0\0\0\3Log",  # no frame around it
        b"\xff\xff\xff\xff",
        b"\0\0\0\0",
        b"\1\0\0\1",  # 16 MiB and a byte
        b"GET / HTTP/1.1\r\n\r\n",
        b"\0\0\0\5hello",
        b"\0\0\0\x10\x82\x21\1\3Log\0\0\0\0\0\0\0\0\0",
    ],
    ids=repr,
)
def test_what_is_no_call_ends_the_connection(listener: RunningListener, data: bytes) -> None:
    assert listener.process is not None
    before = resident_bytes(listener.process.pid)

    with listener.client() as client:
        client.socket.sendall(data)
        assert is_closed(client)

    assert resident_bytes(listener.process.pid) - before < 8 << 20


def test_the_largest_frame_is_taken(listener: RunningListener) -> None:
    filler = "x" * (16 * 1024 * 1024 - len(log_call(("Largest", ""))))

    with listener.client() as client:
        assert client.log(("Largest", filler)) == OK


def test_later_means_that_nothing_is_stored(listener: RunningListener) -> None:
    before = len(stored_events(listener.spool))
    collection(listener, "off", "--reason", "a test")
    with listener.client() as client:
        assert client.log(("Later", "x"), ("Later", "")) == TRY_LATER
        assert client.log(*[("Later", "x" * 1000)] * 200) == TRY_LATER
        assert b"switched off: a test" in client.ask(call("getStatusDetails"))
        collection(listener, "on")
        assert client.log(("Later", "x")) == OK

    assert len(stored_events(listener.spool)) == before + 1


def test_a_commit_that_fails_is_later_and_nothing_of_it_is_stored(tmp_path: Path) -> None:
    """The listener may write no more than its segment has: the next write fails in the middle."""
    with RunningListener(tmp_path, spool={"segment_max_age_s": 60.0}) as listener, listener.client() as client:
        assert listener.process is not None
        assert client.log(("First", "x")) == OK
        (segment,) = listener.spool.glob("_open/*.open")
        _, hard = resource.prlimit(listener.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(listener.process.pid, resource.RLIMIT_FSIZE, (segment.stat().st_size + 100, hard))
        assert client.log(("Failed", "x" * 1000)) == TRY_LATER
        assert client.log(("Failed", "x" * 1000)) == TRY_LATER
        resource.prlimit(listener.process.pid, resource.RLIMIT_FSIZE, (hard, hard))
        wait_until(lambda: client.log(("Last", "x")) == OK, what="messages are taken again")

        assert {event.name for event in stored_events(listener.spool)} == {"First", "Last"}


def test_filtered_and_rejected_messages_are_ok_and_counted(tmp_path: Path) -> None:
    filters = {"event_name": ["^Secret"]}
    with RunningListener(tmp_path, filters=filters) as listener, listener.client() as client:
        assert client.log(("Secret", "x")) == OK
        assert client.log(("Secret", "x"), ("", "x"), ("Public", "x")) == OK
        assert client.log(("", "x")) == OK
        counts = {
            each: counted(listener, f"events_total/scribe/{each}") for each in ("accepted", "filtered", "rejected")
        }
        answers = counted(listener, "answers_total/scribe/202")

    assert counts == {"accepted": 1, "filtered": 2, "rejected": 2}
    assert answers == 3
    assert [event.name for event in stored_events(tmp_path / "spool")] == ["Public"]


def test_a_frame_that_does_not_come_and_a_silent_client_are_not_waited_for(strict: RunningListener) -> None:
    with strict.client() as slow, strict.client() as silent, strict.client() as fine:
        slow.socket.sendall(b"\0\0\1\0abc")
        waiting = {slow.socket, silent.socket}
        deadline = time.monotonic() + 20
        while waiting and time.monotonic() < deadline:
            assert fine.log(("Fine", "x")) == OK
            waiting -= set(select.select(waiting, (), (), 0.1)[0])
        assert waiting == set()
        assert is_closed(slow)
        assert is_closed(silent)
        assert fine.log(("Fine", "x")) == OK


def test_more_connections_than_allowed_are_hung_up_on_and_the_others_served(strict: RunningListener) -> None:
    refused = counted(strict, "refused_connections_total")
    with strict.client() as first:
        assert first.log(("First", "x")) == OK
        idle = []
        try:
            for _ in range(1000):
                idle.append(strict.client())
                if len(idle) % 100 == 0:
                    assert first.log(("First", "x")) == OK  # or it would be idle, too
            assert is_closed(idle[-1])
            assert first.log(("First", "x")) == OK
        finally:
            for each in idle:
                each.socket.close()

    assert counted(strict, "refused_connections_total") >= refused + 200
    with strict.client() as client:
        assert client.log(("Again", "x")) == OK


def test_a_larger_frame_than_the_settings_allow_is_refused(strict: RunningListener) -> None:
    with strict.client() as client:
        client.socket.sendall(struct.pack(">i", 1_000_001))
        assert is_closed(client)


def test_frames_of_all_together_are_bounded(tmp_path: Path) -> None:
    with RunningListener(tmp_path, scribe={"max_buffered_bytes": 1_000_000}) as listener:
        clients = [listener.client() for _ in range(5)]
        for client in clients[:4]:
            client.socket.sendall(struct.pack(">i", 400_000) + b"x" * 240_000)
        wait_until(lambda: counted(listener, "buffered_bytes") >= 4 * 240_000, what="four parts have come")
        clients[4].socket.sendall(struct.pack(">i", 400_000) + b"x" * 240_000)
        assert is_closed(clients[4])
        with listener.client() as other:
            assert other.log(("Other", "x")) == OK
        for client in clients:
            client.socket.close()


@pytest.mark.parametrize(("allow", "served"), [("127.0.0.0/8", True), ("192.0.2.0/24", False)])
def test_only_the_networks_named_may_connect(tmp_path: Path, allow: str, served: bool) -> None:
    with RunningListener(tmp_path, scribe={"allow": [allow]}) as listener, listener.client() as client:
        if served:
            assert client.log(("Named", "x")) == OK
        else:
            assert is_closed(client)
            assert "not in scribe.allow" in listener.log.read_text()


def test_a_client_that_does_not_read_its_replies_stops_nobody(listener: RunningListener) -> None:
    """Its questions are read as long as its answers can be sent; then it is let wait."""
    question = call("getStatusDetails")
    flood = (struct.pack(">i", len(question)) + question) * 2000
    with listener.client() as deaf, listener.client() as other:
        deaf.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.socket.setblocking(False)
        sent, before = 0, -1
        while sent != before:  # until nothing goes any more, even after a while
            before = sent
            sent += send_all_there_is_room_for(deaf, flood, sent % len(flood))
            time.sleep(0.2)
        assert other.log(("Other", "x")) == OK


def send_all_there_is_room_for(client: ScribeClient, flood: bytes, at: int) -> int:
    """Send ``flood`` again and again, from ``at`` of it on; how many bytes have gone."""
    sent = 0
    try:
        while True:
            sent += client.socket.send(flood[(at + sent) % len(flood) :])
    except BlockingIOError:
        return sent


class Loggers:
    """Clients that log numbered messages until their connection ends, and know which were answered OK."""

    def __init__(self, listener: RunningListener, clients: int) -> None:
        self.acknowledged: list[str] = []
        self._listener = listener
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(clients)]
        for each in self._threads:
            each.start()

    def join(self) -> None:
        for each in self._threads:
            each.join()

    def _run(self, client_number: int) -> None:
        with self._listener.client() as client:
            for call_number in range(1_000_000):
                numbers = [f"{client_number}.{call_number}.{each}" for each in range(5)]
                try:
                    client.send(log_call(*(("Numbered", number) for number in numbers)))
                    reply = client.receive()
                except OSError:
                    return
                if not reply:
                    return
                assert reply[-2] == OK
                self.acknowledged += numbers


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_whatever_ends_the_listener_loses_nothing_that_was_ok(tmp_path: Path, number: signal.Signals) -> None:
    listener = RunningListener(tmp_path, spool={"segment_max_age_s": 0.2}).start()
    assert listener.process is not None
    loggers = Loggers(listener, 4)
    wait_until(lambda: len(loggers.acknowledged) > 5000, what="messages are taken")

    os.killpg(listener.process.pid, number)
    code = listener.process.wait(20)
    loggers.join()

    stored = [str(event.payload[0][2]) for event in stored_events(listener.spool)]
    assert len(stored) == len(set(stored))
    assert set(loggers.acknowledged) <= set(stored)
    if number == signal.SIGTERM:
        assert code == 0
        assert list(listener.spool.glob("_open/*")) == []
        assert "cut off" not in listener.log.read_text()


def test_without_being_enabled_it_says_so(tmp_path: Path) -> None:
    (tmp_path / "collector.toml").write_text("")
    command = [sys.executable, "-m", "collector", "listen", "--config", str(tmp_path / "collector.toml")]

    ended = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, capture_output=True
    )

    assert (ended.returncode, ended.stderr) == (
        1,
        b"collector listen: nothing to listen for: scribe.enabled is false\n",
    )


@pytest.mark.slow
def test_the_whole_collector_takes_it_along(tmp_path: Path) -> None:
    """Messages reach the archive; the listener is seen, started again when it dies, and goes by a reload."""
    archive = tmp_path / "events"
    listener = RunningListener(
        tmp_path,
        whole=True,
        spool={"segment_max_age_s": 0.2},
        forwarders__archive={"path": str(archive), "batch_max_age_s": 0.1},
    )
    with listener:
        with listener.client() as client:
            assert client.log(("Hello", '1230865445006:{"a": 1}'), ("Hello", "1230865445006:text")) == OK
        wait_until(lambda: len(archived_events(archive)) == 2, what="both are in the archive")
        report = json.loads(listener.get("/1.0/healthcheck")[2])
        (item,) = [each for each in report["items"] if each["type"] == "ScribeHealthCheck"]
        assert (item["code"], item["figures"]["accepted"]) == ("OK", 2)
        metrics = listener.get("/metrics")[2].decode()
        assert 'collector_events_total{outcome="accepted",source="scribe"} 2.0' in metrics
        assert 'collector_processes{kind="listen"} 1.0' in metrics

        (pid,) = [each.pid for each in read_all(listener.spool / "_metrics").live if each.kind == "listen"]
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: takes_messages(listener), what="it is started again")

        listener.config.write_text(listener.config.read_text().replace("enabled = true", "enabled = false"))
        assert listener.process is not None
        listener.process.send_signal(signal.SIGHUP)
        wait_until(lambda: not takes_messages(listener), what="it is gone")
        assert listener.get("/1?v=Hello,sStill")[0] == 202

    payloads = [event["payload"] for event in archived_events(archive) if event["source"] == "scribe"]
    assert payloads[:2] == [{"a": 1}, {"1": "text"}]


@pytest.mark.slow
def test_nobody_who_connects_is_refused_while_the_collector_reloads(tmp_path: Path) -> None:
    """The supervisor holds the sockets: clients wait in their queues until the next listener is there."""
    listener = RunningListener(tmp_path, whole=True)
    port, new_port = listener.scribe_port, free_port()
    rebind(listener, f"127.0.0.1:{port}", f"localhost:{port}")
    with listener:
        wait_until(lambda: len(listener_pids(listener)) == 1, what="the listener is up: its port is open before")
        (before,) = listener_pids(listener)
        answered: list[bytes] = []
        enough = threading.Event()

        def connect_again_and_again() -> None:
            while not enough.is_set():
                with listener.client() as client, suppress(OSError):  # an accepted one may still be cut off
                    client.send(call("getName"))
                    answered.append(client.receive())

        with ThreadPoolExecutor(2) as clients:
            running = [clients.submit(connect_again_and_again) for _ in range(2)]
            wait_until(lambda: len(answered) > 3, what="clients are answered")
            reload(listener)
            wait_until(lambda: listener_pids(listener) not in ([before], []), what="another listener runs")
            seen = len(answered)
            wait_until(lambda: len(answered) > seen + 3 or running[0].done(), what="clients are answered by it")
            enough.set()
            for each in running:
                each.result()

        rebind(listener, f"localhost:{port}", f"127.0.0.1:{new_port}")
        reload(listener)
        listener.scribe_port = new_port
        wait_until(lambda: takes_messages(listener), what="it listens at its new address")
        with pytest.raises(ConnectionRefusedError):
            ScribeClient(port)


@pytest.mark.slow
def test_nobody_who_connects_to_a_socket_file_is_refused_while_the_collector_reloads(tmp_path: Path) -> None:
    path = tmp_path / "door"
    collector = RunningCollector(tmp_path, scribe={"enabled": True, "bind": f"unix:{path}"})

    def name() -> bytes:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            client.settimeout(15)
            client.sendall(struct.pack(">i", len(call("getName"))) + call("getName"))
            return client.recv(100)

    with collector:
        wait_until(lambda: len(listener_pids(collector)) == 1, what="the listener is up")
        (before,) = listener_pids(collector)
        assert b"getName" in name()
        reload(collector)
        wait_until(lambda: name() and listener_pids(collector) not in ([before], []), what="another listener runs")
        assert b"getName" in name()

        path.unlink()
        reload(collector)
        wait_until(path.exists, what="a file that has gone is made anew")
        assert b"getName" in name()
    assert not path.exists()


def rebind(listener: RunningListener, before: str, after: str) -> None:
    text = listener.config.read_text()
    assert before in text
    listener.config.write_text(text.replace(before, after))


def reload(listener: RunningCollector) -> None:
    assert listener.process is not None
    listener.process.send_signal(signal.SIGHUP)


def listener_pids(listener: RunningCollector) -> list[int]:
    return [each.pid for each in read_all(listener.spool / "_metrics").live if each.kind == "listen"]


def takes_messages(listener: RunningListener) -> bool:
    try:
        with listener.client() as client:
            return client.log(("Hello", "again")) == OK
    except (OSError, AssertionError):
        return False
