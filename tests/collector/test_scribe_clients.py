"""Clients that Apache Thrift's compiler makes of etc/thrift, against the listener and the event door."""

import importlib
import json
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from thrift.protocol.TBinaryProtocol import TBinaryProtocol, TBinaryProtocolAccelerated
from thrift.Thrift import TApplicationException, TMessageType
from thrift.transport.TSocket import TSocket
from thrift.transport.TTransport import TFramedTransport, TMemoryBuffer, TTransportException

from tests.services.collector import REPOSITORY, stored_events
from tests.services.scribe import RunningListener

pytestmark = pytest.mark.server
COMPILED = ("scribe", "fb303", "envelope")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The modules that the compiler makes can be imported."""
    if shutil.which("thrift") is None:
        pytest.skip("thrift-compiler is not installed")
    made = tmp_path_factory.mktemp("compiled")
    for idl in ("scribe", "envelope"):
        command = ["thrift", "-allow-neg-keys", "-r", "--gen", "py", "-out", str(made)]
        subprocess.run([*command, f"{REPOSITORY}/etc/thrift/{idl}.thrift"], check=True)
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(made)
        yield
    for name in [name for name in sys.modules if name.partition(".")[0] in COMPILED]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def listener(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningListener]:
    with RunningListener(tmp_path_factory.mktemp("clients"), whole=True) as running:
        yield running


def connect(listener: RunningListener, kind: str) -> tuple[Any, Any]:
    """A client, and its transport."""
    transport: Any = TFramedTransport(TSocket("127.0.0.1", listener.scribe_port))
    protocol = {
        "accelerated": lambda: TBinaryProtocolAccelerated(transport, fallback=False),
        "strict": lambda: TBinaryProtocol(transport, strictRead=True, strictWrite=True),
        "not strict": lambda: TBinaryProtocol(transport, strictRead=False, strictWrite=False),
    }[kind]()
    transport.open()
    return importlib.import_module("scribe.scribe").Client(protocol), transport


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("kind", ["accelerated", "strict", "not strict"])
def test_apaches_clients_are_served(listener: RunningListener, kind: str) -> None:
    types = importlib.import_module("scribe.ttypes")
    client, transport = connect(listener, kind)
    messages = [types.LogEntry("Apache", f'{number}:{{"kind": "{kind}"}}') for number in range(500)]

    assert client.Log(messages) == types.ResultCode.OK
    assert client.Log([]) == types.ResultCode.OK
    assert client.Log([types.LogEntry(None, "x"), types.LogEntry("Apache", None)]) == types.ResultCode.OK
    assert client.getName() == "Ning Scribed Service"
    assert client.getStatus() == importlib.import_module("fb303.ttypes").fb_status.ALIVE
    assert client.getCounters()["accepted"] == client.getCounter("accepted") >= 500
    assert (client.getOptions(), client.getOption("x"), client.getCpuProfile(1)) == ({}, "", "")
    client.setOption("x", "y")
    client.shutdown()
    client.reinitialize()
    assert client.aliveSince() > 1_600_000_000
    transport.close()

    stored = [event for event in stored_events(listener.spool) if json.loads(event.payload) == {"kind": kind}]
    assert [event.time_ms for event in stored] == list(range(500))


@pytest.mark.usefixtures("compiled")
def test_an_unknown_method_is_apaches_exception_and_the_connection_stays(listener: RunningListener) -> None:
    client, transport = connect(listener, "strict")
    protocol = client._oprot
    protocol.writeMessageBegin("getEverything", TMessageType.CALL, 9)
    importlib.import_module("fb303.FacebookService").getName_args().write(protocol)
    protocol.writeMessageEnd()
    transport.flush()

    assert protocol.readMessageBegin() == ("getEverything", TMessageType.EXCEPTION, 9)
    exception = TApplicationException()
    exception.read(protocol)
    assert exception.type == TApplicationException.UNKNOWN_METHOD
    assert client.getName() == "Ning Scribed Service"
    transport.close()


@pytest.mark.usefixtures("compiled")
def test_a_client_without_frames_is_hung_up_on(listener: RunningListener) -> None:
    transport = TSocket("127.0.0.1", listener.scribe_port)
    client = importlib.import_module("scribe.scribe").Client(TBinaryProtocol(transport))
    transport.open()

    with pytest.raises((TTransportException, EOFError)):
        client.getName()


@pytest.mark.usefixtures("compiled")
def test_the_event_door_reads_what_apaches_library_writes(listener: RunningListener) -> None:
    """Two frames of the stream, and one struct by itself."""
    types = importlib.import_module("envelope.ttypes")
    entry = importlib.import_module("scribe.ttypes").LogEntry("first", "second")
    struct_of = written(entry)
    frames = b"".join(
        struct.pack(">Bqi", 10, time_ms, 5) + b"DAILY" + written(types.ThriftEnvelope("Framed", struct_of, "unused"))
        for time_ms in (1, 2)
    )

    assert listener.post(frames, "application/thrift")[0] == 202
    assert listener.post(struct_of, "application/thrift", "/rest/1.0/event?name=Bare")[0] == 202

    stored = [event for event in stored_events(listener.spool) if event.source == "thrift"]
    assert [(event.name, event.payload) for event in stored] == [
        (name, [(1, "string", "first"), (2, "string", "second")]) for name in ("Framed", "Framed", "Bare")
    ]
    assert [event.time_ms for event in stored[:2]] == [1, 2]


def written(value: Any) -> bytes:
    buffer = TMemoryBuffer()
    value.write(TBinaryProtocol(buffer))
    return bytes(buffer.getvalue())
