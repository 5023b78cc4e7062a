"""``scripts/fuzz``: feed a decoder with bytes that are nearly right, in a process of its own that may take little.

A finding is an exception (MemoryError too: the process may take MEMORY_MAX_BYTES more than it has at the start) or a
call that took more CPU than TIME_BASE_S and TIME_PER_BYTE_S allow. It is written to a file and said; then it goes on.

Exit code: 0 nothing was found; 1 something was; 2 there is no such decoder.
"""

import argparse
import gc
import hashlib
import importlib.util
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from tests.fuzz.mutation import BYTES_MAX, mutated
from tests.fuzz.targets import Target, targets

MEMORY_MAX_BYTES = 64 * 1024 * 1024
TIME_BASE_S = 0.1  # a full garbage collection is in it, and a first use
TIME_PER_BYTE_S = 20e-6
FINDINGS_MAX = 20
REPOSITORY = Path(__file__).parents[2]


@dataclass
class Outcome:
    """What a run has seen."""

    executions: int = 0
    slowest_s: float = 0.0
    findings: list[tuple[bytes, str]] = field(default_factory=list)


def fuzz(target: Target, *, executions: int, seconds: float, seed: int) -> Outcome:
    """Run the seeds, then mutations of them, until one of the two is used up; equal seeds make equal mutations."""
    random = Random(seed)
    outcome = Outcome()
    deadline = time.monotonic() + seconds
    for data in target.seeds:
        _execute(target, data, outcome)
    while outcome.executions < executions and len(outcome.findings) < FINDINGS_MAX:
        if outcome.executions % 256 == 0 and time.monotonic() > deadline:
            break
        _execute(target, mutated(random, target.seeds), outcome)
    return outcome


def _execute(target: Target, data: bytes, outcome: Outcome) -> None:
    began = time.thread_time()
    try:
        target.run(data)
    except Exception:
        outcome.findings.append((data, traceback.format_exc()))
    took_s = time.thread_time() - began
    outcome.executions += 1
    outcome.slowest_s = max(outcome.slowest_s, took_s)
    limit_s = TIME_BASE_S + TIME_PER_BYTE_S * len(data)
    if took_s > limit_s:
        outcome.findings.append((data, f"took {took_s:.3f} s for {len(data)} bytes; {limit_s:.3f} s are allowed"))


def limit_memory() -> None:
    """Let this process take no more than MEMORY_MAX_BYTES beyond what it has now."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY_MAX_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def run_guided(name: str, executions: int, seconds: float, seed: int, folder: Path) -> None:
    """Let libFuzzer choose the bytes by what they reach; it ends the process."""
    import atheris

    with atheris.instrument_imports(include=["formats"]):
        for module in [each for each in sys.modules if each.startswith(("formats", "tests.fuzz.targets"))]:
            del sys.modules[module]
        from tests.fuzz.targets import targets as instrumented
    target = instrumented()[name]
    corpus = folder / "corpus"
    corpus.mkdir()
    for data in target.seeds:
        (corpus / hashlib.sha256(data).hexdigest()).write_bytes(data)

    def one(data: bytes) -> None:
        outcome = Outcome()
        _execute(target, data, outcome)
        if outcome.findings:
            report(name, outcome.findings, folder.parent)
            raise RuntimeError(outcome.findings[0][1])

    options = [f"-runs={executions}", f"-max_total_time={int(seconds)}", f"-seed={seed}", f"-max_len={BYTES_MAX}"]
    options += ["-rss_limit_mb=1024", "-print_final_stats=1", "-verbosity=0", f"-artifact_prefix={folder}/"]
    atheris.Setup([name, *options, str(corpus)], one)
    limit_memory()
    atheris.Fuzz()


def report(name: str, findings: Sequence[tuple[bytes, str]], folder: Path) -> None:
    """Write findings to files, and say where they are."""
    for data, text in findings:
        path = folder / f"{name}-{hashlib.sha256(data).hexdigest()[:12]}"
        path.write_bytes(data)
        print(f"{name}: FOUND {path}\n{text}", flush=True)


def run_one(name: str, executions: int, seconds: float, seed: int, folder: Path) -> int:
    """Mutations in this process."""
    target = targets()[name]
    for data in target.seeds:
        target.run(data)  # what is made at the first use is not what a body costs
    began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    limit_memory()
    started = time.monotonic()
    outcome = fuzz(target, executions=executions, seconds=seconds, seed=seed)
    report(name, outcome.findings, folder)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - began) // 1024
    print(
        f"{name}: {outcome.executions:,} executions in {time.monotonic() - started:.0f} s, seed {seed}, slowest "
        f"{outcome.slowest_s * 1000:.1f} ms CPU, {grown} MB more, {len(outcome.findings)} findings",
        flush=True,
    )
    return 1 if outcome.findings else 0


def main() -> int:
    """Parse the command line; each decoder gets a process of its own, one after the other."""
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description=__doc__)
    names = list(targets())
    parser.add_argument("names", nargs="*", metavar="DECODER", help=f"which: {', '.join(names)} (default: all)")
    parser.add_argument("--executions", type=int, default=100_000, help="of each decoder (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=3600, help="at most, for each (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="equal seeds make equal mutations (default: %(default)s)")
    parser.add_argument("--guided", action="store_true", help="by coverage, with atheris (pip install atheris)")
    parser.add_argument("--findings", type=Path, help="folder for what is found (default: a new one)")
    parser.add_argument("--in-process", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(names):
        parser.error(f"no decoder {', '.join(sorted(unknown))}")
    if arguments.guided and importlib.util.find_spec("atheris") is None:
        parser.error("atheris is not installed")
    folder = arguments.findings or Path(tempfile.mkdtemp(prefix="fuzz-"))
    folder.mkdir(parents=True, exist_ok=True)
    limits = arguments.executions, arguments.seconds, arguments.seed
    if arguments.in_process:
        (name,) = arguments.names
        if arguments.guided:
            run_guided(name, *limits, Path(tempfile.mkdtemp(prefix=f"{name}-", dir=folder)))
        return run_one(name, *limits, folder)
    options = [f"--executions={limits[0]}", f"--seconds={limits[1]}", f"--seed={limits[2]}", f"--findings={folder}"]
    options += ["--in-process", *(["--guided"] if arguments.guided else [])]
    codes = [
        subprocess.run([sys.executable, "-m", "tests.fuzz.run", name, *options], cwd=REPOSITORY, check=False).returncode
        for name in arguments.names or names
    ]
    return 1 if any(codes) else 0


if __name__ == "__main__":
    raise SystemExit(main())
