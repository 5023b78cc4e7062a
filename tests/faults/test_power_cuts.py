"""The power of a running collector's disk is cut: FS_IOC_SHUTDOWN, as in tests/spool/test_power_cut.py."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.injection import kill_everything, make_filesystem, mounted, needs_root
from tests.faults.load import Load, archived, assert_delivered, flush_once, quick
from tests.services.child import wait_until
from tests.services.power import cut_power

pytestmark = [pytest.mark.slow, needs_root]


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_a_power_cut_after_delivery_repeats_events_under_their_ids_and_loses_none_in_mid_load(
    tmp_path: Path, full: bool, seen: Callable[..., None], kind: str
) -> None:
    """First right after the queue has become empty, then under load. The archive is another machine's, so to say."""
    image, place = tmp_path / "image", tmp_path / "disk"
    make_filesystem(image, kind, 320)
    acknowledged: list[int] = []
    back = 0
    rounds = 30 if full else 1
    for _ in range(rounds):
        for under_load in (False, True):
            collector = quick(tmp_path, spool={"path": str(place / "spool"), "segment_max_age_s": 0.1})
            with mounted(place, "-o", "loop", str(image)), collector:
                back += len(list(place.glob("spool/_queue/archive/*.seg")))
                with Load(collector.port, clients=3, pause_s=0.0 if full else 0.01) as load:
                    load.wait_for(202, 20)
                    if not under_load:
                        load.end()
                        assert_delivered(tmp_path, load.acknowledged)
                        wait_until(lambda: not list(place.glob("spool/_*/**/*.seg")), 20, "the queue is empty")
                    cut_at = cut_power(place)
                    acknowledged += load.acknowledged_before(cut_at)
                    load.end()
                kill_everything(collector)
    with mounted(place, "-o", "loop", str(image)):
        flush_once(collector)
        assert_delivered(tmp_path, acknowledged)
    lines = sum(text.read_text().count("\n") for text in (tmp_path / "events").rglob("*.jsonl"))

    found = archived(tmp_path)
    seen(acknowledged=len(acknowledged), cuts=2 * rounds, segments_back=back, repeats=lines - len(found))
    assert [number for number, ids in found.items() if len(ids) > 1] == []
