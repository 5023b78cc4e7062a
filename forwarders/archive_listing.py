"""Which files of an archive are to be read: the one list for whoever looks into it.

    <path>/PageView/2026/11/22/10/20261122T101500Z-….jsonl.zst      files of batches: live unless a manifest lists them
    <path>/PageView/2026/11/22/10/compact-000002-….parquet          compacted: live when the manifest names it
    <path>/.manifests/PageView/2026/11/22/10/000002.json             forwarders/archive_manifest.py
    <path>/.tmp/                                                     drafts, never to be read

The directory says name and time (forwarders/archive_layout.py; the layout may be another one), so that files of other
names and hours are left out by their paths. An event's ``eventDate`` lies in the time of its directory, whatever its
granularity. Lines and rows have the keys of formats/event_json.py; for the columns see forwarders/archive_parquet.py.

`live_files` reads the names first and the manifests after them: a source is deleted only after the manifest that lists
it is there, so that beside a compaction each event is in exactly one of the files that it returns. A file can be gone
when it is opened (FileNotFoundError): it has been compacted since, so list again. To open one, whatever the store:
``with store.fetched(file.name) as path``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from forwarders.archive_files import suffix_of
from forwarders.archive_layout import Layout, Place, escape_name
from forwarders.archive_manifest import MANIFESTS, NONE, Manifest, decode_manifest, newest
from forwarders.archive_store import Store, Stored, Wanted


@dataclass(frozen=True)
class ArchiveFile:
    """A file to be read. ``events`` is known of compacted ones; ``suffix`` is one of archive_files.SUFFIXES."""

    name: str
    size: int
    place: Place
    suffix: str
    events: int | None = None
    sha256: str | None = None

    @property
    def directory(self) -> str:
        return self.name.rpartition("/")[0]


@dataclass(frozen=True)
class Choice:
    """Which events: names (patterns, * and ?; none: all), and their time from ``since_ms`` up to ``until_ms``."""

    names: Sequence[str] = ()
    since_ms: int | None = None
    until_ms: int | None = None

    def takes(self, place: Place) -> bool:
        """Whether a directory can hold such events."""
        if self.since_ms is not None and place.end_ms <= self.since_ms:
            return False
        if self.until_ms is not None and place.start_ms >= self.until_ms:
            return False
        return not self.names or any(_is_of(place, pattern) for pattern in self.names)

    def takes_time(self, time_ms: int) -> bool:
        """Whether an event of this time is meant."""
        late_enough = self.since_ms is None or time_ms >= self.since_ms
        return late_enough and (self.until_ms is None or time_ms < self.until_ms)


ALL = Choice()


def live_files(store: Store, layout: Layout, choice: Choice = ALL) -> list[ArchiveFile]:
    """The files that hold the events of ``choice``, by name; others may be in them too. Errors: OSError, Unreadable."""
    while True:
        by_directory = directories(store, layout, choice)
        try:
            manifests = _manifests(store, layout, choice)
        except FileNotFoundError:  # there is a newer one
            continue
        found = []
        for directory, (place, stored) in by_directory.items():
            manifest = manifests.pop(directory, NONE)
            found += [
                ArchiveFile(each.name, each.size, place, suffix_of(each.name) or "")
                for each in stored
                if manifest.counts(each.name.rpartition("/")[2]) and not _is_part(manifest, each.name)
            ]
            found += _parts(directory, place, manifest)
        for directory, manifest in manifests.items():
            only_part = layout.place_of(directory)
            if only_part is not None:
                found += _parts(directory, only_part, manifest)
        return sorted(found, key=lambda each: each.name)


def directories(store: Store, layout: Layout, choice: Choice = ALL) -> dict[str, tuple[Place, list[Stored]]]:
    """The directories that ``choice`` takes, with all archive files in them, live or not."""
    found: dict[str, tuple[Place, list[Stored]]] = {}
    wanted = _wanted(layout, choice, "")
    for below in _roots(layout, choice):
        for each in store.files(below, wanted):
            directory = each.name.rpartition("/")[0]
            if directory in found:
                found[directory][1].append(each)
            elif suffix_of(each.name):
                place = layout.place_of(directory)
                if place is not None and choice.takes(place):
                    found[directory] = (place, [each])
    return {
        directory: (place, [each for each in stored if suffix_of(each.name)])
        for directory, (place, stored) in found.items()
    }


def _roots(layout: Layout, choice: Choice) -> list[str]:
    """Where to look: below the very names, where no pattern was given."""
    if not choice.names or any(set("*?[") & set(name) for name in choice.names):
        return [layout.root]
    return sorted({layout.top_of(name) for name in choice.names})


def _wanted(layout: Layout, choice: Choice, prefix: str) -> Wanted:
    """Where to look below the roots: a directory of a year or a day says its time as one of an hour does."""

    def wanted(directory: str) -> bool:
        place = layout.place_of(directory.removeprefix(prefix))
        return place is None or choice.takes(place)

    return wanted


def _manifests(store: Store, layout: Layout, choice: Choice) -> dict[str, Manifest]:
    found = {}
    wanted = _wanted(layout, choice, f"{MANIFESTS}/")
    for below in _roots(layout, choice):
        names = [each.name for each in store.files(f"{MANIFESTS}/{below}".rstrip("/"), wanted)]
        for directory, of_one in newest(names).items():
            place = layout.place_of(directory)
            if place is not None and choice.takes(place):
                found[directory] = decode_manifest(store.read(of_one[0]), of_one[0])
    return found


def _parts(directory: str, place: Place, manifest: Manifest) -> list[ArchiveFile]:
    """The compacted files, by the manifest's word: they may be younger than the list of names."""
    return [
        ArchiveFile(f"{directory}/{each.name}", each.bytes, place, suffix_of(each.name) or "", each.events, each.sha256)
        for each in manifest.files
    ]


def _is_part(manifest: Manifest, name: str) -> bool:
    return any(each.name == name.rpartition("/")[2] for each in manifest.files)


def _is_of(place: Place, pattern: str) -> bool:
    return place.escaped == escape_name(pattern) or fnmatchcase(place.name, pattern)
