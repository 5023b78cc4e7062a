"""The way out to real destinations, beside a program that only sends what was prepared for it."""

import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Protocol

from benchmarks import servers
from benchmarks.figures import Figures, Row, median_ratio
from benchmarks.load import EVENTS, Load, drive, json_events
from benchmarks.options import Options
from benchmarks.place import BATCH, Drained, Place
from benchmarks.servers import REPOSITORY, collector
from benchmarks.side_by_side import ROUNDS, SECONDS, WARM_UP_S, row
from tests.services.influx import TOKEN, Influx
from tests.services.mongo import Mongo
from tests.services.rabbit import Rabbit

OURS, BARE = "ours", "bare"  # names of queues, buckets and databases
BARE_MAX_S = 300


class Destination(Protocol):
    """A server of its own. ``address``: what `benchmarks.bare` is told."""

    address: str

    def settings(self) -> str:
        """The keys of the forwarder."""

    def empty(self, name: str) -> None:
        """Make the place for events of this name new."""

    def arrived(self, name: str) -> int:
        """How many different events are there."""

    def close(self) -> None:
        """End the server."""


class RabbitQueues:
    """Quorum queues of RabbitMQ."""

    def __init__(self, base: Path, host: str = "127.0.0.1") -> None:
        _need(Rabbit.is_installed(), "rabbitmq-server")
        self._server = Rabbit(base, host=host)
        self.address = self._server.start().url

    def settings(self) -> str:
        return f'url = "{self.address}"\nexchange = "{OURS}"\nconsumers.{OURS}.queue = "{OURS}"'

    def empty(self, name: str) -> None:
        with self._server.channel() as channel:
            channel.queue_delete(name)

    def arrived(self, name: str) -> int:
        """Takes them out; a quorum queue's own counter is seconds behind."""
        ids = set()
        with self._server.channel() as channel:
            for method, properties, _ in channel.consume(name, auto_ack=True, inactivity_timeout=2):
                if method is None:
                    break
                ids.add(properties.message_id)
        return len(ids)

    def pids(self) -> list[int]:
        """Its processes."""
        assert self._server.process is not None
        return [self._server.process.pid, *servers.descendants(self._server.process.pid)]

    def close(self) -> None:
        self._server.close()


class InfluxBuckets:
    """Buckets of InfluxDB."""

    def __init__(self, base: Path) -> None:
        _need(Influx.is_installed(), "influxdb")
        self._server = Influx(base)
        self.address = f"{self._server.start().url}#{TOKEN}"

    def settings(self) -> str:
        return f'url = "{self._server.url}"\nbucket = "{OURS}"\ntoken_file = "{self._server.token_file}"'

    def empty(self, name: str) -> None:
        self._server.create(name)

    def arrived(self, name: str) -> int:
        rows = self._server.query('SELECT count("count") FROM "PageView"', name)
        return int(rows[0]["count"]) if rows else 0

    def close(self) -> None:
        self._server.close()


class MongoDatabases:
    """Databases of SecantusDB, which speaks MongoDB's protocol."""

    def __init__(self, base: Path) -> None:
        _need(Mongo.is_installed(), "SecantusDB")
        self._server = Mongo(base)
        self.address = self._server.start().uri

    def settings(self) -> str:
        return f'uri = "{self.address}"\ndatabase = "{OURS}"'

    def empty(self, name: str) -> None:
        self._server.client.drop_database(name)

    def arrived(self, name: str) -> int:
        return int(self._server.client[name]["events"].count_documents({}))

    def close(self) -> None:
        self._server.close()


def to_rabbitmq(base: Path, options: Options) -> Figures:
    """Target 9."""
    what = "quorum queue, confirms ÷ bare pika SelectConnection with pipelined confirms"
    return _delivery(base, options, "rabbitmq", 9, what, 0.8, 50_000, RabbitQueues)


def to_influxdb(base: Path, options: Options) -> Figures:
    """Target 10."""
    return _delivery(base, options, "influxdb", 10, "÷ the same lines by urllib3", 0.6, 200_000, InfluxBuckets)


def to_mongodb(base: Path, options: Options) -> Figures:
    """Target 11."""
    return _delivery(base, options, "mongodb", 11, "÷ insert_many of the same documents", 0.8, 20_000, MongoDatabases)


def afternoon(base: Path, options: Options) -> Figures:
    """POST of single events to the collector, and to Flask with pika, which answers when RabbitMQ has confirmed."""
    load, name = Load(EVENTS, 64, 1, json_events(1)), "flask-pika"
    ours, theirs = [], []
    with closing(RabbitQueues(base / "rabbitmq")) as queues:
        queues.empty(name)
        with collector(base, "collector", "commit") as mine, servers.afternoon(base, name, queues.address, name) as its:
            for side in (mine, its):
                drive(side, load, WARM_UP_S, base)
            for _ in range(options.rounds or ROUNDS):
                ours.append(drive(mine, load, options.seconds or SECONDS, base))
                theirs.append(drive(its, load, options.seconds or SECONDS, base))
            rows = [row("collector", ours, mine.rss_mb()), row(name, theirs, its.rss_mb())]
        if (found := queues.arrived(name)) < its.answered:
            raise RuntimeError(f"{name}: {its.answered} events answered, {found} in the queue")
    value = median_ratio([each.events_per_s for each in ours], [each.events_per_s for each in theirs])
    return Figures("afternoon", 0, "POST of one event, commit, c64 ÷ Flask and pika with confirms", value, rows=rows)


def _delivery(
    base: Path,
    options: Options,
    kind: str,
    target: int,
    what: str,
    at_least: float,
    events: int,
    make: Callable[[Path], Destination],
) -> Figures:
    """Both sides send the same number of events, in turns; neither starting, connecting nor making queues is counted:
    for the flusher it is what a few events take. Errors: RuntimeError when an event is not there afterwards."""
    events = max((options.events or events) // BATCH, 1) * BATCH
    rounds = options.rounds or ROUNDS
    ours, theirs, costs, their_costs, memory = [], [], [], [], []
    with closing(make(base / kind)) as destination:
        place = Place(base, OURS, kind, destination.settings())
        begin_s, begin_cpu_s, _ = map(
            statistics.median, zip(*(_drained(place, destination, BATCH) for _ in range(rounds)), strict=True)
        )
        for _ in range(rounds):
            drained = _drained(place, destination, events + BATCH)
            ours.append(events / max(drained.took_s - begin_s, 0.001))
            costs.append((drained.cpu_s - begin_cpu_s) / events * 1e6)
            memory.append(drained.memory_mb)
            destination.empty(BARE)
            took_s, cpu_s = _bare(kind, destination.address, events)
            theirs.append(events / took_s)
            their_costs.append(cpu_s / events * 1e6)
            _count(destination, BARE, events)
    rows = [
        Row("flusher", statistics.median(ours), statistics.median(costs), memory_mb=max(memory)),
        Row("bare", statistics.median(theirs), statistics.median(their_costs)),
    ]
    text = f"spool → {kind}, {what} (start and connecting not counted)"
    return Figures(f"to-{kind}", target, text, median_ratio(ours, theirs), at_least=at_least, rows=rows)


def _drained(place: Place, destination: Destination, events: int) -> Drained:
    """A flusher sends so many events to a new place; starting and connecting count."""
    destination.empty(OURS)
    place.fill_numbered(events)
    drained = place.drain()
    _count(destination, OURS, events)
    return drained


def _bare(kind: str, address: str, events: int) -> tuple[float, float]:
    """What `benchmarks.bare` needs: wall and CPU seconds."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.bare", kind, address, BARE, str(events)],
        cwd=REPOSITORY / "scripts", capture_output=True, text=True, timeout=BARE_MAX_S, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"bare {kind}: {done.stderr}")
    report = json.loads(done.stdout)
    return report["seconds"], report["cpu_s"]


def _count(destination: Destination, name: str, events: int) -> None:
    if (found := destination.arrived(name)) != events:
        raise RuntimeError(f"{name}: {events} events sent, {found} at the destination")


def _need(is_there: bool, what: str) -> None:
    if not is_there:
        raise RuntimeError(f"{what} is not installed: scripts/test does it")
