"""The service that Scribe clients see: fb303's questions about the process, and the replies to ``Log``.

thriftpy2 decodes the arguments and writes every reply. Before it reads a byte, formats/thrift_call.py has walked
through the whole message: thriftpy2 0.7.1 holds neither counts nor lengths against what is left. The arguments of
``Log`` it never sees (formats/scribe_message.py): to check them is to read them, and an object for every entry would
make a frame many times its size.

The classes below are what ``thriftpy2.load`` makes of etc/thrift/scribe.thrift; a test compares them. They
stand here because an installed package has no etc/, and parsing the file would cost every start 0.1 s.
"""

import enum
import logging
import types
from collections.abc import Callable
from typing import Any

from thriftpy2.protocol.binary import TBinaryProtocol
from thriftpy2.thrift import TApplicationException, TPayload, TProcessor, TType
from thriftpy2.transport.memory import TMemoryBuffer

from formats.event import FormatError
from formats.thrift_call import Call, check_arguments

log = logging.getLogger(__name__)

# What the original says, and its users' checks look for
SERVICE_NAME = "Ning Scribed Service"
SERVICE_VERSION = "0.1"
NO_TROUBLE = "No special status maintained. Returns Alive if the process is active"


class ResultCode(enum.IntEnum):
    """What a client hears of a ``Log``: it is in the spool, or nothing of it is and it is to be sent again."""

    OK = 0
    TRY_LATER = 1


class Status(enum.IntEnum):
    """fb303's state of a process."""

    DEAD = 0
    STARTING = 1
    ALIVE = 2
    STOPPING = 3
    STOPPED = 4
    WARNING = 5


_Spec = tuple[Any, ...]
_TEXT, _NUMBER, _LONG = (TType.STRING,), (TType.I32,), (TType.I64,)


class LogEntry(TPayload):  # type: ignore[misc]  # thriftpy2 has no types
    """``struct LogEntry``."""

    thrift_spec = {1: (TType.STRING, "category", False), 2: (TType.STRING, "message", False)}  # noqa: RUF012
    default_spec = [("category", None), ("message", None)]  # noqa: RUF012


#: Method → (type and name of each argument, from id 1; type of the result or None for none). None: oneway.
_METHODS: dict[str, tuple[list[tuple[_Spec, str]], _Spec | None] | None] = {
    "getName": ([], _TEXT),
    "getVersion": ([], _TEXT),
    "getStatus": ([], _NUMBER),
    "getStatusDetails": ([], _TEXT),
    "getCounters": ([], (TType.MAP, (TType.STRING, TType.I64))),
    "getCounter": ([(_TEXT, "key")], _LONG),
    "setOption": ([(_TEXT, "key"), (_TEXT, "value")], None),
    "getOption": ([(_TEXT, "key")], _TEXT),
    "getOptions": ([], (TType.MAP, (TType.STRING, TType.STRING))),
    "getCpuProfile": ([(_NUMBER, "profileDurationInSec")], _TEXT),
    "aliveSince": ([], _LONG),
    "reinitialize": None,
    "shutdown": None,
    "Log": ([((TType.LIST, (TType.STRUCT, LogEntry)), "messages")], _NUMBER),
}


def make_service() -> types.SimpleNamespace:
    """The service as thriftpy2 wants it: for each method a class of its arguments and one of its result."""
    service = types.SimpleNamespace(thrift_services=list(_METHODS))
    for method, signature in _METHODS.items():
        arguments, result = signature or ([], None)
        given = {number: _field(kind, name) for number, (kind, name) in enumerate(arguments, 1)}
        answered = {0: _field(result, "success")} if result else {}
        setattr(service, f"{method}_args", _payload(f"{method}_args", given))
        result_class = _payload(f"{method}_result", answered)
        result_class.oneway = signature is None
        setattr(service, f"{method}_result", result_class)
    return service


def _field(kind: _Spec, name: str) -> _Spec:
    return (kind[0], name, *kind[1:], False)


def _payload(name: str, spec: dict[int, _Spec]) -> Any:
    defaults = [(field[1], None) for field in spec.values()]
    return type(TPayload)(name, (TPayload,), {"thrift_spec": spec, "default_spec": defaults})


class Answers:
    """What fb303's methods answer. ``trouble`` says what is wrong at the moment, or None."""

    def __init__(
        self, alive_since_s: int, counters: Callable[[], dict[str, int]], trouble: Callable[[], str | None]
    ) -> None:
        self._alive_since_s = alive_since_s
        self._counters = counters
        self._trouble = trouble
        self.stopping = False

    def getName(self) -> str:
        return SERVICE_NAME

    def getVersion(self) -> str:
        return SERVICE_VERSION

    def getStatus(self) -> int:
        if self.stopping:
            return Status.STOPPING
        return Status.WARNING if self._trouble() else Status.ALIVE

    def getStatusDetails(self) -> str:
        return "stopping" if self.stopping else self._trouble() or NO_TROUBLE

    def getCounters(self) -> dict[str, int]:
        return self._counters()

    def getCounter(self, key: object) -> int:
        return self._counters().get(str(key), 0)

    def setOption(self, key: object, value: object) -> None:
        """Options are the settings' business: anybody could set one here."""

    def getOption(self, key: object) -> str:
        return ""

    def getOptions(self) -> dict[str, str]:
        return {}

    def getCpuProfile(self, seconds: object) -> str:
        return ""

    def aliveSince(self) -> int:
        return self._alive_since_s

    def reinitialize(self) -> None:
        """Nothing: a stranger must not be able to."""

    def shutdown(self) -> None:
        """Nothing: a stranger must not be able to."""


class ScribeService:
    """Makes replies, as messages without their frames."""

    def __init__(self, answers: Answers) -> None:
        self._service = make_service()
        self._processor = TProcessor(self._service, answers)
        self._log_replies = {code: self._log_reply(code) for code in ResultCode}

    def log_reply(self, call: Call, code: ResultCode) -> bytes:
        """The reply to a ``Log``."""
        before, after = self._log_replies[code]
        return before + call.sequence.to_bytes(4, "big", signed=True) + after

    def answer(self, data: bytes, call: Call) -> bytes | None:
        """The reply to any other call; None where the method has none."""
        try:
            check_arguments(data, call.at)
        except FormatError as exc:
            return self.refusal(call, exc.reason)
        method = call.method.decode(errors="replace")
        if method not in self._service.thrift_services:
            return self._exception(call, TApplicationException.UNKNOWN_METHOD, "there is no such method")
        replies = TMemoryBuffer()
        try:
            self._processor.process(TBinaryProtocol(TMemoryBuffer(data), strict_read=False), TBinaryProtocol(replies))
        except Exception:  # its errors have no common class; walked through as it is, it should not have any
            log.exception("a call could not be answered")
            return self._exception(call, TApplicationException.INTERNAL_ERROR, "the call could not be answered")
        reply: bytes = replies.getvalue()
        return reply or None

    def refusal(self, call: Call, reason: str) -> bytes:
        """The reply to a call whose arguments will not do."""
        return self._exception(call, TApplicationException.PROTOCOL_ERROR, reason)

    def _exception(self, call: Call, kind: int, reason: str) -> bytes:
        replies = TMemoryBuffer()
        self._processor.send_exception(
            TBinaryProtocol(replies),
            call.method.decode(errors="replace"),
            TApplicationException(kind, reason),
            call.sequence,
        )
        reply: bytes = replies.getvalue()
        return reply

    def _log_reply(self, code: ResultCode) -> tuple[bytes, bytes]:
        """What stands before and after the sequence number."""
        replies = TMemoryBuffer()
        self._processor.send_result(TBinaryProtocol(replies), "Log", self._service.Log_result(success=code), 0)
        reply: bytes = replies.getvalue()
        at = len(reply) - len(b"\x08\0\0") - 4 - len(b"\0")
        return reply[: at - 4], reply[at:]
