"""Run in a network namespace of its own: a collector, its destination, and for a while no packet between them.

    unshare -n python -m tests.faults.dropped_packets BASE SECONDS

Prints a line of JSON with what was acknowledged, archived meanwhile, and delivered afterwards. Exit code 77: iptables
or ip will not do here.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

from tests.faults.load import Load, assert_delivered, numbers_in, quick
from tests.services.child import wait_until
from tests.services.scripted_http import Answer, Request, ScriptedHttp

CANNOT = 77


def main(base: Path, seconds: float) -> int:
    """Drop packets to the destination for so many seconds under load."""
    try:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True, capture_output=True)
        subprocess.run(["iptables", "-L"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as exc:
        print(exc, file=sys.stderr)
        return CANNOT
    delivered: set[int] = set()

    def answer(request: Request) -> Answer:
        delivered.update(numbers_in(request.lines))
        return Answer()

    server = ScriptedHttp(answer)
    port = server.url.rpartition(":")[2]
    rule = ["OUTPUT", "-p", "tcp", "-m", "multiport", "--ports", port, "-j", "DROP"]
    settings = {"url": server.url, "batch_max_age_s": 0.1, "timeout_s": 0.5}
    with quick(base, forwarders__influxdb=settings) as collector, Load(collector.port, pause_s=0.05) as load:
        load.wait_for(202, 3)
        wait_until(lambda: delivered, 20, "the way is open")
        subprocess.run(["iptables", "-I", *rule], check=True)
        load.wait_for(202, 10)
        time.sleep(seconds)
        load.end()
        assert_delivered(base, load.acknowledged)
        missing = set(load.acknowledged) - delivered
        assert missing, "packets went through"
        subprocess.run(["iptables", "-D", *rule], check=True)
        wait_until(lambda: set(load.acknowledged) <= delivered, 120, "everything is delivered")
    server.close()
    assert load.statuses.keys() == {202}
    wanted = set(load.acknowledged)
    print(json.dumps({
        "acknowledged": len(wanted), "archived_meanwhile": len(wanted), "missing_meanwhile": len(missing),
        "delivered": len(wanted & delivered),
    }))  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), float(sys.argv[2])))
