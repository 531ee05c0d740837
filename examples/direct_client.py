"""Direct calls, each awaited: typed events and attributes, and errors by what one can do. Run like quickstart.py."""

import asyncio

from cio_batch import ApiError, CioEvent, Settings, TypedCioClient, UnreachableError, UserAttributes


class SignedUp(CioEvent, name="signed_up"):
    """Somebody has an account."""

    method: str
    source: str | None = None


class Customer(UserAttributes):
    """What we know of a person."""

    seats: int


async def main(settings: Settings) -> None:
    """Say who a person is and what she did; know after each line that the service has it."""
    async with TypedCioClient[SignedUp, Customer](settings) as client:
        await client.identify("user-1", Customer(email="ada@example.com", plan="pro", seats=5))
        await client.track("user-1", SignedUp(method="email"))
        await client.add_to_segment(3, ["user-1"])
        try:
            await client.submit_form("contact", {"email": "ada@example.com", "topic": "billing"})
        except ApiError as error:
            print("refused:", error.status, [detail.message for detail in error.details])
        except UnreachableError as error:
            print("no answer; it may have arrived:", error.sent)
        print("the account lives in", (await client.region()).region)


if __name__ == "__main__":
    asyncio.run(main(Settings.from_env()))
