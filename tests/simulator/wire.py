"""What the tests say to the simulator, written down once."""

import asyncio
import base64
from collections.abc import Callable
from typing import Any

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
JSON = {"Content-Type": "application/json"}


def basic(user: str, password: str) -> dict[str, str]:
    """Return the header of Basic credentials."""
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


def bearer(token: str) -> dict[str, str]:
    """Return the header of a bearer token."""
    return {"Authorization": f"Bearer {token}"}


def ulid(number: int) -> str:
    """Return the ULID of a number."""
    digits = [ALPHABET[number >> 5 * place & 31] for place in range(26)]
    return "".join(reversed(digits))


def person(action: str, identifier: str = "42", **fields: Any) -> dict[str, Any]:
    """Return a person's operation, the person given by id."""
    return {"type": "person", "action": action, "identifiers": {"id": identifier}, **fields}


def event(identifier: str = "42", number: int = 1, **fields: Any) -> dict[str, Any]:
    """Return an event with the ULID of ``number``."""
    defaults = {"id": ulid(number), "name": "purchase", "timestamp": 1_764_000_000, "attributes": {"n": number}}
    return person("event", identifier, **(defaults | fields))


def thing(action: str, object_id: str = "acme", **fields: Any) -> dict[str, Any]:
    """Return an object's operation."""
    identifiers = {"object_type_id": "1", "object_id": object_id}
    return {"type": "object", "action": action, "identifiers": identifiers, **fields}


def merge(primary: str, secondary: str) -> dict[str, Any]:
    """Return a merge of two people given by id."""
    return {"type": "person", "action": "merge", "primary": {"id": primary}, "secondary": {"id": secondary}}


async def wait_until(condition: Callable[[], object]) -> None:
    """Let the loop run until the condition holds; fail after five seconds."""
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0)
