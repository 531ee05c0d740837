"""How many events per second, compared with the clients that there are?

    python benchmarks/peers.py [--only NAME,...] [--latency S,...] [--rounds N] [--json FILE] [--chart FILE]

Every peer is installed into an environment of its own (two of them share the import name ``customerio``) and run as its
documentation says, at its default settings, by a small script in ``runners/``: the same events, over loopback, to the
same sink, whose answers take 0 and 100 ms. A run counts only if the sink has counted every event. The runs take turns,
each on one core, the sink on another; what counts is the ratio of the medians. Each peer gets as many events as it
can send in a few seconds. On a busy machine the ratio of the CPU per event ("by CPU") is the steadier one.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
from harness import Workload

DATA = next(iter(Workload(1)))[2]
RUNNERS = Path(__file__).with_name("runners")
LATE = 0.1
TIMEOUT = 300


@attrs.frozen(eq=False)
class Peer:
    """A client that is measured.

    Attributes:
        name: What it is called in the table.
        package: What is to be installed for it; none for our own.
        runner: The script that sends.
        events: How many at no latency.
        late_events: How many at the latency of a service far away.
        options: What else the runner is told.
    """

    name: str
    package: str
    runner: str
    events: int
    late_events: int
    options: dict[str, Any] = attrs.field(factory=dict)


OURS = Peer("cio_batch", "", "ours.py", 500_000, 300_000)
CALLS = Peer("customerio (a call each)", "customerio", "customerio_calls.py", 3_000, 20)
ASYNC_CALLS = Peer("async-customerio (a call each)", "async-customerio", "async_customerio_calls.py", 2_000, 200)
BATCHES = Peer("async-customerio (v2, 500)", "async-customerio", "async_customerio_batches.py", 100_000, 50_000)
CDP = Peer("customerio-cdp-analytics", "customerio-cdp-analytics", "cdp_analytics.py", 40_000, 2_000)
SEGMENT = Peer("segment-analytics-python", "segment-analytics-python", "segment_analytics.py", 40_000, 2_000)
POSTHOG = Peer("posthog", "posthog", "posthog_capture.py", 20_000, 2_000)
SEED = Peer("node queue (10 at a time)", "customerio-node", "seed_queue.cjs", 20_000, 200)
SEED_OVERLAPPING = Peer(
    "node queue (overlapping)", "customerio-node", "seed_queue.cjs", 4_000, 4_000, {"overlapping": True}
)
PEERS = [OURS, CALLS, ASYNC_CALLS, BATCHES, CDP, SEGMENT, POSTHOG, SEED, SEED_OVERLAPPING]

REQUIRED: list[tuple[str, list[Peer], float, float]] = [
    ("best batching peer", [CDP, SEGMENT, POSTHOG], 0.0, 22),
    ("raw v2 batches", [BATCHES], 0.0, 6),
    ("the node queue", [SEED], 0.0, 15),
    ("the node queue", [SEED], LATE, 1_000),
]
"""Which peers, at which latency, and how many times faster ours has to be."""


class SkipError(Exception):
    """A peer cannot be measured here; the text says why."""


def install(peer: Peer, cache: Path) -> tuple[list[str], dict[str, str]]:
    """Make a peer's environment unless it is there.

    Returns:
        The command that its runner is an argument of, and the environment variables for it.
    """
    if not peer.package:
        return [sys.executable], {}
    folder = cache / peer.package
    if peer.runner.endswith(".py"):
        python = folder / "bin" / "python"
        _once(folder, lambda: venv.create(folder, with_pip=True), [str(python), "-m", "pip", "install", peer.package])
        return [str(python)], {}
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        msg = "it needs node and npm: install both, for example as your system's packages nodejs and npm"
        raise SkipError(msg)
    _once(folder, folder.mkdir, [npm, "install", "--prefix", str(folder), peer.package])
    return [node], {"NODE_PATH": str(folder / "node_modules")}


def _once(folder: Path, make: Callable[[], object], command: list[str]) -> None:
    done = folder / "installed"
    if done.exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    make()
    finished = subprocess.run(command, check=False, capture_output=True, text=True)
    if finished.returncode:
        msg = f"its installation failed: {_last_line(finished.stderr)}"
        raise SkipError(msg)
    done.touch()


def run(peer: Peer, command: list[str], env: dict[str, str], latency: float, people: int) -> dict[str, Any]:
    """Measure a peer once."""
    cores = _cores()
    events = peer.late_events if latency else peer.events
    warm_up = 0 if latency else events // 20
    sink = subprocess.Popen(
        [sys.executable, "-m", "cio_batch.cli._sink", "--latency", str(latency), "--count", "page_viewed"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=_pin(cores[-1:]),
    )
    try:
        assert sink.stdout is not None
        url = f"http://127.0.0.1:{sink.stdout.readline().strip()}"
        job = {"url": url, "events": events, "warm_up": warm_up, "people": people, "data": DATA, **peer.options}
        finished = subprocess.run(
            [*command, str(RUNNERS / peer.runner)],
            check=False,
            capture_output=True,
            env={**os.environ, **env},
            input=json.dumps(job),
            preexec_fn=_pin(cores[:1]),
            text=True,
            timeout=TIMEOUT,
        )
        counts = json.loads(sink.communicate("")[0])
    except subprocess.TimeoutExpired as error:
        msg = f"it took more than {TIMEOUT} s"
        raise SkipError(msg) from error
    finally:
        sink.kill()
        sink.wait()
    if finished.returncode:
        msg = f"its runner failed: {_last_line(finished.stderr)}"
        raise SkipError(msg)
    if counts["found"] != warm_up + events:
        msg = f"{counts['found']:,} of {warm_up + events:,} events arrived"
        raise SkipError(msg)
    result = json.loads(finished.stdout)
    return {
        "version": result["version"],
        "events_per_second": events / result["seconds"],
        "cpu_us_per_event": result["cpu_seconds"] / events * 1e6,
        "events_per_call": counts["found"] / counts["calls"],
        "sink_share": counts["cpu_seconds"] / result["seconds"] * events / (warm_up + events),
    }


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no output"])[-1]


def _cores() -> Sequence[int]:
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def _pin(cores: Sequence[int]) -> Callable[[], None] | None:
    return (lambda: os.sched_setaffinity(0, cores)) if cores else None


def measure(peers: Sequence[Peer], options: argparse.Namespace) -> dict[str, Any]:
    """Measure all peers in turn; return the medians by latency and name, and who was left out and why."""
    commands: dict[Peer, tuple[list[str], dict[str, str]]] = {}
    skipped: dict[str, str] = {}
    for peer in peers:
        _say(f"preparing {peer.name}")
        try:
            commands[peer] = install(peer, options.cache)
        except SkipError as error:
            skipped[peer.name] = str(error)
    medians: dict[str, dict[str, dict[str, Any]]] = {}
    for latency in options.latency:
        runs: dict[str, list[dict[str, Any]]] = {}
        for number in range(options.rounds):
            for peer, (command, env) in commands.items():
                _say(f"{latency:g} s, round {number + 1} of {options.rounds}: {peer.name}")
                try:
                    runs.setdefault(peer.name, []).append(run(peer, command, env, latency, options.people))
                except SkipError as error:
                    skipped[f"{peer.name}, {latency:g} s"] = str(error)
        medians[f"{latency:g}"] = {
            name: {
                key: results[0][key] if key == "version" else statistics.median(each[key] for each in results)
                for key in results[0]
            }
            for name, results in runs.items()
            if results
        }
    return {"medians": medians, "skipped": skipped}


def judge(medians: dict[str, dict[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Compare with what is required; leave out what was not measured."""
    findings: list[dict[str, Any]] = []
    for what, peers, latency, wanted in REQUIRED:
        rows = medians.get(f"{latency:g}", {})
        speeds = [rows[peer.name]["events_per_second"] for peer in peers if peer.name in rows]
        if not speeds or OURS.name not in rows:
            continue
        ratio = rows[OURS.name]["events_per_second"] / max(speeds)
        findings.append({"what": what, "latency": latency, "wanted": wanted, "ratio": ratio, "holds": ratio >= wanted})
    return findings


def show(result: dict[str, Any]) -> None:
    """Print the tables."""
    print(f"{result['machine']}; {result['people']:,} people; medians of {result['rounds']} rounds")
    for latency, rows in result["medians"].items():
        heads = (
            f"{'version':>10}{'events/s':>12}{'us/event':>10}{'per call':>10}{'sink':>7}{'ours/peer':>11}{'by CPU':>8}"
        )
        print(f"\n{f'{latency} s of latency':32}{heads}")
        ours = rows.get(OURS.name, {"events_per_second": 0.0, "cpu_us_per_event": math.inf})
        for name, row in sorted(rows.items(), key=lambda each: -each[1]["events_per_second"]):
            speed = row["events_per_second"]
            print(
                f"{name:32}{row['version']:>10}{speed:12,.0f}{row['cpu_us_per_event']:10,.1f}"
                f"{row['events_per_call']:10,.0f}{row['sink_share']:7.0%}{ours['events_per_second'] / speed:11,.1f}"
                f"{row['cpu_us_per_event'] / ours['cpu_us_per_event']:8,.1f}"
            )
    print()
    for each in result["required"]:
        word = "holds" if each["holds"] else "DOES NOT HOLD"
        print(f"{each['ratio']:8,.1f} x {each['what']} at {each['latency']:g} s: >= {each['wanted']:,g} {word}")
    for name, reason in result["skipped"].items():
        print(f"not measured: {name}: {reason}")


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw events per second of each client at both latencies, on a logarithmic axis, as SVG or PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "cio_batch"  # the same result gives the same file
    from matplotlib import pyplot as plt

    latencies = list(result["medians"])
    first = result["medians"][latencies[0]]
    names = sorted(first, key=lambda name: first[name]["events_per_second"])
    figure, axes = plt.subplots(figsize=(8, 0.5 + 0.5 * len(names)), layout="constrained")
    height = 0.8 / len(latencies)
    for place, latency in enumerate(latencies):
        rows = result["medians"][latency]
        known = [(y, rows[name]["events_per_second"]) for y, name in enumerate(names) if name in rows]
        label = (
            f"a service that answers after {1_000 * float(latency):g} ms"
            if float(latency)
            else "a service that answers at once"
        )
        bars = axes.barh(
            [y + 0.4 - height * (place + 0.5) for y, _ in known],
            [rate for _, rate in known],
            height,
            label=label,
            color=("#2b6cb0", "#a0c4e8", "#d0d0d0")[place % 3],
        )
        axes.bar_label(bars, [f"{rate:,.0f}" for _, rate in known], padding=3, fontsize=8)
    axes.set_xscale("log")
    axes.set_xlim(right=axes.get_xlim()[1] * 3)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("events per second, one core")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _names(text: str) -> list[Peer]:
    wanted = text.split(",")
    known = {peer.package: peer for peer in PEERS if peer is not OURS}
    unknown = [name for name in wanted if name not in known]
    if unknown:
        msg = f"there is no {', '.join(unknown)}; there are {', '.join(known)}"
        raise argparse.ArgumentTypeError(msg)
    return [peer for peer in PEERS if peer is OURS or peer.package in wanted]


def main() -> int:
    """Measure and print; the exit code is 1 if something that is required does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=_names, default=PEERS, metavar="NAME,…", help="packages; ours is always in")
    parser.add_argument(
        "--latency", type=lambda text: [float(part) for part in text.split(",")], default=[0.0, LATE], metavar="S,…"
    )
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--people", type=int, default=100_000, metavar="N", help="whose events they are (%(default)s)")
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path(tempfile.gettempdir()) / "cio-batch-peers",
        metavar="DIR",
        help="where the environments are kept (%(default)s)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the results")
    parser.add_argument("--chart", type=Path, metavar="FILE", help="where to draw them (.svg or .png; matplotlib)")
    options = parser.parse_args()
    measured = measure(options.only, options)
    result = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "people": options.people,
        "rounds": options.rounds,
        **measured,
        "required": judge(measured["medians"]),
    }
    show(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2))
    if options.chart:
        draw(result, options.chart)
    ours_ran = all(OURS.name in rows for rows in result["medians"].values())
    return 0 if ours_ran and all(each["holds"] for each in result["required"]) else 1


if __name__ == "__main__":
    sys.exit(main())
