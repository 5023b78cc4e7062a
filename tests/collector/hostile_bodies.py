"""The hostile bodies of tests/vectors/corpus, sent to a running collector."""

import json
from pathlib import Path
from typing import Any

from tests.services.collector import RunningCollector

_CORPUS = Path(__file__).parents[1] / "vectors" / "corpus"
HOSTILE: list[dict[str, Any]] = json.loads((_CORPUS / "index.json").read_text())


def send_hostile(collector: RunningCollector, case: dict[str, Any]) -> int:
    """Send one as its case says; the status of the answer."""
    content = (_CORPUS / case["file"]).read_bytes()
    headers = {"Content-Type": case["content_type"]} if case["content_type"] else {}
    if "content_encoding" in case:
        headers["Content-Encoding"] = case["content_encoding"]
    if case.get("body_is_query"):
        return collector.request(case["method"], f"{case['path']}?{content.decode('latin-1')}", None, headers)[0]
    return collector.request(case["method"], case["path"], content, headers)[0]
