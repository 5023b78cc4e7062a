"""All the hostile bodies, again and again, to one worker."""

from pathlib import Path

import pytest

from tests.collector.hostile_bodies import HOSTILE, send_hostile
from tests.fuzz.large_bodies import HONEST, cost, memory, worker_pid
from tests.fuzz.large_bodies import HOSTILE as LARGE
from tests.services.collector import RunningCollector

ROUNDS = 20
GROWTH_MAX_BYTES = 64 * 1024 * 1024


@pytest.mark.slow
def test_hostile_bodies_twenty_times_are_answered_as_they_should_and_leave_no_memory_taken(tmp_path: Path) -> None:
    with RunningCollector(tmp_path) as collector:
        assert collector.get("/livez")[0] == 200  # the port is open before there is a worker
        pid = worker_pid(collector)
        before = memory(pid, "VmRSS")
        wrong = [
            (case["file"], status)
            for _ in range(ROUNDS)
            for case in HOSTILE
            if (status := send_hostile(collector, case)) not in case["allow_status"] or status >= 500
        ]

        assert wrong == []
        assert memory(pid, "VmRSS") - before < GROWTH_MAX_BYTES
        assert worker_pid(collector) == pid
        assert collector.post(b'{"eventName":"Afterwards","payload":{}}')[0] == 202


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["json, one payload of texts and arrays", "msgpack, smallest events", "thrift 10 kB, privacy and a schema"],
)
def test_a_body_of_the_largest_size_takes_at_most_ten_times_that_of_memory(name: str) -> None:
    body = (HONEST | LARGE)[name]

    seen = cost(body)

    assert seen.status == 202
    assert seen.peak_bytes < 10 * body.size
