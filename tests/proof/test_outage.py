"""An outage at 1,000 events a second: memory stays flat, and with a spool every event arrives, in order."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(__file__).parent / "programs" / "outage.py"
FLAT_KB = 32 * 1024
HELD = 20_000  # max_pending of the program
RATE = 1_000


async def go_through(minutes: int, where: str) -> dict[str, Any]:
    """Run the outage in a process of its own, whose memory is nobody else's."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(PROGRAM),
        str(minutes),
        where,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:  # a test that took too long leaves nobody behind
            process.kill()
    assert process.returncode == 0
    result: dict[str, Any] = json.loads(output)
    print(result)  # noqa: T201 - the figures of the proof
    return result


def assert_flat(result: dict[str, Any]) -> None:
    """Check that memory did not grow once it held what it may hold, nor when all of it was delivered."""
    assert result["rss_growth_kb"] < FLAT_KB
    assert result["rss_after_kb"] - result["rss_first_kb"] < FLAT_KB
    assert result["most_held"] <= HELD


async def test_ten_minutes_with_a_spool(tmp_path: Path) -> None:
    """600,000 events: none is refused, dropped or failed; all arrive once, in the order of their person."""
    result = await go_through(10, str(tmp_path / "events.db"))
    count = 600 * RATE
    assert_flat(result)
    assert result["produced"] == result["accepted"] == result["delivered"] == result["arrived"] == count
    assert result["out_of_order_or_twice"] == result["left"] == 0
    assert result["refused"] == result["dropped"] == result["failed"] == 0
    assert result["paused"] == "status 503"
    assert result["spooled"] > count - HELD
    assert result["calls_while_down"] < 100, "one call at a time probes"


@pytest.mark.parametrize("policy", ["block", "drop_oldest"])
async def test_minutes_with_memory_alone(policy: str) -> None:
    """The bound holds and the policy acts: what there is no room for is refused or dropped, and counted."""
    result = await go_through(3, policy)
    count = 180 * RATE
    assert_flat(result)
    assert result["produced"] == result["accepted"] + result["refused"] == count
    assert result["accepted"] == result["delivered"] + result["dropped"] + result["failed"] + result["left"]
    assert result["delivered"] == result["arrived"] <= HELD + 4 * RATE
    assert result["out_of_order_or_twice"] == result["left"] == 0
    acted, not_acted = ("refused", "dropped") if policy == "block" else ("dropped", "refused")
    assert result[acted] > count - 4 * HELD
    assert result[not_acted] == 0
