"""One HTTP call over real loopback sockets: what is sent, where it may go, and every way in which it can fail."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gc
import gzip
import logging
import socket
import ssl
import tracemalloc
import warnings
import zlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Self

import aiohttp
import attrs
import orjson
import pytest
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st

from cio_batch import (
    CioBatchTracker,
    ConfigurationError,
    HttpOptions,
    RetryOptions,
    Settings,
    SettledChunk,
    SettledOperation,
    Verdict,
    __version__,
    operations,
)
from cio_batch.simulator import KINDS, Kind, Options, Simulator
from cio_batch.transports import TrackV1Transport, Transport
from cio_batch.transports.http import MAX_ANSWER_BYTES, HttpClient, basic_credentials
from cio_batch.verdicts import Answer, Next, judge_batch

from .conftest import PATIENT, assert_conserved, until

BODY = b'{"batch":[{"type":"person"}]}'
PATH = "/api/v2/batch"
CREDENTIALS = basic_credentials("site", "key")
PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


# ---------------------------------------------------------------------------------------- the other end of the wire


@attrs.frozen
class Heard:
    """A request as it came over the wire; the names of headers are in lower case."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


Reply = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class _CloseConnection(Exception):  # noqa: N818 - it is no error
    """Raised by a reply after which the connection is closed."""


def answer(status: int = 200, body: bytes = b"{}", **headers: str) -> Reply:
    """A whole answer; the connection stays open."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"HTTP/1.1 {status} Whatever", *(f"{name}: {value}" for name, value in named.items())]
    head = "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode("utf-8", "surrogateescape")

    async def reply(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(head + body)
        await writer.drain()

    return reply


def cut(data: bytes) -> Reply:
    """These bytes, then the end of the connection."""

    async def reply(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        raise _CloseConnection

    return reply


def endless(head: bytes, part: bytes) -> Reply:
    """A beginning, then the same part again and again until the client goes away."""

    async def reply(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        while True:
            writer.write(part)
            await writer.drain()

    return reply


def drip(head: bytes, part: bytes) -> Reply:
    """A beginning, then a part every 20 ms until the client goes away: a slow server, never a silent one."""

    async def reply(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        while True:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.02)

    return reply


async def silence(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    """No answer, until the client goes away."""
    await reader.read()
    raise _CloseConnection


class Peer:
    """A server that writes down every request and answers by a script, whose last line repeats.

    As a forward proxy it answers plain requests itself and leads each CONNECT to ``upstream``.
    """

    def __init__(
        self,
        *script: Reply,
        port: int = 0,
        tls: ssl.SSLContext | None = None,
        upstream: Peer | None = None,
    ) -> None:
        self.script = list(script) or [answer()]
        self.heard: list[Heard] = []
        self.connections = 0
        self.port = port
        self._tls = tls
        self._upstream = upstream
        self._running: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"http{'' if self._tls is None else 's'}://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._running:
            task.cancel()
        if self._running:
            await asyncio.wait(self._running)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        try:
            # A cancel is the end of the test's server; streams of Python 3.11 would log it as an error.
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError, _CloseConnection):
                while True:
                    await self._serve_one(reader, writer)
        finally:
            self._running.discard(task)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        request_line, *lines = head.rstrip("\r\n").split("\r\n")
        method, target, _ = request_line.split(" ")
        pairs = [line.split(": ", 1) for line in lines]
        headers = {name.lower(): value for name, value in pairs}
        assert len(headers) == len(pairs), "a header came twice"
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        reply = self.script[min(len(self.heard), len(self.script) - 1)]
        self.heard.append(Heard(method, target, headers, body))
        if method == "CONNECT" and self._upstream is not None:
            await self._tunnel(reader, writer)
        await reply(reader, writer)

    async def _tunnel(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert self._upstream is not None
        there, back = await asyncio.open_connection("127.0.0.1", self._upstream.port)
        writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                while data := await source.read(65_536):
                    sink.write(data)
                    await sink.drain()
            sink.close()

        try:
            await asyncio.gather(pump(reader, back), pump(there, writer))
        finally:
            back.close()
        raise _CloseConnection


@contextlib.asynccontextmanager
async def client_of(origin: str, authorization: str = CREDENTIALS, **options: Any) -> AsyncGenerator[HttpClient]:
    """A client that is closed in the end."""
    client = HttpClient(origin, authorization, HttpOptions(**options))
    try:
        yield client
    finally:
        await client.close()


async def call(origin: str, **options: Any) -> Answer:
    """One POST by a client of its own."""
    async with client_of(origin, **options) as client:
        return await client.request("POST", PATH, BODY)


@pytest.fixture
def free_port() -> int:
    """A port at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@pytest.fixture
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment that names no proxy and no netrc file."""
    for name in PROXY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.delenv("REQUEST_METHOD", raising=False)  # where it is set, HTTP_PROXY is taken for a header
    monkeypatch.delenv("NETRC", raising=False)
    return monkeypatch


# ------------------------------------------------------------------------------------------------- what is sent


async def test_a_call_carries_its_headers_and_its_body() -> None:
    """Method, path, body, user agent, content type, credentials; no retry count; no encoding is asked for."""
    async with Peer() as peer:
        assert await call(peer.url) == Answer(200, b"{}")
    [heard] = peer.heard
    assert (heard.method, heard.target, heard.body) == ("POST", PATH, BODY)
    assert heard.headers == {
        "host": f"127.0.0.1:{peer.port}",
        "user-agent": f"cio-batch/{__version__}",
        "accept": "application/json",
        "accept-encoding": "identity",
        "content-type": "application/json",
        "content-length": str(len(BODY)),
        "authorization": CREDENTIALS,
    }


async def test_a_call_without_body_or_credentials_says_nothing_of_them() -> None:
    """A bodyless call has no content type, an unauthorized one no credentials, and the path stays as it was encoded."""
    path = "/api/v1/customers/a%2Fb%3F%25%20%C3%A9/devices/%2e%2e%2f"
    async with Peer() as peer, client_of(peer.url) as client:
        await client.request("DELETE", path, authorized=False)
    [heard] = peer.heard
    assert (heard.method, heard.target, heard.body) == ("DELETE", path, b"")
    assert not {"content-type", "authorization", "x-retry-count"} & set(heard.headers)


@pytest.mark.parametrize(
    ("site_id", "key"),
    [("site", "key"), ("site", "a:b:c"), ("sité", "ключ"), ("名", "🔑:pass"), ("s", '"; drop'), ("s" * 90, "k" * 300)],
)
async def test_credentials_arrive_as_they_were_set(site_id: str, key: str) -> None:
    """The service can read site ID and key back, whatever characters they hold (RFC 7617, UTF-8)."""
    async with (
        Peer() as peer,
        CioBatchTracker(Settings(site_id=site_id, track_api_key=key, track_url=peer.url)) as tracker,
    ):
        await tracker.enqueue("u", "e")
        await tracker.flush()
    [heard] = peer.heard
    scheme, _, encoded = heard.headers["authorization"].partition(" ")
    assert scheme == "Basic"
    user, _, password = base64.b64decode(encoded, validate=True).decode().partition(":")
    assert (user, password) == (site_id, key)


@pytest.mark.parametrize("wire", ["v1", "v2"])
async def test_a_repeat_says_which_one_it_is(wire: str) -> None:
    """X-Retry-Count is absent at first, then counts the repeats of a call; the next call begins without it."""
    async with Peer(answer(503), cut(b""), answer(429, retry_after="0"), answer()) as peer:
        settings = Settings(site_id="site", track_api_key="key", track_url=peer.url)
        transport = TrackV1Transport(settings) if wire == "v1" else None
        async with CioBatchTracker(settings, transport=transport, retry=PATIENT, flush_interval=0.01) as tracker:
            await tracker.enqueue("u", "e")
            await tracker.flush()
            await tracker.enqueue("u", "e")
            await tracker.flush()
            assert assert_conserved(tracker).delivered == 2
    assert [heard.headers.get("x-retry-count") for heard in peer.heard] == [None, "1", "2", "3", None]
    assert len({heard.body for heard in peer.heard[:4]}) == 1


async def test_on_v1_only_the_call_that_was_made_before_is_a_repeat() -> None:
    """In a chunk of several calls the repeat begins at the one that failed, and those behind it are first attempts."""
    async with Peer(answer(), answer(500), answer()) as peer:
        settings = Settings(site_id="site", track_api_key="key", track_url=peer.url)
        async with CioBatchTracker(settings, transport=TrackV1Transport(settings), retry=PATIENT) as tracker:
            for n in range(3):
                await tracker.enqueue("u", "e", {"n": n})
    sent = [(orjson.loads(heard.body)["data"]["n"], heard.headers.get("x-retry-count")) for heard in peer.heard]
    assert sent == [(0, None), (1, None), (1, "1"), (2, None)]


async def test_calls_share_a_connection() -> None:
    """A second call goes over the connection of the first."""
    async with Peer() as peer, client_of(peer.url) as client:
        for _ in range(3):
            await client.request("POST", PATH, BODY)
    assert (len(peer.heard), peer.connections) == (3, 1)


# ---------------------------------------------------------------------------------------------------- redirects


@pytest.mark.parametrize("status", [301, 302, 307, 308])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
async def test_a_redirect_within_the_origin_keeps_the_call(status: int, method: str) -> None:
    """Method, body, credentials and retry count are the same at the new place: a POST never becomes a GET."""
    body = None if method == "DELETE" else BODY
    async with Peer(answer(status, location="/elsewhere?x=1"), answer()) as peer, client_of(peer.url) as client:
        assert await client.request(method, PATH, body, attempt=2) == Answer(200, b"{}")
    first, second = peer.heard
    assert second == attrs.evolve(first, target="/elsewhere?x=1")
    assert second.headers["authorization"] == CREDENTIALS
    assert second.headers["x-retry-count"] == "2"


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("{url}/other", "/other"),
        ("//127.0.0.1:{port}/other", "/other"),
        ("other", "/api/v2/other"),
        ("?again", f"{PATH}?again"),
        ("http://", PATH),
        ("HTTP://127.0.0.1:{port}/a%2Fb", "/a%2Fb"),
        ("//evil.example/..//other", None),
        ("/\\evil.example", "/\\evil.example"),
    ],
)
async def test_a_location_is_read_as_a_reference(location: str, target: str | None) -> None:
    """Absolute and relative locations are joined to the URL of the call (RFC 3986), and judged by where they lead."""
    async with Peer() as peer:
        peer.script = [answer(307, location=location.format(url=peer.url, port=peer.port)), answer()]
        result = await call(peer.url)
    assert [heard.target for heard in peer.heard] == [PATH] + ([] if target is None else [target])
    assert result.status == (0 if target is None else 200)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_nothing_arrives_at_another_port_or_host(status: int, caplog: pytest.LogCaptureFixture) -> None:
    """A redirect to another port, or to the same port under another name, is refused and no connection is made."""
    async with Peer() as thief, Peer() as peer:
        there = [f"{thief.url}{PATH}", f"http://localhost:{peer.port}/", f"http://127.0.0.2:{thief.port}/"]
        peer.script = [answer(status, location=location) for location in there]
        for _ in there:
            result = await call(peer.url)
            assert result.status == 0
            assert result.sent
            assert result.reason == f"status {status} redirects to another host, which is refused"
            assert judge_batch(result, 1, 0.0).next is Next.RETRY
    assert len(peer.heard) == len(there)
    assert (thief.connections, thief.heard) == (0, [])
    assert caplog.records == []


@pytest.mark.parametrize(
    "location",
    [
        None,
        "",
        "javascript:alert(1)",
        "data:text/plain,x",
        "file:///etc/passwd",
        "mailto:a@example.com",
        "ftp://127.0.0.1/",
        "https:",
        "http://[::1",
        "http://[v1.x]/",
        "http://127.0.0.1:99999/",
        "http://127.0.0.1:-1/",
        "http://127.0.0.1:port/",
        "https://track.customer.io:99999/",
        "https://track.customer.io:0/",
        "https://track.cu\u017ftomer.io/",
        "https://\udcff.customer.io/",
        "http://user:password@127.0.0.1:{port}/",
        "https://user@track.customer.io/",
        "http://127.0.0.1:1\u2028/",
    ],
)
async def test_a_location_that_leads_nowhere_ends_the_call(location: str | None) -> None:
    """A location that is missing, garbage, of another scheme, or with a login of its own is refused without a raise."""
    async with Peer() as peer:
        if location is None:
            peer.script = [answer(302), answer()]
        else:
            peer.script = [answer(302, location=location.replace("{port}", str(peer.port))), answer()]
        result = await call(peer.url)
    assert (result.status, result.reason) == (0, "status 302 redirects to another host, which is refused")
    assert len(peer.heard) == 1


@pytest.mark.parametrize("status", [300, 303, 304, 305])
async def test_other_3xx_are_not_followed(status: int) -> None:
    """Only redirects that keep the method are followed; the others are undecided answers."""
    async with Peer(answer(status, b"", location="/elsewhere"), answer()) as peer:
        result = await call(peer.url)
    assert result.status == status
    assert len(peer.heard) == 1
    assert judge_batch(result, 1, 0.0).next is Next.RETRY


async def test_a_redirect_loop_ends() -> None:
    """A place that redirects to itself is left after three redirects."""
    async with Peer(answer(308, location=PATH)) as peer:
        result = await call(peer.url)
    assert result == Answer(0, reason="redirected more than 3 times")
    assert len(peer.heard) == 4


async def test_three_hops_are_followed() -> None:
    """Three redirects in a row lead to the answer."""
    hops = [answer(307, location=f"/hop-{n}") for n in range(3)]
    async with Peer(*hops, answer(200, b'{"a":1}')) as peer:
        assert (await call(peer.url)).body == b'{"a":1}'
    assert [heard.target for heard in peer.heard] == [PATH, "/hop-0", "/hop-1", "/hop-2"]


async def test_a_redirect_is_told_once_without_its_path(caplog: pytest.LogCaptureFixture) -> None:
    """The log names both origins once, however many calls are redirected, and never an id in a path."""
    async with Peer() as peer, client_of(peer.url) as client:
        peer.script = [answer(307, location="/customers/secret-id"), answer()] * 3
        for _ in range(3):
            assert (await client.request("PUT", "/api/v1/customers/secret-id", BODY)).status == 200
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().count(peer.url) == 2
    assert "secret" not in record.getMessage()


# --------------------------------------------------------------------------------------- TLS, and hosts of Customer.io


@attrs.frozen
class Certificate:
    """The certificate of an authority, and a server with one for every name that these tests use."""

    path: Path
    server: ssl.SSLContext


NAMES = [
    "*.customer.io",
    "customer.io",
    "evilcustomer.io",
    "customer.io.evil.example",
    "track.customer.io.evil.example",
]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """Make one that is signed by an authority of its own, which nobody else trusts."""
    authority = trustme.CA()
    path = tmp_path_factory.mktemp("tls") / "ca.pem"
    authority.cert_pem.write_to_path(path)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", *NAMES).configure_cert(server)
    return Certificate(path, server)


async def test_a_ca_bundle_is_trusted(certificate: Certificate) -> None:
    """With the certificate in ``ca_bundle``, whose path may be text, a call to its server succeeds."""
    assert HttpOptions(ca_bundle=str(certificate.path)).ca_bundle == certificate.path  # type: ignore[arg-type]
    async with Peer(tls=certificate.server) as peer:
        assert (await call(peer.url, ca_bundle=certificate.path)).status == 200
    assert peer.heard[0].headers["authorization"] == CREDENTIALS


async def test_an_unknown_certificate_decides_nothing(certificate: Certificate) -> None:
    """Without the bundle no request is sent, the operation is undecided and tried again, and in the end it is named."""
    settled: list[SettledOperation] = []
    async with Peer(tls=certificate.server) as peer:
        result = await call(peer.url)
        assert (result.status, result.sent) == (0, False)
        assert result.reason.startswith("no connection (ClientConnectorCertificateError")
        assert judge_batch(result, 1, 0.0).next is Next.RETRY
        tracker = CioBatchTracker(
            Settings(site_id="site", track_api_key="key", track_url=peer.url),
            retry=RetryOptions(max_retries=2, base_delay=0.01),
            on_settled=lambda chunk: settled.extend(chunk.operations),
        )
        await tracker.enqueue("u", "e")
        await tracker.flush()
        assert assert_conserved(tracker).failed == 1
        assert tracker.stats().calls == 3
        await tracker.close()
    assert peer.heard == []
    [one] = settled
    assert (one.verdict, one.reason) == (Verdict.FAILED, result.reason)


@contextlib.asynccontextmanager
async def customer_io(certificate: Certificate, *script: Reply) -> AsyncGenerator[tuple[Peer, Peer, dict[str, Any]]]:
    """A proxy, behind it a server that is every host of the internet, and the options that lead a client there."""
    async with Peer(*script, tls=certificate.server) as server, Peer(upstream=server) as proxy:
        yield proxy, server, {"proxy": proxy.url, "ca_bundle": certificate.path}


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_credentials_follow_to_another_region(certificate: Certificate, status: int) -> None:
    """A redirect from one host of Customer.io to another keeps method, body and credentials."""
    moved = answer(status, location=f"https://track-eu.customer.io{PATH}")
    async with customer_io(certificate, moved, answer()) as (proxy, server, options):
        assert (await call("https://track.customer.io", **options)).status == 200
    first, second = server.heard
    assert [heard.target for heard in proxy.heard] == ["track.customer.io:443", "track-eu.customer.io:443"]
    assert second == attrs.evolve(first, headers=first.headers | {"host": "track-eu.customer.io"})
    assert second.headers["authorization"] == CREDENTIALS
    # What the proxy can read of a tunnel has no credentials of ours.
    assert all("authorization" not in heard.headers for heard in proxy.heard)


@pytest.mark.parametrize(
    "location",
    [
        "https://evilcustomer.io/",
        "https://track.evilcustomer.io/",
        "https://customer.io.evil.example/",
        "https://track.customer.io.evil.example/",
        "https://customer.io/",
        "https://evil.example/track.customer.io",
        "https://evil.example/?.customer.io",
        "https://evil.example#.customer.io",
        "https://evil.example?@track.customer.io",
        "https://track.customer.io@evil.example/",
        "https://track.customer.io:443@evil.example/",
        "https://track.customer.io%2eevil.example/",
        "https://track.customer.io./",
        "https://track.customer.io:8443/",
        "https://track.customer.io:80/",
        "https://track-eu.customer.io:8443/",
        "http://track.customer.io/",
        "http://track.customer.io:443/",
        "http://track-eu.customer.io/",
        "//evil.example/",
        "//track.customer.io.evil.example/",
        "wss://track.customer.io/",
        "https://\u0441ustomer.io/",
    ],
)
async def test_look_alikes_and_downgrades_are_refused(certificate: Certificate, location: str) -> None:
    """Only ``*.customer.io`` over TLS on port 443 is a host of Customer.io; nothing is sent to any other."""
    async with customer_io(certificate, answer(307, location=location), answer()) as (proxy, server, options):
        result = await call("https://track.customer.io", **options)
    assert result.status == 0
    assert result.reason == "status 307 redirects to another host, which is refused"
    assert [heard.target for heard in proxy.heard] == ["track.customer.io:443"]
    assert len(server.heard) == 1


async def test_a_plain_origin_may_lead_to_customer_io_over_tls(certificate: Certificate) -> None:
    """From a configured plain origin, such as an internal gateway, a redirect up to Customer.io is followed."""
    async with customer_io(certificate, answer()) as (proxy, server, options):
        proxy.script = [answer(308, location=f"https://track.customer.io{PATH}")]
        result = await call("http://gateway.example", **options)
    assert result.status == 200
    assert [heard.target for heard in proxy.heard] == [f"http://gateway.example{PATH}", "track.customer.io:443"]
    assert server.heard[0].headers["authorization"] == CREDENTIALS


async def test_the_same_address_without_tls_is_another_origin(certificate: Certificate) -> None:
    """A redirect from a TLS origin to the same host and port over plain HTTP is refused."""
    async with Peer(tls=certificate.server) as peer:
        peer.script = [answer(307, location=f"http://127.0.0.1:{peer.port}/")]
        result = await call(peer.url, ca_bundle=certificate.path)
    assert result.status == 0
    assert peer.connections == 1


# ------------------------------------------------------------------------------------------------- proxies, netrc


async def test_the_proxy_option_is_used() -> None:
    """A plain call goes to the proxy in absolute form, with its own login beside our credentials."""
    async with Peer() as proxy:
        option = f"http://gate:p%40ss@127.0.0.1:{proxy.port}"
        result = await call("http://track.example", proxy=option)
    assert result == Answer(200, b"{}")
    [heard] = proxy.heard
    assert (heard.method, heard.target, heard.body) == ("POST", f"http://track.example{PATH}", BODY)
    assert heard.headers["authorization"] == CREDENTIALS
    assert heard.headers["proxy-authorization"] == basic_credentials("gate", "p@ss")
    assert "gate" not in repr(HttpOptions(proxy=option))


@pytest.mark.parametrize("status", [403, 407, 502])
async def test_a_proxy_that_refuses_the_tunnel_means_not_sent(certificate: Certificate, status: int) -> None:
    """Where the proxy makes no tunnel, the request cannot have reached the service."""
    async with Peer(answer(status, b"no secret tunnel")) as proxy:
        result = await call("https://track.customer.io", proxy=proxy.url, ca_bundle=certificate.path)
    assert result == Answer(0, reason=f"no connection (the proxy answers {status})", sent=False)


async def test_a_proxy_that_does_not_listen_means_not_sent(free_port: int) -> None:
    """Nor can it where there is no proxy."""
    result = await call("http://track.example", proxy=f"http://127.0.0.1:{free_port}")
    assert (result.status, result.sent) == (0, False)


@pytest.mark.parametrize("scheme", ["http://", ""])
async def test_the_environments_proxy_is_used_where_trusted(no_proxies: pytest.MonkeyPatch, scheme: str) -> None:
    """HTTP_PROXY counts with ``trust_env`` and not without; NO_PROXY exempts a host from it; the option wins."""
    async with Peer() as proxy, Peer() as other, Peer() as peer:
        no_proxies.setenv("HTTP_PROXY", f"{scheme}127.0.0.1:{proxy.port}")
        assert (await call(peer.url)).status == 200
        assert (len(proxy.heard), len(peer.heard)) == (0, 1)
        assert (await call(peer.url, trust_env=True)).status == 200
        assert (len(proxy.heard), len(peer.heard)) == (1, 1)
        assert (await call(peer.url, trust_env=True, proxy=other.url)).status == 200
        assert (len(proxy.heard), len(other.heard), len(peer.heard)) == (1, 1, 1)
        no_proxies.setenv("NO_PROXY", "example.com,127.0.0.1")
        assert (await call(peer.url, trust_env=True)).status == 200
        assert (len(proxy.heard), len(peer.heard)) == (1, 2)
    assert proxy.heard[0].target == f"{peer.url}{PATH}"
    assert proxy.heard[0].headers["authorization"] == CREDENTIALS


async def test_https_takes_its_own_proxy(no_proxies: pytest.MonkeyPatch, certificate: Certificate) -> None:
    """HTTPS_PROXY leads calls over TLS through a tunnel."""
    async with customer_io(certificate) as (proxy, server, options):
        no_proxies.setenv("HTTPS_PROXY", options.pop("proxy"))
        assert (await call("https://track.customer.io", trust_env=True, **options)).status == 200
    assert [heard.target for heard in proxy.heard] == ["track.customer.io:443"]
    assert len(server.heard) == 1


@pytest.mark.parametrize("entry", ["machine 127.0.0.1", "default"])
async def test_netrc_never_replaces_our_credentials(no_proxies: pytest.MonkeyPatch, tmp_path: Path, entry: str) -> None:
    """A login in ``~/.netrc`` for the service's host, or for every host, changes nothing: ours are sent."""
    file = tmp_path / "netrc"
    file.write_text(f"{entry} login thief password stolen\n")
    file.chmod(0o600)
    no_proxies.setenv("NETRC", str(file))
    async with Peer() as peer:
        for trust_env in (True, False):
            assert (await call(peer.url, trust_env=trust_env)).status == 200
    assert [heard.headers["authorization"] for heard in peer.heard] == [CREDENTIALS, CREDENTIALS]


async def test_a_users_session_that_reads_netrc_is_named_as_the_reason(
    no_proxies: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With a session of the user's that trusts ``~/.netrc`` aiohttp refuses to send, and the reason says why."""
    file = tmp_path / "netrc"
    file.write_text("default login thief password stolen\n")
    file.chmod(0o600)
    no_proxies.setenv("NETRC", str(file))
    async with Peer() as peer, aiohttp.ClientSession(trust_env=True) as session:
        result = await call(peer.url, session=session)
    assert result.status == 0
    assert "takes a login from ~/.netrc" in result.reason
    assert "stolen" not in result.reason
    assert peer.heard == []


@pytest.mark.parametrize(
    ("text", "login"),
    [
        ("machine 127.0.0.1 login gate password word", basic_credentials("gate", "word")),
        ("machine example.com login gate password word", None),
        ("machine 127.0.0.1 login", None),
        ("nonsense\x00", None),
    ],
)
async def test_netrc_may_hold_the_proxys_login(
    no_proxies: pytest.MonkeyPatch, tmp_path: Path, text: str, login: str | None
) -> None:
    """The login of a trusted proxy is read from ``~/.netrc``, and a file that cannot be read counts as none."""
    file = tmp_path / "netrc"
    file.write_text(text)
    file.chmod(0o600)
    no_proxies.setenv("NETRC", str(file))
    async with Peer() as proxy:
        no_proxies.setenv("http_proxy", proxy.url)
        assert (await call("http://track.example", trust_env=True)).status == 200
    assert proxy.heard[0].headers.get("proxy-authorization") == login
    assert proxy.heard[0].headers["authorization"] == CREDENTIALS


# ----------------------------------------------------------------------------------------- answers of every shape


@pytest.mark.parametrize("status", [200, 400, 401, 404, 413, 429, 500, 502, 503, 599])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}\n",
        b"<html><h1>502 Bad Gateway</h1></html>",
        b"plain",
        b'{"errors":[{"reason',
        b"\xff\xfe\x00",
        b"null",
    ],
)
async def test_an_answer_is_passed_on_as_it_came(status: int, body: bytes) -> None:
    """Status, body and Retry-After are read whatever they are, and judged by others."""
    async with Peer(answer(status, body, retry_after="7", content_type="text/html; charset=utf-7")) as peer:
        assert await call(peer.url) == Answer(status, body, retry_after="7")


SHAPES = [
    b"",
    b"[]",
    b"null",
    b"1e400",
    b'"text"',
    b"\xff",
    b"[" * 100_000,
    b'{"errors":[]}',
    b'{"errors":{}}',
    b'{"errors":null}',
    b'{"errors":["text"]}',
    b'{"errors":[null]}',
    b'{"errors":[{"reason":5,"field":[],"message":{}}]}',
    b'{"errors":[{"batch_index":"0"}]}',
    b'{"errors":[{"batch_index":true}]}',
    b'{"errors":[{"batch_index":1}]}',
    b'{"errors":[{"batch_index":-1}]}',
    b'{"meta":null}',
    b'{"meta":[]}',
    b'{"meta":{"errors":[]}}',
    b'{"meta":{"errors":{}}}',
    b'{"meta":{"errors":"text"}}',
    b'{"meta":{"errors":[["x"]]}}',
    b'{"meta":{"error":null}}',
    b'{"meta":{"error":7}}',
]


@pytest.mark.parametrize("body", SHAPES, ids=lambda body: body[:40].decode("latin-1"))
@pytest.mark.parametrize("wire", ["v1", "v2"])
async def test_an_error_of_any_shape_gets_its_verdict(wire: str, body: bytes) -> None:
    """A 400 rejects its operation whatever its body holds, and the next operation is delivered."""
    settled: list[SettledOperation] = []
    async with Peer(answer(400, body), answer()) as peer:
        settings = Settings(site_id="site", track_api_key="key", track_url=peer.url)
        transport = TrackV1Transport(settings) if wire == "v1" else None
        tracker = CioBatchTracker(
            settings, transport=transport, on_settled=lambda chunk: settled.extend(chunk.operations), retry=PATIENT
        )
        async with tracker:
            await tracker.enqueue("u", "first")
            await tracker.flush()
            await tracker.enqueue("u", "second")
            await tracker.flush()
            assert_conserved(tracker)
    assert [one.verdict for one in settled] == [Verdict.REJECTED, Verdict.DELIVERED]
    assert settled[0].status == 400
    assert settled[0].reason == "status 400"
    assert len(peer.heard) == 2


async def test_a_long_body_is_cut() -> None:
    """A body up to the limit is complete; beyond it the rest is never fetched."""
    async with Peer(answer(500, b"x" * MAX_ANSWER_BYTES)) as peer:
        result = await call(peer.url)
        assert (result.status, len(result.body), result.complete) == (500, MAX_ANSWER_BYTES, True)
        peer.script = [answer(500, b"x" * (MAX_ANSWER_BYTES + 1))]
        result = await call(peer.url)
        assert (result.status, len(result.body), result.complete) == (500, MAX_ANSWER_BYTES, False)


@pytest.mark.parametrize(
    ("head", "part"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 50_000),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 999999999999\r\n\r\n", b" " * 50_000),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"c350\r\n" + b"y" * 50_000 + b"\r\n"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nz\r\n" * 1_000),
    ],
    ids=["until the end", "by length", "in chunks", "in small chunks"],
)
async def test_an_endless_body_ends_at_the_limit(head: bytes, part: bytes) -> None:
    """An answer without end is left after the limit, with the status that it had, and is no success."""
    async with Peer(endless(head, part)) as peer:
        result = await call(peer.url)
    assert (result.status, len(result.body), result.complete) == (200, MAX_ANSWER_BYTES, False)
    assert judge_batch(result, 3, 0.0).next is Next.RETRY


@pytest.mark.parametrize(
    ("head", "part"),
    [
        (b"HTTP/1.1 200 OK\r\n", b"X-More: and more\r\n" * 100),
        (b"HTTP/1.1 200 OK\r\nX-Long: ", b"x" * 10_000),
        (b"HTTP/1.1 200 ", b"O" * 10_000),
    ],
    ids=["headers", "one header", "status line"],
)
async def test_an_endless_head_ends_the_call(head: bytes, part: bytes) -> None:
    """Headers without end are an answer that cannot be read; it ends long before the timeout, in bounded memory."""
    async with Peer(endless(head, part)) as peer, client_of(peer.url) as client:
        result, peak = await _measured(client.request("POST", PATH, BODY))
    assert (result.status, result.sent) == (0, True)
    assert peak < 5_000_000


async def test_an_endless_chunk_head_ends_with_the_total_timeout() -> None:
    """Between two chunks a server may say more than anybody wants to hear: it is not kept, and it ends in time."""
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;"
    async with Peer(endless(head, b"extension" * 1_000)) as peer, client_of(peer.url, total_timeout=0.5) as client:
        result, peak = await _measured(client.request("POST", PATH, BODY))
    assert not (result.status == 200 and result.complete)
    assert peak < 5_000_000


async def _measured(awaitable: Awaitable[Answer]) -> tuple[Answer, int]:
    """The answer, and the most bytes that were held on the way."""
    gc.collect()
    tracemalloc.start()
    try:
        async with asyncio.timeout(10):
            result = await awaitable
        return result, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def _bomb() -> bytes:
    """100 MB of spaces in about 100 KB of gzip."""
    packer = zlib.compressobj(wbits=31)
    return b"".join([packer.compress(b" " * 1_000_000) for _ in range(100)]) + packer.flush()


@pytest.mark.parametrize("own_session", [False, True])
async def test_a_gzip_bomb_is_not_unpacked(own_session: bool) -> None:
    """A packed answer that nobody asked for is unreadable, hence undecided, and takes no more memory than any other."""
    async with Peer(answer(200, _bomb(), content_encoding="gzip")) as peer, contextlib.AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession()) if own_session else None
        async with client_of(peer.url, session=session) as client:
            result, peak = await _measured(client.request("POST", PATH, BODY))
    assert (result.status, result.complete) == (200, False)
    assert len(result.body) <= MAX_ANSWER_BYTES
    assert peak < 10_000_000
    assert judge_batch(result, 1, 0.0).next is Next.RETRY


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", "gzip, gzip", "nonsense"])
async def test_a_packed_answer_is_unreadable(encoding: str) -> None:
    """No encoding is asked for, so an encoded success is undecided; its status stands."""
    async with Peer(answer(200, gzip.compress(b"{}"), content_encoding=encoding)) as peer:
        result = await call(peer.url)
    assert (result.status, result.complete) == (200, False)


@pytest.mark.parametrize("encoding", ["identity", "Identity "])
async def test_identity_is_no_encoding(encoding: str) -> None:
    """An answer that says that it is not packed is read as it stands."""
    async with Peer(answer(200, b"{}", content_encoding=encoding)) as peer:
        assert await call(peer.url) == Answer(200, b"{}")


# ---------------------------------------------------------------------------------------- connections that break


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"H",
        b"HTTP/1.1 200 OK\r\nConte",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n",
        b"HTTP/1.1 207 Multi\r\nTransfer-Encoding: chunked\r\n\r\nnot a size\r\n",
        b"\x16\x03\x01garbage\r\n\r\n",
    ],
    ids=["at once", "one byte", "within a header", "after a header", "no chunk", "no HTTP"],
)
async def test_a_connection_that_ends_before_the_body_is_no_answer(data: bytes) -> None:
    """The request may have arrived, so the operations are undecided and the answer says that it was sent."""
    async with Peer(cut(data)) as peer:
        result = await call(peer.url)
    assert len(peer.heard) == 1
    assert (result.status, result.sent, result.body) == (0, True, b"")
    assert result.reason.startswith("no answer (")
    assert judge_batch(result, 1, 0.0).blames


@pytest.mark.parametrize(
    ("data", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}", b"{}"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n", b"{}"),
        (b"HTTP/1.1 500 No\r\nContent-Length: 9\r\n\r\n", b""),
    ],
)
async def test_a_connection_that_ends_within_the_body_keeps_the_status(data: bytes, body: bytes) -> None:
    """A body that breaks off is incomplete, so a success with it is none."""
    async with Peer(cut(data)) as peer:
        result = await call(peer.url)
    assert (result.status, result.body, result.complete) == (int(data[9:12]), body, False)
    assert judge_batch(result, 1, 0.0).next is Next.RETRY


async def test_nobody_listening_means_not_sent(free_port: int) -> None:
    """A refused connection cannot have sent anything."""
    result = await call(f"http://127.0.0.1:{free_port}")
    assert (result.status, result.sent) == (0, False)
    assert result.reason.startswith("no connection (ClientConnectorError: ")
    assert not judge_batch(result, 1, 0.0).blames


async def test_a_connection_that_the_service_closed_meanwhile_is_no_trap() -> None:
    """After an idle connection was closed by the service, the next call is made on a new one."""
    async with Peer() as peer, client_of(peer.url) as client:
        assert (await client.request("POST", PATH, BODY)).status == 200
        port = peer.port
        await peer.__aexit__()
        async with Peer(port=port) as again:
            assert (await client.request("POST", PATH, BODY)).status == 200
            assert len(again.heard) == 1


def test_any_bytes_are_an_answer() -> None:
    """Whatever bytes a server sends back before it hangs up, a call ends in an answer and never raises."""
    pieces = st.sampled_from(
        [
            b"HTTP/1.1 200 OK\r\n",
            b"HTTP/1.1 100 Continue\r\n\r\n",
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
            b"HTTP/1.1 307 Moved\r\n",
            b"HTTP/1.1 999 Odd\r\n",
            b"HTTP/0.9\r\n",
            b"Location: /x\r\n",
            b"Location: http://[\r\n",
            b"Location: https://track.customer.io:port/\r\n",
            b"Content-Length: 5\r\n",
            b"Content-Length: -5\r\n",
            b"Transfer-Encoding: chunked\r\n",
            b"Content-Encoding: gzip\r\n",
            b"Content-Type: ;;=\r\n",
            b"Set-Cookie: =\x01\r\n",
            b"Retry-After: \xff\r\n",
            b"\r\n",
            b"{}",
            b"ffffffffffffffffffff\r\n",
            b"5\r\nhello\r\n0\r\n\r\n",
        ]
    )
    data = st.lists(st.one_of(pieces, st.binary(max_size=12)), max_size=8).map(b"".join)

    with asyncio.Runner() as runner:
        peer = runner.run(Peer().__aenter__())
        client = HttpClient(peer.url, CREDENTIALS, HttpOptions(total_timeout=5.0))

        @settings(max_examples=200, deadline=None)
        @given(data)
        def check(answered: bytes) -> None:
            peer.script = [cut(answered)]
            result = runner.run(client.request("POST", PATH, BODY))
            assert result.status == 0 or 100 <= result.status <= 999
            assert (result.status == 0) == bool(result.reason)
            assert result.sent
            assert len(result.body) <= len(answered)

        check()
        runner.run(client.close())
        runner.run(peer.__aexit__())


# ------------------------------------------------------------------------------------------------------- timeouts


async def test_a_silent_server_ends_with_the_read_timeout() -> None:
    """The read timeout alone ends a call that gets no byte; the request may have arrived."""
    async with Peer(silence) as peer, asyncio.timeout(20):
        result = await call(peer.url, read_timeout=0.1, total_timeout=60.0)
    assert result == Answer(0, reason="no answer (timed out)")
    assert len(peer.heard) == 1


async def test_without_a_read_timeout_a_silent_server_ends_with_the_total_timeout() -> None:
    """That is the default, and bounds every call all the same."""
    assert HttpOptions().read_timeout is None
    async with Peer(silence) as peer, asyncio.timeout(20):
        result = await call(peer.url, total_timeout=0.1)
    assert result == Answer(0, reason="no answer (timed out)")


async def test_a_slow_head_ends_with_the_total_timeout() -> None:
    """A server that never falls silent, yet never answers, is left when the total timeout has passed."""
    loop = asyncio.get_running_loop()
    begun = loop.time()
    async with Peer(drip(b"HTTP/1.1 200 OK\r\nX: ", b"x")) as peer:
        result = await call(peer.url, read_timeout=60.0, total_timeout=0.3)
    assert result == Answer(0, reason="no answer (timed out)")
    assert 0.3 <= loop.time() - begun < 5


async def test_a_slow_body_ends_with_the_total_timeout() -> None:
    """The status stands, and what was read of the body is incomplete."""
    async with Peer(drip(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", b"x")) as peer:
        result = await call(peer.url, read_timeout=60.0, total_timeout=0.3)
    assert (result.status, result.complete) == (200, False)
    assert set(result.body) == {ord("x")}


async def test_interim_answers_do_not_go_on_for_ever() -> None:
    """A server that only ever says 100 is left when the total timeout has passed."""
    async with Peer(drip(b"", b"HTTP/1.1 100 Continue\r\n\r\n")) as peer:
        result = await call(peer.url, total_timeout=0.3)
    assert result == Answer(0, reason="no answer (timed out)")


async def test_a_connection_that_is_never_accepted_ends_with_the_connect_timeout() -> None:
    """Where no connection comes about within the connect timeout, nothing was sent."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):  # a full backlog: the system ignores whoever comes next
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        result = await call(
            f"http://127.0.0.1:{listener.getsockname()[1]}", connect_timeout=0.1, read_timeout=60.0, total_timeout=60.0
        )
    assert result == Answer(0, reason="no connection (timed out)", sent=False)


async def test_a_cancel_passes_through() -> None:
    """Cancelling a call ends it at once, and the client can be used again."""
    async with Peer(silence, answer()) as peer, client_of(peer.url) as client:
        task = asyncio.create_task(client.request("POST", PATH, BODY))
        await until(lambda: len(peer.heard) == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await client.request("POST", PATH, BODY)).status == 200


# ----------------------------------------------------------------------------------- sessions: the user's, and ours


async def test_a_users_session_is_used_and_left_open() -> None:
    """Calls go through it with its headers and cookies, but our credentials and user agent; closing leaves it open."""
    theirs = {"X-Team": "growth", "User-Agent": "theirs", "Authorization": "Basic theirs", "X-Retry-Count": "9"}
    jar = aiohttp.CookieJar(unsafe=True)  # it takes cookies of an IP address
    async with (
        Peer() as peer,
        aiohttp.ClientSession(headers=theirs, cookies={"flavour": "oat"}, cookie_jar=jar) as session,
    ):
        async with client_of(peer.url, session=session) as client:
            assert (await client.request("POST", PATH, BODY, attempt=1)).status == 200
        assert not session.closed
        http = HttpOptions(session=session)
        settings = Settings(site_id="site", track_api_key="key", track_url=peer.url, http=http)
        async with CioBatchTracker(settings) as tracker:
            await tracker.enqueue("u", "e")
        assert not session.closed
        async with session.get(peer.url) as response:
            assert response.status == 200
    first, second, _ = peer.heard
    assert first.headers["x-team"] == second.headers["x-team"] == "growth"
    assert first.headers["cookie"] == "flavour=oat"
    assert (first.headers["x-retry-count"], first.headers["user-agent"]) == ("1", f"cio-batch/{__version__}")
    assert first.headers["authorization"] == second.headers["authorization"] == CREDENTIALS
    assert peer.connections == 1


async def test_a_users_session_changes_no_verdict() -> None:
    """Its ``raise_for_status``, timeout and cookies of the service do no harm to the reading of an answer."""
    cookie = "session=1; Path=/; HttpOnly"
    timeout = aiohttp.ClientTimeout(total=0.000_001)
    async with (
        Peer(answer(500, b"broken", set_cookie=cookie), answer(307, location="/there"), answer(404, b"{}")) as peer,
        aiohttp.ClientSession(raise_for_status=True, timeout=timeout) as session,
    ):
        assert await call(peer.url, session=session) == Answer(500, b"broken")
        assert await call(peer.url, session=session) == Answer(404, b"{}")
    assert [heard.headers["authorization"] for heard in peer.heard] == [CREDENTIALS] * 3


async def test_a_users_closed_session_means_not_sent() -> None:
    """A session that the user closed too early is named as the reason, and the operations stay undecided."""
    async with Peer() as peer, aiohttp.ClientSession() as session:
        await session.close()
        result = await call(peer.url, session=session)
    assert result == Answer(0, reason="the session in HttpOptions is closed", sent=False)
    assert peer.connections == 0


def test_a_users_session_of_another_loop_is_an_answer() -> None:
    """A session that belongs to a loop that is gone sends nothing and raises nothing."""

    async def make() -> aiohttp.ClientSession:
        return aiohttp.ClientSession()

    session = asyncio.run(make())

    async def use() -> Answer:
        async with Peer() as peer:
            result = await call(peer.url, session=session)
            assert peer.heard == []
            return result

    result = asyncio.run(use())
    assert result.status == 0
    asyncio.run(session.close())


async def test_a_users_session_with_a_login_of_its_own_is_refused() -> None:
    """A login in a session rules ours out with aiohttp, so the mistake is told when the client is made."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # aiohttp's own, about sessions with a login
        session = aiohttp.ClientSession(auth=aiohttp.BasicAuth("theirs", "secret"))
    async with session:
        with pytest.raises(ConfigurationError, match="made without auth") as caught:
            TrackV1Transport(Settings(site_id="site", track_api_key="key", http=HttpOptions(session=session)))
    assert caught.value.variables == ("session",)
    assert "secret" not in str(caught.value)


async def test_close_may_be_called_at_any_time() -> None:
    """Closing twice, or before the first call, is harmless; a later call opens the client again."""
    async with Peer() as peer:
        client = HttpClient(peer.url, CREDENTIALS, HttpOptions())
        await client.close()
        for _ in range(2):
            assert (await client.request("POST", PATH, BODY)).status == 200
            await client.close()
            await client.close()
    assert peer.connections == 2


def test_a_second_loop_gets_a_session_of_its_own() -> None:
    """A client that was closed in one loop is used in the next."""
    client: HttpClient | None = None
    port = 0

    async def use() -> Answer:
        nonlocal client, port
        async with Peer(port=port) as peer:
            port = peer.port
            client = client or HttpClient(peer.url, CREDENTIALS, HttpOptions())
            result = await client.request("POST", PATH, BODY)
            await client.close()
            return result

    assert [asyncio.run(use()).status for _ in range(3)] == [200, 200, 200]


@pytest.mark.filterwarnings("ignore:Unclosed:ResourceWarning")  # aiohttp's, about the first loop's session
def test_a_second_loop_is_served_though_the_first_left_its_session_open() -> None:
    """A client that nobody closed in the first loop works in the second."""
    client: HttpClient | None = None
    port = 0

    def ignore(_loop: asyncio.AbstractEventLoop, _context: dict[str, Any]) -> None:
        pass

    async def use(*, close: bool) -> Answer:
        nonlocal client, port
        asyncio.get_running_loop().set_exception_handler(ignore)  # aiohttp tells the loop of the leak, too
        async with Peer(port=port) as peer:
            port = peer.port
            client = client or HttpClient(peer.url, CREDENTIALS, HttpOptions())
            result = await client.request("POST", PATH, BODY)
            if close:
                await client.close()
            return result

    assert asyncio.run(use(close=False)).status == 200
    assert asyncio.run(use(close=True)).status == 200
    gc.collect()  # what is collected later would be told in another test


# --------------------------------------------------------------------------------------------------------- secrets

SECRET_KEY = "KEY-s3cr3t"
SECRET_SITE = "SITE-s3cr3t"
PRIVATE = ("PERSON-priv", "DATA-priv", "EVENT-priv", "DEVICE-priv", "SERVICE-priv")
ORDERS: dict[Kind, Options] = {
    "redirect": {"location": "http://127.0.0.1:1/customers/PERSON-priv?key=KEY-s3cr3t"},
    "raw": {"body": b'{"errors":[{"message":"SERVICE-priv"'},
    "rate_limit": {"retry_after": "0"},
    "unavailable": {"retry_after": "0"},
    "latency": {"latency": 0.01},
}


def _shown(value: object) -> Iterator[str]:
    yield str(value)
    yield repr(value)


@pytest.mark.parametrize("wire", ["v1", "v2"])
async def test_no_secret_is_ever_shown(wire: str, caplog: pytest.LogCaptureFixture) -> None:
    """Through every fault there is, no key, id, name or content stands in a log record, a ``repr`` or a reason."""
    caplog.set_level(logging.DEBUG)
    shown: list[str] = []

    def on_settled(chunk: SettledChunk) -> None:
        shown.extend(_shown(chunk))
        shown.extend(one.reason for one in chunk.operations)

    async with Simulator(site_id=SECRET_SITE, track_api_key=SECRET_KEY) as sim:
        settings = Settings(
            site_id=SECRET_SITE,
            track_api_key=SECRET_KEY,
            track_url=sim.url,
            http=HttpOptions(read_timeout=0.3, proxy=None),
        )
        transport: Transport | None = TrackV1Transport(settings) if wire == "v1" else None
        for kind in KINDS:
            tracker = CioBatchTracker(
                settings, transport=transport, retry=PATIENT, flush_interval=0.01, on_settled=on_settled
            )
            sim.faults.order(kind, **ORDERS.get(kind, {}))
            async with tracker:
                await tracker.identify("PERSON-priv", {"DATA-priv": "DATA-priv"})
                await tracker.enqueue("PERSON-priv", "EVENT-priv", {"DATA-priv": "DATA-priv"})
                await tracker.add_device("PERSON-priv", "DEVICE-priv", "ios")
                await tracker.submit(operations.anonymous_event("PERSON-priv", "EVENT-priv"))
                await tracker.delete_device("PERSON-priv", "DEVICE-priv")
                await tracker.flush(timeout=10)
                stats = assert_conserved(tracker)
                shown.extend(_shown(tracker))
                shown.extend(_shown(stats))
            assert (stats.pending, stats.in_flight) == (0, 0), (kind, stats)
        assert {kind for kind in KINDS if not sim.faults.injected[kind]} == set()
        shown.extend(_shown(settings))
        shown.extend(_shown(HttpClient(sim.url, basic_credentials(SECRET_SITE, SECRET_KEY), settings.http)))
    records = [record for record in caplog.records if not record.name.startswith("aiohttp.server")]
    assert any(record.name.startswith("cio_batch") for record in records)
    for record in records:
        shown.append(record.getMessage())
        shown.extend(repr(value) for value in vars(record).values())
        if record.exc_info is not None:
            shown.append(logging.Formatter().formatException(record.exc_info))
    encoded = basic_credentials(SECRET_SITE, SECRET_KEY).removeprefix("Basic ")
    assert shown
    for text in shown:
        assert not [word for word in (SECRET_KEY, SECRET_SITE, encoded, *PRIVATE) if word in text], text[:300]


async def test_a_reason_holds_no_path(sim: Simulator) -> None:
    """On v1 a path names a person; the reason of a failed call names the kind of fault alone."""
    reasons: set[str] = set()
    for kind in ("drop_before", "drop_after", "black_hole", "redirect", "unauthorized", "html_error"):
        sim.faults.order(kind, location="http://127.0.0.1:1/person-1")
    async with client_of(sim.url, read_timeout=0.1) as client:
        for _ in range(6):
            reasons.add((await client.request("PUT", "/api/v1/customers/person-1", b"{}")).reason)
    # An answer with a status needs no reason of its own, and both drops look alike.
    assert len(reasons) == 4, reasons
    assert not [reason for reason in reasons if "person" in reason or "/" in reason]
