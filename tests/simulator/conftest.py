"""A running simulator, and a client that knows its credentials."""

from collections.abc import AsyncIterator

import aiohttp
import pytest

from cio_batch.simulator import Simulator

from .wire import basic, bearer


@pytest.fixture
async def sim() -> AsyncIterator[Simulator]:
    """Yield a simulator that listens."""
    async with Simulator() as simulator:
        yield simulator


@pytest.fixture
async def client(sim: Simulator) -> AsyncIterator[aiohttp.ClientSession]:
    """Yield an HTTP client with the simulator as its base and the right credentials."""
    async with aiohttp.ClientSession(sim.url, headers=basic("site", "key")) as session:
        yield session


@pytest.fixture
async def app(sim: Simulator) -> AsyncIterator[aiohttp.ClientSession]:
    """Yield an HTTP client with the simulator as its base and the token of its App API."""
    async with aiohttp.ClientSession(sim.url, headers=bearer("app-key")) as session:
        yield session
