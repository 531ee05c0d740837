"""A second loop, sixteen threads during ``close``, workers forked from a server: nothing twice, nothing lost."""

from __future__ import annotations

import asyncio
import concurrent.futures
import re
import threading
import time
from collections import defaultdict
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from cio_batch import CioBatchTracker, Report, SettledChunk, TrackerClosedError
from cio_batch.errors import SpoolError
from cio_batch.simulator import Simulator
from cio_batch.spools import SqliteSpool

from ..conftest import PATIENT, assert_conserved, sent_numbers, settings_for, until
from ..hosts.harness import Host

THREADS = 16
PRELOADED = str(Path(__file__).parent / "programs")

keeping = pytest.mark.parametrize("kept", [False, True], ids=["memory", "spool"])


def new_tracker(sim: Simulator, tmp_path: Path, kept: bool, **options: Any) -> CioBatchTracker:
    """A tracker in memory, or one with a spool."""
    spool = SqliteSpool(tmp_path / "events.db") if kept else None
    return CioBatchTracker(settings_for(sim), **{"flush_interval": 60.0, "retry": PATIENT, "spool": spool, **options})


# ------------------------------------------------------------------------------------------------- loop after loop


async def enqueue(tracker: CioBatchTracker, numbers: range) -> None:
    await asyncio.gather(*(tracker.enqueue("u", "e", {"n": n}) for n in numbers))


async def in_a_loop_of_its_own(*programs: Coroutine[Any, Any, Any]) -> list[Any]:
    """Run each in an ``asyncio.run`` of its own, one after the other, in another thread than the simulator's."""
    return await asyncio.to_thread(lambda: [asyncio.run(program) for program in programs])


async def close(tracker: CioBatchTracker) -> Report:
    return await tracker.close()


@keeping
@pytest.mark.filterwarnings("ignore:a CioBatchTracker was not closed before its loop ended:ResourceWarning")
async def test_asyncio_run_comes_again_with_one_tracker(sim: Simulator, tmp_path: Path, kept: bool) -> None:
    """Three loops, one after the other, without ``close``: each delivers its own at its end, nothing comes twice."""
    tracker = new_tracker(sim, tmp_path, kept)
    await in_a_loop_of_its_own(enqueue(tracker, range(50)))
    assert sent_numbers(sim, "id", "u") == list(range(50))
    assert assert_conserved(tracker).delivered == 50
    await in_a_loop_of_its_own(enqueue(tracker, range(50, 100)), asyncio.sleep(0), enqueue(tracker, range(100, 150)))
    [report] = await in_a_loop_of_its_own(close(tracker))
    assert report == Report(delivered=150)
    stats = assert_conserved(tracker)
    assert (stats.state, stats.accepted, stats.delivered, stats.recovered) == ("closed", 150, 150, 0)
    assert sent_numbers(sim, "id", "u") == list(range(150))
    assert sim.workspace.duplicates_ignored == 0


@pytest.mark.filterwarnings("ignore:a CioBatchTracker was not closed before its loop ended:ResourceWarning")
async def test_what_a_loop_left_in_the_spool_is_delivered_by_the_next(sim: Simulator, tmp_path: Path) -> None:
    """Nothing is counted twice: what the first loop accepted and could not deliver is not recovered but resumed."""
    sim.faults.mix({"unavailable": 1.0})
    tracker = new_tracker(sim, tmp_path, kept=True, drain_timeout=0.2)
    await in_a_loop_of_its_own(enqueue(tracker, range(50)))
    stats = assert_conserved(tracker)
    assert (stats.accepted, stats.delivered, stats.pending, stats.spooled) == (50, 0, 50, 50)
    sim.faults.clear()
    await in_a_loop_of_its_own(enqueue(tracker, range(50, 60)), close(tracker))
    stats = assert_conserved(tracker)
    assert (stats.accepted, stats.delivered, stats.failed, stats.recovered) == (60, 60, 0, 0)
    assert sent_numbers(sim, "id", "u") == list(range(60))


@keeping
async def test_a_loop_that_stops_without_a_word(sim: Simulator, tmp_path: Path, kept: bool) -> None:
    """No task was cancelled and nothing drained; the next loop takes over what was accepted, and settles it once.

    Left behind in the first loop: a call, a flush, a hook, callers who wait for a commit and one who waits for room.
    """
    sim.latency = 0.05
    hooked: list[int] = []
    never = asyncio.Event()

    async def hook(chunk: SettledChunk) -> None:
        hooked.extend(one.payload["attributes"]["n"] for one in chunk.operations)
        if not all(one.payload["identifiers"]["id"] == "u" for one in chunk.operations):
            await never.wait()

    tracker = new_tracker(sim, tmp_path, kept, on_settled=hook, max_pending=100)
    flushes: list[asyncio.Task[Report]] = []

    def stop_without_a_word() -> list[asyncio.Task[None]]:
        tasks: list[asyncio.Task[None]] = []

        async def main() -> None:
            await tracker.enqueue("first", "e", {"n": -1})
            await tracker.flush()
            await enqueue(tracker, range(50))
            flushes.append(asyncio.create_task(tracker.flush()))
            while tracker.stats().calls < 2:
                await asyncio.sleep(0)
            # With a spool: 100 that are said to it, and 10 that wait.
            tasks.extend(asyncio.create_task(tracker.enqueue("u", "e", {"n": 50 + n})) for n in range(110))
            for _ in range(3):
                await asyncio.sleep(0)

        loop = asyncio.new_event_loop()
        loop.run_until_complete(main())
        loop.run_until_complete(tracker._transport.close())  # whose sockets would complain
        for task in asyncio.all_tasks(loop):
            task._log_destroy_pending = False  # type: ignore[attr-defined] - left on purpose
        loop.close()
        return tasks

    left_behind = await asyncio.to_thread(stop_without_a_word)
    assert not flushes[0].done()
    assert assert_conserved(tracker).accepted >= 51
    before = time.monotonic()
    await in_a_loop_of_its_own(enqueue_and_close(tracker, range(200, 210)))
    assert time.monotonic() - before < 5, "the drain waited for something of a loop that is gone"
    stats = assert_conserved(tracker)
    arrived = sent_numbers(sim, "id", "u")
    assert sum(task.done() for task in left_behind) <= len(arrived) - 60 <= 110
    assert arrived == [*range(len(arrived) - 10), *range(200, 210)]
    assert stats.delivered == stats.accepted == len(arrived) + 1
    assert hooked == [-1, *arrived]
    assert stats.recovered + stats.pending + stats.in_flight == 0 or kept


async def enqueue_and_close(tracker: CioBatchTracker, numbers: range) -> None:
    await enqueue(tracker, numbers)
    await tracker.close()


# --------------------------------------------------------------------------------------------------------- threads


@pytest.mark.parametrize("abreast", [1, 25])
@keeping
async def test_threads_that_enqueue_during_close_get_an_answer(
    sim: Simulator, tmp_path: Path, kept: bool, abreast: int
) -> None:
    """Every future resolves; accepted and delivered are exactly those whose future succeeded, once, in order."""
    tracker = new_tracker(sim, tmp_path, kept)
    await tracker.start()
    futures: dict[int, list[concurrent.futures.Future[None]]] = defaultdict(list)
    turned_away: list[int] = []
    started = threading.Barrier(THREADS + 1)

    def work(thread: int) -> None:
        started.wait()
        for n in range(20_000):
            try:
                future = tracker.enqueue_threadsafe(f"t-{thread}", "e", {"n": n})
            except TrackerClosedError:
                turned_away.append(thread)
                break
            futures[thread].append(future)
            if n % abreast == abreast - 1 and future.exception(timeout=20) is not None:
                break

    workers = [threading.Thread(target=work, args=(thread,), daemon=True) for thread in range(THREADS)]
    for worker in workers:
        worker.start()
    await asyncio.to_thread(started.wait)
    await until(lambda: tracker.stats().accepted > 200)
    report = await tracker.close()
    await until(lambda: not any(worker.is_alive() for worker in workers))
    resolved = {thread: [future.exception(timeout=5) for future in mine] for thread, mine in futures.items()}
    errors = [error for outcomes in resolved.values() for error in outcomes if error is not None]
    assert all(isinstance(error, TrackerClosedError) for error in errors)
    refused = {thread for thread, outcomes in resolved.items() if any(error is not None for error in outcomes)}
    assert refused | set(turned_away) == set(range(THREADS))
    assert len(errors) <= THREADS * abreast
    succeeded = {
        thread: [n for n, error in enumerate(outcomes) if error is None] for thread, outcomes in resolved.items()
    }
    count = sum(map(len, succeeded.values()))
    stats = assert_conserved(tracker)
    assert count > 200
    assert (stats.accepted, stats.delivered, report.delivered, report.left) == (count, count, count, 0)
    for thread in range(THREADS):
        assert sent_numbers(sim, "id", f"t-{thread}") == succeeded[thread]
    assert sim.workspace.duplicates_ignored == 0


@keeping
async def test_threads_whose_close_has_no_time_lose_nothing(sim: Simulator, tmp_path: Path, kept: bool) -> None:
    """A service that never answers: what was accepted is failed, or stays in the spool; every future still resolves."""
    sim.faults.mix({"black_hole": 1.0})
    tracker = new_tracker(sim, tmp_path, kept)
    await tracker.start()
    futures: list[concurrent.futures.Future[None]] = []

    def work(thread: int) -> None:
        for n in range(20_000):
            try:
                future = tracker.enqueue_threadsafe(f"t-{thread}", "e", {"n": n})
            except TrackerClosedError:
                return
            futures.append(future)
            if n % 25 == 24 and future.exception(timeout=20) is not None:
                return

    workers = [threading.Thread(target=work, args=(thread,), daemon=True) for thread in range(THREADS)]
    for worker in workers:
        worker.start()
    await until(lambda: tracker.stats().accepted > 200)
    report = await tracker.close(timeout=0.1)
    await until(lambda: not any(worker.is_alive() for worker in workers))
    errors = [future.exception(timeout=5) for future in futures]
    count = errors.count(None)
    assert all(error is None or isinstance(error, (TrackerClosedError, SpoolError)) for error in errors)
    stats = assert_conserved(tracker)
    assert (stats.accepted, report.left, stats.delivered) == (count, count, 0)
    assert (stats.failed, stats.pending) == ((0, count) if kept else (count, 0))
    if kept:
        sim.faults.clear()
        again = new_tracker(sim, tmp_path, kept)
        await again.start()
        # What was being written when the time was over may be in it: its future said so.
        unsure = sum(isinstance(error, SpoolError) for error in errors)
        assert count <= again.stats().recovered <= count + unsure
        assert (await again.close()).left == 0


# ------------------------------------------------------------------------------------- workers forked from a server


_GUNICORN = ("-m", "gunicorn", "--preload", "-k", "uvicorn_worker.UvicornWorker", "-w", "2", "-b", "127.0.0.1:0")
_PRELOAD = (*_GUNICORN, "--no-control-socket", "--graceful-timeout", "8", "--chdir", PRELOADED, "preloaded:app")


async def call_until_both_answer(url: str, workers: int) -> dict[str, list[int]]:
    """Call with a new connection each time until every worker answered often; return what each one took."""
    taken: dict[str, list[int]] = defaultdict(list)
    for n in range(5_000):
        async with aiohttp.ClientSession() as session, session.post(f"{url}/track", params={"n": str(n)}) as response:
            text = await response.text()
            if response.status == 200:
                taken[text].append(n)
            else:
                assert response.status == 503
        if len(taken) == workers and min(map(len, taken.values())) >= 10:
            return taken
    pytest.fail("one of the workers took nothing")


async def test_preloaded_workers_deliver_their_own(sim: Simulator) -> None:
    """One tracker, made before the fork, in two workers: each delivers what it took, in order, and nothing twice."""
    async with Host(sim, *_PRELOAD) as host:
        taken = await call_until_both_answer(await host.url(), workers=2)
        host.terminate()
        assert await host.exit_code() == 0
    for pid, numbers in taken.items():
        assert sent_numbers(sim, "id", f"worker-{pid}") == numbers
    assert sim.workspace.duplicates_ignored == 0
    assert sim.workspace.applied["person.event"] == sum(map(len, taken.values()))


async def test_a_spool_of_two_workers_names_its_owner(sim: Simulator, tmp_path: Path) -> None:
    """The second worker is told who owns the file, and by which pid; the first one delivers all that it took."""
    async with Host(sim, *_PRELOAD, SPOOL=str(tmp_path / "events.db")) as host:
        url = await host.url()
        refused = await host.line(r"worker (\d+) has no spool: (.*), owner (\d+)$")
        owner = await host.line(r"worker (\d+) has the spool$")
        assert refused[3] == owner[1] != refused[1]
        assert f"belongs to the process {owner[1]}" in refused[2]
        assert "give each process (each worker of a server) a file of its own" in refused[2]
        taken = await call_until_both_answer(url, workers=1)
        assert list(taken) == [owner[1]]
        host.terminate()
        assert await host.exit_code() == 0
        assert not [line for line in host.lines if re.search("Traceback|ResourceWarning", line)]
    assert sent_numbers(sim, "id", f"worker-{owner[1]}") == taken[owner[1]]
    assert sim.workspace.duplicates_ignored == 0
