"""Copies of the quarantine's items in a directory outside, decrypted, for a person.

    DIRECTORY/OWNER/ITEM.seg     refused events, as they would be in a spool without a key; or
    DIRECTORY/OWNER/ITEM.bytes   a damaged range
    DIRECTORY/OWNER/ITEM.json    the description, written last

Each is written under its name with ``.part`` behind it, synced, and renamed: what has its name is whole, and the next
run begins a part that a killed one left anew.

Items of several owners may have one name: one bad event that two destinations refuse. So what is there already is
compared, and never taken for the item because of its name.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from spool import box
from spool.directory import fsync_directory
from spool.item import Description, Item, QuarantineError, entry_of
from spool.key_name import KeyMissing
from spool.reader import Record, SegmentReader, SegmentUnreadable
from spool.segment import encode_segment

if TYPE_CHECKING:
    from spool.cipher import Keyring


PART_SUFFIX: Final = ".part"


def export_item(item: Item, to: Path, keyring: "Keyring | None", *, dry_run: bool = False) -> bool:
    """Copy the two files of an item, or the one that is not there yet; False when both are there already.

    Errors: QuarantineError, also when another file has the name; OSError. Of an item that failed nothing is left there.
    """
    place = to / item.owner
    data, description = place / item.path.name, place / item.description_path.name
    try:
        wanted = {each for each in (data, description) if not each.exists()}
        if data not in wanted and not same_bytes(_chunks(data), _clear(item, keyring)):
            raise QuarantineError(f"{data}: is there, and is not {item.name} of {item.owner}; nothing was copied")
        if description not in wanted and not _describes(description, item):
            raise QuarantineError(f"{description}: is there, and does not describe {item.name} of {item.owner}")
        if wanted and not dry_run:
            _write({data: _clear(item, keyring), description: [item.description.encode()]}, wanted)
    except (KeyMissing, box.BoxDamaged) as exc:
        raise QuarantineError(f"{item.name}: {exc}") from exc
    return bool(wanted)


def same_bytes(one: Iterable[bytes], other: Iterable[bytes]) -> bool:
    """Whether two files have the same content, however it is cut."""

    def digest(chunks: Iterable[bytes]) -> bytes:
        total = hashlib.sha256()
        for chunk in chunks:
            total.update(chunk)
        return total.digest()

    return digest(one) == digest(other)


def _write(contents: dict[Path, Iterable[bytes]], wanted: set[Path]) -> None:
    with contextlib.ExitStack() as undo:
        for path, chunks in contents.items():
            if path not in wanted:
                continue
            if not path.parent.exists():
                path.parent.mkdir()
                undo.callback(path.parent.rmdir)
            part = path.with_name(path.name + PART_SUFFIX)
            part.unlink(missing_ok=True)
            with part.open("xb") as target:
                undo.callback(part.unlink, missing_ok=True)
                target.writelines(chunks)
                target.flush()
                os.fsync(target.fileno())
            os.rename(part, path)
            undo.callback(path.unlink)
            fsync_directory(path.parent)
            fsync_directory(path.parent.parent)
        undo.pop_all()


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(box.PIECE_BYTES):
            yield chunk


def _describes(path: Path, item: Item) -> bool:
    """Whether a file is the item's description, of today or of before it was tried again."""
    now = item.description
    try:
        then = Description.decode(path.read_bytes())
    except (ValueError, TypeError):
        return False
    then = replace(then, reason=now.reason, error=now.error, attempts=now.attempts, last_seen=now.last_seen)
    return then == now


def _clear(item: Item, keyring: "Keyring | None") -> Iterator[bytes]:
    """The bytes of an item as they would be in a spool without a key. Errors: KeyMissing, BoxDamaged."""
    if item.kind == "events":
        with contextlib.suppress(SegmentUnreadable), SegmentReader(item.path, keyring) as reader:
            if reader.header.flags:
                yield encode_segment(
                    [entry_of(each) for each in reader.records() if isinstance(each, Record)],
                    uuid=reader.header.uuid, created_ns=reader.header.created_ns, key=None,
                )  # fmt: skip
                return
    yield from box.read(item.path, keyring)
