"""Every script starts as its documentation calls it, from anywhere."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"
COMMANDS = [path for path in SCRIPTS.iterdir() if path.is_file() and os.access(path, os.X_OK)]
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
