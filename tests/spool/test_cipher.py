"""Encryption at rest: no event byte without the key, everything with it, never a wrong payload."""

from pathlib import Path

import pytest

from spool.box import MAGIC
from spool.cipher import Keyring
from spool.damaged_bytes import DamagedBytes
from spool.directory import SpoolDirectory
from spool.item import RefusedRecord
from spool.key_file import KeyFileError, add_key, read_keys
from spool.key_name import KeyMissing
from spool.quarantine import Quarantine, QuarantineError
from spool.reader import Record, SegmentReader
from spool.record import Origin, SegmentHeader, encode_record, encode_segment_header, seed_of
from spool.recovery import salvage_orphans
from spool.refused_events import RefusedEvents
from spool.unsynced import Unsynced
from spool.writer import SpoolWriter
from tests.spool.keys import all_bytes, key_line, keyring, with_keys, write_keys

SECRET = b"anna@example.com bought a ring; "
LONG = SECRET * 40  # is compressed before it is encrypted
ERROR = "too long: anna@example.com"


@pytest.fixture
def directory(tmp_path: Path) -> SpoolDirectory:
    return SpoolDirectory.open(tmp_path / "spool", keyring=keyring(tmp_path / "keys", "first"))


def write(directory: SpoolDirectory, *payloads: bytes, close: bool = True) -> Path:
    """A segment with these records: sealed, or as a process that was killed leaves it."""
    writer = SpoolWriter(directory)
    for payload in payloads:
        writer.append(payload, 2, 10**18)
    writer.commit(sync=True)
    (path,) = directory.opened.iterdir()
    if close:
        writer.close()
        (path,) = directory.sealed.iterdir()
    return path


def read(path: Path, keys: Keyring | None) -> list[bytes | str]:
    with SegmentReader(path, keys) as reader:
        return [each.payload if isinstance(each, Record) else each.reason for each in reader.records()]


def test_an_encrypted_segment_shows_nothing_and_reads_as_it_was_written(directory: SpoolDirectory) -> None:
    path = write(directory, SECRET, LONG, b"")

    assert SECRET[:8] not in all_bytes(directory)
    assert path.stat().st_size < 700  # compressed
    assert read(path, directory.keyring) == [SECRET, LONG, b""]
    with SegmentReader(path) as reader:
        assert reader.seal is not None
        assert reader.seal.event_count == 6
        assert [each.event_count for each in reader.scan() if isinstance(each, Record)] == [2, 2, 2]


def test_the_same_payload_is_never_the_same_bytes(directory: SpoolDirectory) -> None:
    path = write(directory, SECRET, SECRET)

    with SegmentReader(path) as reader:
        one, other = [each.payload for each in reader.scan() if isinstance(each, Record)]
    assert one != other


def test_without_its_key_a_segment_says_which_one_is_missing(directory: SpoolDirectory, tmp_path: Path) -> None:
    path = write(directory, SECRET)

    for keys, said in (
        (None, "encrypted with the key first, which spool.key_file does not give"),
        (keyring(tmp_path / "other", "second"), "encrypted with the key first, which spool.key_file does not give"),
        (keyring(tmp_path / "same", "first"), "under that id is another key"),
    ):
        with pytest.raises(KeyMissing, match=said):
            read(path, keys)


def test_an_older_key_still_reads_and_the_first_one_writes(directory: SpoolDirectory, tmp_path: Path) -> None:
    old = write(directory, SECRET)
    write_keys(tmp_path / "keys", key_line("second"), (tmp_path / "keys").read_text())
    both = Keyring.read(tmp_path / "keys")
    writer = SpoolWriter(with_keys(directory, both))
    writer.append(LONG, 1, 1)
    writer.commit(sync=False)
    writer.close()
    (new,) = set(directory.sealed.iterdir()) - {old}

    assert [read(old, both), read(new, both)] == [[SECRET], [LONG]]
    with pytest.raises(KeyMissing, match="the key second"):
        read(new, directory.keyring)


def test_clear_segments_stay_readable_beside_encrypted_ones(tmp_path: Path) -> None:
    clear = write(SpoolDirectory.open(tmp_path / "spool"), SECRET)

    assert read(clear, keyring(tmp_path / "keys", "k")) == [SECRET]


def test_every_changed_byte_of_an_encrypted_segment_costs_at_most_its_record_and_gives_no_wrong_payload(
    directory: SpoolDirectory,
) -> None:
    path = write(directory, b"first", b"second", b"third")
    whole = path.read_bytes()

    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x40]) + whole[position + 1 :])
        found = [each for each in read(path, directory.keyring) if isinstance(each, bytes)]
        assert set(found) <= {b"first", b"second", b"third"}
        assert len(found) >= 2


def test_a_record_whose_ciphertext_was_changed_with_its_checksums_is_damage(directory: SpoolDirectory) -> None:
    """Whoever can write the file can make its checksums right, but not the tag."""
    path = write(directory, b"first", b"second")
    data = bytearray(path.read_bytes())
    with SegmentReader(path, directory.keyring) as reader:
        uuid = reader.header.uuid
        first = next(each for each in reader.scan() if isinstance(each, Record))
    forged = bytes(first.payload[:-1]) + bytes([first.payload[-1] ^ 1])
    head = encode_record(
        forged, seed=seed_of(uuid), offset=first.offset, received_ns=first.received_ns,
        event_count=2, ordinal=0, codec=0x10,
    )  # fmt: skip
    data[first.offset : first.end] = head + forged
    path.write_bytes(data)

    damage = "its key does not decrypt it: it was changed after it was written"
    assert read(path, directory.keyring) == [damage, b"second"]


def test_an_orphan_is_salvaged_without_the_key(directory: SpoolDirectory) -> None:
    path = write(directory, SECRET, LONG, close=False)
    torn = path.with_name(path.name)  # its writer still has it locked: a copy has no owner
    data = torn.read_bytes()
    torn.unlink()
    torn.write_bytes(data[:-5])

    (result,) = salvage_orphans(with_keys(directory, None))

    assert (result.records, result.damaged_ranges, result.lost_events) == (1, 1, 2)
    assert result.segment is not None
    assert read(directory.sealed / result.segment, directory.keyring) == [SECRET]
    assert SECRET[:8] not in all_bytes(directory)


@pytest.mark.parametrize("length", [64, 80])
def test_a_segment_whose_header_is_gone_still_opens(directory: SpoolDirectory, length: int) -> None:
    """64: the name of the key is still there; 80: each key is tried."""
    path = write(directory, SECRET, LONG, close=False)
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(bytes(length) + data[length:])

    (result,) = salvage_orphans(directory)

    assert result.segment is not None
    found = read(directory.sealed / result.segment, directory.keyring)
    assert [each for each in found if isinstance(each, bytes)] == [SECRET, LONG]


def test_what_a_failed_sync_puts_in_doubt_names_the_places_of_the_encrypted_records(directory: SpoolDirectory) -> None:
    path = write(directory, LONG, SECRET)
    with SegmentReader(path, directory.keyring) as reader:
        uuid = reader.header.uuid
        records = [each for each in reader.records() if isinstance(each, Record)]
        stored = [(each.payload, 2, 1, 1) for each in reader.scan() if isinstance(each, Record)]
    unsynced = Unsynced()
    unsynced.add(records[0].offset, [(each.payload, 2, 1, 1) for each in records], stored, 100)
    unsynced.doubt(uuid)
    writer = SpoolWriter(directory)
    writer._rotation.unsynced = unsynced
    writer.append(b"next", 1, 1)
    writer.commit(sync=True)
    writer.close()

    (again,) = set(directory.sealed.iterdir()) - {path}
    with SegmentReader(again, directory.keyring) as reader:
        moved = [(each.origin, each.payload) for each in reader.records() if isinstance(each, Record)]
    assert moved == [(Origin(uuid, each.offset), each.payload) for each in records] + [(None, b"next")]


def test_quarantine_is_encrypted_and_with_the_key_can_be_shown_replayed_and_exported(
    directory: SpoolDirectory, tmp_path: Path
) -> None:
    segment = write(directory, SECRET)
    kept = Quarantine(directory)
    refused = [RefusedRecord(Origin(bytes(16), 64, (1,)), SECRET, 1, 10**18)]
    assert RefusedEvents(directory).add("archive", segment.name, refused, reason="refused", error=ERROR)[:2] == (1, 0)
    again = RefusedEvents(directory).add("archive", segment.name, refused, reason="refused", error=ERROR)
    assert again[:2] == (0, 0)  # known
    assert DamagedBytes(directory).add_bytes(segment.name, 64, 96, [LONG], reason="does not decode")
    assert not DamagedBytes(directory).add_bytes(segment.name, 64, 96, [LONG], reason="does not decode")
    directory.queue("archive")

    assert b"anna@" not in all_bytes(directory)
    events, damage = kept.items()
    assert events.description.error == ERROR
    (record,) = kept.contents(events)
    assert isinstance(record, Record)
    assert (record.payload, record.origin) == (SECRET, refused[0].origin)
    assert kept.replay(events)
    kept.export(events, tmp_path)
    kept.export(damage, tmp_path)
    assert (tmp_path / "spool" / damage.path.name).read_bytes() == LONG
    assert read(tmp_path / "archive" / events.path.name, None) == [SECRET]
    assert not kept.export(damage, tmp_path)
    assert not kept.export(events, tmp_path)
    assert b"anna@" in (tmp_path / "archive" / events.description_path.name).read_bytes()

    locked = Quarantine(with_keys(directory, None))
    assert "the key first" in locked.items()[0].description.reason
    outside = tmp_path / "outside"
    outside.mkdir()
    for attempt in (
        lambda: locked.contents(events), lambda: locked.replay(events), lambda: locked.export(damage, outside)
    ):  # fmt: skip
        with pytest.raises(QuarantineError, match="the key first"):
            attempt()
    assert list(outside.iterdir()) == []


def test_a_box_that_was_changed_says_so(directory: SpoolDirectory, tmp_path: Path) -> None:
    kept = Quarantine(directory)
    DamagedBytes(directory).add_bytes("s.seg", 0, 3, [b"x" * 3_000_000], reason="damaged")
    (item,) = kept.items()
    whole = item.path.read_bytes()
    assert whole.startswith(MAGIC)

    cut = (whole[:-1], whole[:1_500_000])
    for changed in (*cut, *(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in (30, 2_000_000))):
        item.path.write_bytes(changed)
        with pytest.raises(QuarantineError, match="damaged"):
            kept.export(item, tmp_path)
    item.path.write_bytes(whole)
    kept.export(item, tmp_path)
    assert (tmp_path / "spool" / item.path.name).read_bytes() == b"x" * 3_000_000


@pytest.mark.parametrize(
    ("text", "mode", "said"),
    [
        (key_line("a"), 0o644, "others could read it"),
        (key_line("a"), 0o660, "others could read it or change it"),
        ("# nothing\n", 0o600, "holds no key"),
        ("a:c2hvcnQ=\n", 0o600, "line 1: expected ID:BASE64 of 32 bytes"),
        (key_line("a") + key_line("a"), 0o600, "line 2: the id a is there twice"),
        (key_line("a/b"), 0o600, "line 1: expected ID:BASE64"),
    ],
    ids=["readable", "writable", "empty", "short", "twice", "name"],  # keys are random, the names of tests are not
)  # fmt: skip
def test_a_key_file_that_will_not_do_is_refused_with_its_line(tmp_path: Path, text: str, mode: int, said: str) -> None:
    path = write_keys(tmp_path / "keys", text)
    path.chmod(mode)

    with pytest.raises(KeyFileError, match=said):
        read_keys(path)
    assert "c2hvcnQ" not in said


def test_a_segment_with_an_unknown_cipher_is_kept_whole_with_the_reason(directory: SpoolDirectory) -> None:
    """A later version wrote it: nothing is deleted, nothing is guessed at."""
    path = write(directory, SECRET, close=False)
    data = path.read_bytes()
    path.unlink()
    with SegmentReader(write(directory, SECRET), directory.keyring) as reader:
        header = SegmentHeader(reader.header.uuid, 1, flags=0x200)
    path.write_bytes(encode_segment_header(header) + data[64:])

    salvage_orphans(directory)

    (item,) = Quarantine(directory).items("spool")
    assert "later version (format 1, flags 0x200)" in item.description.reason
    assert item.path.read_bytes()[64:] == data[64:]


def test_a_new_key_writes_and_the_ones_before_it_stay(tmp_path: Path) -> None:
    path = tmp_path / "keys"

    assert add_key(path, "first") == "first"
    path.chmod(0o640)
    secret = read_keys(path)["first"]
    today, again = add_key(path), add_key(path)

    assert list(read_keys(path)) == [again, today, "first"]
    assert again == f"{today}-2"
    assert read_keys(path)["first"] == secret
    assert path.stat().st_mode & 0o777 == 0o640
    with pytest.raises(KeyFileError, match="the id first is there already"):
        add_key(path, "first")
