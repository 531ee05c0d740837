"""A user's direct calls: they type check in strict mode, and the program runs against the simulator."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, assert_type

from cio_batch import (
    AccountRegion,
    ApiError,
    AppRateLimits,
    BroadcastReceipt,
    CioAppClient,
    CioBatchTracker,
    CioClientFactory,
    CioEvent,
    CioId,
    DeliveryError,
    Email,
    EmailRequest,
    ErrorDetail,
    InAppRequest,
    InboxMessageRequest,
    MessageReceipt,
    ObjectId,
    PushRequest,
    RetryAttempt,
    RetryOptions,
    SendOutcomeUnknownError,
    Settings,
    SmsRequest,
    Taxonomy,
    TypedCioClient,
    UnreachableError,
    UserAttributes,
    WhatsAppRequest,
    operations,
    with_retry,
)
from cio_batch.simulator import Simulator

QUICK = RetryOptions(max_retries=2, base_delay=0.01, max_elapsed=10.0)


class SignedUp(CioEvent, name="signed_up"):
    """An event."""

    method: str


class PlanChanged(CioEvent, name="plan_changed"):
    """Another one."""

    from_: str
    to: str


class Customer(UserAttributes):
    """A user's attributes."""

    seats: int


AppEvent = SignedUp | PlanChanged


def tell(attempt: RetryAttempt) -> None:
    """A hook."""
    assert_type(attempt.attempt, int)
    assert_type(attempt.wait, float)
    assert_type(attempt.error, Exception)


@with_retry
async def fetch(page: int, *, size: str = "s") -> bytes:
    """Repeats itself."""
    return f"{page}{size}".encode()


@with_retry(QUICK, retry_if=lambda error: isinstance(error, OSError), on_retry=tell)
async def load(page: int) -> str:
    """Repeats itself by rules of its own."""
    return str(page)


@with_retry(options=QUICK)
async def ask() -> int:
    """Repeats itself, too."""
    return 1


class Shop:
    """Has methods that repeat themselves."""

    @with_retry
    async def price(self, item: int) -> float:
        """Without arguments of the decorator."""
        return item / 2

    @with_retry(QUICK)
    async def stock(self, item: int) -> int:
        """With them."""
        return item


async def retries() -> None:
    """Every form keeps its types."""
    assert_type(await fetch(1, size="x"), bytes)
    assert_type(await load(page=1), str)
    assert_type(await ask(), int)
    assert_type(await Shop().price(1), float)
    assert_type(await Shop().stock(1), int)
    assert_type(await with_retry(ask), int)
    assert_type(await with_retry(lambda: load(1), QUICK, on_retry=tell), str)
    assert_type(await asyncio.create_task(with_retry(ask, QUICK)), int)
    later: Callable[[int], Coroutine[Any, Any, str]] = load
    assert_type(await later(2), str)


async def direct(settings: Settings) -> None:
    """Typed and plain calls side by side."""
    async with TypedCioClient[AppEvent, Customer](
        settings,
        retry=QUICK,
        tracked_at=False,
        last_seen_at=False,
        concurrency=5,
        taxonomy=Taxonomy(AppEvent),
        strict=False,
    ) as client:
        assert_type(client, TypedCioClient[AppEvent, Customer])
        await client.identify("u", Customer(email="a@example.com", seats=5), relationships=[ObjectId("1", "acme")])
        await client.identify(Email("a@example.com"), {"plan": "pro"}, timestamp=1_764_000_000)
        await client.identify(CioId("03"))
        await client.track("u", SignedUp(method="email"), timestamp=1_764_000_000)
        await client.track("u", PlanChanged(from_="free", to="pro"))
        await client.track("u", "bought", {"n": 1})
        await client.track(user_id="u", name="bought", data={"n": 1})
        await client.track_anonymous("cookie", SignedUp(method="email"))
        await client.track_anonymous("cookie", "looked")
        await client.page("u", "/pricing")
        await client.screen("u", "Home", {"n": 1})
        await client.add_device("u", "token", "ios", attributes={"app": "1"})
        await client.delete_device("u", "token")
        await client.add_to_segment(3, ["u"])
        await client.remove_from_segment(3, {"a@example.com"}, id_type="email")
        await client.submit_form("contact", {"id": "u", "topic": "?"})
        await client.report_metric("d", "clicked", href="https://x.example")
        await client.unsubscribe("d")
        await client.merge("u", "v")
        await client.suppress("v")
        await client.unsuppress("v")
        await client.destroy("v")
        assert_type(await client.region(), AccountRegion)
        assert_type(client.is_open, bool)


async def messages(settings: Settings, file: Path) -> None:
    """Each channel has its request."""
    rates = AppRateLimits(sends=None, broadcasts=1_000.0, calls=None)
    async with CioAppClient(settings, retry=None, rates=rates) as client:
        receipt = await client.send_email(
            EmailRequest(
                to="a@example.com",
                transactional_message_id="welcome",
                identifiers="u",
                message_data={"name": "Ada"},
                attachments={"a.txt": b"x", "b.txt": file},
                tracked=False,
            )
        )
        assert_type(receipt, MessageReceipt)
        assert_type(receipt.delivery_id, str)
        await client.send_email(
            EmailRequest(to="a@example.com", from_="b@example.com", subject="s", body="b", attachments=[file])
        )
        await client.send_push(
            PushRequest(transactional_message_id=1, identifiers=Email("a@example.com"), sound="none")
        )
        await client.send_sms(SmsRequest(to="+15551234567", transactional_message_id=1, identifiers={"id": "u"}))
        await client.send_whatsapp(
            WhatsAppRequest(to="+15551234567", transactional_message_id=1, identifiers=CioId("03"))
        )
        await client.send_inbox_message(InboxMessageRequest(transactional_message_id=1, identifiers="u"))
        await client.send_in_app(InAppRequest(transactional_message_id=1, identifiers="u"))
        assert_type(await client.trigger_broadcast(1, {"n": 1}, ids=["u"]), BroadcastReceipt)


async def errors(settings: Settings, simulator: Simulator) -> None:
    """Each error says what can be done."""
    client = CioAppClient(settings, retry=None)
    try:
        simulator.faults.order("drop_after")
        await client.send_in_app(InAppRequest(transactional_message_id=1, identifiers="u"))
    except SendOutcomeUnknownError as error:
        assert_type(error.reason, str)
        assert_type(error.status, int)
    except ApiError as error:
        assert_type(error.details, tuple[ErrorDetail, ...])
    except UnreachableError as error:
        assert_type(error.sent, bool)
    except DeliveryError as error:
        assert_type(error.retryable, bool)
    finally:
        await client.aclose()


async def shared(settings: Settings) -> None:
    """The factory's clients take the types of a taxonomy without a cast."""
    CioClientFactory.configure(settings, tracker=functools.partial(CioBatchTracker, flush_interval=1.0))
    cio: TypedCioClient[AppEvent, Customer] = CioClientFactory.get_track_client()
    tracker: CioBatchTracker[AppEvent] = CioClientFactory.get_tracker()
    assert_type(CioClientFactory.get_app_client(), CioAppClient)
    await cio.track("u", SignedUp(method="email"))
    await tracker.enqueue("u", SignedUp(method="email"))
    await CioClientFactory.aclose()
    CioClientFactory.reset()


def pure() -> None:
    """What a client is made of is there for others, too."""
    operations.check_id("user_id", "u")
    assert_type(operations.unix_seconds("at", 1.5), int)
    assert_type(operations.encode_json("data", {"n": 1}), bytes)
    assert_type(operations.fields_of("data", {"n": 1}), dict[str, Any])


async def main() -> None:
    """Run everything against a simulator."""
    async with Simulator() as simulator:
        settings = Settings(
            track_credentials=lambda: ("site", "key"),
            app_credentials=lambda: "app-key",
            track_url=simulator.url,
            app_url=simulator.url,
        )
        pure()
        await retries()
        await direct(settings)
        await messages(settings, Path(__file__))
        await errors(settings, simulator)
        await shared(settings)


if __name__ == "__main__":
    asyncio.run(main())
