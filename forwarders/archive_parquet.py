"""Compacted files as Parquet: the keys of a line are the columns.

    id, eventName, eventGranularity, source   VARCHAR
    eventDate, receivedDate                   BIGINT: milliseconds since 1970, UTC, as in the lines
    payload, types                            VARCHAR: JSON texts, byte for byte as in the lines (types may be NULL), so
                                              that ``payload->>'$.user'`` works in DuckDB, Spark and Trino have theirs;
                                              but for half of a surrogate pair (forwarders/archive_lines.py)
    eventHour                                 TIMESTAMP, UTC: the hour of eventDate

Rows are in the order of the lines they were made from, compressed with zstd. DuckDB writes and reads them: the library
that the archive is queried with.
"""

import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import duckdb
import msgspec

from forwarders.archive_files import Unreadable
from forwarders.archive_lines import Line, event_of

_COLUMNS: Final = {
    "id": "VARCHAR", "eventName": "VARCHAR", "eventDate": "BIGINT", "eventGranularity": "VARCHAR",
    "receivedDate": "BIGINT", "source": "VARCHAR", "payload": "VARCHAR", "types": "VARCHAR",
}  # fmt: skip
_SELECT: Final = f"SELECT {', '.join(_COLUMNS)} FROM read_parquet(?)"  # noqa: S608  all ours
_ROWS_AT_ONCE: Final = 5000
_GROUP_BYTES: Final = 64 * 1024 * 1024
_GROUP_ROWS: Final = (2048, 122_880)  # DuckDB's own least and usual number
_MEMORY: Final = "1GB"


class _Row(msgspec.Struct, gc=False):
    id: str
    eventName: str
    eventDate: int
    eventGranularity: str
    receivedDate: int
    source: str
    payload: str
    types: str | None


_line: Final[Callable[..., Line]] = Line
_encode = msgspec.json.Encoder().encode


class ParquetWriter:
    """Makes one Parquet file of lines; `close` writes it.

    The lines wait in a file beside it with payload and types as texts: DuckDB reads them without a look into them.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows_path = path.with_name(f"{path.name}.rows")
        self._rows = self._rows_path.open("wb", buffering=1 << 20)
        self._count = self._size = self._longest = 0

    def add(self, lines: Iterable[bytes]) -> None:
        """Errors: Unreadable."""
        for line in lines:
            each = event_of(line)
            types = None if each.types is msgspec.UNSET else bytes(each.types).decode()
            row = _encode(
                _Row(each.id, each.eventName, each.eventDate, each.eventGranularity, each.receivedDate, each.source,
                     bytes(each.payload).decode(), types)
            )  # fmt: skip
            self._rows.write(row + b"\n")
            self._count += 1
            self._size += len(row)
            self._longest = max(self._longest, len(row))

    def close(self) -> None:
        """Errors: OSError."""
        self._rows.close()
        least, usual = _GROUP_ROWS
        rows = max(least, min(usual, _GROUP_BYTES * self._count // max(1, self._size)))
        source = f"read_json(?, format='newline_delimited', compression='none', columns={_COLUMNS!r}, "
        source += f"maximum_object_size={self._longest + (1 << 20)})"
        hour = "date_trunc('hour', make_timestamp(eventDate * 1000)) AS eventHour"
        options = f"FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE {rows}, USE_TMP_FILE false"
        copy = f"COPY (SELECT *, {hour} FROM {source}) TO {_quoted(self._path)} ({options})"  # noqa: S608  all ours
        try:
            with _connection(f"{self._path}.spill") as connection:
                connection.execute(copy, [str(self._rows_path)])
        except duckdb.Error as exc:
            raise OSError(f"{self._path}: {_first_line(exc)}") from exc
        finally:
            self.discard()

    def discard(self) -> None:
        """Delete what waits."""
        self._rows.close()
        self._rows_path.unlink(missing_ok=True)
        shutil.rmtree(f"{self._path}.spill", ignore_errors=True)


def parquet_lines(path: Path) -> Iterator[bytes]:
    """The lines that a file was made from. Errors: Unreadable, OSError."""
    path.stat()
    try:
        with _connection("") as connection:
            found = connection.execute(_SELECT, [str(path)])
            while rows := found.fetchmany(_ROWS_AT_ONCE):
                for *fields, payload, types in rows:
                    rest = () if types is None else (msgspec.Raw(types.encode()),)
                    yield _encode(_line(*fields, msgspec.Raw(payload.encode()), *rest)) + b"\n"
    except duckdb.Error as exc:
        raise Unreadable(f"parquet: {_first_line(exc)}") from exc


def _connection(spill: str) -> Any:
    """One thread and little memory, beside a collector; what does not fit goes into the directory ``spill``."""
    return duckdb.connect(config={"threads": 1, "memory_limit": _MEMORY, "temp_directory": spill})


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"


def _first_line(exc: Exception) -> str:
    return str(exc).partition("\n")[0]
