"""Processes and loops that come after the first: fork, multiprocessing, asyncio.run again, another thread.

What forks runs in a process of its own: a fork of the test process would take pytest, its threads and the simulator
with it.
"""

from __future__ import annotations

import asyncio
import textwrap
import threading
from pathlib import Path

import pytest

from cio_batch import CioBatchTracker, Report, RetryOptions, WrongLoopError
from cio_batch.simulator import Simulator

from .conftest import assert_conserved, sent_numbers, settings_for, until
from .hosts.harness import Host

HEAD = """
import asyncio, gc, logging, multiprocessing, os, signal, sys, warnings
from cio_batch import CioBatchTracker

logging.basicConfig(format="LOG %(name)s %(levelname)s %(message)s", stream=sys.stdout)
warnings.simplefilter("always")


def in_child(work, status=0):
    \"\"\"Fork, do the work in the child, wait for it without blocking the loop.\"\"\"
    child = os.fork()
    if child == 0:
        try:
            work()
            gc.collect()
        except BaseException as error:
            print("CHILD", repr(error))
            os._exit(1)
        os._exit(status)
    return asyncio.to_thread(os.waitpid, child, 0)


async def send(tracker, person, numbers):
    for n in numbers:
        await tracker.enqueue(person, "e", {"n": n})


async def send_and_close(tracker, person, numbers):
    await send(tracker, person, numbers)
    report = await tracker.close()
    print("child's", report)


tracker = CioBatchTracker(flush_interval=60)
"""


async def run(sim: Simulator, tmp_path: Path, body: str) -> list[str]:
    """Run a program to its end; return its output. No logger and no warning may complain, in the children neither."""
    program = tmp_path / "program.py"
    program.write_text(HEAD + textwrap.dedent(body), encoding="utf-8")
    async with Host(sim, str(program)) as host:
        assert await host.exit_code() == 0
        complaints = [line for line in host.lines if "LOG" in line or "Warning" in line or "CHILD" in line]
        assert not complaints
        return host.lines


async def test_a_child_begins_empty_and_the_parent_delivers_once(sim: Simulator, tmp_path: Path) -> None:
    """What was pending at the fork is the parent's: it arrives once, by the parent; the child's own by the child."""
    lines = await run(
        sim,
        tmp_path,
        """
        def work():
            stats = tracker.stats()
            print("child", stats.state, stats.accepted, stats.pending)
            asyncio.run(send_and_close(tracker, "child", range(10)))

        async def main():
            async with tracker:
                await send(tracker, "parent", range(10))
                print(await in_child(work))
                assert tracker.stats().pending == 10
                await send(tracker, "parent", range(10, 20))

        asyncio.run(main())
        """,
    )
    assert "child new 0 0" in lines
    assert any(line.startswith("child's Report(delivered=10") for line in lines)
    assert sent_numbers(sim, "id", "parent") == list(range(20))
    assert sent_numbers(sim, "id", "child") == list(range(10))
    assert (sim.traffic.calls, sim.workspace.duplicates_ignored) == (2, 0)


async def test_a_fork_during_a_call_leaves_the_parents_connection_alone(sim: Simulator, tmp_path: Path) -> None:
    """The child has copies of the parent's sockets and tasks; collecting them must not disturb the call in flight."""
    sim.latency = 1.0
    await run(
        sim,
        tmp_path,
        """
        async def main():
            async with tracker:
                await send(tracker, "parent", range(10))
                flushing = asyncio.create_task(tracker.flush())
                while tracker.stats().calls == 0:
                    await asyncio.sleep(0.01)
                await asyncio.sleep(0.1)
                assert tracker.stats().in_flight == 10
                print(await in_child(lambda: asyncio.run(send_and_close(tracker, "child", range(10)))))
                gc.collect()
                assert (await flushing).delivered == 10
                await send(tracker, "parent", range(10, 20))
            assert tracker.stats().retries == 0, tracker.stats()

        asyncio.run(main())
        """,
    )
    assert sent_numbers(sim, "id", "parent") == list(range(20))
    assert sent_numbers(sim, "id", "child") == list(range(10))
    assert (sim.traffic.calls, sim.workspace.duplicates_ignored) == (3, 0)


async def test_the_parents_keep_alive_connection_survives_a_fork(sim: Simulator, tmp_path: Path) -> None:
    """A child that exits, and one that uses the tracker, leave the parent's idle connection usable."""
    await run(
        sim,
        tmp_path,
        """
        async def main():
            async with tracker:
                for n in range(3):
                    await send(tracker, "parent", [n])
                    await tracker.flush()
                    await in_child(lambda: asyncio.run(send_and_close(tracker, f"child-{n}", [n])))
                    await in_child(lambda: None)
            assert tracker.stats().retries == 0, tracker.stats()

        asyncio.run(main())
        """,
    )
    assert sent_numbers(sim, "id", "parent") == [0, 1, 2]
    assert [sent_numbers(sim, "id", f"child-{n}") for n in range(3)] == [[0], [1], [2]]
    assert sim.workspace.duplicates_ignored == 0


async def test_multiprocessing_workers_have_trackers_of_their_own(sim: Simulator, tmp_path: Path) -> None:
    """Four workers of a forking pool use the module's tracker, each with its own ``asyncio.run``."""
    await run(
        sim,
        tmp_path,
        """
        def work(n):
            asyncio.run(send_and_close(tracker, f"worker-{n}", range(5)))

        async def main():
            async with tracker:
                await send(tracker, "parent", range(5))
                fork = multiprocessing.get_context("fork")
                workers = [fork.Process(target=work, args=(n,)) for n in range(4)]
                for worker in workers:
                    worker.start()
                for worker in workers:
                    await asyncio.to_thread(worker.join)
                assert [worker.exitcode for worker in workers] == [0] * 4
                assert tracker.stats().pending == 5

        asyncio.run(main())
        """,
    )
    for person in ("parent", *(f"worker-{n}" for n in range(4))):
        assert sent_numbers(sim, "id", person) == list(range(5))


async def test_a_child_has_the_signal_handler_from_before(sim: Simulator, tmp_path: Path) -> None:
    """SIGTERM ends a child that has no tracker running; where the program had its own handler, that is back."""
    lines = await run(
        sim,
        tmp_path,
        """
        def report():
            print("child has", repr(signal.getsignal(signal.SIGTERM)))

        async def main(name):
            tracker = CioBatchTracker()
            before = signal.getsignal(signal.SIGTERM)
            async with tracker:
                assert signal.getsignal(signal.SIGTERM) != before
                await in_child(report)
                _, status = await in_child(lambda: os.kill(os.getpid(), signal.SIGTERM), status=3)
                print(name, "child ended with", os.waitstatus_to_exitcode(status))
            assert signal.getsignal(signal.SIGTERM) == before

        asyncio.run(main("plain"))
        signal.signal(signal.SIGTERM, lambda *_: os._exit(7))
        asyncio.run(main("own"))
        """,
    )
    assert "child has <Handlers.SIG_DFL: 0>" in lines
    assert "plain child ended with -15" in lines
    assert "own child ended with 7" in lines


async def test_sigterm_drains_a_child_of_its_own(sim: Simulator, tmp_path: Path) -> None:
    """A child that started its tracker drains it at SIGTERM and ends by the signal; the parent goes on."""
    lines = await run(
        sim,
        tmp_path,
        """
        async def forever():
            await send(tracker, "child", range(10))
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.Event().wait()

        async def main():
            async with tracker:
                await send(tracker, "parent", range(10))
                _, status = await in_child(lambda: asyncio.run(forever()))
                print("child ended with", os.waitstatus_to_exitcode(status))
                await send(tracker, "parent", range(10, 20))

        asyncio.run(main())
        """,
    )
    assert "child ended with -15" in lines
    assert sent_numbers(sim, "id", "child") == list(range(10))
    assert sent_numbers(sim, "id", "parent") == list(range(20))


# ----------------------------------------------------------------------------------------------------- other loops


async def test_a_run_that_ends_with_nothing_pending_is_no_end_either(sim: Simulator) -> None:
    """After a flush there is nothing to rescue; the next loop takes over all the same."""
    tracker = CioBatchTracker(settings_for(sim), flush_interval=60.0)

    def program() -> None:
        async def work(n: int) -> None:
            await tracker.enqueue("u", "e", {"n": n})
            await tracker.flush()

        for n in range(3):
            asyncio.run(work(n))
        asyncio.run(_close(tracker))

    await asyncio.to_thread(program)
    assert sent_numbers(sim, "id", "u") == [0, 1, 2]
    assert assert_conserved(tracker).delivered == 3


async def test_what_a_dead_service_kept_is_named_and_the_next_run_works(sim: Simulator) -> None:
    """At the deadline of the first run its operations fail by name; the second run is not held up by them."""
    sim.faults.mix({"black_hole": 1.0})
    tracker = CioBatchTracker(
        settings_for(sim), flush_interval=60.0, drain_timeout=0.2, retry=RetryOptions(base_delay=0.01)
    )

    def program() -> None:
        async def work(n: int) -> None:
            await tracker.enqueue("u", "e", {"n": n})

        with pytest.warns(
            ResourceWarning, match="1 operations were drained at the last moment, 1 of them without success"
        ):
            asyncio.run(work(0))
        sim.faults.clear()
        asyncio.run(work(1))
        asyncio.run(_close(tracker))

    await asyncio.to_thread(program)
    stats = assert_conserved(tracker)
    assert (stats.accepted, stats.failed, stats.delivered) == (2, 1, 1)
    assert sent_numbers(sim, "id", "u") == [1]


async def test_close_after_a_loop_that_ended_during_close(sim: Simulator) -> None:
    """A loop that ends while close() runs finishes it; a later close() in another loop has the same report."""
    sim.latency = 0.2
    tracker = CioBatchTracker(settings_for(sim), flush_interval=60.0)

    def program() -> Report:
        async def work() -> asyncio.Task[Report]:
            await tracker.enqueue("u", "e", {"n": 0})
            closing = asyncio.create_task(tracker.close())
            while tracker.stats().calls == 0:
                await asyncio.sleep(0.01)
            return closing

        asyncio.run(work())
        assert tracker.stats().state == "closed"
        return asyncio.run(_close(tracker))

    assert await asyncio.to_thread(program) == Report(delivered=1)
    assert_conserved(tracker)
    assert sent_numbers(sim, "id", "u") == [0]


async def test_no_two_children_make_the_same_ids(sim: Simulator, tmp_path: Path) -> None:
    """Children of a parent that had made ids have random bits of their own: the service takes no event for another."""
    await run(
        sim,
        tmp_path,
        """
        def work():
            asyncio.run(send_and_close(CioBatchTracker(), "child", range(20)))

        async def main():
            async with tracker:
                await send(tracker, "parent", range(10))
                for _ in range(3):
                    await in_child(work)
                await send(tracker, "parent", range(10, 30))

        asyncio.run(main())
        """,
    )
    ids = [event["id"] for person in ("parent", "child") for event in sim.workspace.person("id", person).events]
    # All but the time: the children of this test are not in the same millisecond, those of a server are.
    assert len({made[10:] for made in ids}) == len(ids) == 30 + 3 * 20


async def test_a_second_loop_beside_the_first_is_refused(sim: Simulator) -> None:
    """One tracker serves one loop at a time; another one that runs meanwhile gets a clear error, and harms nothing."""
    async with CioBatchTracker(settings_for(sim), flush_interval=60.0) as tracker:
        await tracker.enqueue("u", "e", {"n": 0})

        async def work() -> None:
            for call in (tracker.enqueue("u", "e", {"n": 9}), tracker.flush(), tracker.close(), tracker.start()):
                with pytest.raises(WrongLoopError):
                    await call

        thread = threading.Thread(target=asyncio.run, args=(work(),))
        thread.start()
        await until(lambda: not thread.is_alive())
        await tracker.enqueue("u", "e", {"n": 1})
        assert assert_conserved(tracker).accepted == 2
    assert sent_numbers(sim, "id", "u") == [0, 1]


async def _close(tracker: CioBatchTracker) -> Report:
    return await tracker.close()
