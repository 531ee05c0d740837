"""What the benchmarks share: the sink, the events, processes of their own, and results as a table and as JSON.

A measurement runs in a process of its own on the first core; the sink runs on the last one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import attrs

from cio_batch import CioBatchTracker, Settings, speedups

_HERE = Path(__file__).parent


class Sink:
    """The endpoint that swallows events: the C program where there is a compiler, else the one in Python.

    Args:
        latency: Milliseconds until it answers.
    """

    def __init__(self, latency: float = 0.0) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._latency = latency

    def __enter__(self) -> Sink:
        compiler = shutil.which("cc")
        program = Path(self._folder.name) / "sink"
        if compiler is not None:
            subprocess.run([compiler, "-O2", "-o", str(program), str(_HERE / "sink.c")], check=True)
            command = [str(program)]
        else:
            command = [sys.executable, str(_HERE / "sink.py")]
        command += ["--cpu", str((os.cpu_count() or 1) - 1), "--latency", str(self._latency)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.url = f"http://127.0.0.1:{self._process.stdout.readline().strip()}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end()
        self._folder.cleanup()

    def counts(self) -> dict[str, float]:
        """What it took so far: events, calls, bytes, cpu_seconds."""
        with urllib.request.urlopen(self.url) as answer:
            counts: dict[str, float] = json.load(answer)
        return counts

    def end(self) -> None:
        """End it."""
        if self._process.poll() is None:
            self._process.communicate()


def tracker(url: str, **arguments: Any) -> CioBatchTracker:
    """A tracker at its default settings, but for what is given."""
    return CioBatchTracker(Settings(site_id="site", track_api_key="key", track_url=url), **arguments)


@attrs.frozen
class Workload:
    """Events as a program makes them: each with data of its own, 218 bytes of JSON on average.

    Attributes:
        events: How many.
        names: Different names.
        people: Different persons, one after the other.
        escapes: Whether the strings hold quotes, line breaks and letters that are not ASCII.
        ready: Whether the data is one ready dict, so that only the library is at work.
        hot: Whether every other event is of one and the same person.
    """

    events: int
    names: int = 1
    people: int = 5_000
    escapes: bool = False
    ready: bool = False
    hot: bool = False

    def __iter__(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        people = [f"user-{n}" for n in range(self.people)]
        names = [f"page_viewed_{n}" for n in range(self.names)]
        title = 'Pricing "pro"\n\\ \u2013 \u00fcn\u00ef' if self.escapes else "Pricing \u2013 choose a plan"
        variant = 'headline\t"b"' if self.escapes else "pricing-headline-b"
        ready = None
        for n in range(self.events):
            if ready is None:
                data = {
                    "url": "https://example.com/pricing?plan=pro&period=yearly",
                    "referrer": "https://example.com/blog/2024/launch",
                    "title": title,
                    "experiment": variant,
                    "scroll": 0.75,
                    "logged_in": True,
                    "seats": n,
                }
                if self.ready:
                    ready = data
            else:
                data = ready
            person = people[0] if self.hot and n & 1 else people[n % self.people]
            yield person, names[n % self.names], data


def add_workload_options(parser: argparse.ArgumentParser, events: int) -> None:
    """Options by which the events are chosen."""
    parser.add_argument("--events", type=int, default=events)
    parser.add_argument("--names", type=int, default=1, help="different names of events")
    parser.add_argument("--people", type=int, default=5_000, help="different persons")
    parser.add_argument("--escapes", action="store_true", help="strings that must be escaped")
    parser.add_argument("--ready", action="store_true", help="one ready dict instead of data made for each event")


def workload_of(options: argparse.Namespace, events: int | None = None) -> Workload:
    """The workload that was asked for."""
    return Workload(
        options.events if events is None else events, options.names, options.people, options.escapes, options.ready
    )


def pin() -> None:
    """Stay on the first core."""
    if len(os.sched_getaffinity(0)) > 1:
        os.sched_setaffinity(0, {0})


def cpu_seconds() -> float:
    """What this process used so far, user and system."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def rss() -> int:
    """Resident bytes at this moment."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_rss() -> int:
    """Resident bytes at the highest point."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def in_child(script: str, *arguments: object, **environment: str) -> Any:
    """Run a script in a process of its own and return what it printed last, parsed."""
    command = [sys.executable, script, *map(str, arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment})
    return json.loads(done.stdout.splitlines()[-1])


def machine() -> str:
    """Where this was measured."""
    half = "without" if speedups.compiled is None else "with"
    python = f"Python {platform.python_version()}, {half} the extension"
    return f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}, {python}"


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which that share of them is."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def show(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table."""
    table = [
        list(columns),
        *[[f"{cell:,.2f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows],
    ]
    widths = [max(len(row[column]) for row in table) for column in range(len(columns))]
    for row in table:
        first, *others = (
            cell.ljust(width) if n == 0 else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join([first, *others]))


def write(path: Path | None, result: dict[str, Any]) -> None:
    """Write the result as JSON, if asked for."""
    if path is not None:
        path.write_text(json.dumps({"machine": machine(), "command": " ".join(sys.argv), **result}, indent=2) + "\n")
