"""Forward events to files, in a directory per event name and hour: one JSON event a line, or Thrift frames.

    <path>/<escaped name>/2026/11/22/10/20261122T101500Z-<first event's id>-<digest>.jsonl[.gz|.zst]
    <path>/.tmp/           files being written (of a local directory, and of HDFS)

``path`` is a directory of this machine, or the URL of an object store (forwarders/object_store.py) or of HDFS
(forwarders/webhdfs.py). Names, and other layouts: forwarders/archive_layout.py. Frames: formats/thrift_stream.py.

Ack:      send() returned: the files are synced and under their names, and so are the directories; or the service has
          taken the objects.
Repeat:   harmless when the whole batch is repeated: the same files are written over themselves, the same objects are
          recognised (If-None-Match, or HDFS renames nothing over another file), and what has been compacted is left
          alone (forwarders/archive_manifest.py).
Visible:  a file appears complete or not at all; nothing below a name's directory is ever half-written.
Refused:  never; whatever disk or service say is said of all events alike.
Settings: [forwarders.archive] path, compression, format, layout, compact…, and those of what has a URL
"""

import contextlib
import os
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Final, Literal

from msgspec import Meta

from formats.event import Event
from formats.event_json import EventJson
from formats.thrift_stream import encode_frame
from forwarders.archive_files import ENDING, Compression, Unreadable, compressor_for
from forwarders.archive_layout import DEFAULT_LAYOUT, Layout, file_stem
from forwarders.archive_manifest import read_manifest
from forwarders.archive_store import FILE_MODE, LocalStore, RemoteStore, Store, make_directory, rename, sync
from forwarders.contract import Forwarder, Unavailable

#: What the flusher does by default for this forwarder: few, large files.
FLUSH_DEFAULTS: Final = {"batch_max_events": 100_000, "batch_max_bytes": 64 * 1024 * 1024, "batch_max_age_s": 60.0}

SCHEMES: Final = ("s3", "gs", "az", "webhdfs")
_HDFS: Final = re.compile(r"webhdfs://(\[[0-9A-Fa-f:.]+\]|[^\s:/@?#\[\]]+)(:[0-9]{1,5})?(/[^?#]*)?")
_DIRECTORIES_REMEMBERED: Final = 10_000
_PUTS_AT_ONCE: Final = 8
_LINES_AT_ONCE: Final = 1000  # joined before they are compressed: bounds the copy of a batch in memory
_LARGE: Final = 10_000  # events of a file that pay for a thread to compress them


@dataclass(frozen=True)
class Settings:
    """[forwarders.archive]"""

    path: str = "var/events"
    compression: Compression = "none"
    format: Literal["jsonl", "thrift"] = "jsonl"
    layout: str = DEFAULT_LAYOUT
    endpoint: str = ""
    region: str = ""
    credentials_file: Path | None = None
    timeout_s: Annotated[float, Meta(gt=0)] = 30.0
    compact: Literal["off", "parquet", "jsonl"] = "off"
    compact_after_s: Annotated[float, Meta(ge=0)] = 3600.0
    compact_every_s: Annotated[float, Meta(ge=1)] = 600.0

    def __post_init__(self) -> None:
        scheme, is_url, rest = self.path.partition("://")
        if not self.path or (is_url and scheme not in SCHEMES):
            raise ValueError("path: expected a directory, s3://…, gs://…, az://… or webhdfs://…")
        if scheme == "webhdfs" and is_url:
            if not _HDFS.fullmatch(self.path):
                raise ValueError("path: expected webhdfs://host:port/directory, with the user in credentials_file")
            if self.endpoint or self.region:
                raise ValueError("path: HDFS has its address here, and neither endpoint nor region")
        if self.format == "thrift" and self.compact != "off":
            raise ValueError('compact: expected format = "jsonl", in which events have ids')
        if is_url and rest[:1] in ("", "/"):
            raise ValueError(f"path: names no bucket or container: expected {scheme}://NAME or {scheme}://NAME/PREFIX")
        Layout(self.layout)

    @property
    def is_url(self) -> bool:
        """Whether the files are on no disk of this machine."""
        return "://" in self.path

    @property
    def is_hdfs(self) -> bool:
        """Whether the files are in HDFS."""
        return self.path.startswith("webhdfs://")


# Shape


class _Files:
    """What becomes of a batch: its directories, and each one's file."""

    def __init__(self, settings: Settings, to_json: EventJson, store: Store) -> None:
        """Errors: ImportError when zstd is asked for and not installed."""
        self._layout = Layout(settings.layout)
        self._encode = to_json.lines if settings.format == "jsonl" else partial(_frames, to_json)
        self._small = compressor_for(settings.compression)
        self._large = compressor_for(settings.compression, large=True)
        self._suffix = f".{settings.format}" + ENDING[settings.compression]
        self._store = store

    def by_directory(self, batch: Iterable[Event]) -> dict[str, list[Event]]:
        """The events of a batch, by the directory they belong in."""
        return self._layout.by_directory(batch)

    def write(self, events: Sequence[Event], write: Callable[[bytes], object]) -> str:
        """Give ``write`` the bytes of a file, compressed; returns the stem of its name.

        zstd compresses a large file while the next lines are made, and the last ones while the stem is.
        """
        compressor = self._large() if len(events) >= _LARGE else self._small()
        for start in range(0, len(events), _LINES_AT_ONCE):
            write(compressor.compress(self._encode(events[start : start + _LINES_AT_ONCE])))
        stem = file_stem(events)
        write(compressor.flush())
        return stem

    def name_in(self, directory: str, stem: str) -> str | None:
        """The name of a file; None: it has been compacted. Errors: OSError."""
        return None if stem in self._compacted(directory) else stem + self._suffix

    def _compacted(self, directory: str) -> set[str]:
        try:
            return {name.partition(".")[0] for name in read_manifest(self._store, directory).listed}
        except Unreadable:  # readers say so; a listed file that comes back counts for none of them
            return set()


def _frames(to_json: EventJson, events: Iterable[Event]) -> bytes:
    return b"".join(encode_frame(event, to_json) for event in events)


# Delivery


class ArchiveForwarder:
    """A directory on a local filesystem.

    Owner:  one thread per ``instance``, ``name`` and path; others may archive into the same path.
    Errors: Unavailable for whatever the disk says (full, read-only, no right, not mounted, damaged).
    """

    identical_repeats = True

    def __init__(self, path: Path, *, name: str, files: _Files, instance: str) -> None:
        self.name = name
        self._root = str(path)  # plain strings: pathlib took half of the time of a batch of many small files
        self._tmp = f"{path}/.tmp"
        self._files = files
        self._draft = f"{instance}~{name}~"  # names hold no ~, so none is the beginning of another's
        self._swept = False
        self._durable: set[str] = set()

    def send(self, batch: Sequence[Event]) -> None:
        """Write every file of the batch, sync them, name them, sync the directories: each step for all of them
        at once, because a filesystem that has just committed its journal syncs the next file for almost nothing."""
        drafts: list[str] = []
        try:
            self._prepare()
            files: list[tuple[str, str, str]] = []
            for directory, events in self._files.by_directory(batch).items():
                drafts.append(f"{self._tmp}/{self._draft}{len(drafts)}")
                if name := self._files.name_in(directory, self._write(drafts[-1], events)):
                    files.append((drafts[-1], directory, name))
            for draft, _, _ in files:
                sync(draft, os.fdatasync)
            for draft, directory, name in files:
                rename(draft, f"{self._root}/{directory}", name)
            self._sync_directories(directory for _, directory, _ in files)
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
        make_directory(self._tmp)
        for above in Path(self._root).absolute().parents:  # some may be new; one that we may not read is not
            with contextlib.suppress(PermissionError):
                sync(str(above), os.fsync)
        for left in Path(self._tmp).glob(f"{self._draft}*"):
            left.unlink(missing_ok=True)
        self._swept = True

    def _write(self, draft: str, events: Sequence[Event]) -> str:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE)
        with os.fdopen(descriptor, "wb", buffering=256 * 1024) as file:
            return self._files.write(events, file.write)

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
            sync(f"{self._root}/{directory}", os.fsync)
        if len(self._durable) > _DIRECTORIES_REMEMBERED:
            self._durable.clear()
        self._durable |= new


class RemoteArchiveForwarder:
    """What is below a URL: a put for each file, some at a time, since each one waits for the service.

    Owner:  one thread, which has others help it; none is left when `send` ends. Others may archive into the same URL.
    Errors: Unavailable for whatever the service says, and when it does not answer.
    """

    identical_repeats = True

    def __init__(self, store: RemoteStore, *, name: str, files: _Files) -> None:
        self.name = name
        self._store = store
        self._files = files

    def send(self, batch: Sequence[Event]) -> None:
        groups = self._files.by_directory(batch)
        pool = ThreadPoolExecutor(min(_PUTS_AT_ONCE, len(groups)), "archive-put")
        try:
            for done in [pool.submit(self._put, *each) for each in groups.items()]:
                done.result()
        except OSError as exc:
            raise Unavailable(f"{self.name}: {exc}") from exc
        finally:
            pool.shutdown(cancel_futures=True)

    def _put(self, directory: str, events: list[Event]) -> None:
        pieces: list[bytes] = []
        name = self._files.name_in(directory, self._files.write(events, pieces.append))
        if name is not None:
            self._store.put(f"{directory}/{name}", b"".join(pieces))

    def close(self) -> None:
        self._store.close()


# Construction


def open_store(settings: Settings) -> Store:
    """The archive's files. Errors: OSError, ValueError, ImportError: what `from_settings` says."""
    return _remote_store(settings) if settings.is_url else LocalStore(Path(settings.path))


def from_settings(settings: Settings, *, name: str, to_json: EventJson, instance: str) -> Forwarder:
    """Errors: ImportError when the library for zstd or for a URL is missing; OSError, ValueError of credentials."""
    if settings.is_url:
        store = _remote_store(settings)
        return RemoteArchiveForwarder(store, name=name, files=_Files(settings, to_json, store))
    path = Path(settings.path)
    return ArchiveForwarder(path, name=name, files=_Files(settings, to_json, LocalStore(path)), instance=instance)


def _remote_store(settings: Settings) -> RemoteStore:
    if settings.is_hdfs:
        from forwarders.webhdfs import HdfsStore  # only where it is asked for: an extra

        return HdfsStore(settings.path, credentials_file=settings.credentials_file, timeout_s=settings.timeout_s)
    from forwarders.object_store import ObjectStore  # as above

    return ObjectStore(
        settings.path,
        endpoint=settings.endpoint,
        region=settings.region,
        credentials_file=settings.credentials_file,
        timeout_s=settings.timeout_s,
    )
