"""The faults of a simulated run: by chance, and each kind once by order, so that none is missing.

Rules:

1. What is ordered is used up by the next calls, whatever chance says; so every kind meets a call.
2. Waits are short: a run that takes ten seconds cannot wait one for each fault.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from cio_batch.settings import HttpOptions, RetryOptions
from cio_batch.simulator import KINDS, Faults, Kind, Options

# How much of the fault rate each kind has; what has no weight comes by order only.
_WEIGHTS: Final[Mapping[Kind, int]] = {
    "latency": 3,
    "rate_limit": 2,
    "server_error": 3,
    "html_error": 3,
    "unavailable": 2,
    "partial": 3,
    "drop_before": 3,
    "drop_after": 3,
    "black_hole": 1,
}
REFUSING: Final[frozenset[Kind]] = frozenset({"partial", "refuse", "unauthorized"})
"""Kinds that say no, to operations or to credentials, instead of failing."""

BRIEF: Final[Options] = {"latency": 0.1, "retry_after": "0.05", "partial_share": 0.01}
"""Faults that pass quickly."""

PATIENT: Final = RetryOptions(max_retries=50, base_delay=0.01, max_delay=0.1)
"""Retries for a service whose faults pass quickly."""

IMPATIENT_HTTP: Final = HttpOptions(total_timeout=1.5, connect_timeout=1.0, read_timeout=1.5)
"""Timeouts for a service in the same machine: a black hole costs no more than that."""


def chance(rate: float, kinds: Collection[Kind] = KINDS) -> dict[Kind, float]:
    """Share a fault rate out among kinds.

    Args:
        rate: Faults per call, from 0 to 1.
        kinds: Which kinds may come.
    """
    weights: dict[Kind, int] = {kind: weight for kind, weight in _WEIGHTS.items() if kind in kinds}
    total = sum(weights.values())
    rates: dict[Kind, float] = {kind: rate * weight / total for kind, weight in weights.items()}
    return rates if rate else {}


def order_one(faults: Faults, kind: Kind, url: str) -> None:
    """Let the next call meet a fault of this kind.

    Args:
        faults: The simulator's.
        kind: Which.
        url: The simulator's origin, to which "redirect" points.
    """
    match kind:
        case "redirect":
            faults.order(kind, location=f"{url}/api/v2/batch")
        case "raw":
            # A success whose body breaks off: nobody may take it for one.
            faults.order(kind, headers={"Content-Type": "application/json", "Content-Length": "50"}, body=b'{"err')
        case _:
            faults.order(kind)
