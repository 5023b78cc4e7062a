"""SQL over an archive: its live files, of lines and of Parquet, as the one view ``events``, in DuckDB.

    id, eventName, eventGranularity, source   VARCHAR
    eventDate, receivedDate                   BIGINT: milliseconds since 1970, UTC
    eventTime, eventHour                      TIMESTAMP, UTC: eventDate, and the hour it is in
    payload, types                            JSON (types may be NULL), numbers and escapes in their shortest form

Thrift files hold no ids and are left out. U+FFFD stands for half of a surrogate pair in a payload, which is no text.
An id can come twice, where a batch was repeated; compaction leaves one of each hour's.

The SQL is an operator's: it is one SELECT, in a database in memory that may open the files of the archive and a working
directory, nothing else, and whose settings are locked. That directory has links to the files, under plain names with
their suffixes: an archive's own path may hold what DuckDB takes for a pattern. Results go there too, and what does not
fit into memory.
"""

import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import duckdb

from forwarders.archive_files import LINES, THRIFT
from forwarders.archive_layout import Layout
from forwarders.archive_lines import event_lines, without_halves
from forwarders.archive_listing import Choice, live_files
from forwarders.archive_store import Store

T = TypeVar("T")
Archives = Sequence[tuple[Store, Layout]]
Format = Literal["json", "csv", "parquet"]

_COLUMNS: Final = {
    "id": "VARCHAR", "eventName": "VARCHAR", "eventDate": "BIGINT", "eventGranularity": "VARCHAR",
    "receivedDate": "BIGINT", "source": "VARCHAR", "payload": "JSON", "types": "JSON",
}  # fmt: skip
_TIMES: Final = "make_timestamp(eventDate * 1000) AS eventTime, date_trunc('hour', eventTime) AS eventHour"
_COPY: Final = {"json": "FORMAT json, ARRAY true", "csv": "FORMAT csv, HEADER true", "parquet": "FORMAT parquet"}
_OBJECT_BYTES: Final = 16 * 1024 * 1024, 64 * 1024 * 1024  # DuckDB's own; more is slow where there are many files
_LISTED_AGAIN: Final = 10


class QueryError(ValueError):
    """The query, or a file that it reads, is wrong; the text says what and where."""


@dataclass(frozen=True)
class Answer:
    """Rows of Python values, and their columns."""

    columns: list[str]
    rows: list[tuple[Any, ...]]


class ArchiveQuery:
    """Asks one archive, or several together, about the events of ``choice``.

    Every question lists the files anew. Errors of all methods: QueryError, OSError, Unreadable (a manifest).
    """

    def __init__(self, archives: Archives, choice: Choice, *, memory: str = "1GB", threads: int = 2) -> None:
        self._archives = archives
        self._choice = choice
        self._config: dict[str, Any] = {
            "memory_limit": memory, "threads": threads, "autoinstall_known_extensions": False,
            "autoload_known_extensions": False, "python_enable_replacements": False,
        }  # fmt: skip

    def answer(self, sql: str) -> Answer:
        """All rows, in memory."""

        def take(connection: Any, work: Path) -> Answer:
            found = connection.execute("FROM answer")
            return Answer([each[0] for each in found.description], found.fetchall())

        return self._ask(sql, take)

    def write(self, sql: str, form: Format, take: Callable[[Path], T]) -> T:
        """Make a file of the rows and have it taken: it is gone afterwards."""

        def copy(connection: Any, work: Path) -> T:
            connection.execute(f"COPY (FROM answer) TO {quoted(str(work / 'answer'))} ({_COPY[form]})")
            return take(work / "answer")

        return self._ask(sql, copy)

    def _ask(self, sql: str, take: Callable[[Any, Path], T]) -> T:
        careful = False
        for _ in range(_LISTED_AGAIN):
            with tempfile.TemporaryDirectory(prefix="collector-query-") as name, ExitStack() as stack:
                work = Path(name).resolve()
                try:
                    files = _Files(self._archives, self._choice, work, stack)
                    with self._connected(work, files, careful=careful) as connection:
                        connection.sql(_select(connection, sql)).create_view("answer")
                        return take(connection, work)
                except FileNotFoundError:  # compacted since it was listed
                    continue
                except duckdb.Error as exc:
                    if files.are_gone():
                        continue
                    if not careful and re.search("surrogate|maximum_object_size", str(exc)):
                        careful = True
                        continue
                    where = "; see collector archive verify" if isinstance(exc, duckdb.IOException) else ""
                    raise QueryError(files.named(str(exc)) + where) from exc
        raise QueryError("files were compacted away again and again while they were read: ask for less at once")

    @contextmanager
    def _connected(self, work: Path, files: "_Files", *, careful: bool) -> Iterator[Any]:
        """A database that can see the view and do no harm."""
        with duckdb.connect(config={**self._config, "temp_directory": str(work / "spill")}) as connection:
            connection.execute("SET TimeZone = 'UTC'")
            connection.execute(f"SET allowed_directories = {_list([f'{work}/'])}")
            connection.execute(f"SET allowed_paths = {_list(files.real)}")
            connection.execute("SET enable_external_access = false")
            connection.execute("SET lock_configuration = true")
            if careful:
                files.mend()
            connection.execute(f"CREATE VIEW events AS {self._view(files, _OBJECT_BYTES[careful])}")
            yield connection

    def _view(self, files: "_Files", object_bytes: int) -> str:
        parts = []
        if files.lines:
            options = f"format = 'newline_delimited', columns = {_COLUMNS!r}, maximum_object_size = {object_bytes}"
            parts.append(f"SELECT * FROM read_json({_list(files.lines)}, {options})")  # noqa: S608  all ours
        if files.parquet:
            columns = ", ".join(
                f"json({each}) AS {each}" if kind == "JSON" else each for each, kind in _COLUMNS.items()
            )
            parts.append(f"SELECT {columns} FROM read_parquet({_list(files.parquet)})")  # noqa: S608  all ours
        if not parts:
            empty = ", ".join(f"NULL::{kind} AS {each}" for each, kind in _COLUMNS.items())
            parts.append(f"SELECT {empty} WHERE false")
        since, until = self._choice.since_ms, self._choice.until_ms
        limits = ["true"]
        limits += [f"eventDate >= {since}"] if since is not None else []
        limits += [f"eventDate < {until}"] if until is not None else []
        every = " UNION ALL BY NAME ".join(parts)
        return (
            f"SELECT id, eventName, eventDate, {_TIMES}, eventGranularity, receivedDate, source, payload, types "  # noqa: S608
            f"FROM ({every}) WHERE {' AND '.join(limits)}"
        )


class _Files:
    """The files of one question, under names that DuckDB takes as they are. Errors: OSError, Unreadable."""

    def __init__(self, archives: Archives, choice: Choice, work: Path, stack: ExitStack) -> None:
        self.lines: list[str] = []
        self.parquet: list[str] = []
        self.real: list[str] = []
        self._names: dict[str, str] = {}
        for store, layout in archives:
            for file in live_files(store, layout, choice):
                if file.suffix in THRIFT:
                    continue
                path = stack.enter_context(store.fetched(file.name)).resolve()
                link = work / f"{len(self.real)}{file.suffix}"
                link.symlink_to(path)
                self.real.append(str(path))
                self._names[str(link)] = f"{store}/{file.name}"
                (self.lines if file.suffix in LINES else self.parquet).append(str(link))

    def are_gone(self) -> bool:
        """Whether one of them is not there any more."""
        return not all(Path(each).exists() for each in self._names)

    def named(self, text: str) -> str:
        """A text of DuckDB's, with the files' own names."""
        return re.sub(
            r"[^\s\"']*/collector-query-[^\s\"']*", lambda match: self._names.get(match[0], match[0]), text
        ).strip()

    def mend(self) -> None:
        """Make copies of those lines in which there is half of a surrogate pair."""
        for number, link in enumerate(self.lines):
            lines = list(event_lines(Path(link)))
            mended = [without_halves(each) for each in lines]
            if mended != lines:
                copy = f"{link}.mended.jsonl"
                Path(copy).write_bytes(b"".join(mended))
                self._names[copy] = self._names[link]
                self.lines[number] = copy


def _select(connection: Any, sql: str) -> str:
    """The text of the one SELECT. Errors: QueryError."""
    statements = connection.extract_statements(sql)
    if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
        raise QueryError("expected one select statement")
    text = str(statements[0].query).encode()
    ends = [at for at, _ in duckdb.tokenize(text.decode()) if text[at : at + 1] == b";"]
    return text[: ends[0] if ends else None].decode()


def _list(texts: Sequence[str]) -> str:
    return f"[{', '.join(map(quoted, texts))}]"


def quoted(text: str) -> str:
    """A text of SQL."""
    return "'" + text.replace("'", "''") + "'"
