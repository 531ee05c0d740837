"""``before_enqueue`` sees each operation before it is encoded: change it, or return ``None`` to drop it.

Run it like ``quickstart.py``: ``python examples/redaction.py``.
"""

import asyncio
from collections.abc import Mapping
from typing import cast

from cio_batch import CioBatchTracker, Draft, Settings

SECRET = {"password", "card_number"}


def redact(draft: Draft) -> Draft | None:
    """Let no secret out, and nothing at all of internal test users."""
    if isinstance(draft.subject, str) and draft.subject.startswith("test-"):
        return None
    if isinstance(draft.attributes, Mapping):
        attributes = cast("Mapping[str, object]", draft.attributes)
        draft.attributes = {name: "***" if name in SECRET else value for name, value in attributes.items()}
    return draft


async def main(settings: Settings) -> None:
    """Send a card number that never leaves the process."""
    async with CioBatchTracker(settings, before_enqueue=redact) as tracker:
        await tracker.enqueue("user-1", "paid", {"amount": 12, "card_number": "4111 1111 1111 1111"})
        await tracker.enqueue("test-7", "paid", {"amount": 99})
    print(tracker.stats().dropped, "dropped")


if __name__ == "__main__":
    asyncio.run(main(Settings.from_env()))
