"""``cio-batch simulate``: it serves until it is told to stop."""

import signal
import socket
import subprocess

import pytest

from cio_batch import CioBatchTracker, Settings

from .commands import COMMAND, run, surroundings
from .conftest import Service


async def test_it_serves_what_its_variables_point_to(service: Service) -> None:
    """A tracker with the printed variables reaches it."""
    tracker = CioBatchTracker(Settings.from_env(environ=service.environment))
    async with tracker:
        await tracker.enqueue("42", "viewed")

    assert tracker.stats().delivered == 1
    assert service.get("state")["operations"] == {"person.event": 1}


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_it_stops_on_a_signal(service: Service, signum: signal.Signals) -> None:
    """SIGTERM and Ctrl-C end it with success and a last line."""
    service.process.send_signal(signum)
    out, err = service.process.communicate(timeout=10)

    assert service.process.returncode == 0
    assert out.splitlines()[-1] == "stopped after 0 calls and 0 operations"
    assert err == ""


@pytest.mark.parametrize("service", [("--faults", "1", "--seed", "3")], indirect=True)
async def test_it_has_faults_where_wanted(service: Service) -> None:
    """With a fault rate of 1 no call goes well."""
    async with CioBatchTracker(Settings.from_env(environ=service.environment), drain_timeout=0.5) as tracker:
        await tracker.enqueue("42", "viewed")

    assert sum(service.get("state")["faults"].values()) > 0


def test_the_port_has_a_default() -> None:
    """Without --port it is the port of the documentation, in use or not."""
    process = subprocess.Popen(
        [*COMMAND, "simulate"], env=surroundings(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    try:
        assert "127.0.0.1:8765" in process.stdout.readline()
    finally:
        process.kill()
        process.communicate()


def test_it_prints_the_variables(service: Service) -> None:
    """What the examples' docstrings promise: all that a client of either API needs."""
    assert set(service.environment) == {
        *("CUSTOMERIO_SITE_ID", "CUSTOMERIO_TRACK_API_KEY", "CUSTOMERIO_TRACK_URL"),
        *("CUSTOMERIO_APP_API_KEY", "CUSTOMERIO_APP_URL"),
    }


def test_a_port_in_use_is_named() -> None:
    """Where it cannot listen, it says so and ends with 2."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        finished = run("simulate", "--port", str(port))

    assert finished.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}" in finished.stderr
