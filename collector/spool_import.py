"""Bring what a dead machine's spool still holds into this collector's, beside everything that runs here."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from collector.settings import ForwarderSettings
from collector.slots import read_slots
from spool.dead_spool import Plan, dead_spool, plan_import
from spool.directory import SpoolDirectory, SpoolError
from spool.flusher_lock import Locked, flusher_lock
from spool.imports import Parcel, batches, open_imports, seen_in
from spool.queue import start_queue
from spool.recovery import Salvaged, look_at_orphans, salvage_orphans, sweep_tmp

Watch = Callable[[list[list[Parcel]]], Iterable[list[Parcel]]]


class NoRoom(Exception):
    """The disk has no room for what there is to be copied; the text says how much."""


@dataclass
class Imported:
    """What was done. ``orphans``: what became of segments that the dead machine was writing."""

    source: Path
    instance: str
    orphans: list[Salvaged] = field(default_factory=list)
    plan: Plan = field(default_factory=Plan)


def import_spool(
    path: Path,
    directory: SpoolDirectory,
    forwarders: Iterable[ForwarderSettings],
    *,
    room_bytes: int,
    watch: Watch,
    dry_run: bool = False,
) -> Imported:
    """Import the spool at ``path``; ``watch`` is given the batches and gives them back one by one.

    Errors: Locked, when the other collector lives, or another import runs; NoRoom, SpoolError, OSError: what has not
    arrived does at the next try.
    """
    configured = list(forwarders)
    with dead_spool(path, directory) as source:
        live = [each for each in read_slots(source.metrics) if each.live]
        if live:
            raise Locked(f"{source.metrics} (by process {live[0].pid})")
        done = Imported(source.path, source.instance)
        names = {each.name for each in configured}
        done.plan = plan_import(source, directory, names, seen_in(directory))
        orphans = look_at_orphans(source)
        _check_room(done.plan.size + sum(each.size for each in orphans), room_bytes)
        if dry_run:
            done.orphans = orphans
            return done
        sweep_tmp(source)
        done.orphans = salvage_orphans(source)
        with open_imports(directory) as imports:
            here = _with_queues(directory, configured)
            done.plan = plan_import(source, directory, here, imports.seen)
            for batch in watch(list(batches(done.plan.parcels))):
                imports.take(batch)
    return done


def _check_room(wanted_bytes: int, room_bytes: int) -> None:
    if wanted_bytes > room_bytes:
        raise NoRoom(
            f"{wanted_bytes} bytes are to be copied, and the spool's disk has room for {max(0, room_bytes)} "
            "(what is free, less spool.min_free_bytes)"
        )


def _with_queues(directory: SpoolDirectory, configured: list[ForwarderSettings]) -> set[str]:
    """The forwarders of the settings that have a queue; a flusher that never ran has made none, so they are made."""
    new = [each for each in configured if each.name not in directory.queues()]
    if new:
        try:
            with flusher_lock(directory):
                for each in new:
                    start_queue(directory, each.name, start=each.flush.start)
        except Locked:
            pass  # the flusher that runs has other settings, or makes them now: counted as not here
    known = set(directory.queues())
    missing = [each.name for each in configured if each.name not in known]
    if len(missing) == len(configured) and configured:
        raise SpoolError(f"{directory.path}: no forwarder has a queue yet; wait for the flusher, or start it")
    return {each.name for each in configured} & known
