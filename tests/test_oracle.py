"""Nothing acknowledged is lost, whenever the process is killed; and the judge of that, tried."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.oracle.harness import STAGES, run
from tests.oracle.judge import Evidence, judge

KILLS = 50


async def test_fifty_kills_lose_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """SIGKILL at random moments under random faults: all that was acknowledged arrives, unchanged and in order."""
    result = await run(KILLS, 4, tmp_path)
    with capsys.disabled():
        print("", *(f"{name:40}{figure:>12}" for name, figure in result.rows()), sep="\n")  # noqa: T201
    assert result.broken == []
    assert result.kills == KILLS
    assert all(result.stages[stage] for stage in STAGES)
    assert result.findings is not None
    assert result.findings.acknowledged > KILLS


async def test_a_spool_that_promises_too_early_is_found_out(tmp_path: Path) -> None:
    """The oracle itself: a spool that acknowledges 50 ms before it writes loses something by three kills."""
    result = await run(3, 4, tmp_path, lies=True)
    assert result.findings is not None
    assert result.findings.lost > 0
    assert result.vanished >= result.findings.lost


def say(n: int, person: str = "p", action: str = "event", **more: Any) -> bytes:
    identity = {"id": f"id-{person}-{n}"} if action == "event" else {}
    body = {"type": "person", "action": action, "identifiers": {"id": person}, **identity, "attributes": {"n": n}}
    return orjson.dumps(body | more)


A, B, C = (say(n) for n in range(3))
DELETE = orjson.dumps({"type": "person", "action": "delete", "identifiers": {"id": "p"}})


@pytest.mark.parametrize(
    ("evidence", "broken"),
    [
        (Evidence(said=[A, B], acknowledged=[A, B], arrived=[A, B]), {}),
        (Evidence(said=[A, B, C], acknowledged=[A], arrived=[A, B]), {}),
        (Evidence(said=[A, B], acknowledged=[A, B], arrived=[A, B, A, B]), {}),
        (Evidence(said=[A, B], acknowledged=[A, B], arrived=[A]), {"lost": 1}),
        (Evidence(said=[A, B], acknowledged=[A, B], arrived=[B, A]), {"out_of_order": 1}),
        (Evidence(said=[A, B, C], acknowledged=[], arrived=[C, A, B]), {"out_of_order": 2}),
        (Evidence(said=[A, say(1, "q")], acknowledged=[A], arrived=[say(1, "q"), A]), {}),
        (Evidence(said=[A], acknowledged=[A], arrived=[A + b" "]), {"lost": 1, "foreign": 1}),
        (Evidence(said=[A], acknowledged=[A], arrived=[A, B]), {"foreign": 1}),
        (Evidence(said=[A, B], acknowledged=[B, A], arrived=[A, B]), {"misreported": 1}),
        (Evidence(said=[A], acknowledged=[A, B], arrived=[A, B]), {"misreported": 1, "lost": 1, "foreign": 1}),
        (Evidence(said=[A, say(0, more=1)], acknowledged=[], arrived=[]), {"repeated_ids": 1}),
        (Evidence(said=[A, DELETE, B], acknowledged=[DELETE], arrived=[A, DELETE, DELETE, B]), {}),
        (Evidence(said=[A, DELETE, B], acknowledged=[], arrived=[A, DELETE, B, DELETE]), {"undone": 1}),
        (Evidence(said=[A], acknowledged=[A], arrived=[], refused=[A], dead_letters=[A]), {}),
        (Evidence(said=[A], acknowledged=[A], arrived=[], refused=[A]), {"lost": 1}),
        (Evidence(said=[A], acknowledged=[A], arrived=[], dead_letters=[A]), {"lost": 1, "wrongly_buried": 1}),
        (
            # The verdict on A died with its process: it came again, behind B, and was taken.
            Evidence(said=[A, B], acknowledged=[A, B], arrived=[B, A], refused=[A], refused_alone=[A]),
            {},
        ),
        (Evidence(said=[A, B], acknowledged=[A, B], arrived=[B, A], refused=[A, B]), {"out_of_order": 1}),
    ],
)
def test_the_judge(evidence: Evidence, broken: dict[str, int]) -> None:
    """Each kind of broken promise is told from what may happen."""
    assert judge(evidence).broken == broken


def test_the_judge_counts() -> None:
    """What arrived, what of it nobody was told, and what came again."""
    evidence = Evidence(
        said=[A, DELETE, B, C], acknowledged=[A, DELETE, B], arrived=[A, A, DELETE, DELETE, DELETE, B, C]
    )
    findings = judge(evidence)
    assert (findings.acknowledged, findings.arrived, findings.unacknowledged) == (3, 4, 1)
    assert (findings.repeated, findings.repeated_by_id, findings.broken) == (3, 1, {})
