"""The files below a webhdfs:// URL as an archive's files: HDFS, by its REST interface (WebHDFS).

    webhdfs://namenode:9870/directory

    <directory>/.tmp/<uuid>     a file being written; what a killed process left there goes after a day

Visible:  a file is written under a name of its own in .tmp and renamed, in one step, when the DataNode has closed it
          and has its blocks on the disk (SYNC_BLOCK). Unless told otherwise HDFS renames nothing over another file.
Repeat:   a file that has the name is read and compared.
Redirect: who wants to read or write is sent on to a DataNode, under the name that the NameNode knows it by.
Errors:   StoreError, an OSError, with what HDFS said; FileNotFoundError. Never the token.
Secrets:  HADOOP_USER_NAME and HADOOP_DELEGATION_TOKEN from the environment, or from a file of such lines.
Modes:    as on a local disk, so that only the owner and the directory's group can read.
"""

import hashlib
import json
import logging
import os
import re
import threading
import time
import uuid
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final
from urllib.parse import quote, quote_plus, urlencode, urlsplit

from urllib3 import BaseHTTPResponse, PoolManager
from urllib3.util import Timeout

from forwarders.archive_store import (
    DIRECTORY_MODE,
    FILE_MODE,
    TMP,
    Elsewhere,
    Stored,
    StoreError,
    Wanted,
    everywhere,
)
from forwarders.http_endpoint import Connections, NoReply
from forwarders.secrets import read_credentials

_PORT: Final = 9870
_DATANODE: Final = re.compile(r"http://(\[[0-9A-Fa-f:.]+\]|[^\s:/@?#\[\]]+)(:[0-9]{1,5})?/webhdfs/")
_CONNECT_S: Final = 10.0
_CONNECTIONS: Final = 8
_CHUNK_BYTES: Final = 1 << 20
_LEFT_S: Final = 86_400.0
_NAMES: Final = ("hadoop_user_name", "hadoop_delegation_token")


class HdfsStore(Elsewhere):
    """Files below a URL, which archive.Settings has checked.

    Owner:   one process; threads may share it. Errors: OSError, ValueError of credentials; it connects to nothing.
    Time:    a request takes ``timeout_s`` at most, and is not repeated: that is for the caller.
    """

    def __init__(self, url: str, *, credentials_file: Path | None = None, timeout_s: float) -> None:
        self._url = url.rstrip("/")
        parts = urlsplit(self._url)
        self._api = f"http://{parts.netloc if parts.port else f'{parts.netloc}:{_PORT}'}/webhdfs/v1"
        self._root = parts.path
        self._who, self._token = _credentials(credentials_file)
        self._timeout_s = timeout_s
        self._connections = Connections()
        self._manager = PoolManager(maxsize=_CONNECTIONS, block=True, retries=False)
        self._manager.pool_classes_by_scheme = self._connections.pools
        logging.getLogger("urllib3").setLevel(logging.CRITICAL)  # it logs addresses, and the token is in them
        self._lock = threading.Lock()
        self._ready = False
        self._left: set[str] = set()

    def __str__(self) -> str:
        return self._url

    def files(self, directory: str = "", wanted: Wanted = everywhere) -> list[Stored]:
        found: list[Stored] = []
        self._scan(directory, wanted, found, time.time())
        return sorted(found)

    def read(self, name: str) -> bytes:
        return b"".join(self._chunks(name))

    @contextmanager
    def fetched(self, name: str) -> Iterator[Path]:
        with self.draft() as path:
            with path.open("wb") as file, closing(self._chunks(name)) as chunks:
                for chunk in chunks:
                    file.write(chunk)
            yield path

    def put(self, name: str, data: bytes) -> None:
        """Have exactly these bytes under a name, whether or not it is there already; may be repeated."""
        if not self._write(name, data, len(data), "NONE") and self.read(name) != data:
            self._write(name, data, len(data), "OVERWRITE")

    def replace(self, name: str, draft: Path) -> None:
        digest = hashlib.sha256()
        with draft.open("rb") as file:
            while data := file.read(_CHUNK_BYTES):
                digest.update(data)
            size = file.tell()
            file.seek(0)
            self._write(name, file, size, "OVERWRITE")
        stored = hashlib.sha256()
        for chunk in self._chunks(name):  # what it was made from is deleted next: that is worth a look
            stored.update(chunk)
        if stored.digest() != digest.digest():
            raise StoreError(f"{self._url}/{name}: HDFS has stored something else")
        draft.unlink()

    def create(self, name: str, data: bytes) -> bool:
        return self._write(name, data, len(data), "NONE")

    def delete(self, names: Iterable[str]) -> None:
        for name in names:
            self._call("DELETE", name, "DELETE")

    def close(self) -> None:
        """Close the connections; the store may be used again."""
        self._manager.clear()

    # Writing

    def _write(self, name: str, body: bytes | BinaryIO, size: int, option: str) -> bool:
        """Write a file whole; False: one has the name already, and ``option`` is NONE."""
        self._prepare()
        there = f"{TMP}/{uuid.uuid4().hex}"
        renamed = False
        try:
            self._upload(there, body, size)
            renamed = self._rename(there, name, option)
        finally:
            if not renamed:
                with self._lock:
                    self._left.add(there)
                    self._ready = False
        return renamed

    def _prepare(self) -> None:
        """Have a place for drafts, without what did not get a name: ours, and what has been there for a day."""
        with self._lock:
            if self._ready:
                return
            self._call("PUT", TMP, "MKDIRS", permission=f"{DIRECTORY_MODE:o}")
            old = [each.name for each in self.files(TMP) if each.age_s > _LEFT_S]
            self.delete([*self._left, *old])
            self._left.clear()
            self._ready = True

    def _upload(self, name: str, body: bytes | BinaryIO, size: int) -> None:
        query = {"overwrite": "false", "createparent": "false", "createflag": "CREATE,SYNC_BLOCK"}
        query["permission"] = f"{FILE_MODE:o}"
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        place = self._place(self._request("PUT", self._address(name, "CREATE", query)))
        self._checked(self._request("PUT", place, body=body, headers=headers))

    def _rename(self, there: str, name: str, option: str) -> bool:
        target = {"destination": f"{self._root}/{name}", "renameoptions": option}
        try:
            try:
                self._call("PUT", there, "RENAME", **target)
            except FileNotFoundError:
                self._call("PUT", name.rpartition("/")[0], "MKDIRS", permission=f"{DIRECTORY_MODE:o}")
                self._call("PUT", there, "RENAME", **target)
        except FileExistsError:
            return False
        return True

    # Reading

    def _scan(self, directory: str, wanted: Wanted, found: list[Stored], now: float) -> None:
        try:
            entries = self._call("GET", directory, "LISTSTATUS")["FileStatuses"]["FileStatus"]
            below = [(e["pathSuffix"], e["type"], e["length"], e["modificationTime"] / 1000) for e in entries]
        except FileNotFoundError:
            return
        except (LookupError, TypeError):
            raise StoreError(f"{self._url}: the answer to LISTSTATUS is not one of HDFS") from None
        for base, kind, size, written_s in below:
            name = f"{directory}/{base}" if directory else base
            if kind == "FILE":
                found.append(Stored(name, size, now - written_s))
            elif not base.startswith(".") and wanted(name):
                self._scan(name, wanted, found, now)

    def _chunks(self, name: str) -> Generator[bytes]:
        place = self._place(self._request("GET", self._address(name, "OPEN", {})))
        reply = self._request("GET", place, preload_content=False)
        try:
            with self._limited():
                if reply.status == 200:
                    yield from reply.stream(_CHUNK_BYTES)
                else:
                    reply.read(_CHUNK_BYTES, cache_content=True)
            self._checked(reply)
        finally:
            reply.close()
            reply.release_conn()  # of one that was not read to its end: nobody else gives it back

    # Requests

    def _call(self, method: str, name: str, op: str, **query: str) -> Any:
        """What HDFS answers to a request that concerns names only."""
        reply = self._request(method, self._address(name, op, query))
        self._checked(reply)
        try:
            return json.loads(reply.data or b"null")
        except ValueError:
            raise StoreError(f"{self._url}: the answer to {op} is no JSON") from None

    def _address(self, name: str, op: str, query: dict[str, str]) -> str:
        path = f"{self._root}/{name}".rstrip("/") or "/"
        return f"{self._api}{quote(path)}?{urlencode({'op': op, **self._who, **query})}"

    def _request(self, method: str, address: str, **more: Any) -> BaseHTTPResponse:
        limit = Timeout(connect=min(self._timeout_s, _CONNECT_S), read=self._timeout_s)
        with self._limited():
            return self._manager.request(method, address, redirect=False, timeout=limit, **more)

    def _place(self, reply: BaseHTTPResponse) -> str:
        """Where the NameNode sends us."""
        place = reply.headers.get("Location", "")
        if reply.status != 307:
            self._checked(reply)
        elif _DATANODE.match(place):
            return place
        raise StoreError(f"{self._url}: expected to be sent on to a DataNode by http")

    def _checked(self, reply: BaseHTTPResponse) -> None:
        if reply.status in (200, 201):
            return
        try:
            said = json.loads(reply.data)["RemoteException"]
            kind, message = str(said["exception"]), str(said["message"]).partition("\n")[0]
        except (ValueError, LookupError, TypeError):
            kind, message = f"HTTP status {reply.status}", reply.reason or ""
        text = self._said(f"{kind}: {message[:300]}")
        if kind == "FileNotFoundException":
            raise FileNotFoundError(text)
        raise FileExistsError(text) if kind == "FileAlreadyExistsException" else StoreError(text)

    @contextmanager
    def _limited(self) -> Iterator[None]:
        try:
            with self._connections.limited(self._timeout_s):
                yield
        except NoReply as exc:
            raise StoreError(self._said(str(exc))) from None

    def _said(self, reason: str) -> str:
        """The text of an error, without the token, as it is or as it stands in an address."""
        for secret in (self._token, quote(self._token, safe=""), quote_plus(self._token)):
            reason = reason.replace(secret, "…") if secret else reason
        return f"{self._url}: {reason}"


def _credentials(path: Path | None) -> tuple[dict[str, str], str]:
    """Who we say we are, as parameters of requests; and the token in them. Errors: OSError, ValueError."""
    if path is None:
        given = {name: os.environ.get(name.upper(), "") for name in _NAMES}
    else:
        given = read_credentials(path)
        if not given.keys() <= set(_NAMES):
            raise ValueError(f"{path}: expected HADOOP_USER_NAME or HADOOP_DELEGATION_TOKEN")
    user, token = (given.get(name, "") for name in _NAMES)
    if token:  # which says who we are
        return {"delegation": token}, token
    return ({"user.name": user} if user else {}), ""
