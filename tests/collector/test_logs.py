"""One record is one line, whatever is in it."""

import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from collector import logs
from collector.settings import LogSettings

NASTY = 'a b="c"\\ \n\r\x1b[31m\x00\x85\u2028\u202e\ud800é'


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """What a test sets up is the whole process's."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    logging.captureWarnings(capture=False)
    root.handlers[:] = handlers
    root.setLevel(level)


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.split("\n")[:-1]


def test_text_is_time_level_logger_message_and_fields(capsys: pytest.CaptureFixture[str]) -> None:
    logs.setup(LogSettings())

    logging.getLogger("spool.recovery").warning("tail cut off", extra={"segment": "7f.seg", "bytes": 812, "why": "x y"})

    (line,) = lines(capsys)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.split()[0])
    assert line.split(" ", 1)[1] == 'WARNING spool.recovery tail cut off segment=7f.seg bytes=812 why="x y"'


def test_json_is_an_object_with_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    logs.setup(LogSettings(format="json"))

    logging.getLogger("spool.recovery").warning("tail cut off", extra={"segment": NASTY, "bytes": 812, "time": "mine"})

    (line,) = lines(capsys)
    document = json.loads(line)
    assert list(document)[:4] == ["time", "level", "logger", "message"]
    assert document["time"] != "mine"
    assert (document["message"], document["segment"], document["bytes"]) == ("tail cut off", NASTY, 812)


@pytest.mark.parametrize("format_", ["text", "json"])
def test_a_record_is_one_printable_line(capsys: pytest.CaptureFixture[str], format_: str) -> None:
    logs.setup(LogSettings(format=format_))  # type: ignore[arg-type]

    try:
        raise ValueError(NASTY)
    except ValueError:
        logging.getLogger("x").exception("failed: %s", NASTY, extra={"value": NASTY}, stack_info=True)

    (line,) = lines(capsys)
    assert line.isprintable()
    assert "Traceback (most recent call last):" in line


def test_nothing_logged_can_look_like_another_field(capsys: pytest.CaptureFixture[str]) -> None:
    logs.setup(LogSettings())

    logging.getLogger("x").info("m", extra={"a": 'x" b="y', "c": "", "d": None})

    assert lines(capsys)[0].endswith(r'm a="x\" b=\"y" c="" d=None')


def test_records_below_the_level_are_not_written(capsys: pytest.CaptureFixture[str]) -> None:
    logs.setup(LogSettings(level="warning"))

    logging.getLogger("x").info("no")
    logging.getLogger("gunicorn.error").error("yes")

    assert [line.split()[-1] for line in lines(capsys)] == ["yes"]


def test_setting_up_again_replaces_what_was_set_up(capsys: pytest.CaptureFixture[str]) -> None:
    logs.setup(LogSettings())
    logs.setup(LogSettings(format="json"))

    logging.getLogger("gunicorn.error").warning("once")

    (line,) = lines(capsys)
    assert json.loads(line)["message"] == "once"


def test_a_line_is_one_write_even_to_a_pipe() -> None:
    """Lines of several processes share one pipe and must not mix."""
    script = (
        "import logging, os, sys\n"
        "from collector import logs\n"
        "from collector.settings import LogSettings\n"
        "logs.setup(LogSettings())\n"
        "for n in range(50):\n"
        "    if os.fork() == 0:\n"
        "        logging.getLogger('x').warning('y' * 500)\n"
        "        os._exit(0)\n"
        "while True:\n"
        "    try: os.wait()\n"
        "    except ChildProcessError: break\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)

    assert {line.split()[-1] for line in done.stderr.splitlines()} == {"y" * 500}
    assert len(done.stderr.splitlines()) == 50
