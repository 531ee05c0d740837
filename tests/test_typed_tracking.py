"""Typed events through the tracker and real HTTP, and a taxonomy at its door."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cio_batch import (
    CioBatchTracker,
    CioEvent,
    ConfigurationError,
    Draft,
    Email,
    EventSchemaError,
    InvalidOperationError,
    Settings,
    Taxonomy,
    TrackerClosedError,
    TypedCioClient,
    UserAttributes,
    operations,
)
from cio_batch.simulator import Simulator
from cio_batch.transports import TrackV1Transport

from .conftest import assert_conserved, settings_for

ULID = "01ARZ3NDEKTSV4RRFFQ69G5FAV"


class SignedUp(CioEvent, name="signed_up"):
    method: Literal["email", "sso"]
    source: str | None = None


class PlanChanged(CioEvent, name="plan_changed"):
    from_: str
    to: str
    mrr: float


class Opened(CioEvent, name="opened"):
    pass


AppEvent = SignedUp | PlanChanged | Opened
TAXONOMY = Taxonomy(AppEvent)
CHANGED = PlanChanged(from_="free", to="pro", mrr=49.0)
DATA = {"from": "free", "to": "pro", "mrr": 49.0}


def seen(sim: Simulator, person: str = "u") -> list[tuple[str, dict[str, object]]]:
    """Names and data of a person's events, in order."""
    return [(event["name"], event.get("attributes", {})) for event in sim.workspace.person("id", person).events]


async def enqueue_in_every_way(tracker: CioBatchTracker[Any]) -> None:
    await tracker.enqueue("u", CHANGED)
    tracker.enqueue_nowait("u", CHANGED)
    await asyncio.wrap_future(await asyncio.to_thread(tracker.enqueue_threadsafe, "u", CHANGED))
    await tracker.submit(operations.event("u", CHANGED))
    await tracker.enqueue("u", Opened())


async def test_a_typed_event_arrives_as_it_was_said(sim: Simulator) -> None:
    """Name, data, id and timestamp reach the service, whichever way it is enqueued."""
    async with CioBatchTracker[AppEvent](settings_for(sim)) as tracker:
        await tracker.enqueue(Email("a@example.com"), CHANGED, timestamp=1_700_000_000, id=ULID)
        await enqueue_in_every_way(tracker)
    [event] = sim.workspace.person("email", "a@example.com").events
    assert (event["id"], event["timestamp"], event["attributes"]) == (ULID, 1_700_000_000, DATA)
    assert seen(sim) == [*[("plan_changed", DATA)] * 4, ("opened", {})]
    assert assert_conserved(tracker).delivered == 6


@pytest.mark.parametrize("guard", ["hook", "taxonomy", "v1"])
async def test_a_typed_event_arrives_on_the_way_of_drafts(guard: str, sim: Simulator) -> None:
    """With a hook, a taxonomy or another wire before it, an event is the same."""
    settings = settings_for(sim)
    arguments: dict[str, Any] = {
        "hook": {"before_enqueue": lambda draft: draft},
        "taxonomy": {"taxonomy": TAXONOMY},
        "v1": {"transport": TrackV1Transport(settings)},
    }[guard]
    async with CioBatchTracker[AppEvent](settings, **arguments) as tracker:
        await enqueue_in_every_way(tracker)
    assert seen(sim) == [*[("plan_changed", DATA)] * 4, ("opened", {})]
    assert_conserved(tracker)


async def test_a_hook_sees_a_typed_event_as_a_dict(sim: Simulator) -> None:
    """So a redaction that was written for plain events works for typed ones, and for attributes."""
    drafts: list[Draft] = []

    def look(draft: Draft) -> Draft:
        drafts.append(draft)
        return draft

    async with CioBatchTracker(settings_for(sim), before_enqueue=look) as tracker:
        await tracker.enqueue("u", CHANGED)
        await tracker.identify("u", UserAttributes(email="a@example.com", extra={"age": 7}))
    assert [draft.attributes for draft in drafts] == [DATA, {"email": "a@example.com", "age": 7}]
    assert sim.workspace.person("id", "u").attributes == {"email": "a@example.com", "age": 7}


async def test_a_name_that_is_no_name_is_refused_as_before(sim: Simulator) -> None:
    """Neither the class of an event nor an event with data beside it is a name."""
    async with CioBatchTracker(settings_for(sim)) as tracker:
        for name, data in ((PlanChanged, None), (CHANGED, {"to": "pro"}), (5, None), (None, {})):
            with pytest.raises(InvalidOperationError, match="name: must be text"):
                await tracker.enqueue("u", name, data)  # type: ignore[call-overload]
            with pytest.raises(InvalidOperationError, match="name: must be text"):
                tracker.enqueue_nowait("u", name, data)  # type: ignore[call-overload]
    assert assert_conserved(tracker).accepted == 0


async def test_an_event_is_no_attributes(sim: Simulator) -> None:
    """What somebody did does not become what somebody is."""
    async with CioBatchTracker(settings_for(sim)) as tracker:
        with pytest.raises(InvalidOperationError, match=r"attributes: .* got PlanChanged, which is an event"):
            await tracker.identify("u", CHANGED)
    assert assert_conserved(tracker).accepted == 0


async def test_a_typed_event_is_refused_by_a_closed_tracker(sim: Simulator) -> None:
    """Like any other."""
    async with CioBatchTracker(settings_for(sim)) as tracker:
        pass
    with pytest.raises(TrackerClosedError):
        await tracker.enqueue("u", CHANGED)


# ------------------------------------------------------------------------------------------------------- the door


async def test_a_strict_tracker_refuses_what_contradicts_its_taxonomy(sim: Simulator) -> None:
    """On every way in; nothing is queued."""
    wrong: list[tuple[str, Any]] = [("plan_changed", {"from": "free"}), ("plan_chnged", DATA), ("opened", {"x": 1})]
    async with CioBatchTracker[AppEvent](settings_for(sim), taxonomy=TAXONOMY) as tracker:
        for name, data in wrong:
            with pytest.raises(EventSchemaError):
                await tracker.enqueue("u", name, data)
            with pytest.raises(EventSchemaError):
                tracker.enqueue_nowait("u", name, data)
            with pytest.raises(EventSchemaError):
                await asyncio.to_thread(tracker.enqueue_threadsafe, "u", name, data)
            for draft in (operations.event("u", name, data), operations.anonymous_event("cookie", name, data)):
                with pytest.raises(EventSchemaError):
                    await tracker.submit(draft)
        await tracker.enqueue("u", "plan_changed", DATA)
        await tracker.page("u", "/pricing", {"anything": 1})
        await tracker.identify("u", {"anything": 1})
        with pytest.raises(InvalidOperationError, match="must be text, got int"):
            await tracker.enqueue("u", 5)  # type: ignore[call-overload]
        with pytest.raises(InvalidOperationError, match="got dict"):
            await tracker.submit({"name": "opened"})  # type: ignore[arg-type]
    assert assert_conserved(tracker).delivered == 3
    assert seen(sim)[0] == ("plan_changed", DATA)


async def test_a_typed_event_that_is_not_in_the_taxonomy_is_refused(sim: Simulator) -> None:
    """The type checker says so first, if somebody asks it."""

    class Elsewhere(CioEvent, name="elsewhere"):
        pass

    async with CioBatchTracker[AppEvent](settings_for(sim), taxonomy=TAXONOMY) as tracker:
        with pytest.raises(EventSchemaError) as caught:
            await tracker.enqueue("u", Elsewhere())  # type: ignore[call-overload]
    assert caught.value.event == "elsewhere"


async def test_a_lenient_tracker_warns_once_for_each_name(sim: Simulator, caplog: pytest.LogCaptureFixture) -> None:
    """The event is taken all the same; the warning has names and types, no content."""
    async with CioBatchTracker(settings_for(sim), taxonomy=TAXONOMY, strict=False) as tracker:
        with caplog.at_level(logging.WARNING, "cio_batch.tracker"):
            for _ in range(3):
                await tracker.enqueue("u", "plan_changed", {"from": "s3cr3t", "to": 5, "mrr": 1})
                tracker.enqueue_nowait("u", "opend")
                await tracker.enqueue("u", "opened")
    assert [record.getMessage() for record in caplog.records] == [
        "an event contradicts the taxonomy and is taken all the same: plan_changed.to: expected str, got int",
        "an event contradicts the taxonomy and is taken all the same: "
        "opend: expected an event of the taxonomy (did you mean 'opened'?), got an unknown one",
    ]
    assert assert_conserved(tracker).delivered == 9


async def test_warnings_have_a_bound(sim: Simulator, caplog: pytest.LogCaptureFixture) -> None:
    """A program that puts ids into names fills neither memory nor log."""
    async with CioBatchTracker(settings_for(sim), taxonomy=TAXONOMY, strict=False) as tracker:
        for number in range(1_100):
            await tracker.enqueue("u", f"seen {number}")
        assert len(tracker._validator.told) == 1_000  # type: ignore[union-attr]
    assert sum(record.name == "cio_batch.tracker" for record in caplog.records) == 1_000


async def test_the_taxonomy_sees_what_was_said_and_not_what_a_hook_made_of_it(sim: Simulator) -> None:
    """A redaction may put text where a number was."""

    def redact(draft: Draft) -> Draft:
        draft.attributes = {**draft.attributes, "mrr": "***"}
        return draft

    async with CioBatchTracker(settings_for(sim), taxonomy=TAXONOMY, before_enqueue=redact) as tracker:
        await tracker.enqueue("u", CHANGED)
    assert seen(sim) == [("plan_changed", {"from": "free", "to": "pro", "mrr": "***"})]


@pytest.mark.parametrize("kind", [CioBatchTracker, TypedCioClient])
def test_a_taxonomy_that_is_none_is_a_configuration_error(kind: Any) -> None:
    """The union must be wrapped."""
    with pytest.raises(ConfigurationError, match="taxonomy must be a Taxonomy, got UnionType") as caught:
        kind(Settings(site_id="s", track_api_key="k"), taxonomy=AppEvent)
    assert caught.value.variables == ("taxonomy",)


# -------------------------------------------------------------------------------------------------- direct calls


async def test_a_strict_client_refuses_what_contradicts_its_taxonomy(sim: Simulator) -> None:
    """No call is made; what fits is sent, stamped after it was checked."""

    class Elsewhere(CioEvent, name="elsewhere"):
        pass

    wrong: list[tuple[Any, Any]] = [
        ("plan_changed", {"from": "free"}),
        ("plan_changed", DATA | {"mrr": "49"}),
        ("plan_chnged", DATA),
        ("opened", {"tracked_at": 1}),
        (Elsewhere(), None),
    ]
    async with TypedCioClient[AppEvent](settings_for(sim), taxonomy=TAXONOMY) as client:
        for name, data in wrong:
            with pytest.raises(EventSchemaError):
                await client.track("u", name, data)
            with pytest.raises(EventSchemaError):
                await client.track_anonymous("cookie", name, data)
        with pytest.raises(InvalidOperationError, match="must be text, got int"):
            await client.track("u", 5)  # type: ignore[call-overload]
        assert sim.traffic.calls == 0
        await client.track("u", CHANGED)
        await client.track("u", "plan_changed", DATA)
        await client.track_anonymous("cookie", "opened")
        await client.page("u", "/pricing", {"anything": 1})
    assert [{**data, "tracked_at": 0} for _, data in seen(sim)[:2]] == [DATA | {"tracked_at": 0}] * 2
    assert sim.traffic.calls == 4


async def test_a_lenient_client_warns_once_for_each_name(sim: Simulator, caplog: pytest.LogCaptureFixture) -> None:
    """The event is sent all the same; the warning has names and types, no content."""
    async with TypedCioClient(settings_for(sim), taxonomy=TAXONOMY, strict=False, tracked_at=False) as client:
        for _ in range(3):
            await client.track("u", "plan_changed", {"from": "s3cr3t", "to": 5, "mrr": 1})
            await client.track("u", "opened")
    assert [record.getMessage() for record in caplog.records if record.name.startswith("cio_batch")] == [
        "an event contradicts the taxonomy and is sent all the same: plan_changed.to: expected str, got int"
    ]
    assert len(seen(sim)) == 6


@given(st.text(max_size=5), st.text(max_size=5), st.floats(allow_nan=False, allow_infinity=False))
def test_typed_and_plain_are_the_same_operation(before: str, after: str, mrr: float) -> None:
    """Whatever the values, a typed event has the bytes of its dict."""
    typed = operations.event("u", PlanChanged(from_=before, to=after, mrr=mrr), timestamp=1, id=ULID)
    plain = operations.event("u", "plan_changed", {"from": before, "to": after, "mrr": mrr}, timestamp=1, id=ULID)
    assert operations.encode(typed, now=0.0, new_id=str) == operations.encode(plain, now=0.0, new_id=str)
