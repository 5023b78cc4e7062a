"""``Prefer: return=representation``: what became of each event of a request, so that a client can resend what failed.

    {"accepted": 2, "failed": 1, "results": [
        {"index": 0, "status": "accepted"},
        {"index": 1, "status": "failed", "reason": "there is no eventName"},
        {"index": 2, "status": "accepted"}]}

``index`` is the event's position in the body, from 0. An event that the operator's filters dropped is said to be
accepted, as everywhere. Of a request with more than RESULTS_MAX events only those that failed are listed, the first
RESULTS_MAX of them: whoever finds fewer in ``results`` than ``failed`` says sends smaller requests. What stands behind
the last of ``accepted + failed`` events was not read, for after a syntax error nobody knows where an event begins.

Source: RFC 7240.
"""

from collections.abc import Mapping
from typing import Any

from collector.receipt import Receipt

RESULTS_MAX = 10_000
APPLIED = ("Preference-Applied", "return=representation")


def are_wanted(environ: Mapping[str, Any]) -> bool:
    """Whether the request asks for them."""
    prefer: str = environ.get("HTTP_PREFER", "")
    if not prefer:
        return False
    preferences = (each.partition(";")[0].replace(" ", "").replace('"', "").lower() for each in prefer.split(","))
    return "return=representation" in preferences


def results(receipt: Receipt) -> dict[str, Any]:
    """The document; ``receipt.failures`` has to hold the first RESULTS_MAX of the failed events."""
    reasons = {each.at: each.reason for each in receipt.failures[:RESULTS_MAX]}
    listed = range(receipt.offered) if receipt.offered <= RESULTS_MAX else sorted(reasons)
    return {
        "accepted": receipt.taken,
        "failed": receipt.failed,
        "results": [
            {"index": index, "status": "failed", "reason": reasons[index]}
            if index in reasons
            else {"index": index, "status": "accepted"}
            for index in listed
        ],
    }
