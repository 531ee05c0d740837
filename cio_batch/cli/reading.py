"""A file or a pipe → numbered lines, block by block, without holding up the loop.

Rules:

1. A block is read in a thread of its own, which nothing waits for at the end of the program: a pipe may stay silent
   for ever, and Ctrl-C must end the program all the same.
2. Lines are counted from 1, empty ones included; only those that hold something come out.
3. A line longer than ``MAX_LINE_BYTES`` comes out empty-handed (``None``), and memory stays bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import AsyncGenerator, Iterator
from typing import Any, Final

from cio_batch.cli.stopping import Stop

BLOCK_BYTES: Final = 256 * 1024
MAX_LINE_BYTES: Final = 1_000_000
"""Thirty times what an operation may have."""

Line = tuple[int, bytes | None]
"""Its number and its bytes; ``None`` for one that is too long."""


class Lines:
    """Splits blocks into lines.

    Attributes:
        ended_bytes: How many bytes the lines have that came out.
        number: The number of the last line that was complete.
        blank: How many lines held nothing.
    """

    def __init__(self) -> None:
        self.ended_bytes = 0
        self.number = 0
        self.blank = 0
        self._rest: list[bytes] = []
        self._rest_bytes = 0
        self._too_long = False

    def split(self, block: bytes) -> Iterator[Line]:
        """Take a block; yield the lines that it completes."""
        *complete, rest = block.split(b"\n")
        for part in complete:
            self._add(part)
            yield from self._end(1)
        self._add(rest)

    def end(self) -> Iterator[Line]:
        """Yield the last line, if it has no end of its own."""
        if self._rest or self._too_long:
            yield from self._end(0)

    def _add(self, part: bytes) -> None:
        self._rest_bytes += len(part)
        if self._rest_bytes > MAX_LINE_BYTES:
            self._too_long = True
            self._rest.clear()
        elif part:
            self._rest.append(part)

    def _end(self, end_bytes: int) -> Iterator[Line]:
        self.number += 1
        self.ended_bytes += self._rest_bytes + end_bytes
        line = None if self._too_long else b"".join(self._rest).strip()
        self._rest.clear()
        self._rest_bytes, self._too_long = 0, False
        if line is None or line:
            yield self.number, line
        else:
            self.blank += 1


async def read_blocks(file: int, stop: Stop) -> AsyncGenerator[bytes]:
    """Read a file descriptor to its end, or until it is time to stop.

    Raises:
        OSError: It cannot be read.
    """
    stopping = asyncio.create_task(stop.wait())
    try:
        while not stop.came:
            reading = _read(file)
            either: set[asyncio.Future[Any]] = {reading, stopping}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                reading.cancel()
                return
            block = reading.result()
            if not block:
                return
            yield block
    finally:
        stopping.cancel()


def _read(file: int) -> asyncio.Future[bytes]:
    loop = asyncio.get_running_loop()
    reading: asyncio.Future[bytes] = loop.create_future()

    def tell(block: bytes, error: OSError | None) -> None:
        if reading.done():
            return
        if error is None:
            reading.set_result(block)
        else:
            reading.set_exception(error)

    def read() -> None:
        block, problem = b"", None
        try:
            # Not a buffered file: its lock would be held by this thread while the interpreter ends.
            block = os.read(file, BLOCK_BYTES)
        except OSError as error:
            problem = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody wants it any more
            loop.call_soon_threadsafe(tell, block, problem)

    threading.Thread(target=read, name="cio-batch read", daemon=True).start()
    return reading
