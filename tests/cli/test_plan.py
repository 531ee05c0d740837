"""The demo's plan and the producers' record."""

from pathlib import Path

import attrs
import pytest

from cio_batch.cli.plan import Plan
from cio_batch.cli.record import RecordWriter, Settled, read_record
from cio_batch.hooks import SettledChunk, SettledOperation
from cio_batch.verdicts import Verdict

PLAN = Plan(events=1_003, people=50, seed=7, starts=(0, 0, 0), batch_size=10, max_pending=100)


def test_a_plan_is_the_same_each_time() -> None:
    """A second process makes the events of the first one."""
    again = Plan.from_content(attrs.asdict(PLAN))

    assert [list(again.events_of(producer)) for producer in range(3)] == [
        list(PLAN.events_of(producer)) for producer in range(3)
    ]


def test_a_persons_numbers_have_no_gaps_and_one_producer() -> None:
    """Rule 1: the count of a person's events says which ones they are."""
    seen: dict[str, int] = {}
    owner: dict[str, int] = {}
    for producer in range(3):
        for person, sequence in PLAN.events_of(producer):
            assert seen.get(person, 0) == sequence
            seen[person] = sequence + 1
            assert owner.setdefault(person, producer) == producer

    assert sum(seen.values()) == 1_003
    assert PLAN.totals() == seen


def test_some_do_more_than_others() -> None:
    """Rule 2: the busiest person has several times the average."""
    assert max(PLAN.totals().values()) > 3 * 1_003 / 50


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Acceptance and verdicts come back, whatever an event holds."""
    body = b'{"identifiers":{"id":"ann"},"id":"A0","attributes":{"sequence":4,"text":"\\t\\n"}}'
    with RecordWriter(tmp_path / "record") as writer:
        writer.settled(SettledChunk((SettledOperation(Verdict.REJECTED, "person.event", body, "invalid", status=207),)))
        writer.accepted(1, 9, {"ann": 5})
        writer.accepted(0, 3, {"bob": 3})

    record = read_record(tmp_path / "record")
    assert record.settled == [Settled("ann", 4, "A0", Verdict.REJECTED, 207)]
    assert record.positions == {0: 3, 1: 9}
    assert record.accepted == {"ann": 5, "bob": 3}


def test_a_broken_record_is_no_evidence(tmp_path: Path) -> None:
    """A line that nobody wrote is an error."""
    (tmp_path / "record").write_bytes(b"settled\tdelivered\n")

    with pytest.raises(ValueError, match="neither about acceptance"):
        read_record(tmp_path / "record")
