"""A forwarder whose queue holds what it has no key for."""

from pathlib import Path

from forwarders.status import read_status
from spool.directory import SpoolDirectory
from tests.forwarders.spooled import Bench, event
from tests.spool.keys import all_bytes, keyring, with_keys


def test_without_the_key_encrypted_segments_wait_loudly_and_the_others_go_on(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    keys = keyring(tmp_path / "keys", "k1")
    clear = bench.directory
    bench.directory = with_keys(clear, keys)
    locked = bench.put([event(1)], [event(2)])
    bench.directory = clear
    bench.start()
    sent = bench.put([event(3)])

    bench.work_for(130)

    assert bench.destination.ids == sent
    status = read_status(clear, "fake")
    assert status is not None
    assert status.state == "stopped"
    assert "the key k1, which spool.key_file does not give" in status.reason
    assert bench.quarantined() == bench.quarantined("spool") == []

    bench.directory = with_keys(clear, keys)
    bench.start()
    bench.work()

    assert sorted(bench.destination.ids) == sorted(sent + locked)
    assert bench.segments() == []


def test_what_a_destination_says_of_an_event_is_encrypted_too(tmp_path: Path) -> None:
    def refuse(_batch: object) -> None:
        raise RuntimeError("cannot take padding xxxxxxxx")

    bench = Bench(tmp_path)
    bench.directory = with_keys(bench.directory, keyring(tmp_path / "keys", "k1"))
    bench.start()
    bench.put([event(1, padding=8)], [event(2)])
    bench.destination.answer = refuse

    bench.work_for(300)

    status = read_status(bench.directory, "fake")
    assert status is not None
    assert "xxxxxxxx" in status.reason
    assert b"xxxxxxxx" not in all_bytes(SpoolDirectory.open(bench.directory.path))
