"""The endpoint of ``sink.c`` in Python, for machines without a compiler: it counts less exactly and is slower.

    python benchmarks/sink.py [--port N] [--cpu N] [--latency MS]

It prints its port on the first line, and when its standard input ends what it took, as JSON. GET asks for the counts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import sys
import time
from typing import ClassVar

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
_ANSWER = _HEAD % (2, b"{}")
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)


class Sink(asyncio.BufferedProtocol):
    """Reads requests with a ``Content-Length`` into one buffer, without ever copying a body."""

    counts: ClassVar[dict[str, float]] = {"events": 0, "calls": 0, "bytes": 0}
    latency: ClassVar[float] = 0.0

    def __init__(self) -> None:
        self._buffer = bytearray(1 << 20)
        self._head = b""
        self._missing = 0  # bytes of the current body that have not come yet; 0: a head is being read

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport to answer on."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def get_buffer(self, sizehint: int) -> bytearray:
        """Offer the whole buffer."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Count what came. An event that lies across two reads is not counted."""
        self.counts["bytes"] += nbytes
        self.counts["events"] += self._buffer.count(b'{"type":"', 0, nbytes)
        if self._missing:
            self._missing -= nbytes
            if self._missing == 0:
                self._answer()
            return
        self._head += bytes(self._buffer[:nbytes])
        head, separator, rest = self._head.partition(b"\r\n\r\n")
        if not separator:
            return
        self._head = b""
        if head.startswith(b"GET"):
            text = json.dumps({**self.counts, "cpu_seconds": time.process_time()}).encode()
            self._transport.write(_HEAD % (len(text), text))
            return
        found = _LENGTH.search(head)
        self._missing = int(found[1]) - len(rest) if found else 0
        if self._missing == 0:
            self._answer()

    def _answer(self) -> None:
        self.counts["calls"] += 1
        if self.latency:
            asyncio.get_running_loop().call_later(self.latency, self._transport.write, _ANSWER)
        else:
            self._transport.write(_ANSWER)


async def main() -> None:
    """Serve until the standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--cpu", type=int, help="the core to run on")
    parser.add_argument("--latency", type=float, default=0.0, help="milliseconds until it answers")
    options = parser.parse_args()
    if options.cpu is not None:
        os.sched_setaffinity(0, {options.cpu})
    Sink.latency = options.latency / 1_000
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Sink, "127.0.0.1", options.port)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    print(json.dumps({**Sink.counts, "cpu_seconds": time.process_time()}), flush=True)
    server.close()


if __name__ == "__main__":
    asyncio.run(main())
