"""Go over an archive and compact what is due."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from forwarders.archive_compact import Compacted, Compactor, Target
from forwarders.archive_files import Unreadable
from forwarders.archive_layout import Layout
from forwarders.archive_listing import Choice, directories
from forwarders.archive_manifest import COMPACTED
from forwarders.archive_store import Store, Stored, only_here


def compact_archive(
    store: Store,
    layout: Layout,
    choice: Choice,
    target: Target,
    *,
    ended_before_ms: int,
    dry_run: bool = False,
    progress: Callable[[Sequence[Any]], Iterable[Any]] = iter,
) -> Compacted:
    """Compact the directories of ``choice`` whose time was over at ``ended_before_ms``.

    One that cannot be read or written is named, and the others are done. Errors: OSError, then do it again;
    BlockingIOError when somebody else is at it; ImportError (DuckDB).
    """
    total = Compacted()
    with store.locked() as exclusive:
        compactor = Compactor(store, exclusive=exclusive)
        due = [
            (directory, stored)
            for directory, (place, stored) in sorted(directories(store, layout, choice).items())
            if place.end_ms <= ended_before_ms and not _is_done(stored, target)
        ]
        for directory, stored in progress(due):
            try:
                if dry_run:
                    names = compactor.waiting(compactor.state(directory)[0], stored, target)
                    total.add(Compacted(directories=bool(names), files=len(names)))
                else:
                    total.add(compactor.compact(directory, stored, target))
            except (Unreadable, OSError) as exc:
                total.left.append(only_here(store, directory, "", exc))
    return total


def _is_done(stored: Sequence[Stored], target: Target) -> bool:
    """Whether one file is all there is, as in most of an old archive: no manifest needs to be read for that."""
    return len(stored) == 1 and (target == "jsonl" or stored[0].name.rpartition("/")[2].startswith(COMPACTED))
