"""Counters of several processes: none falls, none is lost, and dead processes have no gauges."""

import os
import re
import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from collector.exposition import render_worker
from collector.metrics import (
    COMMIT_BUCKETS_S,
    TABLE,
    Backlog,
    Counters,
    FlusherCounters,
    backlog_bytes,
    exposition,
    forwarder_slot,
    read_all,
)
from collector.slots import Reading, Slot, Watched, read_slots
from forwarders.worker_report import WorkerReport

ROOT = Path(__file__).parents[2]


@contextmanager
def child(body: Callable[[], object]) -> Iterator[int]:
    """A forked process that has run ``body`` and waits; killed with -9 at the end. Its pid."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            body()
            os.write(write, b"done")
            while True:
                signal.pause()
        finally:
            os._exit(1)
    os.close(write)
    try:
        assert os.read(read, 4) == b"done"
        yield pid
    finally:
        os.close(read)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def numbers(directory: Path) -> list[tuple[str, int, bool]]:
    return [(each.kind, each.number, each.live) for each in read_slots(directory)]


def only(directory: Path) -> Reading:
    (reading,) = read_slots(directory)
    return reading


def samples(directory: Path) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    families = text_string_to_metric_families(exposition(directory).decode())
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def test_counters_go_on_where_the_last_owner_of_the_slot_stopped(tmp_path: Path) -> None:
    first = Slot(tmp_path, "http", ["a_total", "b_total"])
    first.add("a_total", 5)
    first.close()

    second = Slot(tmp_path, "http", ["a_total", "b_total"])
    second.add("a_total")

    assert second.number == 0
    assert only(tmp_path).values == {"a_total": 6, "b_total": 0}


def test_counters_of_a_killed_process_stay_and_its_slot_is_free(tmp_path: Path) -> None:
    def work() -> None:
        slots.append(Slot(tmp_path, "http", ["a_total"]))
        slots[0].add("a_total", 3)

    slots: list[Slot] = []
    with child(work):
        assert numbers(tmp_path) == [("http", 0, True)]

    assert numbers(tmp_path) == [("http", 0, False)]
    next_owner = Slot(tmp_path, "http", ["a_total"])
    assert (next_owner.number, next_owner.value("a_total")) == (0, 3)


def test_each_process_takes_the_lowest_free_number_of_its_kind(tmp_path: Path) -> None:
    held = [Slot(tmp_path, kind, ["a_total"]) for kind in ("http", "http", "http", "forwarder-a-b")]
    held[1].close()

    again = Slot(tmp_path, "http", ["a_total"])

    assert again.number == 1
    assert numbers(tmp_path) == [
        ("forwarder-a-b", 0, True), ("http", 0, True), ("http", 1, True), ("http", 2, True)
    ]  # fmt: skip


def test_a_forked_process_counts_in_a_slot_of_its_own(tmp_path: Path) -> None:
    counters = Counters.http(tmp_path)
    counters.count_events("json", 10, 0, 0)

    with child(lambda: counters.count_events("json", 1, 0, 0)) as pid:
        by_number = {each.number: each for each in read_slots(tmp_path)}
        assert by_number[1].pid == pid
        assert [by_number[n].values["events_total/json/accepted"] for n in (0, 1)] == [10, 1]

    assert numbers(tmp_path) == [("http", 0, True), ("http", 1, False)]
    assert read_all(tmp_path).http["events_total/json/accepted"] == 11


def test_a_slot_stays_its_owners_while_a_forked_process_that_never_counts_outlives_it(tmp_path: Path) -> None:
    slot = Slot(tmp_path, "http", ["a_total"])
    with child(lambda: None):
        slot.close()

        assert numbers(tmp_path) == [("http", 0, False), ("http", 1, True)]


def test_adds_of_several_threads_are_all_counted(tmp_path: Path) -> None:
    slot = Slot(tmp_path, "http", ["a_total"])

    def add_many() -> None:
        for _ in range(50_000):
            slot.add("a_total")

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=add_many) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)

    assert slot.value("a_total") == 200_000


def test_a_slot_of_another_version_keeps_every_value_by_name(tmp_path: Path) -> None:
    old = Slot(tmp_path, "http", ["gone_total", "kept_total"])
    old.add("gone_total", 7)
    old.add("kept_total", 9)
    old.close()

    new = Slot(tmp_path, "http", ["new_total", "kept_total"])
    new.add("kept_total")

    assert only(tmp_path).values == {"new_total": 0, "kept_total": 10, "gone_total": 7}
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def test_a_slot_file_of_a_later_format_is_left_alone(tmp_path: Path) -> None:
    Slot(tmp_path, "http", ["a_total"]).close()
    path = tmp_path / "http-0"
    path.write_bytes(path.read_bytes()[:8] + b"\x02" + path.read_bytes()[9:])
    before = path.read_bytes()

    slot = Slot(tmp_path, "http", ["b_total"])

    assert slot.number == 1
    assert path.read_bytes() == before
    assert read_slots(tmp_path)[0].values == {"a_total": 0}


def test_a_damaged_slot_file_begins_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "http-0").write_bytes(b"\x89EVCNT\r\n" + b"x" * 200)

    slot = Slot(tmp_path, "http", ["a_total"])
    slot.add("a_total")

    assert only(tmp_path).values == {"a_total": 1}
    assert "damaged counters begin again from 0" in caplog.text


def test_no_cut_of_a_slot_file_breaks_its_readers(tmp_path: Path) -> None:
    slot = Slot(tmp_path, "http", ["a_total", "b_total"])
    whole = (tmp_path / "http-0").read_bytes()
    slot.close()

    for length in range(len(whole)):
        (tmp_path / "http-0").write_bytes(whole[:length])
        assert read_slots(tmp_path) == []
        assert Watched(tmp_path, ["a_total"]).sums() == {"a_total": 0}


def test_files_that_are_no_slots_are_passed_over(tmp_path: Path) -> None:
    slot = Slot(tmp_path, "http", ["a_total"])
    (tmp_path / "notes").write_text("x")
    (tmp_path / "http-9").symlink_to(tmp_path / "http-0")
    (tmp_path / "x-1").mkdir()

    assert numbers(tmp_path) == [("http", slot.number, True)]


def test_without_a_place_for_its_file_a_process_still_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    counters = Counters.http(tmp_path / "missing")
    counters.count_sealed(10)

    assert counters.slot.value("sealed_bytes_total") == 10
    assert "kept in memory only" in caplog.text


def test_what_is_counted_in_memory_comes_into_the_file_when_there_can_be_one(tmp_path: Path) -> None:
    now = 100.0
    first = Slot(tmp_path, "http", ["seen_total", "open"], gauges=["open"])
    first.add("seen_total", 5)
    first.close()
    tmp_path.rename(tmp_path.with_name("away"))
    slot = Slot(tmp_path, "http", ["seen_total", "open"], gauges=["open"], monotonic=lambda: now)
    slot.add("seen_total", 2)
    slot.set("open", 7)
    tmp_path.with_name("away").rename(tmp_path)
    slot.set("open", 8)
    assert slot.number is None  # not before its time

    now += 5
    slot.set("open", 9)
    slot.add("seen_total")

    reading = only(tmp_path)
    assert (reading.live, reading.values) == (True, {"seen_total": 8, "open": 9})
    slot.close()


def test_slots_leave_no_descriptors_behind(tmp_path: Path, descriptors: Callable[[], int]) -> None:
    Slot(tmp_path, "http", ["a_total"]).close()
    before = descriptors()

    for names in (["a_total"], ["b_total"], ["a_total"]):
        Slot(tmp_path, "http", names).close()
        read_slots(tmp_path)

    assert descriptors() == before


def test_gauges_begin_at_0_and_are_those_of_live_processes_only(tmp_path: Path) -> None:
    dead, live = Counters.http(tmp_path), Counters.http(tmp_path)
    for counters in (dead, live):
        counters.publish_writer("unhealthy", 100)
        counters.add("body_bytes_total", 7)
    dead.close()

    totals = read_all(tmp_path)
    assert (totals.http["open_segment_bytes"], totals.http["body_bytes_total"]) == (100, 14)
    assert [each.number for each in totals.live] == [1]
    assert Counters.http(tmp_path).slot.value("writer_state") == 0


def test_the_time_of_the_last_success_outlives_the_flusher(tmp_path: Path) -> None:
    slot = forwarder_slot(tmp_path, "archive")
    slot.set("last_success_ms", 1_790_000_000_000)
    slot.set("queue_bytes", 5)
    slot.close()

    archive = read_all(tmp_path).forwarders["archive"]
    assert (archive["last_success_ms"], archive["queue_bytes"]) == (1_790_000_000_000, 0)


def test_the_backlog_is_what_was_sealed_and_not_released(tmp_path: Path) -> None:
    worker, other, flusher = Counters.http(tmp_path), Counters.http(tmp_path), FlusherCounters(tmp_path)
    worker.count_sealed(1000)
    other.count_sealed(500)
    flusher.add("released_bytes_total", 300)

    assert backlog_bytes(tmp_path) == 1200


@pytest.mark.parametrize("measured", [0, 40, 1_000_000])
def test_a_measurement_corrects_the_backlog_and_later_changes_go_on_from_it(tmp_path: Path, measured: int) -> None:
    worker, flusher, backlog = Counters.http(tmp_path), FlusherCounters(tmp_path), Backlog(tmp_path)
    worker.count_sealed(1000)
    flusher.set("backlog_measured_bytes", measured)
    assert backlog() == measured

    worker.count_sealed(70)
    flusher.add("released_bytes_total", 30)
    flusher.close()
    FlusherCounters(tmp_path)  # a new flusher keeps the base

    assert backlog() == measured + 40
    assert read_all(tmp_path).backlog_bytes == measured + 40


def test_a_backlog_is_never_negative(tmp_path: Path) -> None:
    flusher = FlusherCounters(tmp_path)
    flusher.add("released_bytes_total", 30)

    assert backlog_bytes(tmp_path) == 0


def test_watched_cells_follow_new_processes_and_replaced_files(tmp_path: Path) -> None:
    now = 0.0
    watched = Watched(tmp_path, ["a_total"], monotonic=lambda: now)
    first = Slot(tmp_path, "http", ["a_total"])
    first.add("a_total", 1)
    assert watched.sums() == {"a_total": 1}

    first.close()
    replaced = Slot(tmp_path, "http", ["b_total", "a_total"])
    replaced.add("a_total", 1)
    Slot(tmp_path, "http", ["a_total"]).add("a_total", 5)
    now = 1.0

    assert watched.sums() == {"a_total": 7}


def test_without_descriptors_the_cells_that_are_known_still_count(tmp_path: Path) -> None:
    now = 0.0
    watched = Watched(tmp_path, ["a_total"], monotonic=lambda: now)
    slot = Slot(tmp_path, "http", ["a_total"])
    slot.add("a_total", 1)
    assert watched.sums() == {"a_total": 1}

    slot.add("a_total", 1)
    now = 1.0
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        found = watched.sums()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    assert found == {"a_total": 2}


def test_prometheus_sees_every_metric_of_the_table_with_its_sentence(tmp_path: Path) -> None:
    worker, flusher, forwarder = Counters.http(tmp_path), FlusherCounters(tmp_path), forwarder_slot(tmp_path, "archive")

    text = exposition(tmp_path).decode() + render_worker("mongodb", WorkerReport("mongodb").figures()).decode()
    for slot in (worker.slot, flusher, forwarder):
        slot.close()

    for prefix, metrics in TABLE.items():
        for metric in metrics:
            if metric.name != "backlog_base_bytes":
                assert f"# HELP {prefix}{metric.name} {metric.text}\n" in text
    sampled = {family.name for family in text_string_to_metric_families(text) if family.samples}
    assert len(sampled) == sum(map(len, TABLE.values())) - 1 + 5


def test_prometheus_sees_the_sum_of_all_workers_by_label(tmp_path: Path) -> None:
    one, two = Counters.http(tmp_path), Counters.http(tmp_path)
    one.count_events("get_v1", 3, 2, 1)
    two.count_events("get_v1", 4, 0, 0)
    two.count_events("a door of tomorrow", 1, 0, 0)
    one.count_answer("/1", "202 Accepted")
    one.count_answer("/1/", 202)
    one.count_answer("/made/up", "418 I'm a teapot")
    one.publish_writer("disk_full", 0)
    forwarder_slot(tmp_path, "archive").add("sent_events_total", 9)

    seen = samples(tmp_path)

    def value(name: str, **labels: str) -> float:
        return seen["collector_" + name, frozenset(labels.items())]

    assert [value("events_total", source="get_v1", outcome=each) for each in ("accepted", "filtered", "rejected")] == [
        7, 2, 1
    ]  # fmt: skip
    assert value("events_total", source="other", outcome="accepted") == 1
    assert value("answers_total", door="pixel", status="202") == 2
    assert value("answers_total", door="other", status="other") == 1
    assert [value("writer_state", worker=each) for each in "01"] == [1, 0]
    assert value("forwarder_sent_events_total", forwarder="archive") == 9
    assert value("processes", kind="http") == 2


def test_commit_durations_become_a_cumulative_histogram(tmp_path: Path) -> None:
    counters = Counters.http(tmp_path)
    for seconds in (0.000_05, 0.001, 0.0011, 60.0):
        counters.observe_commit(seconds)

    seen = samples(tmp_path)

    buckets = [
        seen["collector_commit_seconds_bucket", frozenset({("le", le)})] for le in [*map(str, COMMIT_BUCKETS_S), "+Inf"]
    ]
    assert buckets == [1, 1, 1, 2, 3, *[3] * 9, 4]
    assert seen["collector_commit_seconds_count", frozenset()] == 4
    assert seen["collector_commit_seconds_sum", frozenset()] == pytest.approx(60.002_15)


def test_prometheus_still_sees_the_rest_when_the_spools_disk_is_gone(tmp_path: Path) -> None:
    text = exposition(tmp_path / "gone").decode()

    assert 'collector_processes{kind="http"} 0.0' in text
    assert "collector_disk_free_bytes" not in text


def test_every_figure_the_forwarders_give_is_in_the_table() -> None:
    known = {metric.name for metrics in TABLE.values() for metric in metrics}
    calls = re.compile(r"(?:_count|counters\.(?:add|set))\(\s*\"(\w+)\"")
    given = {
        name for path in (ROOT / "forwarders").glob("*.py") for name in calls.findall(path.read_text(encoding="utf-8"))
    }

    assert len(given) > 15
    assert given <= known


def test_answers_to_made_up_paths_are_counted_without_remembering_the_paths(tmp_path: Path) -> None:
    counters = Counters.http(tmp_path)
    for number in range(50):
        counters.count_answer(f"/x{number}", "404 Not Found")

    assert counters.slot.value("answers_total/other/404") == 50
    assert len(counters._answers) == 0


def test_the_names_in_the_table_are_unique_and_fit_prometheus() -> None:
    names = [prefix + metric.name for prefix, metrics in TABLE.items() for metric in metrics]

    assert len(set(names)) == len(names)
    for metrics in TABLE.values():
        for metric in metrics:
            assert re.fullmatch("[a-z_]+", metric.name)
            assert metric.name.endswith("_total") == (metric.kind == "counter")
            assert metric.text.endswith(".")
