"""A host in a process of its own, its output, and what a client was told before it ended.

Nothing here sleeps to wait for something: a test waits for a line, for an answer or for the end of the process, each
with a deadline. A process that outlives its test is killed with its whole group, and the output of every child is
in the report of a test that fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import re
import signal
import sys
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import aiohttp

from cio_batch.simulator import Simulator

APPS: Final = Path(__file__).parent / "apps"
_ADDRESS: Final = re.compile(r"http://127\.0\.0\.1:([1-9]\d*)")


class Host:
    """A child process: ``async with Host(sim, "program.py", "forever") as host``.

    Args:
        simulator: Where its trackers send to.
        *arguments: What follows ``python``.
        **variables: Further environment variables.
    """

    def __init__(self, simulator: Simulator, *arguments: str, **variables: str) -> None:
        self._arguments = arguments
        self._environment: Mapping[str, str] = {
            **{name: text for name, text in os.environ.items() if not name.startswith("CUSTOMERIO_")},
            **simulator.environment,
            "PYTHONUNBUFFERED": "1",
            "PYTHONWARNINGS": "always::ResourceWarning",
            **variables,
        }
        self._grown = asyncio.Condition()
        self.lines: list[str] = []

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            *self._arguments,
            cwd=APPS,
            env=self._environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,  # so that the workers of a host can be ended with it
        )
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # the group that this process leads, and nothing else
        await self._process.wait()
        await asyncio.wait([self._reading], timeout=2)
        self._reading.cancel()
        if self._process.stdin is not None:
            self._process.stdin.close()
            with contextlib.suppress(ConnectionError):
                await self._process.stdin.wait_closed()
        print(f"--- {' '.join(self._arguments)} (ended with {self._process.returncode})", *self.lines, sep="\n")  # noqa: T201

    async def _read(self) -> None:
        output = self._process.stdout
        assert output is not None
        while line := await output.readline():
            async with self._grown:
                self.lines.append(line.decode(errors="replace").rstrip("\n"))
                self._grown.notify_all()
        async with self._grown:
            self._grown.notify_all()

    async def line(self, pattern: str, within: float = 8.0) -> re.Match[str]:
        """Return the first match of a pattern in a line of the output, now or later."""
        wanted = re.compile(pattern)
        looked_at = 0
        async with asyncio.timeout(within), self._grown:
            while True:
                for line in self.lines[looked_at:]:
                    if match := wanted.search(line):
                        return match
                looked_at = len(self.lines)
                ended = self._process.stdout is None or self._process.stdout.at_eof()
                assert not ended, f"the process ended without a line like {pattern!r}"
                await self._grown.wait()

    async def url(self, within: float = 8.0) -> str:
        """Return where it listens, as it says itself, once it does: some servers say so before."""
        port = (await self.line(_ADDRESS.pattern))[1]
        async with asyncio.timeout(within):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", int(port))
                except ConnectionRefusedError:
                    await asyncio.sleep(0.02)
                else:
                    writer.close()
                    return f"http://127.0.0.1:{port}"

    def terminate(self) -> float:
        """Send SIGTERM, as an orchestrator does; return the monotonic time of it."""
        self._process.send_signal(signal.SIGTERM)
        return time.monotonic()

    def interrupt(self) -> None:
        """Send SIGINT, as Ctrl-C does."""
        self._process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """Send SIGKILL, as a kernel out of memory does."""
        self._process.kill()

    def terminate_all(self) -> None:
        """Send SIGTERM to it and its workers at once, as systemd does."""
        os.killpg(self._process.pid, signal.SIGTERM)

    async def tell(self, text: str) -> None:
        """Write a line to its standard input."""
        assert self._process.stdin is not None
        self._process.stdin.write(text.encode() + b"\n")
        await self._process.stdin.drain()

    @property
    def is_running(self) -> bool:
        """Whether the process has not ended."""
        return self._process.returncode is None

    async def exit_code(self, within: float = 8.0) -> int:
        """Wait for the end; return the exit code, negative for a signal."""
        async with asyncio.timeout(within):
            code = await self._process.wait()
            await asyncio.wait([self._reading])
            return code


class Acknowledgements:
    """What HTTP clients were told by a host, person by person.

    Args:
        refusals: Whether a host may answer 500 to a call; then its client goes away.
    """

    def __init__(self, *, refusals: bool = False) -> None:
        self._refusals = refusals
        self.answered: dict[str, list[int]] = defaultdict(list)
        self.unanswered: dict[str, list[int]] = defaultdict(list)

    def __len__(self) -> int:
        return sum(map(len, self.answered.values()))

    @contextlib.asynccontextmanager
    async def collecting(self, url: str, people: int = 4) -> AsyncIterator[None]:
        """Let one client for each person call ``/track``, one call after the other, until the host hangs up."""
        async with asyncio.TaskGroup() as clients:
            tasks = [clients.create_task(self._call(url, f"person-{number}")) for number in range(people)]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()

    async def _call(self, url: str, person: str) -> None:
        # One connection for each person, and no repeats by the client: the events of a person are enqueued in one
        # process and each of them once, which is all that a tracker can answer for.
        async with aiohttp.ClientSession(url) as session:
            for number in itertools.count():
                self.unanswered[person] = [number]
                try:
                    async with session.post("/track", params={"person": person, "n": str(number)}) as response:
                        if self._refusals and response.status == 500:
                            return
                        assert response.status == 200, response.status
                        await response.read()
                except (aiohttp.ClientError, ConnectionError):
                    return
                self.answered[person].append(number)
                self.unanswered[person] = []
                if response.headers.get("Connection") == "close":
                    return

    def assert_arrived(self, simulator: Simulator) -> None:
        """Check that each acknowledged event arrived exactly once, in the order of its person.

        A call that the host cut off may or may not have been taken; nobody was told.
        """
        assert len(self) > 0
        for person, numbers in self.answered.items():
            arrived = numbers_of(simulator, person)
            assert arrived[: len(numbers)] == numbers, person
            assert arrived[len(numbers) :] in ([], self.unanswered[person]), person


def numbers_of(simulator: Simulator, person: str) -> list[int]:
    """Return the numbers of a person's events, in the order in which they were applied."""
    return [event["attributes"]["n"] for event in simulator.workspace.person("id", person).events]


def events_in(simulator: Simulator) -> int:
    """Count the events that the service has, repeats not counted."""
    return simulator.workspace.applied["person.event"]


@contextlib.asynccontextmanager
async def open_stream(url: str) -> AsyncGenerator[aiohttp.StreamReader]:
    """Open ``/stream`` and read its first line; the answer stays open."""
    async with aiohttp.ClientSession() as session, session.get(f"{url}/stream") as response:
        assert await response.content.readline() == b"open\n"
        yield response.content
