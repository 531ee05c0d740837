"""What does a typed event cost, compared with the same event as a dict?

    python benchmarks/typed_events.py [--events N] [--rounds N] [--json FILE]

Both ways end in ``encode_event``: the dict is built and encoded; the typed event is made (and so checked), turned into
a dict and encoded. They run in turn, in one process; what counts is the ratio of the medians. The promise is 2.5.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import attrs

from cio_batch import CioEvent
from cio_batch.operations import encode_event

ULID = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
NOW = 1_764_000_000.5


class PlanChanged(CioEvent, name="plan_changed"):
    """Three required fields."""

    from_: str
    to: str
    mrr: float


class FeatureUsed(CioEvent, name="feature_used"):
    """One required field and one that may be left out."""

    feature: str
    duration_ms: int | None = None


@attrs.frozen
class Item:
    """A part of an order."""

    sku: str
    price: float


class Ordered(CioEvent, name="ordered"):
    """A list of nested objects: the dearest kind of field."""

    order_id: str
    items: list[Item]


def new_id() -> str:
    """Return the same id again: ids cost both ways the same, and are not the question."""
    return ULID


def send_dict(name: str, data: Callable[[], dict[str, object]]) -> Callable[[], object]:
    """Build a dict and encode it."""
    return lambda: encode_event("user-1", name, data(), None, None, NOW, new_id)


def send_typed(make: Callable[[], CioEvent]) -> Callable[[], object]:
    """Make a typed event and encode it."""

    def send() -> object:
        event = make()
        return encode_event("user-1", event.event_name, event.wire_data(), None, None, NOW, new_id)

    return send


CASES: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
    "plan_changed (3 required)": (
        send_dict("plan_changed", lambda: {"from": "free", "to": "pro", "mrr": 49.0}),
        send_typed(lambda: PlanChanged(from_="free", to="pro", mrr=49.0)),
    ),
    "feature_used (1 left out)": (
        send_dict("feature_used", lambda: {"feature": "export"}),
        send_typed(lambda: FeatureUsed(feature="export")),
    ),
    "ordered (3 nested objects)": (
        send_dict("ordered", lambda: {"order_id": "A-7", "items": [{"sku": "a", "price": 1.5} for _ in range(3)]}),
        send_typed(lambda: Ordered(order_id="A-7", items=[Item("a", 1.5) for _ in range(3)])),
    ),
}


def nanoseconds(send: Callable[[], object], events: int) -> float:
    """Time one event."""
    start = time.perf_counter_ns()
    for _ in range(events):
        send()
    return (time.perf_counter_ns() - start) / events


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    print(
        f"{platform.python_implementation()} {platform.python_version()}, {platform.machine()}; ns per event, medians"
    )
    results: dict[str, dict[str, float]] = {}
    for case, (plain, typed) in CASES.items():
        assert plain() == typed(), case
        for send in (plain, typed):
            nanoseconds(send, arguments.events // 10)  # warm up
        rounds = [
            (nanoseconds(plain, arguments.events), nanoseconds(typed, arguments.events))
            for _ in range(arguments.rounds)
        ]
        as_dict, as_event = (statistics.median(column) for column in zip(*rounds, strict=True))
        ratio = as_event / as_dict
        results[case] = {"dict": as_dict, "typed": as_event, "ratio": ratio}
        print(f"{case:<28} dict {as_dict:6.0f}   typed {as_event:6.0f}   ratio {ratio:.2f}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
