"""Forward events to files: one JSON event a line, in a directory per event name and hour.

    <path>/<escaped name>/2026/11/22/10/20261122T101500Z-<first event's id>-<digest>.jsonl[.gz|.zst]
    <path>/.tmp/           files being written

Ack:      send() returned: the files are synced and under their names, and so are the directories.
Repeat:   harmless when the whole batch is repeated: the same files are written over themselves. ``digest`` covers
          the ids of all events in the file, so that another choice of events never replaces this one.
Visible:  a file appears complete or not at all; nothing below a name's directory is ever half-written.
Settings: [forwarders.archive] path, compression
"""

import contextlib
import hashlib
import os
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Literal, Protocol
from urllib.parse import quote

from formats.event import Event, Granularity
from formats.event_json import EventJson
from forwarders.contract import Unavailable

DIRECTORY_MODE: Final = 0o750
FILE_MODE: Final = 0o640
ESCAPED_MAX_BYTES: Final = 200
ESCAPED_KEPT_BYTES: Final = 180

#: What the flusher does by default for this forwarder: few, large files.
FLUSH_DEFAULTS: Final = {"batch_max_events": 100_000, "batch_max_bytes": 64 * 1024 * 1024, "batch_max_age_s": 60.0}

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_TIME_PATH: Final = {
    Granularity.MINUTE: "{0.year:04}/{0.month:02}/{0.day:02}/{0.hour:02}/{0.minute:02}",
    Granularity.HOURLY: "{0.year:04}/{0.month:02}/{0.day:02}/{0.hour:02}",
    Granularity.DAILY: "{0.year:04}/{0.month:02}/{0.day:02}",
    Granularity.WEEKLY: "{0.year:04}/{0.month:02}/{0.day:02}",
    Granularity.MONTHLY: "{0.year:04}/{0.month:02}",
    Granularity.YEARLY: "{0.year:04}",
}
_SUFFIX: Final = {"none": ".jsonl", "gzip": ".jsonl.gz", "zstd": ".jsonl.zst"}
_DIRECTORIES_REMEMBERED: Final = 10_000
_LINES_AT_ONCE: Final = 1000  # joined before they are compressed: bounds the copy of a batch in memory

Compression = Literal["none", "gzip", "zstd"]


@dataclass(frozen=True)
class Settings:
    """[forwarders.archive]"""

    path: Path = Path("var/events")
    compression: Compression = "none"


# Shape


def escape_name(name: str) -> str:
    """An event's name as one path component: never empty, hidden, ``..``, or longer than a file name may be.

    Shape:  %XX of its UTF-8 bytes except ``A-Za-z0-9_-`` and a ``.`` that is not the first character; above 200
            bytes the first 180 of that, ``~`` and 16 hex digits of the name's SHA-256.
    """
    escaped = quote(name, safe="").replace("~", "%7E")
    if escaped.startswith("."):
        escaped = "%2E" + escaped[1:]
    if len(escaped) > ESCAPED_MAX_BYTES:
        escaped = f"{escaped[:ESCAPED_KEPT_BYTES]}~{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    return escaped


def directory_of(name: str, granularity: Granularity, time_ms: int) -> str:
    """Where an event belongs below the archive's path; ``time_ms`` is its own time, UTC, years 1 to 9999."""
    time = _EPOCH + timedelta(milliseconds=time_ms)  # fromtimestamp() depends on the platform for early years
    return f"{escape_name(name)}/{_TIME_PATH[granularity].format(time)}"


def file_stem(events: Sequence[Event]) -> str:
    """The name of the file that holds exactly these events: by arrival and id of the first, and all ids."""
    received = _EPOCH + timedelta(milliseconds=events[0].received_ms)
    ids = "\n".join([event.id for event in events])
    digest = hashlib.blake2b(ids.encode(), digest_size=8).hexdigest()
    return f"{received:%Y%m%dT%H%M%SZ}-{events[0].id}-{digest}"


def by_directory(batch: Iterable[Event]) -> dict[str, list[Event]]:
    """Sort the events of a batch to their directories, keeping their order."""
    groups: dict[str, list[Event]] = {}
    by_minute: dict[tuple[str, Granularity, int], list[Event]] = {}  # every granularity is made of whole minutes
    name, granularity, minute, group = "", Granularity.MINUTE, 0, list[Event]()  # of the event before: often the same
    for event in batch:
        if event.time_ms // 60_000 != minute or event.name != name or event.granularity is not granularity:
            name, granularity, minute = event.name, event.granularity, event.time_ms // 60_000
            known = by_minute.get((name, granularity, minute))
            if known is None:
                known = groups.setdefault(directory_of(name, granularity, event.time_ms), [])
                by_minute[name, granularity, minute] = known
            group = known
        group.append(event)
    return groups


# Delivery


class _Compressor(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...

    def flush(self) -> bytes: ...


class _Plain:
    """No compression, in the shape of a compressor."""

    def compress(self, data: bytes, /) -> bytes:
        return data

    def flush(self) -> bytes:
        return b""


class ArchiveForwarder:
    """A directory on a local filesystem.

    Owner:  one thread per ``instance``, ``name`` and path; others may archive into the same path.
    Errors: Unavailable for whatever the disk says (full, read-only, no right, not mounted, damaged).
    """

    identical_repeats = True

    def __init__(
        self,
        path: Path,
        *,
        name: str,
        to_json: EventJson,
        instance: str,
        suffix: str = ".jsonl",
        compressor: Callable[[], _Compressor] = _Plain,
    ) -> None:
        self.name = name
        self._root = str(path)  # plain strings: pathlib took half of the time of a batch of many small files
        self._tmp = f"{path}/.tmp"
        self._lines = to_json.lines
        self._draft = f"{instance}~{name}~"  # names hold no ~, so none is the beginning of another's
        self._suffix = suffix
        self._compressor = compressor
        self._swept = False
        self._durable: set[str] = set()

    def send(self, batch: Sequence[Event]) -> None:
        """Write every file of the batch, sync them, name them, sync the directories: each step for all of them
        at once, because a filesystem that has just committed its journal syncs the next file for almost nothing."""
        drafts: list[str] = []
        groups = by_directory(batch)
        try:
            self._prepare()
            for events in groups.values():
                drafts.append(f"{self._tmp}/{self._draft}{len(drafts)}")
                self._write(drafts[-1], events)
            for draft in drafts:
                _sync(draft, os.fdatasync)
            for draft, (directory, events) in zip(drafts, groups.items(), strict=True):
                _rename(draft, f"{self._root}/{directory}", file_stem(events) + self._suffix)
            self._sync_directories(groups)
        except OSError as exc:
            raise Unavailable(f"{self.name}: {exc.filename or self._root}: {exc.strerror or exc}") from exc
        finally:
            for draft in drafts:
                with contextlib.suppress(OSError):  # most are renamed by now; the next start sweeps what stays
                    os.unlink(draft)

    def close(self) -> None:
        """Nothing is held open between batches."""

    def _prepare(self) -> None:
        """Make the directories; remove what a killed process left half-written, once."""
        if self._swept and os.path.isdir(self._tmp):
            return
        _make_directory(self._tmp)
        for above in Path(self._root).absolute().parents:  # some may be new; one that we may not read is not
            with contextlib.suppress(PermissionError):
                _sync(str(above), os.fsync)
        for left in Path(self._tmp).glob(f"{self._draft}*"):
            left.unlink(missing_ok=True)
        self._swept = True

    def _write(self, draft: str, events: Sequence[Event]) -> None:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE)
        with os.fdopen(descriptor, "wb", buffering=256 * 1024) as file:
            compressor = self._compressor()
            for start in range(0, len(events), _LINES_AT_ONCE):
                file.write(compressor.compress(self._lines(events[start : start + _LINES_AT_ONCE])))
            file.write(compressor.flush())

    def _sync_directories(self, directories: Iterable[str]) -> None:
        """Make new names survive a power cut. A directory that is used for the first time is synced up to the
        archive's own, whether or not this process made it: the one that did may have been killed before its sync."""
        changed = set(directories)
        new = changed - self._durable
        above = set()
        for directory in new:
            while directory:
                directory = directory.rpartition("/")[0]
                above.add(directory)
        for directory in sorted(changed | above, reverse=True):  # leaves first
            _sync(f"{self._root}/{directory}", os.fsync)
        if len(self._durable) > _DIRECTORIES_REMEMBERED:
            self._durable.clear()
        self._durable |= new


def _sync(path: str, sync: Callable[[int], None]) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)


def _rename(draft: str, directory: str, name: str) -> None:
    """Give a file its name, making its directory when there is none."""
    try:
        os.rename(draft, f"{directory}/{name}")
    except FileNotFoundError:
        _make_directory(directory)
        os.rename(draft, f"{directory}/{name}")


def _make_directory(path: str) -> None:
    """Make a directory and those above it, all with our mode (``mkdir -p`` gives it to the last only)."""
    try:
        os.mkdir(path, DIRECTORY_MODE)
    except FileExistsError:
        return
    except FileNotFoundError:
        _make_directory(os.path.dirname(path))
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, DIRECTORY_MODE)


# Construction


def _gzip() -> _Compressor:
    return zlib.compressobj(wbits=31)  # a gzip header without a time, so that a repeat is the same bytes


def _zstd() -> _Compressor:
    import zstandard  # only where it is asked for: the base installation goes without

    return zstandard.ZstdCompressor(write_checksum=True).compressobj()


_COMPRESSORS: Final[dict[str, Callable[[], _Compressor]]] = {"none": _Plain, "gzip": _gzip, "zstd": _zstd}


def from_settings(settings: Settings, *, name: str, to_json: EventJson, instance: str) -> ArchiveForwarder:
    """Errors: ImportError when zstd is asked for and not installed."""
    compressor = _COMPRESSORS[settings.compression]
    compressor()
    return ArchiveForwarder(
        settings.path,
        name=name,
        to_json=to_json,
        instance=instance,
        suffix=_SUFFIX[settings.compression],
        compressor=compressor,
    )
