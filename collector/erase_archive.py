"""Erase a person's events from archive files: their lines go, all others stay byte for byte.

A file is written anew beside the old one, synced, and renamed over it; one in which nothing is left is deleted. Works
beside a flusher: a file of the archive is never changed once it has its name.
"""

import contextlib
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from collector.person import Match

_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
_DRAFT = "erase~"


@dataclass
class ErasedLines:
    """``events`` in ``files`` were erased (or would be). ``left``: files or lines that cannot be read."""

    files: int = 0
    events: int = 0
    left: list[str] = field(default_factory=list)


def archive_files(root: Path) -> list[Path]:
    """The files of an archive, those that are being written not among them."""
    found = (path for path in root.rglob("*.jsonl*") if path.name.endswith(_SUFFIXES) and not path.is_symlink())
    return sorted(path for path in found if ".tmp" not in path.relative_to(root).parts)


def drafts_in(root: Path) -> dict[Path, int]:
    """The files that forwarders are writing, or were when they were killed, with their inodes."""
    found = {}
    for path in (root / ".tmp").glob("*"):
        with contextlib.suppress(FileNotFoundError):
            if not path.name.startswith(_DRAFT):
                found[path] = path.lstat().st_ino
    return found


def erase_lines(root: Path, match: Match, files: Iterable[Path], *, dry_run: bool = False) -> ErasedLines:
    """Erase the events of ``files`` below ``root`` that match. Errors: OSError; then do it again."""
    import zstandard

    found = ErasedLines()
    for draft in [] if dry_run else list((root / ".tmp").glob(f"{_DRAFT}*")):
        draft.unlink()
    for path in files:
        try:
            lines = _lines(path)
        except FileNotFoundError:
            continue
        except (ValueError, EOFError, zlib.error, zstandard.ZstdError) as exc:
            found.left.append(f"{path}: {exc}")
            continue
        kept = []
        for number, line in enumerate(lines, 1):
            try:
                if match.line(line):
                    continue
            except (ValueError, RecursionError):
                if match.stands_in(line):
                    found.left.append(f"{path}:{number}: not an event, with the value in it")
            kept.append(line)
        if len(kept) < len(lines):
            found.files += 1
            found.events += len(lines) - len(kept)
            if not dry_run:
                _replace(root, path, kept)
    return found


def _lines(path: Path) -> list[bytes]:
    import gzip

    import zstandard

    data = path.read_bytes()
    if path.name.endswith(".gz"):
        data = gzip.decompress(data)
    elif path.name.endswith(".zst"):
        data = zstandard.ZstdDecompressor().decompressobj().decompress(data)
    return data.splitlines(keepends=True)


def _replace(root: Path, path: Path, lines: Sequence[bytes]) -> None:
    if not lines:
        path.unlink()
    else:
        (root / ".tmp").mkdir(exist_ok=True)
        draft = root / ".tmp" / f"{_DRAFT}{os.getpid()}"
        mode = path.stat().st_mode & 0o777
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.writelines(_packed(path, lines))
            file.flush()
            os.fdatasync(descriptor)
        draft.rename(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _packed(path: Path, lines: Sequence[bytes]) -> Iterator[bytes]:
    import zstandard

    if path.name.endswith(".gz"):
        plain = zlib.compressobj(wbits=31)  # without a time in its header
        yield plain.compress(b"".join(lines)) + plain.flush()
    elif path.name.endswith(".zst"):
        yield zstandard.ZstdCompressor(write_checksum=True).compress(b"".join(lines))
    else:
        yield from lines
