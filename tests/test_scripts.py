"""Every script starts as its documentation calls it, from anywhere; every kind of benchmark runs."""

import json
import math
import os
import shutil
import signal
import subprocess
import urllib.request
from pathlib import Path

import pytest
from benchmarks import servers, spooled
from benchmarks.figures import Figures, Row, table
from benchmarks.latency import mean_ratio
from benchmarks.load import PIXEL
from benchmarks.options import Options
from benchmarks.place import ARCHIVE, Place

from spool.reader import Record, SegmentReader

SCRIPTS = Path(__file__).parents[1] / "scripts"
COMMANDS = [path for path in SCRIPTS.iterdir() if path.is_file() and os.access(path, os.X_OK)]
SHORTEST = ["--rounds", "1", "--seconds", "0.3", "--events", "200"]  # wrk takes a second at least
BENCHMARKS = {
    "pixel-commit": SHORTEST,
    "granian-empty": SHORTEST,
    "to-rabbitmq": SHORTEST,
    "to-influxdb": SHORTEST,
    "to-mongodb": SHORTEST,
    "growth": [*SHORTEST, "--events", "1"],
    "latency": SHORTEST,
    "soak": SHORTEST,
    "scale": SHORTEST,
}
PYTHON = sorted(path.name for path in COMMANDS if b"argparse" in path.read_bytes())


@pytest.mark.slow
@pytest.mark.parametrize("name", PYTHON)
def test_a_script_finds_its_own_environment(name: str, tmp_path: Path) -> None:
    said = subprocess.run(
        [SCRIPTS / name, "--help"], cwd=tmp_path, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip

    assert said.returncode == 0, said.stderr
    assert said.stdout.startswith("usage: ")


@pytest.mark.server
@pytest.mark.slow
@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_runs_and_loses_nothing(name: str, tmp_path: Path) -> None:
    if not all(map(shutil.which, ("wrk", "nginx"))):
        pytest.skip("wrk or nginx is not installed")
    figures = tmp_path / "figures.json"

    command = [SCRIPTS / "bench", name, *BENCHMARKS[name], "--base", tmp_path, "--json", figures]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)

    if "is not installed" in ran.stdout or "it needs root" in ran.stdout:
        pytest.skip(ran.stdout)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert [each["name"] for each in json.loads(figures.read_text())] == [name]


@pytest.mark.slow
def test_a_benchmark_that_fails_costs_no_other_its_figures_and_nor_does_ctrl_c(tmp_path: Path) -> None:
    for program in ("wrk", "nginx"):
        (tmp_path / program).write_text("#!/bin/sh\nexit 3\n")
        (tmp_path / program).chmod(0o755)
    figures, lines = tmp_path / "figures.json", tmp_path / "table.md"

    names = "worker-memory", "flusher-memory", "soak"
    command = [SCRIPTS / "bench", *names, "--backlog-mb", "1", "--json", figures, "--table", lines]
    path = f"{tmp_path}:{os.environ['PATH']}"
    with subprocess.Popen(
        command, env=os.environ | {"PATH": path}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        said = [run.stdout.readline() for _ in range(4)]
        run.send_signal(signal.SIGINT)
        _, complaint = run.communicate(timeout=60)

    assert run.returncode == 130, complaint
    assert "Traceback" not in complaint
    assert "worker-memory: FAILED: CalledProcessError: Command '['wrk'," in said[1]
    failed, measured = json.loads(figures.read_text())
    assert failed.keys() == {"name", "failed"}
    assert "returned non-zero exit status 3" in failed["failed"]
    assert measured["name"] == "flusher-memory"
    assert measured["rows"][0]["side"].startswith("backlog of 17 MB, 100% of it sent in the first ")
    assert "worker-memory: FAILED" in lines.read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ("--rounds", "0"),
        ("--seconds", "nan"),
        ("--events", "-1"),
        ("--backlog-mb", "0"),
        ("--json", "."),
        ("--table", "nowhere/table.md"),
        ("--plots", "/dev/null"),
        ("--base", "/dev/null/spools"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_measured(arguments: tuple[str, str]) -> None:
    run = subprocess.run([SCRIPTS / "bench", *arguments], capture_output=True, text=True, timeout=60, check=False)

    assert run.returncode == 2
    assert f"argument {arguments[0]}" in run.stderr


@pytest.mark.server
@pytest.mark.slow
@pytest.mark.parametrize("loses", [False, True])
def test_an_event_that_was_taken_and_is_not_in_the_spool_is_noticed(
    loses: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "SETTLED_MAX_S", 0.1)
    complaints = []
    try:
        with servers.collector(tmp_path, "collector") as side:
            for _ in range(3):
                with urllib.request.urlopen(f"http://127.0.0.1:{side.port}{PIXEL}", timeout=10):
                    pass
            assert side.spool is not None
            (written,) = side.spool.rglob("*.open")
            records = [each for each in SegmentReader(written).scan() if isinstance(each, Record)]
            if loses:
                os.truncate(written, records[-1].offset)
            side.settled()
    except RuntimeError as exc:
        complaints.append(str(exc))

    assert complaints == (["collector: 3 events taken, 2 are in the spool"] if loses else [])


def test_a_flusher_that_dies_at_once_has_no_memory_worth_telling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "no number")  # no Python starts with it

    with pytest.raises(RuntimeError, match=r"the flusher ended with 1 and sent 0% of 1 segments"):
        spooled.flusher_memory(tmp_path, Options(backlog_mb=1))


def test_a_flusher_that_leaves_events_out_gives_no_figure(tmp_path: Path) -> None:
    place = Place(tmp_path, "lossy", block=f'{ARCHIVE}\nnames = ["Other*"]')
    place.fill(2, 3)
    with pytest.raises(RuntimeError, match=r"600 events were in the queue, 0 are in the archive"):
        place.drain()


def test_a_table_says_what_every_side_did_and_rounds_no_figure_to_its_target() -> None:
    rows = [Row("collector", 54321, 18.24, 5.06, 3.14159, 43.2), Row("nginx", 67_901.25)]
    missed = Figures("pixel", 1, "GET", 0.7998, at_least=0.8, rows=rows)

    assert "0.7998 (at least 0.8) NOT MET" in str(missed)
    (line,) = [each for each in table([missed]).splitlines() if "pixel" in each]
    sides = "collector 54,321/s, 18.2 µs, wrk 5.1 µs, p99 3.1 ms, 43 MB; nginx 67,901/s"
    assert line == f"| 1 | `pixel`: GET | ≥ 0.8 | 0.7998 | {sides} | **no** |"
    assert Figures("pixel", 1, "GET", 0.8123, at_least=0.8).measured() == "0.81"
    assert Figures("pixel", 1, "GET", 1.1004, at_most=1.1).measured() == "1.1004"


def test_ratios_of_rounds_are_averaged_as_factors() -> None:
    mean, error = mean_ratio([0.5, 2.0, 1.0])

    assert mean == pytest.approx(1.0)
    assert error == pytest.approx(0.6931 / 3**0.5, abs=1e-4)
    assert mean_ratio([1.2]) == pytest.approx((1.2, math.nan), nan_ok=True)
