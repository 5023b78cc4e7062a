#!/usr/bin/env -S sh -c '"${0%/*}/environment" && exec "${0%/*}/../.venv/bin/python" "$0" "$@"'
"""Send sample events to a running collector through every HTTP door, and say what it answers.

    scripts/send_samples.py [--url http://127.0.0.1:8080] [--count 10]

Exit code 1 when an answer was not 202.
"""

import argparse
import http.client
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import msgpack

from formats.pixel_query import encode_pixel

PAGES = ("/", "/shop?category=tea, green", "/cart", "/50 % off")
Request = tuple[str, str, str | None, bytes | None]


def requests() -> Iterator[Request]:
    """One request for each door: method, path, content type, body."""
    page, spent_ms = random.choice(PAGES), random.randrange(1, 5_000_000)
    fields = [("string", page), ("i64", spent_ms), ("double", spent_ms / 1000), ("bool", spent_ms % 2 == 0)]
    event = {"eventName": "SampleView", "payload": {"page": page, "ms": spent_ms}}
    yield "GET", "/1?" + encode_pixel("SamplePixel", fields), None, None
    yield "GET", "/2?" + encode_pixel("SamplePixel", fields, base64=True), None, None
    yield "POST", "/rest/1.0/event", "application/json", json.dumps([event, event]).encode()
    yield "POST", "/rest/1.0/event", "application/msgpack", msgpack.packb(event)
    yield "POST", "/rest/1.0/beacon", "text/plain", json.dumps(event).encode()


def main() -> int:
    """Send them; the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--count", type=int, default=1, help="requests a door")
    arguments = parser.parse_args()
    connection = http.client.HTTPConnection(urlsplit(arguments.url).netloc, timeout=15)
    bad = 0
    for _ in range(arguments.count):
        for method, path, content_type, body in requests():
            connection.request(method, path, body, {"Content-Type": content_type} if content_type else {})
            answer = connection.getresponse()
            answer.read()
            print(answer.status, method, path, content_type or "")
            bad += answer.status != 202
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
