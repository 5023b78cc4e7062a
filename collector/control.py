"""What people change at run time: the operations behind ``collector forwarder``, ``collector collection`` and the admin
door, which do the same.

Where a file is all there is to a change (a pause, collection) the file is written, whoever runs. What only the owner
of a queue may do is done by the flusher's own threads, or, when none runs, by taking its LOCK.
"""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from collector.forwarder_view import forwarder_rows
from collector.settings import ForwarderSettings, Settings
from forwarders.flusher import Flusher, Locked
from forwarders.orders import Gone
from forwarders.skipping import Choice, preview
from spool.directory import SpoolDirectory, SpoolError
from spool.quarantine import Quarantine, QuarantineError
from spool.queue import Queue
from spool.switch import Switch

SKIP_TIMEOUT_S = 45.0
Report = dict[str, Any]
T = TypeVar("T")


class ControlError(Exception):
    """It was not done: the text says why. ``status`` is HTTP's: 404 no such forwarder, 409 it cannot be in this
    state, 423 another flusher has the LOCK, 503 not now, 500 the disk."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Controls(Protocol):
    """The operations, done here (`Control`) or by the flusher that answers (`collector.control_client`).

    Errors: ControlError.
    """

    def collection(self) -> Report: ...
    def switch_collection(self, *, on: bool, reason: str, dry_run: bool) -> Report: ...
    def forwarders(self) -> list[Report]: ...
    def pause(self, name: str, *, reason: str, dry_run: bool) -> Report: ...
    def resume(self, name: str, *, dry_run: bool) -> Report: ...
    def flush(self, name: str, *, quarantined: bool, dry_run: bool) -> Report: ...
    def skip(self, name: str, choice: Choice, *, dry_run: bool) -> Report: ...


class Control:
    """The operations on one spool.

    Owner: the flusher's process, with its ``flusher``, or a command, without one; any thread. ``make_flusher`` makes
    one for a command that has to be the flusher for a moment.
    """

    def __init__(
        self,
        settings: Settings,
        directory: SpoolDirectory,
        *,
        flusher: Flusher | None = None,
        make_flusher: Callable[[], Flusher] | None = None,
    ) -> None:
        self._settings = settings
        self._directory = directory
        self._flusher = flusher
        self._make_flusher = make_flusher

    def collection(self) -> Report:
        """Whether collection is on, and why not."""
        off = Switch.collection(self._directory).read()
        return {"on": off is None, "reason": off.reason if off else "", "since_ms": off.since_ms if off else 0}

    def switch_collection(self, *, on: bool, reason: str, dry_run: bool) -> Report:
        """Switch collection on or off; what it is then, and whether that is a change."""
        changed = _turn(Switch.collection(self._directory), on=on, reason=reason, dry_run=dry_run)
        return {**self.collection(), "changed": changed}

    def forwarders(self) -> list[Report]:
        """Every forwarder of the settings, and how it is."""
        return forwarder_rows(self._directory, self._settings)

    def pause(self, name: str, *, reason: str, dry_run: bool) -> Report:
        """Let a forwarder send nothing; its queue is kept."""
        self._find(name)
        changed = _turn(Switch.forwarder(self._directory, name), on=False, reason=reason, dry_run=dry_run)
        return {"forwarder": name, "paused": True, "changed": changed}

    def resume(self, name: str, *, dry_run: bool) -> Report:
        """End a pause, and the wait for the next try."""
        self._find(name)
        changed = _turn(Switch.forwarder(self._directory, name), on=True, reason="", dry_run=dry_run)
        return {"forwarder": name, "paused": False, "changed": changed}

    def flush(self, name: str, *, quarantined: bool, dry_run: bool) -> Report:
        """Send what waits now, and before it what is in quarantine when that is wanted.

        ``delivered`` is None where a running flusher does it, in its own time.
        """
        found = self._find(name)
        if not found.flush.enabled:
            raise ControlError(409, f"{name}: is disabled by the settings")
        if Switch.forwarder(self._directory, name).read():
            raise ControlError(409, f"{name}: is paused; resume it first (collector forwarder resume {name})")
        queue = Queue(self._directory, name)
        report: Report = {"forwarder": name, "segments": queue.count, "bytes": queue.size}
        report |= self._replay(name, dry_run=dry_run) if quarantined else {}
        report["delivered"] = None if dry_run else self._flush(name)
        return report

    def skip(self, name: str, choice: Choice, *, dry_run: bool) -> Report:
        """Take segments out of a forwarder's queue unsent; a person's loss, counted as dropped."""
        self._find(name)
        if dry_run:
            skipped = preview(Queue(self._directory, name), choice)
        else:
            try:
                skipped = self._as_owner(lambda flusher: flusher.skip(name, choice, timeout_s=SKIP_TIMEOUT_S))
            except TimeoutError as exc:
                raise ControlError(503, f"{name}: a send is under way and does not end; nothing was skipped") from exc
            except Gone as exc:
                raise ControlError(503, f"{name}: {exc}") from exc
        return {"forwarder": name, **skipped._asdict()}

    def _flush(self, name: str) -> bool | None:
        if self._flusher is None:
            return self._with_flusher(lambda flusher: flusher.flush_once(name))
        if not self._flusher.hurry(name):
            raise ControlError(503, f"{name}: its thread is being started; try once more")
        return None

    def _replay(self, name: str, *, dry_run: bool) -> Report:
        place = Quarantine(self._directory)
        items = [each for each in place.items(name) if each.kind == "events"]
        failures = []
        for each in items if not dry_run else []:
            try:
                place.replay(each)
            except QuarantineError as exc:
                failures.append(str(exc))
            except OSError as exc:
                failures.append(f"{each.name}: cannot be queued: {exc.strerror}")
        return {"quarantined_items": len(items) - len(failures), "failures": failures}

    def _as_owner(self, work: Callable[[Flusher], T]) -> T:
        if self._flusher is not None:
            return work(self._flusher)

        def locked(flusher: Flusher) -> T:
            with flusher.locked():
                return work(flusher)

        return self._with_flusher(locked)

    def _with_flusher(self, work: Callable[[Flusher], T]) -> T:
        assert self._make_flusher is not None
        try:
            return work(self._make_flusher())
        except Locked as exc:
            sock = self._directory.path / "control.sock"
            raise ControlError(423, f"{exc}: a flusher runs and does not answer at {sock}; try once more") from exc

    def _find(self, name: str) -> ForwarderSettings:
        for each in self._settings.forwarders:
            if each.name == name:
                if name not in self._directory.queues():
                    raise ControlError(409, f"{name}: has no queue yet; the flusher makes it when it first starts")
                return each
        known = ", ".join(each.name for each in self._settings.forwarders) or "none"
        raise ControlError(404, f"{name}: the settings have no such forwarder (but {known})")


def _turn(switch: Switch, *, on: bool, reason: str, dry_run: bool) -> bool:
    """Turn a switch, or say whether that would change anything."""
    try:
        return switch.turn_on(dry_run=dry_run) if on else switch.turn_off(reason, dry_run=dry_run)
    except (OSError, SpoolError) as exc:
        raise ControlError(500, f"{switch.path}: cannot be switched: {exc}") from exc
