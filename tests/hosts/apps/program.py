"""Plain programs, one per name in the first argument; each says ``ready`` once it has enqueued some events."""

# ruff: noqa: T201 - what they print is how the tests hear of them

import asyncio
import itertools
import signal
import sys

import uvloop

from cio_batch import CioBatchTracker, TrackerClosedError

HOST_CODE = 7  # what the programs that own their exit end with


def new_tracker(drain_timeout: float = 6) -> CioBatchTracker:
    return CioBatchTracker(flush_interval=60, drain_timeout=drain_timeout)


async def produce(tracker: CioBatchTracker, name: str = "person") -> None:
    """Enqueue for ever; when the tracker refuses, say how many it had accepted."""
    for n in itertools.count():
        try:
            await tracker.enqueue(f"{name}-{n % 5}", "ticked", {"n": n})
        except TrackerClosedError:
            print(f"{name} refused after {n}")
            return
        if n == 50:
            print(f"{name} ready")
        await asyncio.sleep(0.002)


async def forever() -> None:
    await produce(new_tracker())
    await asyncio.Event().wait()


async def black_hole() -> None:
    await produce(new_tracker(drain_timeout=1))
    await asyncio.Event().wait()


async def two() -> None:
    await asyncio.gather(produce(new_tracker(), "first"), produce(new_tracker(), "second"))
    await asyncio.Event().wait()


async def two_one_closed_before() -> None:
    """The first tracker, which set the handler, is closed long before the signal."""
    first = new_tracker()
    await first.enqueue("early", "ticked", {"n": 0})
    second = new_tracker()
    await second.start()
    await first.close()
    await produce(second)
    await asyncio.Event().wait()


async def main_ends() -> None:
    """The program ends by itself as soon as the tracker refuses, without ``close``."""
    await produce(new_tracker())


async def cancels_everything() -> None:
    """The program cancels all other tasks once the tracker refuses, the tracker's among them, and goes on."""
    await produce(new_tracker())
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    await asyncio.Event().wait()


async def main_ends_late() -> None:
    """The same, a while after: 1.4 s into the drain of 2 s."""
    await produce(new_tracker(drain_timeout=2))
    await asyncio.sleep(1.4)


async def handler_put_back() -> None:
    """A server runs inside a program that has a tracker; another one starts and closes while the server runs."""
    outer = new_tracker()
    await outer.start()
    producing = asyncio.create_task(produce(outer))
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    found = signal.signal(signal.SIGTERM, lambda *_: loop.call_soon_threadsafe(stop.set))
    async with new_tracker() as inner:
        await inner.enqueue("inner", "ticked", {"n": 0})
        await stop.wait()
    print(f"the inner server ended with {outer.stats().accepted} accepted outside")
    signal.signal(signal.SIGTERM, found)
    signal.raise_signal(signal.SIGTERM)
    await producing
    await asyncio.Event().wait()


async def ignoring() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    async with new_tracker() as tracker:
        producing = asyncio.create_task(produce(tracker))
        await asyncio.to_thread(sys.stdin.readline)
        await tracker.enqueue(f"person-{tracker.stats().accepted % 5}", "ticked", {"n": tracker.stats().accepted})
        producing.cancel()
    stats = tracker.stats()
    print(f"closed with {stats.accepted} accepted, {stats.delivered} delivered")
    sys.exit(HOST_CODE)


def stopped_loop() -> None:
    """A synchronous program that keeps a loop and runs it now and then."""
    with asyncio.Runner() as runner:
        runner.run(new_tracker().enqueue("person", "ticked", {"n": 0}))
        print("person ready")
        sys.stdin.readline()


def closed_loop() -> None:
    tracker = new_tracker()

    async def main() -> None:
        await tracker.start()

    asyncio.run(main())
    print("person ready")
    sys.stdin.readline()


class Stop:
    """A handler of SIGTERM that ends the program, and counts how often it was called."""

    def __init__(self) -> None:
        self.event = asyncio.Event()
        self.calls = 0
        self._loop = asyncio.get_running_loop()
        self._found = signal.getsignal(signal.SIGTERM)

    def __call__(self, signum: int, frame: object) -> None:
        self.calls += 1
        self._loop.call_soon_threadsafe(self.event.set)
        if callable(self._found):
            self._found(signum, frame)


async def own_signal_handler() -> None:
    """The program had a handler before the tracker started; it decides when and how to end."""
    stop = Stop()
    signal.signal(signal.SIGTERM, stop)
    await produce_until(stop.event)
    print(f"calls of it: {stop.calls}")
    sys.exit(HOST_CODE)


async def own_loop_handler() -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await produce_until(stop)
    sys.exit(HOST_CODE)


async def own_loop_handler_set_later() -> None:
    tracker = new_tracker()
    await tracker.start()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await produce_until(stop, tracker)
    sys.exit(HOST_CODE)


async def own_chaining_handler_set_later() -> None:
    """A handler set over the tracker's that calls what it found, as a library should; then a second tracker."""
    tracker = new_tracker()
    await tracker.start()
    stop = Stop()
    signal.signal(signal.SIGTERM, stop)
    async with new_tracker():
        await produce_until(stop.event, tracker)
    print(f"calls of it: {stop.calls}")
    sys.exit(HOST_CODE)


async def own_handler_raises() -> None:
    """The shortest handler there is: the main task is cancelled, and the tracker closed on the way out."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(HOST_CODE))
    async with new_tracker() as tracker:
        await produce(tracker)


async def produce_until(stop: asyncio.Event, tracker: CioBatchTracker | None = None) -> None:
    async with tracker or new_tracker() as tracker:
        producing = asyncio.create_task(produce(tracker))
        await stop.wait()
        print("the program's own handler ran")
        producing.cancel()
        # The signal alone refuses nothing here.
        await tracker.enqueue("goodbye", "ticked", {"n": 0})
    stats = tracker.stats()
    print(f"closed with {stats.accepted} accepted, {stats.delivered} delivered")


_, name, loop = sys.argv
program = globals()[name]
if not asyncio.iscoroutinefunction(program):
    program()
elif loop == "uvloop":
    uvloop.run(program())
else:
    asyncio.run(program())
