"""Does a kill at any moment cost an acknowledged event?

    python benchmarks/soak.py [--kills N] [--seed N] [--json FILE] [--directory DIR]

A producer process with a ``SqliteSpool`` writes down each event once ``enqueue`` has returned. It is killed by SIGKILL,
most times at a random moment, and restarted, again and again, while the service fails at random in every way that the
simulator knows. In the quiet end everything must have arrived: unchanged, in order per person, repeats ignored by id.
The kills are counted by the stage in which they caught an operation. The exit code is 1 if a promise was broken.

This is the test of tests/test_oracle.py, for longer. 1,000 kills take about five minutes and 300 MB of disk.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.oracle.harness import Result, run


def show_progress(result: Result) -> None:
    """Say now and then how far it is."""
    if sys.stderr.isatty() or result.kills % 100 == 0:
        print(f"\r{result.kills:,} kills", end="", file=sys.stderr, flush=True)


def main() -> int:
    """Kill, judge and print the table; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--directory", type=Path, help="an empty one for the spool and the traces, which are kept")
    options = parser.parse_args()
    if options.kills < 1:
        parser.error("--kills must be at least 1")
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    with tempfile.TemporaryDirectory(prefix="cio-batch-") as temporary:
        directory = options.directory or Path(temporary)
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            parser.error("--directory must be empty")
        result = asyncio.run(run(options.kills, options.seed, directory, progress=show_progress))
    print(file=sys.stderr)
    print(f"{machine}; seed {options.seed}")
    for name, figure in result.rows():
        print(f"{name:40}{figure:>12}")
    for promise in result.broken:
        print(f"BROKEN: {promise}")
    if options.json:
        content = {"machine": machine, "seed": options.seed, **result.content()}
        options.json.write_text(json.dumps(content, indent=2))
    return 1 if result.broken else 0


if __name__ == "__main__":
    sys.exit(main())
