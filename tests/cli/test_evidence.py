"""The demo's verdict: true evidence passes, and each way of tampering with it is found."""

from collections.abc import Callable
from typing import Any

import attrs
import pytest

from cio_batch.cli.evidence import Evidence, judge
from cio_batch.cli.record import Settled
from cio_batch.verdicts import Verdict


def true_evidence() -> Evidence:
    """Three events of ann, one of them refused, and two of bob."""
    return Evidence(
        planned={"ann": 3, "bob": 2},
        accepted={"ann": 3, "bob": 2},
        settled=(
            Settled("ann", 0, "A0", Verdict.DELIVERED),
            Settled("bob", 0, "B0", Verdict.DELIVERED),
            Settled("ann", 1, "A1", Verdict.REJECTED, 207),
            Settled("ann", 2, "A2", Verdict.DELIVERED),
            Settled("bob", 1, "B1", Verdict.DELIVERED),
        ),
        arrived={"ann": ((0, "A0"), (2, "A2")), "bob": ((0, "B0"), (1, "B1"))},
        refused=("A1",),
        faults={"latency": 2},
        wanted_faults=("latency",),
    )


def test_true_evidence_passes() -> None:
    """Nothing is broken, and the numbers are those of the evidence."""
    findings = judge(true_evidence())

    assert findings.broken == ()
    assert (findings.accepted, findings.delivered, findings.rejected, findings.refused) == (5, 4, 1, 1)
    assert (findings.lost, findings.out_of_order, findings.given_up) == (0, 0, 0)


def _without(index: int) -> Callable[[Evidence], dict[str, Any]]:
    return lambda true: {"settled": (*true.settled[:index], *true.settled[index + 1 :])}


def _also(*settled: Settled) -> Callable[[Evidence], dict[str, Any]]:
    return lambda true: {"settled": (*true.settled, *settled)}


def _bob_has(*events: tuple[int, str]) -> Callable[[Evidence], dict[str, Any]]:
    return lambda true: {"arrived": {**true.arrived, "bob": events}}


def _given(**fields: Any) -> Callable[[Evidence], dict[str, Any]]:
    return lambda _: fields


@pytest.mark.parametrize(
    ("tamper", "said"),
    [
        pytest.param(_bob_has((0, "B0")), ["lost", "the service does not have them"], id="one vanished"),
        pytest.param(_without(4), ["never got a verdict", "were never reported"], id="one has no verdict"),
        pytest.param(
            _without(2), ["lost", "never got a verdict", "not reported as rejected"], id="a 207 is unreported"
        ),
        pytest.param(_bob_has((1, "B1"), (0, "B0")), ["1 events were applied after a later one"], id="out of order"),
        pytest.param(_bob_has((0, "B0"), (1, "B1"), (1, "B2")), ["twice", "never reported"], id="one came twice"),
        pytest.param(_bob_has((0, "B0"), (1, "B9")), ["service does not have", "never reported"], id="another id"),
        pytest.param(_also(Settled("bob", 1, "B1", Verdict.DELIVERED)), ["more than one verdict"], id="two verdicts"),
        pytest.param(_given(accepted={"ann": 3, "bob": 1}), ["never accepted"], id="one was never accepted"),
        pytest.param(_given(planned={"ann": 3, "bob": 1}), ["never planned"], id="one was never planned"),
        pytest.param(_given(refused=()), ["the service did not refuse them"], id="rejected without reason"),
        pytest.param(_given(refused=("A1", "A9")), ["not reported as rejected"], id="refused in secret"),
        pytest.param(_given(person_overlaps=2), ["2 calls carried a person"], id="two calls at a time"),
        pytest.param(_given(faults={}), ["no call met the fault 'latency'"], id="a fault is missing"),
        pytest.param(_given(complaints=["it ended early"]), ["it ended early"], id="a process misbehaved"),
    ],
)
def test_what_is_broken_is_found(tamper: Callable[[Evidence], dict[str, Any]], said: list[str]) -> None:
    """Each change to the evidence is named."""
    true = true_evidence()
    findings = judge(attrs.evolve(true, **tamper(true)))

    for part in said:
        assert any(part in sentence for sentence in findings.broken), findings.broken


def test_what_was_given_up_is_broken_but_not_lost() -> None:
    """A failed event was told, so it is not lost; but the service had come back."""
    true = true_evidence()
    settled = (*true.settled[:4], Settled("bob", 1, "B1", Verdict.FAILED))
    findings = judge(attrs.evolve(true, settled=settled, arrived={**true.arrived, "bob": [(0, "B0")]}))

    assert findings.lost == 0
    assert findings.broken == ("1 events were given up, although the service came back",)


def test_a_rejected_event_may_have_arrived_by_an_unanswered_call() -> None:
    """The first call was applied and its answer lost, the second one was refused: both are true."""
    true = true_evidence()
    findings = judge(attrs.evolve(true, arrived={**true.arrived, "ann": [(0, "A0"), (1, "A1"), (2, "A2")]}))

    assert findings.broken == ()


def test_a_refused_event_may_arrive_later() -> None:
    """The answer that refused it was lost, and the service took it the next time."""
    true = true_evidence()
    settled = (*true.settled[:2], Settled("ann", 1, "A1", Verdict.DELIVERED), *true.settled[3:])
    arrived = {**true.arrived, "ann": [(0, "A0"), (1, "A1"), (2, "A2")]}

    assert judge(attrs.evolve(true, settled=settled, arrived=arrived)).broken == ()


def test_a_refused_call_explains_one_rejected_event() -> None:
    """A 400 for a call that held a single event rejects it; there are no more of these than refused calls."""
    true = true_evidence()
    settled = (*true.settled[:2], Settled("ann", 1, "A1", Verdict.REJECTED, 400), *true.settled[3:])

    assert judge(attrs.evolve(true, settled=settled, refused=(), refused_calls=1)).broken == ()
    assert judge(attrs.evolve(true, settled=settled, refused=(), refused_calls=0)).broken != ()
