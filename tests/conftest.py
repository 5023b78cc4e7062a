"""What holds for every test: on a machine that must have the servers, a test cannot skip for want of one."""

import os
from collections.abc import Generator

import pytest

pytest_plugins = ["tests.services.fixtures"]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With REQUIRE_SERVICES=1 a skipped test marked ``server`` counts as failed, for the reason it skipped."""
    report = yield
    if report.skipped and os.environ.get("REQUIRE_SERVICES") == "1" and item.get_closest_marker("server"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"REQUIRE_SERVICES=1, and this test needs what is missing: {reason}"
    return report
