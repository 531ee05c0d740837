"""Direct calls, requests and decorators that are wrong, each in one place."""

from typing import Any

from cio_batch import (
    AppRateLimits,
    CioAppClient,
    CioClientFactory,
    CioEvent,
    EmailRequest,
    InAppRequest,
    PushRequest,
    RetryAttempt,
    RetryOptions,
    Settings,
    SmsRequest,
    TypedCioClient,
    UserAttributes,
    with_retry,
)


class SignedUp(CioEvent, name="signed_up"):
    """An event."""

    method: str


class Elsewhere(CioEvent, name="elsewhere"):
    """An event that is no part of the taxonomy."""

    n: int


class Customer(UserAttributes):
    """A user's attributes."""

    seats: int


@with_retry
async def fetch(page: int) -> bytes:
    """Repeats itself."""
    return str(page).encode()


@with_retry(RetryOptions())
async def load(page: int) -> str:
    """Repeats itself."""
    return str(page)


class Shop:
    """Has a method that repeats itself."""

    @with_retry
    async def price(self, item: int) -> float:
        """Repeats itself."""
        return item / 2


def wrong_hook(attempt: str) -> None:
    """Expects something else."""


def wrong_track_credentials() -> str:
    """Returns the key alone."""
    return "key"


async def direct(client: TypedCioClient[SignedUp, Customer]) -> None:
    """What a typed client does not take."""
    await client.track("u", Elsewhere(n=1))  # error
    await client.track("u", SignedUp(method="email"), {"n": 1})  # error
    await client.track(7, "bought")  # error
    await client.track("u", 7)  # error
    await client.track_anonymous("cookie", Elsewhere(n=1))  # error
    await client.identify("u", UserAttributes(email="a@example.com"))  # error
    await client.identify("u", 7)  # error
    await client.page("u", SignedUp(method="email"))  # error
    await client.add_device("u", "token", "palm")  # error
    await client.add_to_segment("3", ["u"])  # error
    await client.add_to_segment(3, ["u"], id_type="phone")  # error
    await client.submit_form("contact", {"id": 7})  # error
    await client.report_metric("d", "read")  # error
    client.is_open = True  # error
    number: int = (await client.region()).region  # error
    _ = number


async def messages(client: CioAppClient) -> None:
    """What a request and its call do not take."""
    EmailRequest(transactional_message_id=1, identifiers="u")  # error
    EmailRequest("a@example.com")  # error
    EmailRequest(to="a@example.com", attachments={"a.txt": "text"})  # error
    SmsRequest(transactional_message_id=1, identifiers="u")  # error
    PushRequest(transactional_message_id=1, identifiers="u", sound="loud")  # error
    request = InAppRequest(transactional_message_id=1, identifiers="u", tracked=True)  # error
    await client.send_email(request)  # error
    await client.trigger_broadcast("1", ids=["u"])  # error
    await client.trigger_broadcast(1, ids=[1])  # error
    AppRateLimits(sends="100")  # error
    CioAppClient(retry=3)  # error


async def retries() -> None:
    """What a decorated function does not take."""
    await fetch("1")  # error
    await load()  # error
    await Shop().price("1")  # error
    await with_retry(fetch, RetryOptions())  # error
    with_retry(RetryOptions(), on_retry=wrong_hook)  # error
    with_retry(3)  # error
    text: str = await fetch(1)  # error
    _ = text


def shared(attempt: RetryAttempt, narrow: TypedCioClient[SignedUp]) -> None:
    """What the factory, the settings and the hook do not take."""
    wide: TypedCioClient[CioEvent] = narrow  # error
    CioClientFactory.configure(tracker=CioAppClient)  # error
    TypedCioClient(taxonomy=SignedUp)  # error
    Settings(track_credentials=wrong_track_credentials)  # error
    Settings(app_credentials="key")  # error
    attempt.attempt = 2  # error
    found: Any = wide
    _ = found
