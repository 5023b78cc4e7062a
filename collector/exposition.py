"""The metrics in Prometheus' text format."""

import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family

from collector.metrics import DOOR_KINDS, FLUSHER, FORWARDER, HTTP, WORKER, Metric, Totals, lag_s


def render(totals: Totals, disk: os.statvfs_result | None) -> bytes:
    """What ``/metrics`` answers. ``disk`` is the spool's; None when it cannot be asked."""
    return _render(lambda: _of_spool(totals, disk))


def render_worker(worker: str, cells: Mapping[str, int]) -> bytes:
    """What an event worker's ``/metrics`` answers."""
    rows = [((worker,), cells)]
    return _render(lambda: iter([_family("collector_worker_", metric, rows, "worker") for metric in WORKER]))


def _render(families: Callable[[], Iterator[Family]]) -> bytes:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(families))
    return generate_latest(registry)


class _Families:
    """prometheus_client's collector protocol."""

    def __init__(self, families: Callable[[], Iterator[Family]]) -> None:
        self.collect = families

    def describe(self) -> list[Family]:
        return []


def _of_spool(totals: Totals, disk: os.statvfs_result | None) -> Iterator[Family]:
    workers = [each for each in totals.live if each.kind in DOOR_KINDS]
    for metric in HTTP:
        if metric.kind == "gauge":
            per_worker = GaugeMetricFamily("collector_" + metric.name, metric.text, labels=["worker"])
            for worker in workers:
                label = str(worker.number) if worker.kind == "http" else f"{worker.kind}-{worker.number}"
                per_worker.add_metric([label], worker.values.get(metric.name, 0))
            yield per_worker
        else:
            yield _family("collector_", metric, [((), totals.http)])
    for metric in FLUSHER:
        if metric.name != "backlog_base_bytes":
            yield _family("collector_flusher_", metric, [((), totals.flusher)])
    for metric in FORWARDER:
        yield _family("collector_forwarder_", metric, [((n,), v) for n, v in totals.forwarders.items()], "forwarder")
    lag = GaugeMetricFamily(
        "collector_forwarder_lag_seconds", "How long the oldest pending event has waited.", labels=["forwarder"]
    )
    for name, cells in totals.forwarders.items():
        lag.add_metric([name], lag_s(cells["oldest_pending_ms"]))
    yield lag
    yield GaugeMetricFamily(
        "collector_backlog_bytes", "Bytes in the spool that a forwarder still wants.", totals.backlog_bytes
    )
    if disk:
        free = disk.f_bavail * disk.f_frsize
        yield GaugeMetricFamily("collector_disk_free_bytes", "Bytes free on the spool's disk.", free)
        yield GaugeMetricFamily("collector_disk_free_inodes", "Inodes free on the spool's disk.", disk.f_favail)
    live = GaugeMetricFamily("collector_processes", "Processes that run now.", labels=["kind"])
    for kind in (*DOOR_KINDS, "flusher"):
        live.add_metric([kind], sum(each.kind == kind for each in totals.live))
    yield live


def _family(
    prefix: str, metric: Metric, rows: Sequence[tuple[tuple[str, ...], Mapping[str, int]]], *labels: str
) -> Family:
    """One metric for Prometheus; ``rows`` are (values of ``labels``, cells)."""
    name = prefix + metric.name
    every = [*labels, *(label for label, _ in metric.labels)]
    if metric.kind == "histogram":
        histogram = HistogramMetricFamily(name, metric.text, labels=every)
        for values, cells in rows:
            counts = itertools.accumulate(cells.get(each, 0) for each in metric.cells()[:-1])
            buckets = [(each, count) for each, count in zip([*map(str, metric.buckets), "+Inf"], counts, strict=True)]
            histogram.add_metric(list(values), buckets, cells.get(f"{metric.name}/sum_us", 0) / 1e6)
        return histogram
    family = (CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily)(name, metric.text, labels=every)
    for values, cells in rows:
        for cell in metric.cells():
            family.add_metric([*values, *cell.split("/")[1:]], cells.get(cell, 0))
    return family
