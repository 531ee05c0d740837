"""An endpoint that swallows batches: counts bytes and answers ``{}``, and does nothing else.

    python benchmarks/sink.py [--port N] [--cpu N]

It prints its port on the first line, and the CPU seconds that it used when its standard input ends.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import sys
import time

_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 3\r\n\r\n{}\n"
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)


class Sink(asyncio.BufferedProtocol):
    """Reads requests with a ``Content-Length`` into one buffer, without ever copying a body."""

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
        """Count what came."""
        if self._missing:
            self._missing -= nbytes
            if self._missing == 0:
                self._transport.write(_ANSWER)
            return
        self._head += bytes(self._buffer[:nbytes])
        head, separator, rest = self._head.partition(b"\r\n\r\n")
        if not separator:
            return
        self._head = b""
        found = _LENGTH.search(head)
        self._missing = int(found[1]) - len(rest) if found else 0
        if self._missing == 0:
            self._transport.write(_ANSWER)


async def main() -> None:
    """Serve until the standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--cpu", type=int, help="the core to run on")
    options = parser.parse_args()
    if options.cpu is not None:
        os.sched_setaffinity(0, {options.cpu})
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Sink, "127.0.0.1", options.port)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    print(f"{time.process_time():.3f}", flush=True)
    server.close()


if __name__ == "__main__":
    asyncio.run(main())
