"""``GET /collector.js``, the snippet that pages embed, and ``GET /demo``, a page that shows how."""

import gzip
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files

import falcon

CACHED = "public, max-age=86400"
_STATIC = files("collector") / "static"
_LAYOUT = re.compile(rb"^ *(?:// .*)?| +// .*", re.MULTILINE)  # indentation and comments, which browsers do not need


def script(fields: Mapping[str, Sequence[str]]) -> bytes:
    """The snippet; ``fields`` are the names of the numbered fields of each event, which it puts into that order."""
    names = json.dumps({name: list(each) for name, each in fields.items()}, separators=(",", ":"))
    code = _LAYOUT.sub(b"", (_STATIC / "collector.js").read_bytes())
    return code.replace(b"__FIELDS__", names.encode("ascii"))


class ScriptResource:
    """``GET /collector.js``: made once, at start; a browser keeps it for a day and then asks whether it has changed."""

    def __init__(self, fields: Mapping[str, Sequence[str]]) -> None:
        self._plain = script(fields)
        self._gzipped = gzip.compress(self._plain, 9, mtime=0)
        self._etag = hashlib.sha256(self._plain).hexdigest()[:16]

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer the snippet, or 304 when the browser has it."""
        resp.set_header("Cache-Control", CACHED)
        resp.append_header("Vary", "Accept-Encoding")
        resp.set_header("ETag", f'W/"{self._etag}"')  # weak: the same script, in either encoding
        if any(each == "*" or each == self._etag for each in req.if_none_match or ()):
            resp.status = falcon.HTTP_304
            return
        resp.content_type = "text/javascript; charset=utf-8"
        if "gzip" in req.get_header("Accept-Encoding", default=""):
            resp.set_header("Content-Encoding", "gzip")
            resp.data = self._gzipped
        else:
            resp.data = self._plain

    on_head = on_get


class DemoResource:
    """``GET /demo``: a page with the snippet and the plain picture on it."""

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer the page."""
        resp.content_type = "text/html; charset=utf-8"
        resp.set_header("Cache-Control", "no-store")
        resp.data = (_STATIC / "demo.html").read_bytes()
