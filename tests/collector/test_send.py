"""``collector send``: what it makes of files, and of a collector's answers."""

import io
import json
import socket
import threading
from collections.abc import Iterator
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from collector.send import BATCH_BYTES, CannotSend, batches, documents, send


class Collector(ThreadingHTTPServer):
    """Gives the answers of a script, one after the other, then 202; keeps what it was sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: list[tuple[int, dict[str, str], bytes]] = []
        self.got: list[tuple[str, bytes]] = []
        self.headers: Message = Message()
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.append((self.path, body))
        self.server.headers = self.headers
        status, headers, answer = self.server.script.pop(0) if self.server.script else (202, {}, b"")
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    """A collector of which the test decides the answers."""
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


EVENTS = [b'{"eventName":"a","payload":{}}', b'{"eventName":"b","payload":{}}', b'{"eventName":"c","payload":{}}']


@pytest.mark.parametrize(
    "text",
    [
        b"\n".join(EVENTS),
        b"\r\n\n".join(EVENTS) + b"\n\n",
        b"[" + b",".join(EVENTS) + b"]",
        b"[\n" + b",\n".join(EVENTS) + b"\n]\n",
        EVENTS[0] + b"\n[\n" + EVENTS[1] + b"]\n" + EVENTS[2],
        EVENTS[0] + EVENTS[1] + b" [" + EVENTS[2] + b"]",
    ],
)
def test_events_are_found_in_lines_arrays_and_documents(text: bytes) -> None:
    assert list(documents(io.BytesIO(text))) == EVENTS


def test_events_are_sent_byte_for_byte() -> None:
    event = '{ "eventName" : "é\\u00e9" , "payload":{"n":1.50,"n":2e400} }'.encode()

    assert list(documents(io.BytesIO(b"[" + event + b"]"))) == [event]
    assert list(documents(io.BytesIO(b'{"a":\n1}' + event))) == [b'{"a":\n1}', event]


HALVES = [
    b'{"eventName":"A","payload":{"t":"\\ud83d"}}',
    b'{"eventName":"A","payload":{"\\udc00":"\\ud83d\\ude00\\\\ud83d"}}',
    b'{"eventName":"A", "payload":["\\ud83d", 1]}',
]


@pytest.mark.parametrize(
    "text", [b"\n".join([*HALVES, *EVENTS]), b"[" + b" ,\n".join([*HALVES, *EVENTS]) + b"]", b"".join(HALVES + EVENTS)]
)
def test_half_of_a_surrogate_pair_is_for_the_collector_to_judge(text: bytes) -> None:
    assert list(documents(io.BytesIO(text))) == [*HALVES, *EVENTS]


def test_lines_are_sent_before_the_next_ones_are_read() -> None:
    def endless() -> Iterator[bytes]:
        yield EVENTS[0]
        raise AssertionError("read on")

    class Stream(io.BytesIO):
        def __iter__(self) -> Iterator[bytes]:
            return endless()

    assert next(documents(Stream())) == EVENTS[0]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (b'{"a": 1}\n\n{"b": nope}\n', "line 3: is not JSON"),
        (b'{"a": 1}\n[{"b": 2},\n{"c":\n3 nope}]', "line 4: is not JSON"),
        (b'{"a": 1', "line 1: is not JSON"),
        (b"\xff\xfe", "behind line 1: is not JSON"),
        (b"[" * 100_000, "is not JSON"),
    ],
)
def test_what_is_no_json_is_named_by_its_line(text: bytes, error: str) -> None:
    with pytest.raises(CannotSend, match=error):
        list(documents(io.BytesIO(text)))


def test_batches_end_at_a_number_of_events_or_of_bytes() -> None:
    assert [len(each) for each in batches([b"x"] * 5, 2)] == [2, 2, 1]
    assert [len(each) for each in batches([b"x" * (BATCH_BYTES // 2)] * 5, 100)] == [2, 2, 1]
    assert list(batches([], 2)) == []


def test_what_stands_before_a_line_that_is_no_json_is_sent_and_counted(collector: Collector) -> None:
    lines = io.BytesIO(b"\n".join([*EVENTS, b"{nope", *EVENTS]))

    with pytest.raises(CannotSend, match=r"^line 4: .*; 3 events before it were accepted, 0 rejected, nothing behind"):
        send(documents(lines), collector.url, max_events=2, tell=print)

    assert [len(body.splitlines()) for _, body in collector.got] == [2, 1]


def test_events_are_posted_in_batches_to_the_event_door(collector: Collector) -> None:
    sent = send(EVENTS, collector.url, max_events=2, tell=print)

    assert (sent.accepted, sent.rejected) == (3, 0)
    assert collector.got == [
        ("/rest/1.0/event", b"\n".join(EVENTS[:2])),
        ("/rest/1.0/event", EVENTS[2]),
    ]


def test_a_path_of_the_url_is_kept(collector: Collector) -> None:
    send(EVENTS, f"{collector.url}/rest/1.0/event?name=x", tell=print)

    assert collector.got[0][0] == "/rest/1.0/event?name=x"


def test_a_503_is_waited_for_as_long_as_it_says_and_the_batch_repeated(collector: Collector) -> None:
    problem = b'{"detail": "the disk is full"}'
    collector.script = [(503, {"Retry-After": "7"}, problem), (503, {}, b"")]
    waited: list[float] = []
    told: list[str] = []

    sent = send(EVENTS, collector.url, tell=told.append, sleep=waited.append)

    assert (sent.accepted, waited) == (3, [7.0, 5.0])
    assert told == ["503: the disk is full; again in 7 s", "503: no more was said; again in 5 s"]
    assert len({body for _, body in collector.got}) == 1


def test_after_so_many_503_it_gives_up(collector: Collector) -> None:
    collector.script = [(202, {}, b""), *[(503, {"Retry-After": "1"}, b"")] * 3]

    with pytest.raises(CannotSend, match="1 events were accepted, gave up on the rest"):
        send(EVENTS, collector.url, max_events=1, tries=3, tell=print, sleep=lambda s: None)
    assert len(collector.got) == 4


def test_a_warning_is_told_and_its_failures_are_counted(collector: Collector) -> None:
    warning = '199 - "[2 successes] [1 failures] [the event name is empty, at event 1]"'
    collector.script = [(202, {"Warning": warning}, b""), (400, {}, b'{"detail": "no event could be accepted"}')]
    told: list[str] = []

    sent = send([*EVENTS, b"{}"], collector.url, max_events=3, tell=told.append)

    assert (sent.accepted, sent.rejected) == (2, 2)
    assert told == [f"Warning: {warning}", "400: no event could be accepted"]


def results(*statuses: str) -> tuple[dict[str, str], bytes]:
    listed = [
        {"index": i, "status": "failed" if each else "accepted", "reason": each} for i, each in enumerate(statuses)
    ]
    failed = sum(map(bool, statuses))
    body = {"accepted": len(statuses) - failed, "failed": failed, "results": listed}
    return {"Preference-Applied": "return=representation"}, json.dumps(body).encode()


def test_each_rejected_event_is_named_and_kept(collector: Collector) -> None:
    collector.script = [(202, *results("", "bad name")), (403, *results("", "not yours")), (400, *results("worse"))]
    told: list[str] = []
    kept: list[bytes] = []

    sent = send([*EVENTS, b"4", b"5", b"6"], collector.url, max_events=2, tell=told.append, keep=kept.append)

    assert (sent.accepted, sent.rejected) == (2, 4)
    assert told == ["event 2: bad name", "event 4: not yours", "event 5: worse"]
    assert kept == [EVENTS[1], b"4", b"5", b"6"]  # what stood behind a syntax error was not read


def test_a_thousand_rejected_events_are_not_a_thousand_lines(collector: Collector) -> None:
    collector.script = [(400, *results(*["bad"] * 1000))]
    told: list[str] = []

    sent = send([b"1"] * 1000, collector.url, tell=told.append)

    assert (sent.rejected, len(told), told[-1]) == (1000, 21, "and 980 more")


def test_the_key_goes_in_a_header(collector: Collector) -> None:
    send(EVENTS, collector.url, api_key="ck_some", tell=print)

    assert collector.headers["X-API-Key"] == "ck_some"
    with pytest.raises(CannotSend, match="the API key is none"):
        send(EVENTS, collector.url, api_key="ck\nsome", tell=print)


def test_an_answer_before_the_end_of_the_body_is_read() -> None:
    """A collector that refuses does not read bodies: what it says counts, not that it closes."""
    answer = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 3\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    waited: list[float] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)

        def refuse() -> None:
            for _ in range(2):
                connection, _ = listener.accept()
                connection.recv(1024)
                connection.sendall(answer)
                connection.shutdown(socket.SHUT_WR)
                connection.recv(1024)
                connection.close()

        thread = threading.Thread(target=refuse)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(CannotSend, match="gave up on the rest"):
            send([b"x" * 20_000_000], url, tries=2, tell=print, sleep=waited.append)
        thread.join()

    assert waited == [3.0]


@pytest.mark.parametrize(("status", "body"), [(404, b"nothing here"), (500, b""), (401, b'{"title": "no key"}')])
def test_other_answers_end_it(collector: Collector, status: int, body: bytes) -> None:
    collector.script = [(status, {}, body)]

    with pytest.raises(CannotSend, match=f"^{status}: .*; 0 events were accepted before$"):
        send(EVENTS, collector.url, tell=print)


def test_a_collector_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(CannotSend, match="Connection refused; 0 events were accepted before"):
        send(EVENTS, "http://127.0.0.1:1", tell=print)
    with pytest.raises(CannotSend, match="No such file"):
        send(EVENTS, f"unix:{tmp_path}/none.sock", tell=print)
    with pytest.raises(CannotSend, match="expected http://"):
        send(EVENTS, "127.0.0.1:8080", tell=print)
