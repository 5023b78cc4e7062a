"""Every script starts as its documentation calls it, from anywhere; every kind of benchmark runs."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

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
