"""Hostile answers over real sockets, through a whole tracker: no crash, no hang, and no false *delivered*.

What a single call makes of such an answer is tested beside it (``test_http.py``), and what a judgement makes of one
(``test_verdicts.py``); here it is asked what becomes of the operations, on both wires, and with a spool.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import gzip
import json
import logging
import re
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cio_batch import CioBatchTracker, HttpOptions, RetryOptions, Settings, Verdict
from cio_batch.spools import SqliteSpool
from cio_batch.transports import TrackV1Transport

from ..conftest import assert_conserved
from .scripted import Event, Ledger

EVENTS = 4
GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
ENDLESS = 3_000_000  # bytes after which the server has said enough
QUICK = RetryOptions(max_retries=60, base_delay=0.001, max_delay=0.01, max_retry_after=0.05)
_NUMBER = re.compile(rb'"n":(\d+)')


def said(status: int, body: bytes = b"", *headers: str) -> bytes:
    """An answer in bytes."""
    lines = [f"HTTP/1.1 {status} Whatever", *headers, f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


def errors(*entries: Any) -> bytes:
    """The body of a 207."""
    return json.dumps({"errors": list(entries)}).encode()


class Hostile:
    """A server of raw bytes: it answers the first calls as it is told, and from then on as the service should.

    Attributes:
        accepted: Numbers of the events in calls that were answered well.
        calls: How many there were.
    """

    def __init__(self, *answers: bytes) -> None:
        self.answers = list(answers)
        self.accepted: list[int] = []
        self.calls = 0
        self._open: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Hostile:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in list(self._open):
            writer.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
                body = await reader.readexactly(int(length[1])) if length else b""
                self.calls += 1
                if not self.answers:
                    self.accepted += map(int, _NUMBER.findall(body))
                    writer.write(GOOD)
                    await writer.drain()
                    continue
                writer.write(self.answers.pop(0))
                await writer.drain()
                break  # what else the answer promised never comes
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        self._open.discard(writer)


async def ship(server: Hostile, *, wire: str = "v2", spool: Path | None = None) -> Ledger:
    """Send a few events of one person each; every one gets its verdict, once, and soon."""
    options = HttpOptions(total_timeout=5.0, connect_timeout=5.0, read_timeout=5.0)
    chosen = Settings(site_id="site", track_api_key="key", track_url=server.url, http=options)
    ledger = Ledger()
    tracker = CioBatchTracker(
        chosen,
        transport=TrackV1Transport(chosen) if wire == "v1" else None,
        flush_interval=60.0,
        retry=QUICK,
        rate_limit=None,
        spool=None if spool is None else SqliteSpool(spool),
        on_settled=ledger,
        handle_sigterm=False,
    )
    async with asyncio.timeout(20):
        await asyncio.gather(*(tracker.enqueue("u", "e", {"n": n}) for n in range(EVENTS)))
        report = await tracker.flush(timeout=15)
        await tracker.close(timeout=1)
    stats = assert_conserved(tracker)
    assert not ledger.twice
    assert (report.left, stats.pending, stats.in_flight) == (0, 0, 0)
    assert len(ledger.verdicts) == stats.accepted == EVENTS
    return ledger


def delivered(ledger: Ledger) -> set[int]:
    return {n for _, n in ledger.having(Verdict.DELIVERED)}


NOTHING_DECIDED: dict[str, bytes] = {
    "truncated JSON": said(200, b'{"errors":[{"batch_ind'),
    "cut off within its body": b'HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{"errors":',
    "HTML": said(200, b"<html><h1>Welcome to our hotel</h1></html>", "Content-Type: text/html"),
    "JSON that is no object": said(200, b"[]"),
    "a success that speaks of an error": said(200, b'{"meta":{"error":"no"}}'),
    "207 without a body": said(207),
    "207 without errors": said(207, b"{}"),
    "207 with an empty list": said(207, errors()),
    "207 with a dict for a list": said(207, b'{"errors":{"batch_index":0}}'),
    "1 MB of an error": said(500, b"x" * 1_000_000),
    "1 MB of a success": said(200, b" " * 1_000_000 + b"{"),
    "a gzip bomb": said(200, gzip.compress(b" " * 20_000_000, 1), "Content-Encoding: gzip"),
    "a gzip success": said(200, gzip.compress(b"{}"), "Content-Encoding: gzip"),
    "endless headers": b"HTTP/1.1 200 OK\r\n" + b"X-More: and more\r\n" * (ENDLESS // 18),
    "one endless header": b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * ENDLESS,
    "an endless body": b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * ENDLESS,
    "an endless chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffff\r\n" + b"x" * ENDLESS,
    "no HTTP": b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    "nothing": b"",
    "a negative length": b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n{}",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "an interim answer alone": b"HTTP/1.1 100 Continue\r\n\r\n",
    "a redirect nowhere": said(307),
    "a redirect elsewhere": said(307, b"", "Location: https://example.com/"),
    "a redirect to no URL": said(308, b"", "Location: http://["),
    "retry after -1": said(429, b"", "Retry-After: -1"),
    "retry after 1e9": said(503, b"", "Retry-After: 1e9"),
    "retry after nan": said(503, b"", "Retry-After: nan"),
    "retry after a date in the past": said(429, b"", f"Retry-After: {email.utils.formatdate(0, usegmt=True)}"),
    "retry after a date far off": said(429, b"", "Retry-After: Fri, 31 Dec 9999 23:59:59 GMT"),
    "retry after no date": said(503, b"", "Retry-After: Tue, 99 Nov 2023"),
    "the credentials are refused": said(401, b"\xff\xfe"),
}


@pytest.fixture(autouse=True)
def _silence(caplog: pytest.LogCaptureFixture) -> None:
    """Hundreds of faults would be logged."""
    caplog.set_level(logging.CRITICAL, "cio_batch")


@pytest.mark.parametrize("name", NOTHING_DECIDED)
@pytest.mark.parametrize("where", ["v2", "v1", "spool"])
async def test_an_answer_that_decides_nothing_costs_nothing(name: str, where: str, tmp_path: Path) -> None:
    """Nothing is delivered for it: everything is sent again, and arrives with the answers that follow."""
    began = time.monotonic()
    async with Hostile(*[NOTHING_DECIDED[name]] * 2) as server:
        wire = "v1" if where == "v1" else "v2"
        ledger = await ship(server, wire=wire, spool=tmp_path / "events.db" if where == "spool" else None)
    assert delivered(ledger) == set(range(EVENTS)) == set(server.accepted)
    assert sorted(server.accepted) == server.accepted
    assert not server.answers
    assert time.monotonic() - began < 10


async def test_a_redirect_loop_ends_and_costs_nothing() -> None:
    """Each hop is a call; after three the call is given up, and begins again."""
    async with Hostile() as server:
        server.answers = [said(307, b"", f"Location: {server.url}/round/{n}") for n in range(9)]
        ledger = await ship(server)
    assert delivered(ledger) == set(range(EVENTS)) == set(server.accepted)


@pytest.mark.parametrize(
    ("entries", "rejected"),
    [
        ([{"batch_index": 1}], {1}),
        ([{"batch_index": 1}, {"batch_index": 1}, {"batch_index": 3}], {1, 3}),
        ([{"batch_index": -1}], set()),
        ([{"batch_index": EVENTS}], set()),
        ([{"batch_index": 10**30}], set()),
        ([{"batch_index": 1.0}], set()),
        ([{"batch_index": "1"}], set()),
        ([{"batch_index": True}], set()),
        ([{"batch_index": None}], set()),
        ([{}], set()),
        ([None], set()),
        ([[1]], set()),
        ([{"batch_index": 2}, {"batch_index": 99}], {2}),
        ([{"batch_index": n} for n in (-1, *range(EVENTS), EVENTS)], set(range(EVENTS))),
    ],
)
async def test_a_207_rejects_what_it_names_and_delivers_nothing_by_guess(
    entries: list[Any], rejected: set[int]
) -> None:
    """Where an error cannot be placed, nobody is delivered for that answer: they are sent again, in halves."""
    async with Hostile(said(207, errors(*entries))) as server:
        ledger = await ship(server)
    assert {n for _, n in ledger.having(Verdict.REJECTED)} == rejected
    assert delivered(ledger) == set(range(EVENTS)) - rejected
    placed = all(type(entry) is dict and type(entry.get("batch_index")) is int for entry in entries) and all(
        0 <= entry["batch_index"] < EVENTS for entry in entries
    )
    assert set(server.accepted) == (set() if placed else delivered(ledger))


# ----------------------------------------------------------------------------------------------- anything at all

_bodies = st.one_of(
    st.sampled_from([b"", b"{}", b"[]", b"null", b'{"errors":[]}', b"<html>", b'{"errors":[{"batch_index":0', b"\xff"]),
    st.lists(st.fixed_dictionaries({"batch_index": st.one_of(st.integers(-2, 6), st.none(), st.text(max_size=2))})).map(
        lambda entries: errors(*entries)
    ),
    st.binary(max_size=30),
)
_headers = st.lists(
    st.sampled_from(
        [
            "Retry-After: -1",
            "Retry-After: 1e9",
            "Retry-After: soon",
            "Content-Encoding: gzip",
            "Content-Type: ;;=",
            "Transfer-Encoding: chunked",
            "Location: /again",
            "Location: http://[",
            "Connection: close",
            "Content-Length: 7",
            "Set-Cookie: =\x01",
        ]
    ),
    max_size=3,
)
_statuses = st.one_of(
    st.sampled_from([200, 200, 204, 207, 207, 301, 307, 400, 401, 404, 408, 413, 422, 429, 500, 503]),
    st.integers(100, 999),
)
_answers = st.one_of(
    st.builds(lambda status, body, headers: said(status, body, *headers), _statuses, _bodies, _headers),
    st.binary(max_size=40),
)


def believable(answer: bytes, rejected: set[Event]) -> bool:
    """Whether an answer may have delivered anything: a success in HTTP that somebody could read."""
    head, _, body = answer.partition(b"\r\n\r\n")
    status = head[9:12]
    if not (head.startswith(b"HTTP/1.") and status.startswith(b"2")):
        return False
    try:
        return not body.strip() or isinstance(json.loads(body), dict) or bool(rejected)
    except ValueError:
        return b"chunked" in head or b"Content-Length: 7" in head  # then its end is another one


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(_answers, min_size=1, max_size=3), st.sampled_from(["v2", "v1"]))
def test_whatever_a_server_says_ends_in_true_verdicts(answers: list[bytes], wire: str) -> None:
    """Random answers: each event gets one verdict, and none is delivered but by a success that can be read."""

    async def check() -> None:
        async with Hostile(*answers) as server:
            ledger = await ship(server, wire=wire)
            # The server answered these well; for all others a readable success among the answers must stand.
            unproven = delivered(ledger) - set(server.accepted)
            if unproven:
                assert any(believable(answer, ledger.having(Verdict.REJECTED)) for answer in answers), (
                    unproven,
                    answers,
                )
            assert not ledger.having(Verdict.FAILED)

    asyncio.run(check())
