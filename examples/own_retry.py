"""``with_retry`` gives a call of your own the same patience: exponential backoff with jitter.

Run it like ``quickstart.py``: ``python examples/own_retry.py``.
"""

import asyncio
import base64

import aiohttp

from cio_batch import RetryOptions, Settings, with_retry


async def main(settings: Settings) -> None:
    """Ask in which region the account lives; try again while the service is unwell, but not after a 401."""
    url = f"{settings.track_origin}/api/v1/accounts/region"
    credentials = base64.b64encode(":".join(settings.require_track()).encode()).decode()
    headers = {"Authorization": f"Basic {credentials}"}

    async with aiohttp.ClientSession(headers=headers, raise_for_status=True) as session:

        async def ask() -> str:
            async with session.get(url) as response:
                return await response.text()

        print(await with_retry(ask, RetryOptions(max_retries=5, base_delay=0.1)))


if __name__ == "__main__":
    asyncio.run(main(Settings.from_env()))
