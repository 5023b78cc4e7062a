"""The spool does what a few sets of numbers say it does, whatever happens to it in whatever order.

What must hold after each step: every event that was answered, and is owed to a forwarder, has arrived, is in its
quarantine or is on the way; what a power cut may cost is what was answered without a sync; an event keeps its id and
its bytes; the accounts of every forwarder add up. In the end everything has arrived.

Some seconds of it, always the same, run with all tests. Other examples, for as long as one likes:
``HYPOTHESIS_PROFILE=long pytest tests/model/spool_machine.py``. What it finds becomes a plain test.

Not in it: samples, optional forwarders, damage to what is in quarantine, is written just now or was retained.
"""

import gc
import itertools
import logging
import os
import random
import tempfile
import uuid
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from forwarders.flush_settings import Names
from forwarders.replay import Replay, Wanted
from forwarders.skipping import Choice
from spool.cipher import Keyring
from spool.forget import forget
from spool.quarantine import Quarantine
from spool.switch import Switch
from tests.model.simulated_disk import FAULTS, Failing
from tests.model.world import FlusherProcess, World
from tests.spool.keys import key_line, write_keys

LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"
FORWARDERS = ["first", "picky", "late"]

writers = st.integers(0, 1)
deaths = st.one_of(st.none(), st.none(), st.none(), st.integers(0, 60))
faults = st.one_of(st.just(()), st.just(()), st.just(()), st.sampled_from(FAULTS))
names = st.sampled_from(FORWARDERS)
answers = st.sampled_from(["takes", "takes", "unavailable", "bug", "dies before", "dies after"])
events = st.tuples(st.integers(0, 300), st.sampled_from([(False, False), (False, False), (True, False), (False, True)]))


writing = rule(
    which=writers,
    records=st.lists(st.lists(events, min_size=1, max_size=4), min_size=1, max_size=4),
    sync=st.booleans(),
    dies_after=deaths,
    failing=faults,
    closes=st.booleans(),
)
forwarding = rule(
    name=names,
    dies_after=deaths,
    script=st.lists(answers, max_size=3),
    steps=st.integers(1, 4),
    ticks=st.booleans(),
    mended=st.sampled_from([False, False, False, True]),
)


def _set_log_level(level: int) -> None:
    for name in ("spool", "forwarders"):
        logging.getLogger(name).setLevel(level)


class SpoolMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        _set_log_level(logging.CRITICAL)
        gc.disable()  # `Disk.process` says when; of what other tests left nothing is looked at, which saves most of it
        gc.freeze()
        self.dice = random.Random(0)
        self.uuids = mock.patch.object(uuid, "uuid4", self._uuid)
        self.uuids.start()
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.place = tempfile.TemporaryDirectory(dir=memory)
        self.world = World(Path(self.place.name))
        self.keys: list[str] = []
        self.world.as_flusher(lambda flusher: None)

    def _uuid(self) -> uuid.UUID:
        """The same ones in each run: the order of many things is that of names, and so is where a death comes."""
        return uuid.UUID(int=self.dice.getrandbits(128), version=4)

    # The way in

    def _write(
        self,
        which: int,
        records: list[list[tuple[int, tuple[bool, bool]]]],
        sync: bool,
        dies_after: int | None,
        failing: tuple[Failing, ...],
        closes: bool,
    ) -> None:
        made = [
            [self.world.new_event(size, unwanted=unwanted, aside=aside) for size, (unwanted, aside) in each]
            for each in records
        ]
        self.world.write(which, made, sync=sync, dies_after=dies_after, failing=failing)
        if closes:
            self.world.close_writer(which)

    write = writing(_write)
    write_more = writing(_write)  # as rules are chosen evenly
    write_still_more = writing(_write)

    @rule(which=writers, dies_after=deaths, failing=faults, seconds=st.sampled_from([0.0, 0.3, 2.5]))
    def maintain(self, which: int, dies_after: int | None, failing: tuple[Failing, ...], seconds: float) -> None:
        self.world.clock.now += seconds
        self.world.as_writer(which, self.world.writer(which).writer.maintain, dies_after=dies_after, failing=failing)

    @rule(which=writers, dies_after=deaths, failing=faults)
    def sync(self, which: int, dies_after: int | None, failing: tuple[Failing, ...]) -> None:
        self.world.as_writer(which, self.world.writer(which).writer.sync, dies_after=dies_after, failing=failing)

    @rule(which=writers, dies_after=deaths)
    def close(self, which: int, dies_after: int | None) -> None:
        self.world.close_writer(which, dies_after=dies_after)

    # Deaths

    @rule(which=writers)
    def kill_writer(self, which: int) -> None:
        self.world.kill_writer(which)

    @rule()
    def kill_flusher(self) -> None:
        self.world.kill_flusher()

    @rule(seed=st.one_of(st.just(0), st.integers(1, 2**32)))
    def cut_power(self, seed: int) -> None:
        self.world.cut_power(seed)

    @precondition(lambda self: self.world.dead is None)
    @rule(steps=st.integers(0, 2))
    def machine_dies(self, steps: int) -> None:
        for name in FORWARDERS if steps else ():
            self._forward(name, None, [], steps, ticks=True)
        self.world.machine_dies()

    @precondition(lambda self: self.world.dead is not None)
    @rule(dies_after=deaths)
    def import_dead(self, dies_after: int | None) -> None:
        self.world.import_dead(dies_after=dies_after)

    @precondition(lambda self: self.world.segments())
    @rule(which=st.integers(0, 5), where=st.integers(0, 2**16))
    def damage(self, which: int, where: int) -> None:
        self.world.damage(which, where)

    @precondition(lambda self: self.world.cursors())
    @rule(which=st.integers(0, 2), how=st.sampled_from(["removed", "cut", "overwritten"]))
    def lose_cursor(self, which: int, how: str) -> None:
        cursors = self.world.cursors()
        self.world.lose_cursor(cursors[which % len(cursors)], how)

    @precondition(lambda self: len(self.world.deadly) < 2 and self.world.segments())
    @rule(which=st.integers(0, 20))
    def an_event_becomes_deadly(self, which: int) -> None:
        waiting = sorted(set().union(*map(self.world.events_in, self.world.segments())))
        if waiting:
            self.world.deadly.add(waiting[which % len(waiting)])

    # The way out

    @rule(dies_after=deaths, seconds=st.sampled_from([0.0, 0.2, 6.0, 70.0]))
    def tick(self, dies_after: int | None, seconds: float) -> None:
        self.world.clock.now += seconds
        self.world.as_flusher(lambda flusher: flusher.flusher._tick(), dies_after=dies_after)

    def _forward(
        self, name: str, dies_after: int | None, script: list[str], steps: int, ticks: bool, mended: bool = False
    ) -> None:
        """``mended``: the destination takes what it refuses at other times."""

        def work(flusher: FlusherProcess) -> None:
            if ticks:
                flusher.flusher._tick()
            lane = flusher.lanes.get(name)
            if lane is None:
                return
            self.world.destinations[name].script = script
            self.world.destinations[name].refuses = not mended
            for _ in range(steps):
                self.world.clock.now += min(2.0, lane.step())

        self.world.as_flusher(work, dies_after=dies_after)
        for each in self.world.destinations.values():
            each.script = []
            each.refuses = True

    forward = forwarding(_forward)
    forward_more = forwarding(_forward)

    @rule()
    def stop_flusher(self) -> None:
        self.world.stop_flusher()

    # People

    @rule(wanted=st.lists(names, min_size=1, unique=True), retains=st.booleans())
    def configure(self, wanted: list[str], retains: bool) -> None:
        self.world.configure(wanted)
        self.world.retains = retains

    @precondition(lambda self: not self.world.flusher)
    @rule(name=names, dies_after=deaths)
    def forget(self, name: str, dies_after: int | None) -> None:
        world = self.world
        if name in world.configured or name not in world.directory.queues():
            return
        world.as_person(lambda: forget(world.directory, name), dies_after=dies_after)
        if name not in world.directory.queues():
            world.expected.pop(name, None)
        else:
            world.excused.setdefault(name, set()).update(world.queued(name))

    @rule(name=names)
    def pause_or_resume(self, name: str) -> None:
        world = self.world
        if name in world.directory.queues():
            switch = Switch.forwarder(world.directory, name)
            world.as_person(lambda: switch.turn_on() or switch.turn_off("a person wants that"))

    @rule(name=names, segments=st.integers(1, 2), dies_after=deaths)
    def skip(self, name: str, segments: int, dies_after: int | None) -> None:
        before: set[int] = set()

        def work(flusher: FlusherProcess) -> None:
            if name in flusher.lanes:
                before.update(self.world.queued(name))
                flusher.lanes[name].drop(Choice(segments=segments))

        self.world.as_flusher(work, dies_after=dies_after)
        left = self.world.queued(name)
        self.world.excused.setdefault(name, set()).update(before if self.world.flusher is None else before - left)

    @rule(which=st.integers(0, 5), dies_after=deaths)
    def replay_quarantine(self, which: int, dies_after: int | None) -> None:
        world = self.world
        quarantine = Quarantine(world.directory)
        items = [each for each in quarantine.items() if each.kind == "events"]
        if not items:
            return
        item = items[which % len(items)]
        if item.owner not in world.directory.queues():
            return
        world.released.setdefault(item.owner, set()).update(world.events_of(item))
        if item.owner in world.destinations:
            world.destinations[item.owner].in_order = False
        world.as_person(lambda: quarantine.replay(item), dies_after=dies_after)

    @rule(which=st.integers(0, 5), to=names, dies_after=deaths)
    def give_quarantine(self, which: int, to: str, dies_after: int | None) -> None:
        """Replay what one forwarder refused to another one: it leaves the accounts of the first."""
        world = self.world
        quarantine = Quarantine(world.directory)
        items = [each for each in quarantine.items() if each.kind == "events" and each.owner != to]
        if not items or to not in world.directory.queues():
            return
        item = items[which % len(items)]
        events = world.events_of(item)
        world.excused.setdefault(item.owner, set()).update(events)
        world.released.setdefault(to, set()).update(events)
        if to in world.destinations:
            world.destinations[to].in_order = False
        if world.as_person(lambda: quarantine.replay(item, to=to), dies_after=dies_after) and to in world.expected:
            world.expected[to] |= events

    @rule(which=st.integers(0, 5), dies_after=deaths)
    def drop_quarantine(self, which: int, dies_after: int | None) -> None:
        world = self.world
        quarantine = Quarantine(world.directory)
        items = [each for each in quarantine.items() if each.kind == "events"]
        if items:
            item = items[which % len(items)]
            for name in (item.owner, *item.queued):
                world.excused.setdefault(name, set()).update(world.events_of(item))
            world.as_person(lambda: quarantine.drop(item), dies_after=dies_after)

    @rule(name=names, dies_after=deaths)
    def replay_the_past(self, name: str, dies_after: int | None) -> None:
        world = self.world
        if name not in world.directory.queues():
            return
        if name in world.destinations:
            world.destinations[name].in_order = False

        def replay() -> None:
            one = Replay(world.directory, name, Wanted(), names=Names(["*"]), wall_ns=world._wall)
            one.run(one.sources())

        world.as_person(replay, dies_after=dies_after)

    @rule()
    def new_key(self) -> None:
        self.keys.insert(0, key_line(f"key{len(self.keys)}"))
        path = write_keys(Path(self.place.name) / "keys", *self.keys)
        self.world.reopen(keys=Keyring.read(path))

    # What must hold

    @invariant()
    def nothing_is_lost_and_everything_accounted_for(self) -> None:
        self.world.check_nothing_is_lost()
        self.world.check_audit()

    def teardown(self) -> None:
        try:
            self.drain()
            self.world.check_everything_arrived()
            self.world.check_audit()
        finally:
            self.world.kill_all()
            self.uuids.stop()
            self.place.cleanup()
            del self.world  # or the next machine freezes all of it for ever
            gc.collect()
            gc.unfreeze()
            gc.enable()
            _set_log_level(logging.NOTSET)

    def drain(self) -> None:
        """Stop the writers, let the flusher and all destinations work until nothing is left to do."""
        world = self.world
        for which in list(world.writers):
            world.close_writer(which)
        world.stop_flusher()
        world.import_dead()
        assert world.dead is None
        for name in world.directory.queues():
            switch = Switch.forwarder(world.directory, name)
            world.as_person(switch.turn_on)

        def work(flusher: FlusherProcess) -> None:
            world.clock.now += 6
            flusher.flusher._tick()
            for lane in flusher.lanes.values():
                for _ in itertools.takewhile(lambda wait: wait <= 0, (lane.step() for _ in range(200))):
                    pass

        for _ in range(100):
            world.as_flusher(work)
            assert world.flusher is not None or world.deadly
            world.clock.now += 30
            places = [world.directory.opened, world.directory.sealed]
            places += [world.directory.queue_root / name for name in world.configured]
            if not any(each.suffix in (".seg", ".open") for place in places for each in place.iterdir()):
                break
        else:
            raise AssertionError("it does not come to an end")


pytestmark = pytest.mark.timeout(0 if LONG else 600)  # finding the smallest example takes minutes
TestSpool = SpoolMachine.TestCase
TestSpool.settings = settings(
    max_examples=500 if LONG else 40,  # more at a time: Hypothesis keeps what it has tried, half a MB an example
    stateful_step_count=80 if LONG else 40,
    derandomize=not LONG,
    deadline=None,
    print_blob=True,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)
