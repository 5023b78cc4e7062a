"""Post events to a running collector, as its clients do: in batches, waiting when it says so."""

import contextlib
import http.client
import itertools
import json
import re
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO
from urllib.parse import urlsplit

import msgspec

from forwarders.archive_lines import without_halves

PATH = "/rest/1.0/event"
JSON_TYPE = "application/json"
BATCH_BYTES = 1024 * 1024
TIMEOUT_S = 60.0
RETRY_AFTER_S = 5.0  # when a 503 does not say
TOLD = 20  # failures of one batch
_COUNTS = re.compile(r"\[(\d+) successes\] \[(\d+) failures\]")


class CannotSend(Exception):
    """The text says why. What was accepted before it stands."""


class NotJson(CannotSend):
    """The events end in something else."""


@dataclass
class Sent:
    """How many events the collector accepted and rejected."""

    accepted: int = 0
    rejected: int = 0


@dataclass(frozen=True)
class Answer:
    """One answer: its status, headers by small name, and body."""

    status: int
    headers: dict[str, str]
    body: bytes


class Result(msgspec.Struct):
    """What became of one event; ``index`` is its place in the request, from 0."""

    index: int
    status: str
    reason: str = ""


class Results(msgspec.Struct):
    """What became of the events of one request."""

    accepted: int
    failed: int
    results: list[Result]


def documents(source: BinaryIO) -> Iterator[bytes]:
    """The events of JSON lines, of arrays, or of documents over many lines, each as the bytes it was written in.

    Lines that are documents are not kept; from the first that is not, the rest is read at once. Half of a surrogate
    pair is JSON, though no text: the collector refuses such an event, and takes those around it.
    Errors: NotJson.
    """
    for number, line in enumerate(source, 1):
        if not line.strip():
            continue
        try:
            elements = _elements(line)
        except (msgspec.DecodeError, RecursionError):
            yield from _scan(line + source.read(), number)
            return
        yield from elements


def batches(events: Iterable[bytes], max_events: int) -> Iterator[list[bytes]]:
    """Runs of up to ``max_events`` events, and not much more than BATCH_BYTES.

    Errors: NotJson, behind a batch of all events before it.
    """
    batch: list[bytes] = []
    size = 0
    broken: NotJson | None = None
    try:
        for event in events:
            batch.append(event)
            size += len(event)
            if len(batch) >= max_events or size >= BATCH_BYTES:
                yield batch
                batch, size = [], 0
    except NotJson as exc:
        broken = exc
    if batch:
        yield batch
    if broken:
        raise broken


def send(
    events: Iterable[bytes],
    url: str,
    *,
    max_events: int = 1000,
    tries: int = 10,
    api_key: str = "",
    tell: Callable[[str], None],
    keep: Callable[[bytes], object] = lambda event: None,
    sleep: Callable[[float], None] = time.sleep,
    content_type: str = JSON_TYPE,
    sent: Sent | None = None,
) -> Sent:
    """Post ``events`` to the collector at ``url``; ``tell`` gets its warnings, and why we wait.

    ``keep`` gets the events that were rejected. A 503 is waited for as long as its Retry-After says, ``tries`` times
    in a row for the same batch. ``sent`` is counted on, when there is one. Errors: CannotSend.
    """
    sent = sent or Sent()
    between = b"\n" if content_type == JSON_TYPE else b""
    headers = {"Content-Type": content_type, "Prefer": "return=representation"}
    if not (api_key.isascii() and api_key.isprintable()):
        raise CannotSend("the API key is none: it holds characters that a header cannot")
    if api_key:
        headers["X-API-Key"] = api_key
    try:
        for batch in batches(events, max_events):
            for attempt in itertools.count(1):
                answer = _post(url, between.join(batch), headers, sent)
                if answer.status != 503:
                    break
                if attempt == tries:
                    given_up = f"{sent.accepted} events were accepted, gave up on the rest"
                    raise CannotSend(f"{url}: {_detail(answer)}; {given_up}")
                wait_s = _retry_after_s(answer)
                tell(f"503: {_detail(answer)}; again in {wait_s:g} s")
                sleep(wait_s)
            results = _results(answer)
            if results is not None:
                _count_each(results, batch, sent, tell, keep)
            else:
                _count(answer, batch, sent, tell, keep)
    except NotJson as exc:
        before = f"{sent.accepted} events before it were accepted, {sent.rejected} rejected"
        raise CannotSend(f"{exc}; {before}, nothing behind it was sent") from exc
    return sent


def _count_each(
    results: Results, batch: Sequence[bytes], sent: Sent, tell: Callable[[str], None], keep: Callable[[bytes], object]
) -> None:
    """Count a batch of which the collector says what became of each event."""
    before = sent.accepted + sent.rejected
    bad = [each for each in results.results if each.status == "failed" and each.index < len(batch)]
    for each in bad[:TOLD]:
        tell(f"event {before + each.index + 1}: {each.reason}")
    if results.failed > TOLD:
        tell(f"and {results.failed - TOLD} more")
    for index in [*(each.index for each in bad), *range(results.accepted + results.failed, len(batch))]:
        keep(batch[index])
    sent.accepted += results.accepted
    sent.rejected += len(batch) - results.accepted


def _count(
    answer: Answer, batch: Sequence[bytes], sent: Sent, tell: Callable[[str], None], keep: Callable[[bytes], object]
) -> None:
    """Count a batch of which we know how many events were rejected, and not which."""
    warning = answer.headers.get("warning", "")
    counts = _COUNTS.search(warning)
    if answer.status == 202:
        failed = int(counts[2]) if counts else 0
        sent.accepted += len(batch) - failed
        sent.rejected += failed
        if warning:
            tell(f"Warning: {warning}")
    elif answer.status in (400, 413):
        sent.rejected += len(batch)
        tell(f"{answer.status}: {warning or _detail(answer)}")
        for event in batch:
            keep(event)
    else:
        raise CannotSend(f"{answer.status}: {_detail(answer)}; {sent.accepted} events were accepted before")


def _results(answer: Answer) -> Results | None:
    """What the collector says of each event, where it does."""
    if "return=representation" not in answer.headers.get("preference-applied", ""):
        return None
    try:
        return msgspec.json.decode(answer.body, type=Results)
    except msgspec.MsgspecError:
        return None


def _post(url: str, body: bytes, headers: Mapping[str, str], sent: Sent) -> Answer:
    """A connection for each post: it is cheap beside a thousand events, and never stale."""
    try:
        connection, path = _connection(url)
        try:
            with contextlib.suppress(BrokenPipeError):  # it has answered already, and does not want the rest
                connection.request("POST", path, body, dict(headers))
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, found, response.read())
        finally:
            connection.close()
    except (OSError, http.client.HTTPException) as exc:
        raise CannotSend(f"{url}: {exc}; {sent.accepted} events were accepted before") from exc


def _connection(url: str) -> tuple[http.client.HTTPConnection, str]:
    if url.startswith("unix:"):
        connection = http.client.HTTPConnection("localhost", timeout=TIMEOUT_S)
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.sock.settimeout(TIMEOUT_S)
        connection.sock.connect(url.removeprefix("unix:"))
        return connection, PATH
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise CannotSend(f"{url}: expected http://HOST:PORT, https://HOST:PORT or unix:PATH")
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    path = parts.path if parts.path.strip("/") else PATH
    return kind(parts.hostname, parts.port, timeout=TIMEOUT_S), f"{path}?{parts.query}" if parts.query else path


def _retry_after_s(answer: Answer) -> float:
    said = answer.headers.get("retry-after", "")
    return float(said) if said.isdecimal() else RETRY_AFTER_S


def _detail(answer: Answer) -> str:
    """What a problem document says; else the beginning of the body."""
    try:
        problem = json.loads(answer.body)
        return str(problem.get("detail") or problem.get("title"))
    except (ValueError, AttributeError):
        return repr(answer.body[:200].decode("utf-8", "replace")) if answer.body else "no more was said"


def _elements(document: bytes) -> list[bytes]:
    try:
        return _split(document)
    except msgspec.DecodeError:
        mended = without_halves(document)  # as long as before
        if mended == document:
            raise
    elements, at = [], 0
    for each in _split(mended):
        at = mended.index(each, at)  # nothing but whitespace and a comma stands between them
        elements.append(document[at : at + len(each)])
        at += len(each)
    return elements


def _split(document: bytes) -> list[bytes]:
    if document.lstrip()[:1] == b"[":
        return [bytes(each) for each in msgspec.json.decode(document, type=list[msgspec.Raw])]
    return [bytes(msgspec.json.decode(document, type=msgspec.Raw)).strip()]


def _scan(data: bytes, first_line: int) -> Iterator[bytes]:
    decoder = json.JSONDecoder()
    try:
        text = data.decode()
        at = _skip_space(text, 0)
        while at < len(text):
            end = decoder.raw_decode(text, at)[1]
            yield from _elements(text[at:end].encode())
            at = _skip_space(text, end)
    except json.JSONDecodeError as exc:
        raise NotJson(f"line {first_line + exc.lineno - 1}: is not JSON: {exc.msg}") from exc
    except (ValueError, RecursionError, msgspec.DecodeError) as exc:
        raise NotJson(f"behind line {first_line}: is not JSON: {exc}") from exc


def _skip_space(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at
