"""``on_settled`` hears what became of every operation: keep what was not delivered.

Run it like ``quickstart.py``: ``python examples/settled_hook.py``.
"""

import asyncio

from cio_batch import CioBatchTracker, Settings, SettledChunk, SettledOperation, Verdict


async def main(settings: Settings) -> list[SettledOperation]:
    """Send some events and return the dead letters among them, for example to write them to a table."""
    dead_letters: list[SettledOperation] = []

    def keep(chunk: SettledChunk) -> None:  # it runs in the loop: keep it short, or make it an `async def`
        dead_letters.extend(each for each in chunk.operations if each.verdict is not Verdict.DELIVERED)

    async with CioBatchTracker(settings, on_settled=keep) as tracker:
        for n in range(10):
            await tracker.enqueue("user-1", "step_done", {"n": n})
    print(f"{tracker.stats().delivered} delivered, {len(dead_letters)} kept:")
    for each in dead_letters:
        print(each.id, each.verdict, each.reason)
    return dead_letters


if __name__ == "__main__":
    asyncio.run(main(Settings.from_env()))
