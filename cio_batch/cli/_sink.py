"""The service that ``tune`` measures against unless it is told otherwise: it takes every call and answers ``{}``.

    python -m cio_batch.cli._sink [--latency S] [--rate-limit N] [--count TEXT]

It prints its port on the first line, and what it counted, as JSON, when its standard input ends. A simulator looks at
every operation, which takes it longer than the tracker takes to send them; this one looks at none.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import re
import sys
import time
from typing import Final

from cio_batch.simulator.rates import AppRates, Turnstile

_OK: Final = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 3\r\n\r\n{}\n"
_TOO_MANY: Final = b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"
_LENGTH: Final = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_LEEWAY: Final = 1.1  # calls that were spaced exactly arrive unevenly on a busy machine
_MORE: Final = 5


class _Service:
    """What the connections share: the counts, the latency, the rate limit."""

    def __init__(self, latency: float, rate_limit: float | None, text: bytes) -> None:
        self.text = text
        self.calls = self.refused = self.found = 0
        self._latency = latency
        rates = None if rate_limit is None else AppRates(sends_per_second=math.ceil(rate_limit * _LEEWAY) + _MORE)
        self._turnstile = Turnstile(rates)  # a window that slides over one second, whatever it lets through
        self._loop = asyncio.get_running_loop()

    def answer(self, transport: asyncio.Transport) -> None:
        self.calls += 1
        if self._turnstile.admit_message(self._loop.time()) > 0:
            self.refused += 1
            transport.write(_TOO_MANY)
        elif self._latency:
            self._loop.call_later(self._latency, _write, transport)
        else:
            transport.write(_OK)


def _write(transport: asyncio.Transport) -> None:
    if not transport.is_closing():
        transport.write(_OK)


class _Connection(asyncio.BufferedProtocol):
    """Reads requests with a ``Content-Length``, one after another."""

    def __init__(self, service: _Service) -> None:
        self._service = service
        self._buffer = bytearray(1 << 18)
        self._head = b""
        self._missing = 0  # bytes of the current body that have not come yet; 0: a head is being read
        self._tail = b""  # where the text that is counted may have begun

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._missing:
            self._take(nbytes, memoryview(self._buffer)[:nbytes])
            return
        self._head += self._buffer[:nbytes]
        head, separator, rest = self._head.partition(b"\r\n\r\n")
        if separator:
            self._head = self._tail = b""
            found = _LENGTH.search(head)
            self._missing = int(found[1]) if found else 0
            self._take(len(rest), memoryview(rest))

    def _take(self, nbytes: int, body: memoryview) -> None:
        if text := self._service.text:
            piece = self._tail + body
            self._service.found += piece.count(text)
            self._tail = piece[1 - len(text) :] if len(text) > 1 else b""
        self._missing -= nbytes
        if self._missing <= 0:
            self._missing = 0
            self._service.answer(self._transport)


async def _serve(latency: float, rate_limit: float | None, text: bytes) -> None:
    loop = asyncio.get_running_loop()
    service = _Service(latency, rate_limit, text)
    server = await loop.create_server(lambda: _Connection(service), "127.0.0.1", 0, backlog=4_096)
    used = time.process_time()
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    counts = {"calls": service.calls, "refused": service.refused, "found": service.found}
    print(json.dumps({**counts, "cpu_seconds": round(time.process_time() - used, 3)}), flush=True)
    server.close()


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency", type=float, default=0.0, metavar="S", help="seconds that an answer takes")
    parser.add_argument("--rate-limit", type=float, metavar="N", help="calls in a second above which it answers 429")
    parser.add_argument("--count", default="", metavar="TEXT", help="count how often this comes in the bodies")
    options = parser.parse_args()
    asyncio.run(_serve(options.latency, options.rate_limit, options.count.encode()))


if __name__ == "__main__":
    _main()
