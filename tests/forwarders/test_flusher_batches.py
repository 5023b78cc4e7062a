"""Which events go into a batch, and when: limits, age, names, damage, and segments that cannot be read."""

import errno
import gc
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from spooled import WANTED, Bench, event, offsets_in

from formats.envelope import encode_envelope
from forwarders.aside import ASIDE_S
from forwarders.flush_settings import FlushSettings, Names
from spool.cursor import MAX_RANGES
from spool.writer import SpoolWriter


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def sizes(bench: Bench) -> list[int]:
    return [len(batch) for batch in bench.destination.batches]


# Limits


def test_a_batch_spans_segments_and_keeps_their_order(bench: Bench) -> None:
    first = bench.put([event(1), event(2)], [event(3)])
    second = bench.put([event(4)])
    third = bench.put([event(5), event(6)])
    bench.work()

    assert bench.destination.batches == [first + second + third]
    assert bench.segments() == []
    assert bench.figures["sent_events_total"] == 6
    assert bench.figures["batches_total"] == 1
    assert bench.figures["queue_segments"] == 0


def test_a_batch_holds_whole_records_up_to_the_number_of_events(bench: Bench) -> None:
    bench.flush_with(batch_max_events=25)
    wanted = bench.put(*[[event(n)] * 10 for n in range(5)]) + bench.put([event(9)] * 10)
    bench.work()

    assert sizes(bench) == [20, 20, 20]
    assert bench.destination.ids == wanted


def test_a_batch_holds_whole_records_up_to_the_number_of_bytes(bench: Bench) -> None:
    bench.flush_with(batch_max_bytes=10_000)
    wanted = bench.put(*[[event(n, padding=4000)] for n in range(5)])
    bench.work()

    assert sizes(bench) == [2, 2, 1]
    assert bench.destination.ids == wanted


def test_a_record_too_large_for_any_batch_is_cut(bench: Bench) -> None:
    bench.flush_with(batch_max_events=30)
    wanted = bench.put([event(0)] * 20, [event(n) for n in range(100)], [event(1)] * 10)
    bench.work()

    assert sizes(bench) == [20, 30, 30, 30, 20]  # the rest of it goes with what follows
    assert bench.destination.ids == wanted


def test_a_record_with_too_many_bytes_is_cut_too(bench: Bench) -> None:
    bench.flush_with(batch_max_bytes=10_000)
    wanted = bench.put([event(n, padding=1000) for n in range(50)])
    bench.work()

    assert max(sizes(bench)) <= 10
    assert bench.destination.ids == wanted


def test_an_event_larger_than_a_batch_goes_alone(bench: Bench) -> None:
    bench.flush_with(batch_max_bytes=1000)
    wanted = bench.put([event(n, padding=5000) for n in range(3)])
    bench.work()

    assert sizes(bench) == [1, 1, 1]
    assert bench.destination.ids == wanted


def test_a_kill_inside_a_cut_record_repeats_at_most_a_batch(bench: Bench) -> None:
    bench.flush_with(batch_max_events=30)
    wanted = bench.put([event(n) for n in range(100)])
    for _ in range(2):
        bench.lane.step()
    taken = list(bench.destination.ids)
    bench.start()
    bench.work()

    assert taken == wanted[:60]
    assert bench.destination.ids == wanted


def test_a_batch_of_many_small_segments_stays_within_what_the_cursor_holds(bench: Bench) -> None:
    wanted = sorted(each for n in range(MAX_RANGES + 5) for each in bench.put([event(n)]))
    bench.work()

    assert sizes(bench) == [MAX_RANGES, 5]
    assert sorted(bench.destination.ids) == wanted


def test_a_segment_without_events_is_finished(bench: Bench) -> None:
    bench.put([event(1)])
    (segment,) = bench.segments()
    end = offsets_in(segment)[0][0]
    os.truncate(segment, end)
    bench.work()

    assert bench.destination.sends == []
    assert bench.segments() == []


# Age


def test_what_comes_waits_for_the_age_and_no_longer(bench: Bench) -> None:
    bench.flush_with(batch_max_age_s=60.0)
    bench.work()
    wanted = bench.put([event(1)])

    assert bench.work() == pytest.approx(60.0)
    bench.clock.now += 30
    wanted += bench.put([event(2)])
    assert bench.work() == pytest.approx(30.0)
    assert bench.destination.batches == []
    bench.clock.now += 30
    bench.work()
    assert bench.destination.batches == [wanted]


def test_the_next_batch_waits_for_its_own_age(bench: Bench) -> None:
    bench.flush_with(batch_max_age_s=60.0)
    bench.work()
    bench.put([event(1)])
    bench.work_for(61)
    bench.work_for(500)
    bench.put([event(2)])

    assert bench.work() == pytest.approx(60.0)
    assert sizes(bench) == [1]


def test_what_lies_there_at_the_start_does_not_wait_again(bench: Bench) -> None:
    bench.flush_with(batch_max_age_s=60.0)
    bench.work()
    bench.put([event(1)])
    bench.work()
    bench.start()
    bench.work()

    assert sizes(bench) == [1]


def test_enough_bytes_do_not_wait(bench: Bench) -> None:
    bench.flush_with(batch_max_age_s=60.0, batch_max_bytes=10_000)
    bench.work()
    bench.put([event(1, padding=9_000)])
    bench.work()
    assert bench.destination.batches == []

    bench.put([event(2, padding=9_000)])
    bench.work()
    assert sizes(bench)[0] == 1


def test_enough_events_do_not_wait(bench: Bench) -> None:
    """Counted from the seals; no record is read for it."""
    bench.flush_with(batch_max_age_s=60.0, batch_max_events=10)
    bench.work()
    bench.put([event(1)] * 5)
    bench.work()
    assert bench.destination.batches == []

    bench.put([event(2)] * 5)
    bench.work()
    assert sizes(bench) == [10]


def test_nothing_is_held_in_memory_or_written_while_it_waits(bench: Bench) -> None:
    bench.flush_with(batch_max_age_s=60.0)
    bench.work()
    cursor = bench.queue / ".cursor"
    bench.put([event(1)])
    before = cursor.read_bytes()
    bench.work_for(50)

    assert cursor.read_bytes() == before


IN_A_PROCESS_OF_ITS_OWN = """
import resource, sys
from pathlib import Path
sys.path[:0] = [{tests!r}, {repository!r}]
from spooled import Bench, event
from spool.switch import Switch

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

class Sink:
    identical_repeats = False
    def send(self, batch):
        taken.append(faults() - before)
    def close(self):
        pass

bench, taken = Bench(Path({path!r})), []
bench.flush_with(batch_max_events=50_000)
bench.make = Sink
records = [[event(n) for n in range(100)]] * 500
for _ in range(5):
    bench.put(*records)

def work_until(end):
    global before
    while not end():
        before = faults()
        bench.lane.step()

work_until(lambda: len(taken) == 3)
switch = Switch.forwarder(bench.directory, "fake")
switch.turn_off("a pause")
bench.lane.step()
switch.turn_on()
work_until(lambda: len(taken) == 5)
for idle_s in (59, 60):
    bench.clock.now += idle_s
    bench.lane.step()
    sent = len(taken)
    bench.put(*records)
    work_until(lambda: len(taken) > sent)
print(*taken)
"""


def test_the_memory_of_a_batch_is_there_for_the_next_and_given_back_at_rest(tmp_path: Path) -> None:
    """By the pages that had to be found for it."""
    tests = Path(__file__).parent
    script = IN_A_PROCESS_OF_ITS_OWN.format(tests=str(tests), repository=str(tests.parents[1]), path=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    first, second, third, after_a_pause, fifth, soon, after_a_minute = map(int, done.stdout.split())

    assert max(second, third, fifth, soon) * 4 < min(first, after_a_pause, after_a_minute)


# Names


@pytest.mark.parametrize(
    ("patterns", "wanted"),
    [
        (["*"], ["Play", "PlayEnd", "Stop", "a.b"]),
        (["Play*"], ["Play", "PlayEnd"]),
        (["Play*", "!*End"], ["Play"]),
        (["!Stop"], ["Play", "PlayEnd", "a.b"]),
        (["*", "!*"], []),
        (["S?op", "[ab].?"], ["Stop", "a.b"]),
        (["play"], []),
        ([], []),
    ],
)
def test_patterns_choose_names(patterns: list[str], wanted: list[str]) -> None:
    names = Names(patterns)

    for _ in range(2):  # asked, and remembered
        assert [name for name in ("Play", "PlayEnd", "Stop", "a.b") if names.wants(name)] == wanted


def test_clients_cannot_fill_the_memory_with_names() -> None:
    names = Names(["a*"])
    for n in range(30_000):
        assert names.wants(f"a{n}")

    assert len(names._known) <= 10_000


def test_events_that_are_not_wanted_are_counted_and_passed_over(bench: Bench) -> None:
    bench.flush_with(names=["yes*"])
    wanted = bench.put([event(1, "yes"), event(2, "no"), event(3, "yes2")], [event(4, "no")])
    bench.work()

    assert bench.destination.batches == [[wanted[0], wanted[2]]]
    assert bench.figures["skipped_events_total"] == 2
    assert bench.figures["sent_events_total"] == 2
    assert bench.segments() == []


def test_a_batch_without_a_wanted_event_is_not_sent(bench: Bench) -> None:
    bench.flush_with(names=["yes"])
    bench.put([event(1, "no")])
    bench.work()

    assert bench.destination.sends == []
    assert bench.segments() == []


# Damage


def test_garbage_in_a_sealed_segment_costs_the_record_it_hit_and_nothing_else(bench: Bench) -> None:
    wanted = bench.put(*[[event(n)] for n in range(10)])
    (segment,) = bench.segments()
    start, end = offsets_in(segment)[4]
    with segment.open("r+b") as file:
        file.seek(start + 10)
        file.write(b"garbage")
    bench.work()

    assert bench.destination.ids == wanted[:4] + wanted[5:]
    (item,) = bench.quarantine.items("spool")
    assert item.size == end - start
    assert bench.figures["damaged_ranges_total"] == 1
    assert bench.common["quarantined_ranges_total"] == 1
    assert bench.segments() == []


def test_the_same_damage_is_kept_and_counted_once(bench: Bench, tmp_path: Path) -> None:
    """Every forwarder reads it, and so does one that repeats."""
    bench.put([event(1)], [event(2)])
    (segment,) = bench.segments()
    start, _ = offsets_in(segment)[0]
    with segment.open("r+b") as file:
        file.seek(start + 10)
        file.write(b"garbage")
    os.link(segment, tmp_path / segment.name)
    bench.work()
    os.link(tmp_path / segment.name, segment)
    (bench.queue / ".cursor").unlink()
    bench.start()
    bench.work()

    assert len(bench.destination.batches) == 2
    assert len(bench.quarantine.items("spool")) == 1
    assert bench.common["quarantined_ranges_total"] == 1


def test_a_record_that_does_not_decode_goes_to_quarantine_and_the_others_on(bench: Bench) -> None:
    before = bench.put([event(1)])
    writer = SpoolWriter(bench.directory)
    writer.append(b"\xc1 no envelope", 3, 1)
    writer.commit(sync=False)
    writer.close()
    after = bench.put([event(2)])
    bench.work()

    assert bench.destination.ids == before + after
    (item,) = bench.quarantine.items("spool")
    assert "does not decode" in item.description.reason
    assert item.description.events == 3
    assert bench.segments() == []


def test_a_record_with_another_number_of_events_than_it_says_is_not_cut_by_it(bench: Bench) -> None:
    writer = SpoolWriter(bench.directory)
    writer.append(encode_envelope("json", 1, [event(1), event(2)]), 1, 1)
    writer.commit(sync=False)
    writer.close()
    after = bench.put([event(3)])
    bench.work()

    assert bench.destination.ids == after
    assert len(bench.quarantine.items("spool")) == 1


def test_a_file_that_is_no_segment_goes_to_quarantine_whole(bench: Bench) -> None:
    wanted = bench.put([event(1)])
    (bench.queue / "0-holiday.seg").write_bytes(b"a picture" * 100)
    bench.work()

    assert bench.destination.ids == wanted
    (item,) = bench.quarantine.items("spool")
    assert item.size == 900
    assert bench.segments() == []


# Segments that are not there


def test_a_segment_that_somebody_removed_is_passed_over(bench: Bench) -> None:
    bench.flush_with(batch_max_events=1)
    first = bench.put([event(1)], [event(2)])
    second = bench.put([event(3)])
    bench.lane.step()
    sorted(bench.segments())[0].unlink()
    bench.work()

    assert bench.destination.ids == first[:1] + second
    assert bench.segments() == []


def test_a_segment_the_disk_does_not_give_is_set_aside_and_read_later(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = sorted([bench.put([event(1)]), bench.put([event(2)])])[:2]
    bad_path = next(path for path in bench.segments() if path.stem.endswith(bad[0][:32]))
    with monkeypatch.context() as patched:
        patched.setattr(os, "open", failing_open(bad_path, errno.EIO))
        bench.work_for(ASIDE_S / 2)
    assert bench.destination.ids == good
    assert bench.segments() == [bad_path]

    bench.work_for(ASIDE_S)
    assert bench.destination.ids == good + bad
    assert bench.segments() == []


def test_a_segment_set_aside_half_read_keeps_its_place_over_a_restart(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.flush_with(batch_max_events=1)
    begun = bench.put([event(1)], [event(2)])
    (path,) = bench.segments()
    bench.lane.step()
    with monkeypatch.context() as patched:
        patched.setattr(os, "open", failing_open(path, errno.EACCES))
        others = [each for n in range(5) for each in bench.put([event(n)])]
        bench.work()
    assert bench.destination.ids[0] == begun[0]
    assert sorted(bench.destination.ids[1:]) == sorted(others)
    bench.start()
    bench.work()

    assert bench.destination.ids[6:] == begun[1:]


def test_a_process_without_descriptors_blames_no_segment(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = bench.put([event(1)])
    (path,) = bench.segments()
    with monkeypatch.context() as patched:
        patched.setattr(os, "open", failing_open(path, errno.EMFILE))
        wait = bench.work()
    assert gc.isenabled()
    bench.clock.now += wait
    bench.work()

    assert gc.isenabled()
    assert wait < ASIDE_S
    assert bench.destination.ids == wanted


def failing_open(path: Path, code: int) -> Callable[..., int]:
    """`os.open`, but for one path."""
    real = os.open

    def fails(name: Any, *args: Any, **kwargs: Any) -> int:
        if os.fspath(name) == str(path):
            raise OSError(code, os.strerror(code), str(path))
        return real(name, *args, **kwargs)

    return fails


def test_defaults_are_those_of_the_settings_table() -> None:
    defaults = FlushSettings()

    assert (defaults.batch_max_events, defaults.batch_max_bytes, defaults.batch_max_age_s) == (5000, 8 << 20, 1.0)
    assert WANTED.names == ["*"]


def test_as_many_segments_as_the_cursor_holds_are_a_full_batch_however_small(tmp_path: Path) -> None:
    bench = Bench(tmp_path, replace(WANTED, batch_max_age_s=3600.0, batch_max_events=100_000))
    bench.put([event(0)])
    bench.work()
    bench.put([event(1)])
    (segment,) = bench.segments()
    for n in range(MAX_RANGES - 2):
        (bench.queue / f"2030{n:04}{segment.name[8:]}").write_bytes(segment.read_bytes())
    bench.clock.now += 10
    assert bench.lane.step() > 0
    (bench.queue / f"2031{segment.name[4:]}").write_bytes(segment.read_bytes())
    bench.clock.now += 10
    bench.work()

    assert len(bench.destination.ids) == 1 + MAX_RANGES
