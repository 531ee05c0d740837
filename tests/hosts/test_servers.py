"""SIGTERM under the servers: uvicorn, gunicorn with the uvicorn worker, hypercorn, aiohttp.

Every event whose request was answered with 200 arrives exactly once, in the order of its person, and the server ends
with the exit code that it has without the tracker.
"""

from __future__ import annotations

import os
import signal
from typing import Final

import attrs
import pytest

from cio_batch.simulator import Simulator

from ..conftest import until
from .harness import Acknowledgements, Host, events_in, numbers_of, open_stream


@attrs.frozen
class Server:
    """How a server is started, and its own exit code for SIGTERM."""

    arguments: tuple[str, ...]
    code: int


UVICORN: Final = Server(("-m", "uvicorn", "--port", "0", "--loop", "asyncio", "asgi:app"), -15)
_QUIET: Final = ("--no-control-socket", "--graceful-timeout", "8")
SERVERS: Final = {
    # uvicorn's serve() puts the default action back after its shutdown and raises the signal again.
    "uvicorn": UVICORN,
    "uvicorn on uvloop": Server(("-m", "uvicorn", "--port", "0", "--loop", "uvloop", "asgi:app"), -15),
    # uvicorn's supervisor passes the signal to its workers and returns.
    "uvicorn with workers": Server(("-m", "uvicorn", "--port", "0", "--workers", "2", "asgi:app"), 0),
    # gunicorn's arbiter passes the signal to its workers and then leaves by sys.exit(0).
    "gunicorn": Server(
        ("-m", "gunicorn", "-k", "uvicorn_worker.UvicornWorker", "-w", "2", "-b", "127.0.0.1:0", *_QUIET, "asgi:app"), 0
    ),
    # hypercorn's parent sets an event that its worker polls, and returns 0; the worker never sees the signal.
    "hypercorn": Server(("-m", "hypercorn", "-b", "127.0.0.1:0", "asgi:app"), 0),
    # aiohttp's run_app turns the signal into GracefulExit, which it catches.
    "aiohttp": Server(("aiohttp_app.py",), 0),
}

servers = pytest.mark.parametrize("server", SERVERS.values(), ids=SERVERS)


@servers
async def test_the_code_of_a_server_without_tracker(sim: Simulator, server: Server) -> None:
    """What the others are compared with: SIGTERM to the same application without a tracker."""
    async with Host(sim, *server.arguments, BARE="1") as host:
        told = Acknowledgements()
        async with told.collecting(await host.url()):
            await until(lambda: len(told) > 10)
        host.terminate()
        assert await host.exit_code() == server.code


@servers
async def test_an_idle_server_ends_as_it_does_without_the_tracker(sim: Simulator, server: Server) -> None:
    """Events that wait for their interval are delivered when SIGTERM comes to a server without open requests."""
    async with Host(sim, *server.arguments) as host:
        told = Acknowledgements()
        async with told.collecting(await host.url()):
            await until(lambda: len(told) > 10)
        assert sim.traffic.calls == 0
        host.terminate()
        assert await host.exit_code() == server.code
    told.assert_arrived(sim)


@servers
async def test_a_busy_server_loses_nothing_that_it_acknowledged(sim: Simulator, server: Server) -> None:
    """Clients keep calling during SIGTERM, Customer.io is slow and fails once."""
    sim.latency = 0.5
    sim.faults.order("server_error")
    async with Host(sim, *server.arguments) as host:
        told = Acknowledgements()
        async with told.collecting(await host.url()):
            await until(lambda: len(told) > 50)
            host.terminate()
            assert await host.exit_code() == server.code
    told.assert_arrived(sim)
    assert sim.traffic.person_overlaps == 0


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_an_open_stream_does_not_hold_the_drain_back(sim: Simulator, loop: str) -> None:
    """Uvicorn waits for open answers before lifespan shutdown begins; the drain begins at the signal.

    What a request emits after the signal is accepted, and sent without lingering.
    """
    async with Host(sim, *SERVERS["uvicorn" if loop == "asyncio" else "uvicorn on uvloop"].arguments) as host:
        url = await host.url()
        async with open_stream(url) as stream:
            told = Acknowledgements()
            async with told.collecting(url):
                await until(lambda: len(told) > 10)
            assert sim.traffic.calls == 0
            host.terminate()
            await until(lambda: events_in(sim) > len(told))
            told.assert_arrived(sim)
            assert numbers_of(sim, "streamer") == [0]
            assert host.is_running

            await host.tell("one more")
            await until(lambda: numbers_of(sim, "streamer") == [0, 1])
            assert await stream.readline() == b"more\n"
            assert host.is_running

            await host.tell("end")
            assert await stream.read() == b"end\n"
        assert await host.exit_code() == UVICORN.code
    assert numbers_of(sim, "streamer") == [0, 1, 2]


async def test_a_second_signal_changes_nothing(sim: Simulator) -> None:
    """An orchestrator that repeats itself does not cut the drain short."""
    sim.latency = 0.5
    async with Host(sim, *UVICORN.arguments) as host:
        told = Acknowledgements()
        async with told.collecting(await host.url()):
            await until(lambda: len(told) > 10)
        host.terminate()
        await until(lambda: sim.traffic.calls == 1)
        host.terminate()
        assert await host.exit_code() == UVICORN.code
    told.assert_arrived(sim)


async def test_a_gunicorn_worker_alone_is_replaced_and_loses_nothing(sim: Simulator) -> None:
    """SIGTERM to one worker, as gunicorn itself does at ``max_requests`` or reload: it drains, the arbiter goes on."""
    server = SERVERS["gunicorn"]
    async with Host(sim, *server.arguments) as host:
        worker = int((await host.line(r"Booting worker with pid: (\d+)"))[1])
        told = Acknowledgements()
        async with told.collecting(await host.url()):
            await until(lambda: len(told) > 10)
            os.kill(worker, signal.SIGTERM)
            await host.line(rf"Booting worker with pid: (?!{worker})\d+")
        host.terminate()
        assert await host.exit_code() == server.code
    told.assert_arrived(sim)


@pytest.mark.parametrize(
    ("name", "codes", "bare"),
    [
        ("uvicorn with workers", {0}, ""),
        ("gunicorn", {0}, ""),
        # hypercorn's worker has the default action, and its parent ends with the worker's code (-15, which is 241) if
        # the worker can be waited for already, otherwise with 0; with and without a tracker.
        ("hypercorn", {0, 241}, ""),
        ("hypercorn", {0, 241}, "1"),
    ],
)
async def test_a_signal_to_the_whole_group_loses_nothing(sim: Simulator, name: str, codes: set[int], bare: str) -> None:
    """Parent and workers get SIGTERM at once. Who has a default action in a worker may refuse, but keeps its word."""
    sim.latency = 0.3
    async with Host(sim, *SERVERS[name].arguments, BARE=bare) as host:
        told = Acknowledgements(refusals=True)
        async with told.collecting(await host.url()):
            await until(lambda: len(told) > 50)
            host.terminate_all()
            assert await host.exit_code() in codes
    if not bare:
        told.assert_arrived(sim)
