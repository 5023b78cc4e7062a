"""What people do to a collector that runs, and to its spool: by commands, settings, and by restoring the wrong disk."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from spool.directory import segment_stem
from tests.faults.injection import flusher_of
from tests.faults.load import archived, assert_delivered, numbered, numbers_in, quick
from tests.services.child import wait_until
from tests.services.collector import REPOSITORY, RunningCollector
from tests.services.scripted_http import Answer, Request, ScriptedHttp

pytestmark = pytest.mark.slow


def run(collector: RunningCollector, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command with the collector's settings."""
    command = [sys.executable, "-m", "collector", "--config", str(collector.config), *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False)


class Picky:
    """A destination that refuses events whose number is odd, until it is told otherwise; and knows what it took."""

    def __init__(self) -> None:
        self.refuses = True
        self.taken: dict[int, int] = {}
        self.server = ScriptedHttp(self._answer)

    def _answer(self, request: Request) -> Answer:
        odd = [line for line in request.lines if self.refuses and any(n % 2 for n in numbers_in([line]))]
        if odd:
            return Answer(400, json.dumps({"error": f"unable to parse '{odd[0]}'"}))
        for number in numbers_in(request.lines):
            self.taken[number] = self.taken.get(number, 0) + 1
        return Answer()

    def settings(self) -> dict[str, Any]:
        return {"url": self.server.url, "batch_max_age_s": 0.1, "timeout_s": 5.0}


def test_a_replay_beside_the_flusher_brings_what_was_refused_once_however_often_it_is_asked_for(
    tmp_path: Path, seen: Callable[..., None]
) -> None:
    picky = Picky()
    try:
        with quick(tmp_path, forwarders__influxdb=picky.settings()) as collector:
            assert collector.post(numbered(range(10)))[0] == 202
            wait_until(lambda: picky.taken.keys() >= {0, 2, 4, 6, 8}, 20, "the good ones")
            quarantine = collector.spool / "_quarantine" / "influxdb"
            wait_until(lambda: list(quarantine.glob("*.json")), 20, "the others in quarantine")
            picky.refuses = False
            with ThreadPoolExecutor() as beside:
                nothing = beside.submit(run, collector, "quarantine", "replay", "influxdb/nothing")
                replays = [run(collector, "quarantine", "replay", "--all") for _ in range(2)]
            garbage = nothing.result()
            wait_until(lambda: picky.taken.keys() >= set(range(10)), 20, "all events")
            wait_until(lambda: not list(quarantine.iterdir()), 20, "an empty quarantine")
            collector.kill()  # which is sooner over than an orderly end, here and below
    finally:
        picky.server.close()

    seen(exits=[each.returncode for each in replays], garbage_exit=garbage.returncode)
    assert [each.returncode for each in replays] == [0, 0]
    assert garbage.returncode == 1
    assert {number: times for number, times in picky.taken.items() if times > 1} == {}


def test_a_spool_of_a_later_format_is_refused_in_a_sentence_and_left_alone(tmp_path: Path) -> None:
    collector = quick(tmp_path)
    with collector:
        assert collector.post(numbered([1]))[0] == 202
        assert_delivered(tmp_path, [1])
    (collector.spool / "FORMAT").write_text("99\n")
    before = everything_in(collector.spool)

    refused = run(collector, "serve")

    assert refused.returncode == 1
    assert "99" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert everything_in(collector.spool) == before


def everything_in(spool: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in spool.rglob("*") if path.is_file()}


def test_a_forwarder_that_is_renamed_begins_anew_and_the_old_queue_is_kept(
    tmp_path: Path, seen: Callable[..., None]
) -> None:
    """Under its new name it gets what is still there; nothing that waited for the old one is dropped by itself."""
    down = {"url": "http://127.0.0.1:1", "batch_max_age_s": 0.1, "timeout_s": 1.0}
    picky = Picky()
    picky.refuses = False
    try:
        with quick(tmp_path, forwarders__before=down | {"type": "influxdb"}) as collector:
            assert collector.post(numbered(range(5)))[0] == 202
            assert_delivered(tmp_path, range(5))
            collector.kill()
        waiting = sorted(path.name for path in collector.spool.glob("_queue/before/*.seg"))
        renamed = quick(tmp_path, forwarders__after=picky.settings() | {"type": "influxdb"})
        with renamed:
            wait_until(lambda: picky.taken.keys() >= set(range(5)), 20, "the events under the new name")
            status = json.loads(run(renamed, "status", "--json").stdout)
            renamed.kill()
    finally:
        picky.server.close()

    seen(segments_of_the_old_name=len(waiting))
    assert waiting
    assert sorted(path.name for path in collector.spool.glob("_queue/before/*.seg")) == waiting
    assert "before" in json.dumps(status)
    assert set(picky.taken.values()) == {1}


def test_a_backlog_of_many_segments_delays_no_start_and_takes_little_memory(
    tmp_path: Path, full: bool, seen: Callable[..., None]
) -> None:
    """Links to one segment stand for them; where they lie, and that they are many, is what counts at the start."""
    count = 50_000 if full else 500
    down = {"url": "http://127.0.0.1:1", "batch_max_age_s": 0.1, "timeout_s": 1.0}
    with quick(tmp_path, forwarders__influxdb=down) as collector:
        assert collector.post(numbered(range(100)))[0] == 202
        assert_delivered(tmp_path, range(100))
        memory_before = memory_mb(flusher_of(collector))
        collector.kill()
    (segment,) = collector.spool.glob("_queue/influxdb/*.seg")
    for number in range(count):
        stem = segment_stem(1_795_342_500_000_000_000 + number * 1000, os.urandom(16))
        os.link(segment, segment.with_name(f"{stem}.seg"))
    began = time.monotonic()
    with collector:
        wait_until(lambda: answers(collector), 60, "a 202")
        took_s = time.monotonic() - began
        wait_until(lambda: archived(tmp_path).keys() >= {-1}, 60, "an event in the archive")
        forwarded_after_s = time.monotonic() - began
        grown_mb = memory_mb(flusher_of(collector)) - memory_before
        collector.kill()

    seen(
        segments=count, start_s=round(took_s, 1), first_event_forwarded_after_s=round(forwarded_after_s, 1),
        flusher_grew_mb=grown_mb,
    )  # fmt: skip
    assert took_s < 50
    assert grown_mb < 100


def answers(collector: RunningCollector) -> bool:
    return collector.post(numbered([-1]))[0] == 202


def memory_mb(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 >> 20
