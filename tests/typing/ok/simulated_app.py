"""A user's test against the simulated App API: what was sent, and how often it may be."""

from __future__ import annotations

from cio_batch.simulator import AppRates, Broadcast, Message, Simulator


async def look(settings_of: str) -> tuple[list[Message], list[Broadcast]]:
    """Read what the simulator got."""
    async with Simulator(app_api_key=settings_of, app_rates=AppRates(sends_per_second=5)) as sim:
        messages: list[Message] = list(sim.workspace.messages)
        broadcasts: list[Broadcast] = list(sim.workspace.broadcasts)
        kinds: list[str] = [message.kind for message in messages]
        assert not kinds
        return messages, broadcasts
