"""A user's program: it uses every public name, type checks in strict mode, and runs against the simulator."""

from __future__ import annotations

import asyncio
import concurrent.futures
import datetime as dt
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, assert_never, assert_type

import cio_batch
from cio_batch import (
    AnonymousId,
    ApiError,
    CioBatchError,
    CioBatchTracker,
    CioId,
    CioObjectId,
    ConfigurationError,
    DeliveryError,
    DeliveryId,
    Draft,
    Email,
    HttpOptions,
    InvalidOperationError,
    ObjectId,
    Phone,
    QueueFullError,
    Relationship,
    Report,
    RetryOptions,
    Settings,
    SettledChunk,
    SettledOperation,
    Stats,
    TrackerClosedError,
    UnreachableError,
    Verdict,
    WrongLoopError,
    operations,
    simulator,
    with_retry,
)
from cio_batch.simulator import Fault, Faults, Kind, Object, Options, Person, Simulator, Traffic, Workspace
from cio_batch.transports import Call, DiscardTransport, TrackV1Transport, TrackV2Transport, Transport
from cio_batch.verdicts import Judgement

log = logging.getLogger("shop")

ULID = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
ACME = ObjectId("1", "acme")
PATIENT = RetryOptions(max_retries=20, base_delay=0.01, max_delay=0.1, jitter="full")


@dataclass
class Purchase:
    """A typed event of this program's own taxonomy."""

    sku: str
    total: float


# ------------------------------------------------------------------------------------------------------------ hooks

dead_letters: list[SettledOperation] = []


def keep_dead_letters(chunk: SettledChunk) -> None:
    """Remember what was not delivered."""
    for one in chunk.operations:
        match one.verdict:
            case Verdict.DELIVERED:
                continue
            case Verdict.REJECTED | Verdict.FAILED:
                dead_letters.append(one)
            case Verdict.DROPPED:
                log.info("dropped %s %s after %d attempts", one.kind, one.id, one.attempts)
            case _:
                assert_never(one.verdict)


async def tell_somebody(chunk: SettledChunk) -> None:
    """Do the same in a coroutine."""
    await asyncio.sleep(0)
    keep_dead_letters(chunk)


def redact(draft: Draft) -> Draft | None:
    """Drop what concerns staff, and take phone numbers out of profiles."""
    if isinstance(draft.subject, Email) and draft.subject.value.endswith("@staff.example"):
        return None
    if draft.kind == "person.identify" and draft.attributes is not None:
        profile: dict[str, Any] = draft.attributes
        draft.attributes = profile | {"phone": None}
    return draft


# -------------------------------------------------------------------------------------------------------- transports


class Slowed:
    """A transport of the user's own: another one, one chunk at a time."""

    def __init__(self, inner: Transport) -> None:
        self._inner = inner
        self._lock = asyncio.Lock()
        self.max_operations = inner.max_operations
        self.max_bytes = inner.max_bytes
        self.envelope_bytes = inner.envelope_bytes
        self.apart = inner.apart
        self.max_apart = inner.max_apart
        self.check = inner.check

    async def send(self, operations: Sequence[operations.Operation], call: Call) -> Judgement:
        """Send a chunk once nobody else does."""
        async with self._lock:
            if call.attempt > 10:
                return Judgement(0, reason="patience is over")
            return await self._inner.send(operations, call)

    async def close(self) -> None:
        """Close the other one."""
        await self._inner.close()


def choose(wire: str, settings: Settings) -> Transport:
    """Choose a wire by its name."""
    if wire == "v1":
        return TrackV1Transport(settings)
    if wire == "v2":
        return Slowed(TrackV2Transport(settings))
    return DiscardTransport()


# -------------------------------------------------------------------------------------------------------- operations


def about_people() -> list[Draft]:
    """Everything that can be said of people."""
    person: operations.PersonId = Email("ada@example.com")
    platform: operations.Platform = "ios"
    metric: operations.DeliveryMetric = "opened"
    now = dt.datetime.now(dt.UTC)
    drafts = [
        operations.event("u-1", "bought", Purchase("a-1", 12.5), timestamp=now, id=ULID),
        operations.page(person, "/pricing", {"url": "https://example.com/pricing"}),
        operations.screen(Phone("+15551234567"), "Home"),
        operations.anonymous_event("cookie-1", "looked", action="page"),
        operations.identify(CioId("03000001"), {"plan": "pro"}, relationships=[ACME]),
        operations.add_device("u-1", "token-1", platform, last_used=now, attributes={"app_version": "1.2"}),
        operations.delete_device("u-1", "token-1"),
        operations.add_relationships("u-1", [Relationship(ACME, {"role": "admin"}), CioObjectId("ob1")]),
        operations.delete_relationships("u-1", [ACME]),
        operations.merge("u-1", "u-2"),
        operations.suppress("u-3"),
        operations.unsuppress("u-3"),
        operations.delete("u-4"),
        operations.delivery_event("d-1", metric, "token-1"),
        Draft(kind="delivery.event", subject=DeliveryId("d-2"), name="opened", attributes={"device_token": "t"}),
    ]
    assert {draft.kind for draft in drafts} <= operations.KINDS
    return drafts


def about_objects() -> list[Draft]:
    """Everything that can be said of objects."""
    reference: operations.ObjectRef = ACME
    return [
        operations.identify_object(reference, {"seats": 5}, relationships=["u-1", Relationship("u-2", {"since": 1})]),
        operations.identify_anonymous_object(reference, relationships=[AnonymousId("cookie-1")]),
        operations.add_object_relationships(reference, ["u-1"]),
        operations.delete_object_relationships(reference, ["u-1"]),
        operations.delete_object(reference),
    ]


def fits(draft: Draft) -> bool:
    """Ask whether an operation could be sent, and how large it is, without a tracker."""
    try:
        operation = operations.encode(draft, now=0.0, new_id=lambda: ULID)
        body, key, kind, number = operation.body, operation.key, operation.kind, operation.number
        assert operations.decode(body) == operation == operations.Operation(body, key, kind, number)
        log.info("%r", operations.key_of("user-1"))
    except InvalidOperationError as error:
        log.info("%s %s (%s, %s)", error.field, error.reason, error.limit, error.actual)
        return False
    assert_type(body, bytes)
    named: operations.Key = key[0] if isinstance(key, tuple) else key
    assert_type(number, int)
    log.info("%s: %d of %d bytes, key %r", kind, len(operation), operations.MAX_OPERATION_BYTES, type(named))
    return kind not in operations.FINAL_KINDS | operations.ANONYMOUS_KINDS


def body_by_hand(made: list[operations.Operation]) -> bytes:
    """Join operations into one body, as a transport of one's own would."""
    people = {key for key in operations.keys_of(made) if isinstance(key, str)}
    sizes = operations.running_bytes(made)
    log.info("%d people, %s, %d bytes", len(people), sorted(operations.kinds_of(made)), sizes[-1])
    assert_type(sizes, list[int])
    made[0].number = 1
    return b"[%b]" % operations.join(made)


def encode_by_hand(subject: operations.Subject) -> operations.Operation | None:
    """Encode an event the short way, as a spool of one's own would."""
    if not isinstance(subject, str):
        return None
    return operations.encode_event(subject, "seen", {"n": 1}, None, None, 1_700_000_000.0, lambda: ULID)


def shorten(name: str, attributes: dict[str, str], identifier: str) -> tuple[str, dict[str, str], str]:
    """Cut to the published limits what came from elsewhere."""
    kept = list(attributes.items())[: operations.MAX_ATTRIBUTES]
    return (
        name.encode()[: operations.MAX_NAME_BYTES].decode(errors="ignore"),
        {
            key[: operations.MAX_ATTRIBUTE_NAME_BYTES // 4]: value[: operations.MAX_ATTRIBUTE_VALUE_BYTES // 4]
            for key, value in kept
        },
        identifier[: min(operations.MAX_ID_BYTES, operations.MAX_DECIMAL_DIGITS) // 4],
    )


# --------------------------------------------------------------------------------------------------------- tracking


def connect(url: str) -> Settings:
    """Settings of one's own; ``Settings.from_env()`` reads the environment instead."""
    try:
        http = HttpOptions(total_timeout=5.0, connect_timeout=1.0, read_timeout=5.0)
        return Settings(site_id="site", track_api_key="key", region="eu", track_url=url, http=http)
    except ConfigurationError as error:
        log.critical("fix %s", error.variables)
        raise


async def track(tracker: CioBatchTracker) -> Report:
    """Say a bit of everything, and see to it that it is sent."""
    await tracker.start()
    assert_type(await tracker.enqueue("u-1", "signed_up", {"plan": "pro"}), None)
    tracker.enqueue_nowait(Email("ada@example.com"), "seen", timestamp=1_700_000_000, id=ULID)
    await tracker.page("u-1", "/pricing")
    await tracker.screen("u-1", "Home", Purchase("b", 1))
    await tracker.identify("u-1", {"plan": "pro"}, relationships=[ACME, Relationship(ACME, None)])
    await tracker.add_device("u-1", "token-1", "android")
    await tracker.delete_device("u-1", "token-1")
    await tracker.add_relationships("u-1", [ACME])
    await tracker.delete_relationships("u-1", [ACME])
    await tracker.merge("u-1", CioId("03"))
    await tracker.suppress("u-5")
    await tracker.unsuppress("u-5")
    await tracker.delete("u-6")
    await asyncio.to_thread(from_a_thread, tracker)
    for draft in [*about_people(), *about_objects()]:
        try:
            await tracker.submit(draft)
        except InvalidOperationError as error:
            log.info("this wire cannot say it: %s", error.field)
    report = await tracker.flush(timeout=10.0)
    stats: Stats = tracker.stats()
    assert stats.accepted == stats.delivered + stats.rejected + stats.failed + stats.dropped
    return report


def from_a_thread(tracker: CioBatchTracker) -> None:
    """Track from a thread that has no loop."""
    future: concurrent.futures.Future[None] = tracker.enqueue_threadsafe("u-9", "from_a_thread")
    future.result(timeout=5)


async def track_politely(tracker: CioBatchTracker, user_id: str) -> bool:
    """Track, and act on what may go wrong."""
    try:
        await tracker.enqueue(user_id, "clicked")
    except QueueFullError as error:
        log.warning("slow down: %d operations, %d bytes", error.pending, error.pending_bytes)
    except (TrackerClosedError, WrongLoopError):
        log.warning("too late, or elsewhere")
    except CioBatchError as error:
        log.warning("not tracked: %s", type(error).__name__)
    else:
        return True
    return False


async def call_directly() -> int:
    """Repeat a call of one's own in the way of the library."""
    attempts = 0

    async def call() -> int:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            raise ApiError("busy", status=503, retryable=True, retry_after=0.01)
        if attempts == 2:
            raise UnreachableError("no connection", sent=False)
        return attempts

    try:
        return assert_type(await with_retry(call, PATIENT), int)
    except DeliveryError as error:
        log.warning("given up: %s, %s", error.retryable, error.retry_after)
        raise


# -------------------------------------------------------------------------------------------------------- simulator


def bad_weather() -> Faults:
    """Faults by chance, and one by order."""
    often: Kind = "server_error"
    options: Options = {"retry_after": "0", "partial_share": 0.5}
    faults = Faults({often: 0.2, "rate_limit": 0.1}, seed=7, **options)
    faults.order("latency", latency=0.01)
    drawn: Fault | None = faults.draw()
    assert drawn is not None
    assert drawn.kind in simulator.KINDS
    return faults


def look(workspace: Workspace, traffic: Traffic) -> int:
    """Look at what the service holds."""
    person: Person = workspace.person("id", "u-9")
    thing: Object = workspace.object("1", "gone")
    assert not thing.attributes
    assert traffic.person_overlaps == 0
    return len(person.events)


async def main() -> None:
    """Run all of it against the simulator."""
    log.info("cio_batch %s", cio_batch.__version__)
    async with Simulator(faults=bad_weather()) as sim:
        settings = connect(sim.url)
        for wire in ("v1", "v2", "none"):
            async with CioBatchTracker(
                settings,
                batch_size=50,
                flush_interval=1.0,
                concurrency=2,
                max_pending=1_000,
                max_pending_bytes=1_000_000,
                overflow="raise",
                enqueue_timeout=None,
                retry=PATIENT,
                rate_limit=None,
                drain_timeout=10.0,
                transport=choose(wire, settings),
                handle_sigterm=False,
                on_settled=tell_somebody if wire == "v1" else keep_dead_letters,
                before_enqueue=redact,
            ) as tracker:
                report = await track(tracker)
                assert report.failed == report.left == 0
            assert not await track_politely(tracker, "u-1")
        assert look(sim.workspace, sim.traffic) == 2
    assert not [one for one in dead_letters if one.verdict is Verdict.FAILED]
    assert fits(operations.event("u", "e"))
    assert not fits(operations.event("u", "e" * 101))
    assert encode_by_hand("u") is not None
    assert encode_by_hand(Email("a@b")) is None
    assert shorten("n" * 200, {"a" * 200: "b"}, "i" * 200)[0] == "n" * 100
    assert await call_directly() == 3


if __name__ == "__main__":
    asyncio.run(main())
