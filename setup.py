"""What setup.cfg cannot say: which modules mypyc compiles to C when EVENT_COLLECTOR_COMPILE is 1. Else none is.

They stay Python, and do the same either way. All are what a single request passes through, or an event on its way to
InfluxDB. Not among them is what works through large bodies or batches, since compiled code lets no other thread run
before it is done, nor the spool, which would gain a fiftieth of a request.
"""

import os

from setuptools import Extension, setup

COMPILED = (
    "collector/gate.py",
    "collector/http_protocol.py",
    "collector/hub.py",
    "collector/intake.py",
    "collector/metrics.py",
    "collector/repeated_head.py",
    "collector/resources/events.py",
    "collector/resources/pixel.py",
    "collector/sender.py",
    "formats/base64num.py",
    "formats/event_names.py",
    "formats/pixel.py",
    "formats/times.py",
    "forwarders/line_plan.py",
    "forwarders/line_protocol.py",
    "forwarders/line_text.py",
)


def extensions() -> list[Extension]:
    """The compiled modules; needs mypy, a C compiler and Python's headers."""
    if os.environ.get("EVENT_COLLECTOR_COMPILE") != "1":
        return []
    from mypyc.build import mypycify

    return mypycify([*COMPILED], group_name="event_collector")


setup(ext_modules=extensions())
