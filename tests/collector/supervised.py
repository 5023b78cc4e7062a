"""Run a supervisor over small Python programs, in a process of its own, for test_supervisor.py.

``python supervised.py SPEC``: SPEC is JSON with "programs" (name, source, reload), "patience", "may_reload", and
the names of the programs "at_first" and "after_reload" (all of them).
Each source runs with ``say(text)``, which appends a line ``NAME text`` to the file $SAID.
"""

import json
import logging
import os
import signal
import sys

from collector.children import Patience, Program
from collector.supervisor import Supervisor

PRELUDE = """
import os, signal, sys, time
def say(text):
    with open(os.environ["SAID"], "a") as file:
        file.write(f"{NAME} {text}\\n")
def on(number, action):
    signal.signal(number, lambda *_: action())
"""


def main() -> None:
    spec = json.loads(sys.argv[1])
    logging.basicConfig(format="%(message)s %(child)s %(status)s", level=logging.ERROR)
    programs = [
        Program(
            name,
            [sys.executable, "-S", "-c", f"NAME = {name!r}{PRELUDE}{source}"]
            if source
            else [f"/no/such/program/{name}"],
            reload=signal.Signals(reload) if reload else None,
            meanings={75: "somebody else has the lock"},
        )
        for name, source, reload in spec["programs"]
    ]
    names = [each.name for each in programs]
    Supervisor(
        [each for each in programs if each.name in spec.get("at_first", names)],
        environ={name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"},
        is_ready=lambda: os.path.exists(os.environ["SAID"]),
        on_ready=lambda: print("ready", flush=True),
        reread=lambda: (
            [each for each in programs if each.name in spec.get("after_reload", names)]
            if spec.get("may_reload", True)
            else None
        ),
        patience=Patience(**{"first_s": 0.05, "last_s": 0.1, "look_s": 0.02} | spec.get("patience", {})),
    ).run()


main()
