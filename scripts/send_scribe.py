#!/usr/bin/env -S sh -c '"${0%/*}/environment" && exec "${0%/*}/../.venv/bin/python" "$0" "$@"'
"""Send messages to a Scribe listener and print what it answers.

    scripts/send_scribe.py                                20 calls, each of one message "hello", "<now>:world"
    scripts/send_scribe.py -n 1000 --batch 100 --category PageView --message '{"page": "/", "n": %d}'

A %d in the message is the message's number. The answers are counted; exit 1 when messages were not taken. What a
listener answers with TRY_LATER is not stored: --tries sends it again.
"""

import argparse
import collections
import sys
import time
from pathlib import Path

import thriftpy2
from thriftpy2.protocol.binary import TBinaryProtocolFactory
from thriftpy2.rpc import make_client
from thriftpy2.thrift import TApplicationException
from thriftpy2.transport import TTransportException
from thriftpy2.transport.framed import TFramedTransportFactory

IDL = Path(__file__).resolve().parents[1] / "etc/thrift/scribe.thrift"
CODES = {0: "OK", 1: "TRY_LATER"}


def main() -> int:
    """Parse the command line, send, say what came back."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=7911)
    parser.add_argument("--category", default="hello", help="the events' name  [hello]")
    parser.add_argument("--message", default="world", help="%%d is the message's number  [world]")
    parser.add_argument("--no-time", action="store_true", help="send the message alone, without milliseconds before it")
    parser.add_argument("-n", "--number", type=int, default=20, help="messages  [20]")
    parser.add_argument("--batch", type=int, default=1, help="messages of one call  [1]")
    parser.add_argument("--tries", type=int, default=1, help="send a call again after TRY_LATER, a second apart  [1]")
    parser.add_argument("--strict", action="store_true", help="strict headers; the original's script sends none")
    parser.add_argument("--status", action="store_true", help="also ask for the listener's name, state and counters")
    options = parser.parse_args()
    try:
        return send(options)
    except TApplicationException as exc:
        print(f"refused: {exc.message}", file=sys.stderr)
    except (TTransportException, OSError) as exc:
        print(f"{options.host}:{options.port}: {exc}", file=sys.stderr)
    return 1


def send(options: argparse.Namespace) -> int:
    """Send as told; returns the exit code."""
    scribe = thriftpy2.load(str(IDL), module_name="scribe_thrift")
    client = make_client(
        scribe.scribe,
        options.host,
        options.port,
        proto_factory=TBinaryProtocolFactory(strict_read=False, strict_write=options.strict),
        trans_factory=TFramedTransportFactory(),
        timeout=30_000,
    )
    answers: collections.Counter[str] = collections.Counter()
    failed = 0
    for first in range(0, options.number, options.batch):
        numbers = range(first, min(first + options.batch, options.number))
        entries = [scribe.LogEntry(category=options.category, message=text(options, number)) for number in numbers]
        for attempt in range(options.tries):
            if attempt:
                time.sleep(1)
            answer = CODES.get(code := client.Log(entries), str(code))
            answers[answer] += 1
            if answer == "OK":
                break
        else:
            failed += 1
            print(f"messages {numbers[0]} to {numbers[-1]}: {answer}", file=sys.stderr)
    print(", ".join(f"{answer}: {count}" for answer, count in sorted(answers.items())) or "nothing sent")
    if options.status:
        print(f"{client.getName()} {client.getVersion()}, state {client.getStatus()}: {client.getStatusDetails()}")
        print(f"since {client.aliveSince()}: {client.getCounters()}")
    client.close()
    return 1 if failed else 0


def text(options: argparse.Namespace, number: int) -> str:
    """The message with this number."""
    message = str(options.message).replace("%d", str(number))
    return message if options.no_time else f"{time.time_ns() // 1_000_000}:{message}"


if __name__ == "__main__":
    sys.exit(main())
