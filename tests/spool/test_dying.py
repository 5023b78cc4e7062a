"""What tests of deaths build upon: a process dies before each of its changes, and alone."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dying import dying_everywhere


def test_a_process_dies_before_each_of_its_changes_and_other_threads_live_on(tmp_path: Path) -> None:
    others = []

    def change(done: list[str]) -> None:
        for name in ("one", "two"):
            others.append(thread.submit(os.replace, file, file))
            os.replace(file, file)
            done.append(name)

    file = tmp_path / "file"
    file.touch()
    with ThreadPoolExecutor(1) as thread:
        remains = list(dying_everywhere(list[str], change))

    assert remains == [[], ["one"], ["one", "two"]]
    assert [each.exception() for each in others] == [None] * 5
