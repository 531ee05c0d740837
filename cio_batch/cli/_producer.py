"""The process that the demo stops half-way: several tasks that send events through one tracker.

    python -m cio_batch.cli._producer PLAN RECORD        (PLAN is JSON; settings come from the environment)

It does nothing about SIGTERM itself: the tracker does, as in any program that uses one.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections import Counter
from pathlib import Path
from typing import Final

import orjson

from cio_batch.cli.plan import Plan
from cio_batch.cli.record import RecordWriter
from cio_batch.cli.weather import IMPATIENT_HTTP, PATIENT
from cio_batch.errors import TrackerClosedError
from cio_batch.settings import Settings
from cio_batch.tracker import CioBatchTracker

_NAMES: Final = ("page_viewed", "product_viewed", "cart_updated", "checkout_begun", "order_completed")
_TRICKLE: Final = 0.01


async def run(plan: Plan, record: RecordWriter) -> None:
    """Produce what is left of the plan."""
    tracker = CioBatchTracker(
        Settings.from_env(http=IMPATIENT_HTTP),
        batch_size=plan.batch_size,
        flush_interval=0.2,
        max_pending=plan.max_pending,
        enqueue_timeout=None,
        retry=PATIENT,
        drain_timeout=60.0,
        on_settled=record.settled,
    )
    async with tracker, asyncio.TaskGroup() as producers:
        for producer in range(len(plan.starts)):
            producers.create_task(_produce(plan, producer, tracker, record))


async def _produce(plan: Plan, producer: int, tracker: CioBatchTracker, record: RecordWriter) -> None:
    position, accepted = 0, Counter[str]()
    ease_from = plan.ease_from * plan.quota(producer)
    try:
        for person, sequence in plan.events_of(producer):
            if position >= plan.starts[producer]:
                if position >= ease_from:
                    await asyncio.sleep(_TRICKLE)
                name = _NAMES[sequence % len(_NAMES)]
                await tracker.enqueue(person, name, {"sequence": sequence, "producer": producer, "plan": "pro"})
                accepted[person] += 1
            position += 1
    except TrackerClosedError:
        pass  # SIGTERM came; this event was not taken, and is not in the record
    finally:
        record.accepted(producer, position, accepted)


def _main() -> None:
    # The demo makes the service misbehave; what the library has to say about that would only hide the progress bar.
    logging.getLogger("cio_batch").addHandler(logging.NullHandler())
    plan = Plan.from_content(orjson.loads(sys.argv[1]))
    with RecordWriter(Path(sys.argv[2])) as record:
        asyncio.run(run(plan, record))


if __name__ == "__main__":
    _main()
