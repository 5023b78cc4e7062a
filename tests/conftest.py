"""What holds for every test: on a machine that must have the servers, a test cannot skip for want of one.

Tests of the fault matrix (tests/faults/README.md) have two sizes, and say what they have seen.
"""

import gc
import os
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("busy machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy machine")

pytest_plugins = ["tests.services.fixtures"]

TAKES_EVERY_EVENT = "this destination takes every event"  # tests/forwarders/contract_suite.py


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With REQUIRE_SERVICES=1 a skipped test marked ``server`` counts as failed, for the reason it skipped.

    Not one that the contract suite skips because a destination has nothing to refuse: its server is there.
    """
    report = yield
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if (
        report.skipped
        and os.environ.get("REQUIRE_SERVICES") == "1"
        and item.get_closest_marker("server")
        and TAKES_EVERY_EVENT not in reason
    ):
        report.outcome = "failed"
        report.longrepr = f"REQUIRE_SERVICES=1, and this test needs what is missing: {reason}"
    return report


@pytest.fixture(scope="session")
def full() -> bool:
    """Whether a fault is to be tried in full (``scripts/faults``), not in its short form."""
    return os.environ.get("FAULTS") == "full"


@pytest.fixture
def seen(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """Takes figures of a test, which ``scripts/faults`` prints: ``seen(acknowledged=120, lost=0)``."""

    def note(**figures: object) -> None:
        for name, value in figures.items():
            record_property(name, value)

    return note


@pytest.fixture
def descriptors() -> Callable[[], int]:
    """Counts this process's open descriptors. What earlier tests have left to the collector of garbage is gone."""
    gc.collect()
    return lambda: len(os.listdir("/proc/self/fd"))


@pytest.fixture
def memory_path(tmp_path: Path) -> Iterator[Path]:
    """A place for tests that make many spools and do not care about the disk: syncing costs nothing there."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with TemporaryDirectory(dir="/dev/shm") as place:
        yield Path(place)
