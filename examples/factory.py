"""One client of each kind per process: every module asks the factory and gets the same object.

Run it like ``quickstart.py``: ``python examples/factory.py``.
"""

import asyncio

from cio_batch import CioClientFactory, Settings


async def sign_up(person: str) -> None:
    """What one module does: it must know that the person exists."""
    await CioClientFactory.get_track_client().identify(person, {"plan": "free"})
    await CioClientFactory.get_tracker().enqueue(person, "signed_up", {"method": "email"})


async def view(person: str, url: str) -> None:
    """What another module does."""
    await CioClientFactory.get_tracker().page(person, url)


async def main(settings: Settings) -> None:
    """Configure once, use everywhere, close once."""
    CioClientFactory.configure(settings)
    try:
        await sign_up("user-1")
        await view("user-1", "/pricing")
    finally:
        await CioClientFactory.aclose()


if __name__ == "__main__":
    asyncio.run(main(Settings.from_env()))
