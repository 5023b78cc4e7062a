"""The application under gunicorn's own workers, the same answers, and nothing is left behind."""

import os
import sys
from collections.abc import Iterator

import pytest

from tests.collector.worker_server import Client
from tests.services.child import free_port, start, wait_for_port
from tests.services.collector import REPOSITORY, stored_events, to_toml

EVENT = b'{"eventName":"Chunked","payload":{}}'
HEAD = b"POST /rest/1.0/event HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
HEAD += b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.fixture(scope="module", params=["sync", "gthread --threads=2"])
def port(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Ends with the check that a worker that ends seals its segment."""
    base = tmp_path_factory.mktemp("stock")
    port = free_port()
    tables = {"http": {"bind": f"127.0.0.1:{port}", "workers": 1}, "spool": {"path": "spool", "min_free_bytes": 0}}
    (base / "collector.toml").write_text(to_toml(tables))
    command = [sys.executable, "-m", "gunicorn", "-c", str(REPOSITORY / "etc/gunicorn.conf.py")]
    command += ["--worker-class", *request.param.split(), "--preload", "collector.app:create_app()"]
    environ = {**os.environ, "PYTHONPATH": str(REPOSITORY), "COLLECTOR_CONFIG": str(base / "collector.toml")}
    process = start(command, base, environ, base / "log")
    try:
        wait_for_port(port, process, base / "log")
        yield port
        with Client(port) as client:
            assert client.ask(b"GET /1?v=Last,s HTTP/1.1\r\nHost: a\r\n\r\n").status == 202
    finally:
        process.terminate()
        process.wait(20)

    assert list((base / "spool" / "_open").iterdir()) == []
    assert {event.name for event in stored_events(base / "spool")} == {"Chunked", "Last"}


def test_a_chunked_body_is_a_body(port: int) -> None:
    with Client(port) as client:
        assert client.ask(HEAD + b"%x\r\n%b\r\n0\r\n\r\n" % (len(EVENT), EVENT)).status == 202


@pytest.mark.parametrize(
    "body",
    [
        b"zz\r\n%b\r\n0\r\n\r\n" % EVENT,
        b"%x\r\n%bXX0\r\n\r\n" % (len(EVENT), EVENT),
        b"%x;\x01\r\n%b\r\n0\r\n\r\n" % (len(EVENT), EVENT),
        b"%x\r\n%b\r\n0\r\nno trailer\r\n\r\n" % (len(EVENT), EVENT),
    ],
    ids=["size", "end", "extension", "trailer"],
)
def test_a_malformed_chunked_body_is_400(port: int, body: bytes) -> None:
    with Client(port) as client:
        reply = client.ask(HEAD + body)

    assert reply.status == 400
    assert b"not chunked as announced" in reply.body
