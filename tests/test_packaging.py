"""What a user installs: the wheel, its command, its version, and the lock it is installed with."""

import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from email.parser import Parser
from importlib import metadata
from pathlib import Path
from zipfile import ZipFile

import pytest

import collector

ROOT = Path(__file__).parents[1]
PACKAGES = ("collector", "formats", "forwarders", "spool")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> ZipFile:
    """The wheel of this tree, built in a copy so that nothing is left in it."""
    base = tmp_path_factory.mktemp("wheel")
    for name in ("setup.cfg", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, base)
    for name in (*PACKAGES, "tests"):
        shutil.copytree(ROOT / name, base / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = "from setuptools.build_meta import build_wheel; print(build_wheel('.'))"
    built = subprocess.run([sys.executable, "-c", build], cwd=base, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return ZipFile(base / built.stdout.split()[-1])


def test_the_wheel_holds_every_module_of_the_packages_and_what_pages_load_and_nothing_else(wheel: ZipFile) -> None:
    modules = {path.relative_to(ROOT).as_posix() for name in PACKAGES for path in (ROOT / name).rglob("*.py")}
    pages = {path.relative_to(ROOT).as_posix() for path in (ROOT / "collector" / "static").iterdir()}

    held = {name for name in wheel.namelist() if ".dist-info/" not in name}

    assert held == modules | pages


def test_the_wheel_says_what_it_is(wheel: ZipFile) -> None:
    info = next(name.removesuffix("METADATA") for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))

    said = Parser().parsestr(wheel.read(f"{info}METADATA").decode())

    assert said["Name"] == "event-collector"
    assert said["Version"] == collector.__version__
    assert said["License-Expression"] == "Apache-2.0"
    assert "collector = collector.cli:main" in wheel.read(f"{info}entry_points.txt").decode()
    assert wheel.read(f"{info}licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()


def test_the_installed_version_is_the_one_in_the_code() -> None:
    assert metadata.version("event-collector") == collector.__version__


def test_the_changelog_begins_with_this_version() -> None:
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)

    assert newest is not None
    assert newest[1] == collector.__version__


def test_the_lock_pins_every_dependency_with_hashes_and_names_no_index() -> None:
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    extras = config["options.extras_require"]
    wanted = "\n".join([config["options"]["install_requires"], *(extras[name] for name in extras if name != "all")])

    pinned = pinned_in("requirements.lock")

    assert {line.split(">=")[0] for line in wanted.split()} <= pinned


def test_the_lock_of_the_tests_server_pins_with_hashes_too() -> None:
    assert "secantusdb" in pinned_in("requirements-services.lock") - pinned_in("requirements.lock")


def pinned_in(name: str) -> set[str]:
    """The packages in a lock, all of which must have hashes."""
    lock = (ROOT / name).read_text()
    pinned = re.findall(r"^([a-z0-9-]+)==\S+(?: ; .*)? \\\n    --hash=sha256:[0-9a-f]{64}", lock, re.MULTILINE)
    assert len(pinned) == len(re.findall(r"^[a-z]", lock, re.MULTILINE))
    assert "://" not in lock
    return set(pinned)
