"""What Scribe clients are told, against the IDL that they are compiled from."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import thriftpy2
from thriftpy2.protocol.binary import TBinaryProtocol
from thriftpy2.thrift import TApplicationException, TClient
from thriftpy2.transport.memory import TMemoryBuffer

from collector.scribe_service import Answers, LogEntry, ResultCode, ScribeService, Status, make_service
from formats.thrift_call import read_head
from tests.services.scribe import call

IDL = Path(__file__).parents[2] / "etc/thrift"
scribe = thriftpy2.load(str(IDL / "scribe.thrift"), module_name="scribe_thrift")


def spec_of(thing: Any) -> Any:
    """What a class says of its fields, with nested ones in place of classes; enums are numbers to us."""
    fields = thing.thrift_spec
    return {number: (kind, name, *map(_nested, rest)) for number, (kind, name, *rest) in sorted(fields.items())}


def _nested(part: Any) -> Any:
    if isinstance(part, tuple):
        return tuple(map(_nested, part))
    if hasattr(part, "thrift_spec"):
        return spec_of(part)
    return part


def test_the_service_is_that_of_the_idl() -> None:
    ours, theirs = make_service(), scribe.scribe

    assert sorted(ours.thrift_services) == sorted(theirs.thrift_services)
    for method in ours.thrift_services:
        answered, expected = getattr(ours, f"{method}_result"), getattr(theirs, f"{method}_result")
        assert spec_of(getattr(ours, f"{method}_args")) == spec_of(getattr(theirs, f"{method}_args"))
        assert {key: value[:2] for key, value in spec_of(answered).items()} == {
            key: value[:2] for key, value in spec_of(expected).items()
        }
        assert answered.oneway == expected.oneway
    assert spec_of(LogEntry) == spec_of(scribe.LogEntry)
    assert {each.name: each.value for each in ResultCode} == scribe.ResultCode._NAMES_TO_VALUES
    assert {each.name: each.value for each in Status} == scribe.fb303.fb_status._NAMES_TO_VALUES
    assert {name for name, _ in inspect.getmembers(Answers, inspect.isfunction) if name != "__init__"} == set(
        ours.thrift_services
    ) - {"Log"}


class Answered:
    """A thriftpy2 client whose calls are answered by a service in this process."""

    def __init__(self, trouble: str | None = None) -> None:
        self.answers = Answers(1_700_000_000, lambda: {"accepted": 2**40, "rejected": 0}, lambda: trouble)
        self.service = ScribeService(self.answers)

    def ask(self, method: str, *arguments: object) -> Any:
        asked, answer = TMemoryBuffer(), TMemoryBuffer()
        client = TClient(scribe.scribe, TBinaryProtocol(answer), TBinaryProtocol(asked, strict_write=False))
        sent = getattr(scribe.scribe, f"{method}_args").thrift_spec
        client._send(method, **{field[1]: given for field, given in zip(sent.values(), arguments, strict=True)})
        data = asked.getvalue()
        reply = self.service.answer(data, read_head(data))
        if getattr(scribe.scribe, f"{method}_result").oneway:
            assert reply is None
            return None
        answer.setvalue(reply)
        return client._recv(method)


@pytest.mark.parametrize(
    ("method", "arguments", "answer"),
    [
        ("getName", [], "Ning Scribed Service"),
        ("getVersion", [], "0.1"),
        ("getStatus", [], 2),
        ("getStatusDetails", [], "No special status maintained. Returns Alive if the process is active"),
        ("getCounters", [], {"accepted": 2**40, "rejected": 0}),
        ("getCounter", ["accepted"], 2**40),
        ("getCounter", ["nothing"], 0),
        ("setOption", ["key", "value"], None),
        ("getOption", ["key"], ""),
        ("getOptions", [], {}),
        ("getCpuProfile", [5], ""),
        ("aliveSince", [], 1_700_000_000),
        ("reinitialize", [], None),
        ("shutdown", [], None),
    ],
    ids=str,
)
def test_every_method_of_fb303_is_answered(method: str, arguments: list[object], answer: object) -> None:
    assert Answered().ask(method, *arguments) == answer


def test_trouble_and_stopping_are_states() -> None:
    asked = Answered("the disk is full")
    assert (asked.ask("getStatus"), asked.ask("getStatusDetails")) == (Status.WARNING, "the disk is full")

    asked.answers.stopping = True
    assert (asked.ask("getStatus"), asked.ask("getStatusDetails")) == (Status.STOPPING, "stopping")


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (call("nonsense"), TApplicationException.UNKNOWN_METHOD),
        (call("__class__"), TApplicationException.UNKNOWN_METHOD),
        (call("\ud83d".encode("utf-8", "surrogatepass").decode("latin-1")), TApplicationException.UNKNOWN_METHOD),
        (call("getName", b""), TApplicationException.PROTOCOL_ERROR),
        (call("getName", b"\0\0"), TApplicationException.PROTOCOL_ERROR),
        (call("nonsense", b"\x0f\0\1\1\x7f\xff\xff\xff\0"), TApplicationException.PROTOCOL_ERROR),
        (call("getCounter", b"\x0b\0\1\x7f\xff\xff\xff\0"), TApplicationException.PROTOCOL_ERROR),
        (call("getCounter", b"\x0c\0\1" * 1000), TApplicationException.PROTOCOL_ERROR),
    ],
    ids=repr,
)
def test_what_cannot_be_answered_is_a_thrift_exception(data: bytes, kind: int) -> None:
    asked = Answered()

    reply = asked.service.answer(data, read_head(data))

    answer = TBinaryProtocol(TMemoryBuffer(reply))
    _, message_type, sequence = answer.read_message_begin()
    exception = TApplicationException()
    exception.read(answer)
    assert (message_type, sequence, exception.type) == (3, 7, kind)


@pytest.mark.parametrize("arguments", [b"\x08\0\1\0\0\0\5\0", b"\x0b\0\1\0\0\0\2\xff\xff\0", b"\0"], ids=repr)
def test_odd_arguments_of_a_question_are_answered_all_the_same(arguments: bytes) -> None:
    asked = Answered()
    data = call("getCounter", arguments)

    assert asked.service.answer(data, read_head(data)).endswith(b"\x0a\0\0" + b"\0" * 8 + b"\0")
