"""``cio-batch simulate``: a local Customer.io until Ctrl-C or SIGTERM."""

from __future__ import annotations

import shlex
import sys

import attrs

from cio_batch.cli.stopping import Stop
from cio_batch.cli.weather import chance
from cio_batch.simulator import Faults, Simulator


@attrs.frozen(kw_only=True)
class Options:
    """What was asked for; the names are those of the arguments."""

    host: str
    port: int
    latency: float
    fault_rate: float
    seed: int


async def run(options: Options) -> int:
    """Serve until told to stop; return the exit code."""
    faults = Faults(chance(options.fault_rate), options.seed)
    simulator = Simulator(host=options.host, port=options.port, latency=options.latency, faults=faults)
    with Stop() as stop:
        try:
            await simulator.start()
        except (OSError, UnicodeError) as error:  # UnicodeError: a host that is no name
            reason = getattr(error, "strerror", None) or type(error).__name__
            print(
                f"cio-batch: cannot listen on {options.host}:{options.port}: {reason} (--port N takes another)",
                file=sys.stderr,
            )
            return 2
        try:
            print(f"Customer.io simulator on {simulator.url} (state: {simulator.url}/simulator/state)")
            for name, value in simulator.environment.items():
                print(f"export {name}={shlex.quote(value)}")
            print("Ctrl-C stops it.", flush=True)
            await stop.wait()
        finally:
            await simulator.stop()
    calls, operations = simulator.traffic.calls, simulator.workspace.applied.total()
    print(f"stopped after {calls:,} calls and {operations:,} operations")
    return 0
