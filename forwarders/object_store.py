"""The objects below a URL as an archive's files: S3 and what speaks its protocol, Google's and Azure's storage.

    s3://bucket/prefix   gs://bucket/prefix   az://container/prefix

Visible:  an object is put whole by one request, or by a multipart upload that is completed at its end.
Checked:  every body goes with its SHA-256 (S3), which the service compares. An answer whose ETag is not the body's MD5
          is not believed: the object is read, and what differs is an error, so that it is put again.
Errors:   StoreError, an OSError, with the status that the service gave; FileNotFoundError. Never a URL's credentials.
Secrets:  from the environment (AWS_…, GOOGLE_…, AZURE_…), from the machine's role, or from a file of such lines.
"""

import contextlib
import functools
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, TypeVar

import obstore
from obstore import exceptions
from obstore.store import from_url

from forwarders.archive_store import Elsewhere, Stored, StoreError, Wanted, everywhere
from forwarders.secrets import read_credentials

_T = TypeVar("_T")
_STATUS: Final = re.compile(r"status code: (\d{3} ?[A-Za-z -]*)")
_CODE: Final = re.compile(r"<Code>(\w+)</Code>")
_CONNECT_S: Final = 10.0
_PART_BYTES: Final = 8 * 1024 * 1024


class ObjectStore(Elsewhere):
    """Objects below a URL.

    Owner:   one process; threads may share it. Errors: ValueError from the constructor only; it connects to nothing.
    Time:    a request takes ``timeout_s`` at most, and is not repeated: that is for the caller.
    """

    def __init__(
        self, url: str, *, endpoint: str = "", region: str = "", credentials_file: Path | None = None, timeout_s: float
    ) -> None:
        self._url = url.rstrip("/")
        config = read_credentials(credentials_file) if credentials_file else {}
        if endpoint:
            config["base_url" if url.startswith("gs://") else "endpoint"] = endpoint
        if url.startswith("s3://"):
            config.setdefault("checksum_algorithm", "SHA256")
            if region:
                config["region"] = region
        limit = timedelta(seconds=timeout_s)
        connect = timedelta(seconds=min(timeout_s, _CONNECT_S))
        client: Any = {"timeout": limit, "connect_timeout": connect, "allow_http": endpoint.startswith("http://")}
        try:
            self._store = from_url(  # type: ignore[call-overload]  # its types want to know which service
                self._url, config=config, client_options=client, retry_config={"max_retries": 0, "retry_timeout": limit}
            )
        except exceptions.BaseError as exc:
            raise ValueError(f"{self._url}: {_line(exc)}") from None

    def __str__(self) -> str:
        return self._url

    def files(self, directory: str = "", wanted: Wanted = everywhere) -> list[Stored]:
        now = time.time()  # a request lists a thousand, wherever they are: leaving some out would not save one
        batches = self._ask(lambda: list(obstore.list(self._store, prefix=directory or None)))
        found = [
            Stored(each["path"], each["size"], now - each["last_modified"].timestamp())
            for batch in batches
            for each in batch
        ]
        return sorted(each for each in found if directory or not each.name.startswith("."))

    def read(self, name: str) -> bytes:
        return self._ask(lambda: bytes(obstore.get(self._store, name).bytes()))

    @contextmanager
    def fetched(self, name: str) -> Iterator[Path]:
        with self.draft() as path:
            with path.open("wb") as file:
                for chunk in self._chunks(name):
                    file.write(chunk)
            yield path

    def put(self, name: str, data: bytes) -> None:
        """Have exactly these bytes under a name, whether or not it is there already; may be repeated."""
        digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
        try:
            answer = self._put(name, data, "create")
        except exceptions.AlreadyExistsError:
            there = self._ask(lambda: obstore.head(self._store, name))
            if there["size"] == len(data) and self._is(name, there["e_tag"], data, digest):
                return
            answer = self._put(name, data, "overwrite")
        if not self._is(name, answer, data, digest):
            raise StoreError(f"{self._url}/{name}: the service has stored something else (ETag {answer})")

    def replace(self, name: str, draft: Path) -> None:
        digest = hashlib.sha256()
        with draft.open("rb") as file:
            while data := file.read(_PART_BYTES):
                digest.update(data)
        self._ask(lambda: obstore.put(self._store, name, draft, chunk_size=_PART_BYTES, mode="overwrite"))
        stored = hashlib.sha256()
        for chunk in self._chunks(name):  # what it was made from is deleted next: that is worth a look
            stored.update(chunk)
        if stored.digest() != digest.digest():
            raise StoreError(f"{self._url}/{name}: the service has stored something else")
        draft.unlink()

    def create(self, name: str, data: bytes) -> bool:
        try:
            self._put(name, data, "create")
        except exceptions.AlreadyExistsError:
            return False
        return True

    def delete(self, names: Iterable[str]) -> None:
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                self._ask(lambda name=name: obstore.delete(self._store, name))  # type: ignore[misc]

    def close(self) -> None:
        """Nothing that could be: its connections go with the store."""

    def _put(self, name: str, data: bytes, mode: Any) -> str | None:
        """The ETag. Errors: AlreadyExistsError, of the mode ``create``."""
        try:
            return self._ask(lambda: obstore.put(self._store, name, data, mode=mode, use_multipart=False))["e_tag"]
        except exceptions.NotSupportedError:  # a service without If-None-Match
            return self._ask(lambda: obstore.put(self._store, name, data, use_multipart=False))["e_tag"]

    def _is(self, name: str, e_tag: str | None, data: bytes, digest: str) -> bool:
        """Whether an object has these bytes: by its ETag; where that tells nothing (encryption), by reading it."""
        bare = (e_tag or "").strip('"')
        return bare == digest or self.read(name) == data

    def _chunks(self, name: str) -> Iterator[bytes]:
        stream = iter(self._ask(lambda: obstore.get(self._store, name)).stream(min_chunk_size=1 << 20))
        while (chunk := self._ask(lambda: next(stream, None))) is not None:
            yield bytes(chunk)

    def _ask(self, request: Callable[[], _T]) -> _T:
        if _first_user() != os.getpid():  # its threads are in that process, and a request here would never end
            raise StoreError(f"{self._url}: cannot be reached from a forked process")
        try:
            return request()
        except (exceptions.AlreadyExistsError, exceptions.NotSupportedError):
            raise
        except FileNotFoundError as exc:
            if "NoSuchBucket" in str(exc) or "ContainerNotFound" in str(exc):
                raise StoreError(f"{self._url}: {_line(exc)}") from None
            raise FileNotFoundError(f"{self._url}: {_line(exc)}") from None
        except exceptions.BaseError as exc:
            raise StoreError(f"{self._url}: {_line(exc)}") from None


@functools.cache
def _first_user() -> int:
    """The process that obstore's threads belong to: the first that has it do anything."""
    return os.getpid()


def _line(exc: Exception) -> str:
    """What an error says, without the request's headers and addresses that its long form has."""
    text = str(exc)
    found = [match[1].strip() for match in (_STATUS.search(text), _CODE.search(text)) if match]
    return " ".join(found) or text.partition("\n")[0].rpartition(" - ")[2][:300]
