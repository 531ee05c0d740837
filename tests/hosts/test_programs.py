"""SIGTERM in plain programs: nobody owns the exit, or the program itself does."""

from __future__ import annotations

import time

import pytest

from cio_batch.simulator import Simulator

from .harness import Host, events_in, numbers_of

BY_SIGTERM = -15  # the default action of the signal, which the tracker restores and raises again
OWN_CODE = 7  # what the programs end with that own their exit
MARGIN = 2.5  # seconds that a busy machine may need beyond a deadline

loops = pytest.mark.parametrize("loop", ["asyncio", "uvloop"])


@pytest.fixture
async def sim(sim: Simulator) -> Simulator:
    """A simulator whose answers take longer than a program needs to notice that its tracker refuses."""
    sim.latency = 0.2
    return sim


async def refused_after(host: Host, name: str) -> int:
    """Return how many events the program says its tracker had accepted when it refused one."""
    return int((await host.line(rf"{name} refused after (\d+)"))[1])


def assert_all_in_order(sim: Simulator, name: str, accepted: int) -> None:
    """Check that each accepted event arrived once, in the order of its person."""
    for person in range(5):
        assert numbers_of(sim, f"{name}-{person}") == list(range(person, accepted, 5))


@loops
async def test_a_plain_program_drains_and_ends_by_the_signal(sim: Simulator, loop: str) -> None:
    """After SIGTERM nothing is accepted, all that was accepted arrives, and the process ends by signal 15."""
    async with Host(sim, "program.py", "forever", loop) as host:
        await host.line("person ready")
        assert sim.traffic.calls == 0
        host.terminate()
        accepted = await refused_after(host, "person")
        assert await host.exit_code() == BY_SIGTERM
    assert_all_in_order(sim, "person", accepted)


async def test_a_slow_service_is_waited_for(sim: Simulator) -> None:
    """The signal is raised again only when the answer is there: a failed call is repeated before the end."""
    sim.faults.order("server_error")
    async with Host(sim, "program.py", "forever", "asyncio") as host:
        await host.line("person ready")
        host.terminate()
        accepted = await refused_after(host, "person")
        assert await host.exit_code() == BY_SIGTERM
    assert sim.traffic.calls == 2
    assert_all_in_order(sim, "person", accepted)


@loops
async def test_a_black_hole_is_left_at_the_deadline(sim: Simulator, loop: str) -> None:
    """A service that never answers does not keep the process beyond ``drain_timeout`` (1 s), and the loss is named."""
    sim.faults.mix({"black_hole": 1.0})
    async with Host(sim, "program.py", "black_hole", loop) as host:
        await host.line("person ready")
        began = host.terminate()
        accepted = await refused_after(host, "person")
        assert await host.exit_code() == BY_SIGTERM
        assert 0.9 <= time.monotonic() - began <= 1 + MARGIN
        assert await host.line(rf"{accepted} operations failed: deadline")


@loops
async def test_two_trackers_are_both_drained(sim: Simulator, loop: str) -> None:
    """Both share one handler; the process ends when the slower of them is done."""
    sim.faults.order("server_error")
    async with Host(sim, "program.py", "two", loop) as host:
        await host.line("first ready")
        await host.line("second ready")
        host.terminate()
        first, second = await refused_after(host, "first"), await refused_after(host, "second")
        assert await host.exit_code() == BY_SIGTERM
    assert_all_in_order(sim, "first", first)
    assert_all_in_order(sim, "second", second)


async def test_the_tracker_that_set_the_handler_may_close_first(sim: Simulator) -> None:
    """The handler stays as long as any tracker needs it."""
    async with Host(sim, "program.py", "two_one_closed_before", "asyncio") as host:
        await host.line("person ready")
        host.terminate()
        accepted = await refused_after(host, "person")
        assert await host.exit_code() == BY_SIGTERM
    assert numbers_of(sim, "early") == [0]
    assert_all_in_order(sim, "person", accepted)


@pytest.mark.parametrize("program", ["main_ends", "cancels_everything"])
@loops
async def test_cancelling_the_drain_does_not_cut_it_short(sim: Simulator, program: str, loop: str) -> None:
    """``asyncio.run`` cancels everything when the main task ends, and a program may do so; the drain goes on."""
    sim.faults.order("server_error")  # so that the drain takes at least one repeat longer than the program
    async with Host(sim, "program.py", program, loop) as host:
        await host.line("person ready")
        host.terminate()
        accepted = await refused_after(host, "person")
        assert await host.exit_code() == BY_SIGTERM
    assert_all_in_order(sim, "person", accepted)


async def test_a_program_that_ends_while_it_is_drained_keeps_the_deadline(sim: Simulator) -> None:
    """The drain that goes on after ``asyncio.run`` cancelled everything does not begin its timeout again."""
    sim.faults.mix({"black_hole": 1.0})
    async with Host(sim, "program.py", "main_ends_late", "asyncio") as host:
        await host.line("person ready")
        began = host.terminate()
        assert await host.exit_code() == BY_SIGTERM
        # The program ends 1.4 s into a drain of 2 s; a timeout that began again would make it 3.4 s.
        assert 1.9 <= time.monotonic() - began <= 3.3
        assert await host.line("operations failed: deadline")


@pytest.mark.parametrize("program", ["stopped_loop", "closed_loop"])
async def test_a_loop_that_does_not_run_does_not_keep_the_process_alive(sim: Simulator, program: str) -> None:
    """Where no loop could drain, SIGTERM keeps its default action instead of being swallowed."""
    async with Host(sim, "program.py", program, "asyncio") as host:
        await host.line("person ready")
        host.terminate()
        assert await host.exit_code(within=3) == BY_SIGTERM


@pytest.mark.parametrize(
    "program",
    ["own_signal_handler", "own_loop_handler", "own_loop_handler_set_later", "own_chaining_handler_set_later"],
)
@loops
async def test_a_program_with_a_handler_of_its_own_owns_the_exit(sim: Simulator, program: str, loop: str) -> None:
    """Its handler runs once, the signal refuses nothing, the program closes the tracker, its exit code stands."""
    async with Host(sim, "program.py", program, loop) as host:
        await host.line("person ready")
        host.terminate()
        assert await host.exit_code() == OWN_CODE
        closed = await host.line(r"closed with (\d+) accepted, (\d+) delivered")
        assert closed[1] == closed[2]
        assert sum("own handler ran" in line for line in host.lines) == 1
        if program.startswith(("own_signal", "own_chaining")):
            await host.line("calls of it: 1$")
    numbers = [len(numbers_of(sim, f"person-{person}")) for person in range(5)]
    assert_all_in_order(sim, "person", sum(numbers))
    assert numbers_of(sim, "goodbye") == [0]
    assert int(closed[1]) == sum(numbers) + 1


@loops
async def test_a_handler_that_exits_is_obeyed(sim: Simulator, loop: str) -> None:
    """``sys.exit`` in the handler unwinds the program; ``async with`` drains on the way out, the code stands."""
    async with Host(sim, "program.py", "own_handler_raises", loop) as host:
        await host.line("person ready")
        host.terminate()
        assert await host.exit_code() == OWN_CODE
    assert events_in(sim) > 50
    assert_all_in_order(sim, "person", events_in(sim))


async def test_a_handler_that_was_put_back_gets_the_signal(sim: Simulator) -> None:
    """A server inside the program sets its handler, and afterwards puts ours back and raises again, as uvicorn does.

    A second tracker started in between. The signal then has its default action, after the drain.
    """
    async with Host(sim, "program.py", "handler_put_back", "asyncio") as host:
        await host.line("person ready")
        host.terminate()
        accepted = int((await host.line(r"ended with (\d+) accepted outside"))[1])
        assert await host.exit_code() == BY_SIGTERM
    assert numbers_of(sim, "inner") == [0]
    arrived = events_in(sim) - 1
    assert arrived >= accepted  # one more may have slipped in between the signal and the drain
    assert_all_in_order(sim, "person", arrived)


async def test_an_ignored_signal_stays_ignored(sim: Simulator) -> None:
    """A program that ignores SIGTERM goes on, and its tracker takes events as before."""
    async with Host(sim, "program.py", "ignoring", "asyncio") as host:
        await host.line("person ready")
        host.terminate()
        await host.tell("end")
        closed = await host.line(r"closed with (\d+) accepted, (\d+) delivered")
        assert await host.exit_code() == OWN_CODE
    assert int(closed[1]) == int(closed[2]) == events_in(sim)
    assert_all_in_order(sim, "person", events_in(sim))
