"""One HTTP call to Customer.io: session, credentials, redirects, and every fault turned into an answer.

Rules:

1. A call ends in an :class:`Answer`, whatever happens; only a cancel passes through.
2. Credentials follow a redirect only to ``*.customer.io`` over TLS, or to the very origin that was configured;
   anywhere else the redirect is refused. A redirected call keeps its method and body: a POST that became a GET would
   lose the batch.
3. The body is read to its end, at most ``MAX_ANSWER_BYTES``, before anybody judges the status.
4. A reason holds the kind of fault, never a URL's path (v1 has ids in it), a header or a body.
5. Nothing that belongs to a loop is made before the first call, and each loop has a session of its own.
6. The credentials are those that were configured; an entry in ``~/.netrc`` never takes their place.
7. Credentials that can be renewed are asked for anew once per 401, in a thread: never on the loop, and only once where
   several calls are refused together. The refused call is repeated once, and only with other credentials.

``aiohttp`` does not repeat a POST on a dropped keep-alive connection, and the server may have read it all: only the
ULIDs make our repeat harmless.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import netrc
import os
import ssl
import threading
import urllib.request
import weakref
from collections.abc import Callable, Iterator
from typing import Final, TypeAlias

import aiohttp
from aiohttp import BytesPayload, Payload
from aiohttp.abc import AbstractStreamWriter
from yarl import URL

from cio_batch._version import __version__
from cio_batch.errors import ConfigurationError, whereabouts
from cio_batch.settings import HttpOptions
from cio_batch.verdicts import Answer

_logger = logging.getLogger(__name__)

USER_AGENT: Final = f"cio-batch/{__version__}"
_HEADERS: Final = {"User-Agent": USER_AGENT, "Accept": "application/json", "Accept-Encoding": "identity"}
MAX_ANSWER_BYTES: Final = 1_000_000
_MAX_REDIRECTS: Final = 3
_REDIRECTS: Final = frozenset({301, 302, 307, 308})
# Shorter than the 60 s after which common load balancers close an idle connection: a call on a connection that is
# being closed costs a retry.
_KEEPALIVE: Final = 15.0


class PiecewiseBody(Payload):
    """A body that is put together piece by piece as it goes out, and never stands in memory as a whole.

    Half a megabyte at a time comes from the operating system and goes back to it, page by page: putting a batch
    together cost 300 microseconds of CPU more than in pieces that fit into the cache and are used again. The loop also
    has a pause between two pieces.

    Args:
        pieces: Gives the pieces; called anew for each time that the body is sent.
        size: Their bytes.
    """

    def __init__(self, pieces: Callable[[], Iterator[bytes]], size: int) -> None:
        super().__init__(pieces, content_type="application/json")
        self._pieces = pieces
        self._size = size

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Write it all."""
        for piece in self._pieces():
            await writer.write(piece)

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Return it all as text; a middleware of the user's session may ask for that."""
        return b"".join(self._pieces()).decode(encoding, errors)


Body: TypeAlias = bytes | Payload


def basic_credentials(user: str, password: str) -> str:
    """Return the value of an ``Authorization`` header. Source: RFC 7617."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


class HttpClient:
    """Makes calls to one origin with one set of credentials.

    Args:
        origin: For example ``https://track.customer.io``.
        authorization: Value of the ``Authorization`` header.
        options: Timeouts, proxy, certificates, a session of the user's own.
        renew: Returns the value of the ``Authorization`` header anew; called when the service answers 401.

    Raises:
        ConfigurationError: The user's session has credentials of its own, which aiohttp refuses to send beside ours.
    """

    def __init__(
        self,
        origin: str,
        authorization: str,
        options: HttpOptions,
        *,
        renew: Callable[[], str] | None = None,
    ) -> None:
        if getattr(options.session, "auth", None) is not None:
            msg = "HttpOptions.session must be made without auth: aiohttp refuses to send it beside our credentials"
            raise ConfigurationError(msg, ("session",))
        self._origin = URL(origin, encoded=True)
        self._authorization = authorization
        self._options = options
        self._timeout = aiohttp.ClientTimeout(
            total=options.total_timeout, sock_connect=options.connect_timeout, sock_read=options.read_timeout
        )
        self._renew = renew
        self._renewals = 0
        self._renewing = threading.Lock()
        self._sessions: dict[asyncio.AbstractEventLoop, aiohttp.ClientSession] = {}
        self._warned_of_redirect = False
        _clients.add(self)

    def __repr__(self) -> str:
        return f"<HttpClient {self._origin}>"

    @property
    def is_open(self) -> bool:
        """Whether a session of ours is open, in whatever loop."""
        return any(not session.closed for session in list(self._sessions.values()))

    async def request(
        self, method: str, path: str, body: Body | None = None, *, attempt: int = 0, authorized: bool = True
    ) -> Answer:
        """Make one call.

        Args:
            method: The HTTP method.
            path: Path and query, encoded, from the slash on.
            body: JSON.
            attempt: How often this very call was made before; told to the service as ``X-Retry-Count``.
            authorized: Whether to send the credentials.

        Returns:
            The answer; with status 0 and a reason when there is none.
        """
        # A session of our own has these, so that aiohttp need not merge them into each call.
        headers = {} if self._options.session is None else dict(_HEADERS)
        if type(body) is bytes:
            body = BytesPayload(body, content_type="application/json")  # else aiohttp looks for a type that fits
        if attempt:
            headers["X-Retry-Count"] = str(attempt)
        if not authorized:
            return await self._follow(method, path, body, headers)
        renewals, authorization = self._renewals, self._authorization
        headers["Authorization"] = authorization
        answer = await self._follow(method, path, body, headers)
        if answer.status == 401:
            if self._renew is not None:
                await asyncio.to_thread(self._renew_after, renewals)
            if (fresh := self._authorization) != authorization:
                return await self._follow(method, path, body, {**headers, "Authorization": fresh})
        return answer

    def authorize(self, authorization: str) -> None:
        """Use another value of the ``Authorization`` header from now on, and ask nobody for one any more."""
        self._renew = None
        self._renewals += 1
        self._authorization = authorization

    def _renew_after(self, renewals: int) -> None:
        """Ask for the credentials, unless somebody did since; runs in a thread."""
        with self._renewing:
            renew, fresh = self._renew, self._authorization
            if self._renewals != renewals or renew is None:
                return
            try:
                fresh = renew()
            except Exception as error:  # noqa: BLE001 - the user's function; the 401 stands
                _logger.error("asking for fresh credentials raised %s", whereabouts(error))
            if self._renewals == renewals:  # else authorize() was called meanwhile
                self._renewals += 1
                self._authorization = fresh

    async def _follow(self, method: str, path: str, body: Body | None, headers: dict[str, str]) -> Answer:
        """Make one call, and follow its redirects as far as Rule 2 goes."""
        # Parsing it all anew takes three times as long.
        url = URL(f"{self._origin}{path}", encoded=True) if "?" in path else self._origin.with_path(path, encoded=True)
        for _ in range(_MAX_REDIRECTS + 1):
            answer, location = await self._call(method, url, body, headers)
            if answer.status not in _REDIRECTS:
                return answer
            target = _join(url, location)
            if target is None or not self._may_follow(target):
                return Answer(
                    0, reason=f"status {answer.status} redirects to another host, which is refused", sent=True
                )
            if not self._warned_of_redirect:
                self._warned_of_redirect = True
                _logger.warning(
                    "%s redirects to %s; set the region (or the URL) to that, every call takes two now",
                    self._origin,
                    target.origin(),
                )
            url = target
        return Answer(0, reason=f"redirected more than {_MAX_REDIRECTS} times", sent=True)

    def forget_parent(self) -> None:
        """Forget the sessions of the parent process; called by itself after a fork."""
        _inherited.extend(self._sessions.values())
        self._sessions = {}
        self._renewing = threading.Lock()  # a thread of the parent's may have held it

    async def close(self) -> None:
        """Close the session of this loop, if it is ours and open. A later call opens another."""
        self._forget_closed_loops()
        session = self._sessions.pop(asyncio.get_running_loop(), None)
        if session is not None:
            await session.close()

    def _forget_closed_loops(self) -> None:
        for loop in [loop for loop in list(self._sessions) if loop.is_closed()]:
            self._sessions.pop(loop, None)  # nobody closed it while that could be done: aiohttp tells so

    async def _call(
        self, method: str, url: URL, body: Body | None, headers: dict[str, str]
    ) -> tuple[Answer, str | None]:
        """Make one call without following redirects; return the answer and its ``Location``."""
        if self._options.session is not None and self._options.session.closed:
            return Answer(0, reason="the session in HttpOptions is closed", sent=False), None
        try:
            proxy = self._options.proxy
            if proxy is None and self._options.trust_env and self._options.session is None:
                proxy = await asyncio.to_thread(_environment_proxy, url)
            async with self._ready_session().request(
                method,
                url,
                data=body,
                headers=headers,
                allow_redirects=False,
                raise_for_status=False,
                timeout=self._timeout,
                proxy=proxy,
            ) as response:
                content, complete = await _read(response)
                answer = Answer(
                    response.status,
                    content,
                    retry_after=response.headers.get("Retry-After"),
                    complete=complete,
                )
                return answer, response.headers.get("Location") if answer.status in _REDIRECTS else None
        except aiohttp.ClientConnectorError as error:
            return Answer(0, reason=f"no connection ({_kind(error)})", sent=False), None
        except aiohttp.ConnectionTimeoutError:
            return Answer(0, reason="no connection (timed out)", sent=False), None
        except aiohttp.ClientHttpProxyError as error:
            return Answer(0, reason=f"no connection (the proxy answers {error.status})", sent=False), None
        except (aiohttp.ClientError, OSError, ValueError, RuntimeError, asyncio.IncompleteReadError) as error:
            # TimeoutError is an OSError; ValueError is what aiohttp and yarl raise for answers that are no HTTP, and
            # RuntimeError for a session that belongs to another loop.
            return Answer(0, reason=f"no answer ({_kind(error)})"), None

    def _ready_session(self) -> aiohttp.ClientSession:
        if self._options.session is not None:
            return self._options.session
        loop = asyncio.get_running_loop()
        session = self._sessions.get(loop)
        if session is None or session.closed:
            self._forget_closed_loops()
            ca_bundle = self._options.ca_bundle
            session = self._sessions[loop] = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=0,  # the callers' semaphores bound the calls
                    keepalive_timeout=_KEEPALIVE,
                    ssl=True if ca_bundle is None else ssl.create_default_context(cafile=ca_bundle),
                ),
                headers=_HEADERS,
                cookie_jar=aiohttp.DummyCookieJar(),
                # No trust_env: with it aiohttp refuses every call for whose host ~/.netrc has an entry ("cannot combine
                # AUTHORIZATION header"), and an entry "default" is one for every host.
                auto_decompress=False,
            )
        return session

    def _may_follow(self, target: URL) -> bool:
        if str(target.origin()) == str(self._origin.origin()):
            return True
        host = target.host or ""
        return target.scheme == "https" and host.endswith(".customer.io") and target.port == 443


async def _read(response: aiohttp.ClientResponse) -> tuple[bytes, bool]:
    """Read a body up to the limit; say whether that was all of it, and readable as it stands."""
    content = response.content
    parts: list[bytes] = []
    size = 0
    try:
        while not content.at_eof():
            part = await content.readany()
            parts.append(part)
            size += len(part)
            if size > MAX_ANSWER_BYTES:
                response.close()
                return b"".join(parts)[:MAX_ANSWER_BYTES], False
    except (aiohttp.ClientError, OSError):
        # The status stands; whoever needs the body finds it incomplete.
        return b"".join(parts), False
    # We asked for no encoding, so nobody is to unpack a bomb.
    encoding = response.headers.get("Content-Encoding")
    return b"".join(parts), encoding is None or encoding.strip().lower() == "identity"


def _join(url: URL, location: str | None) -> URL | None:
    if not location:
        return None
    try:
        target = url.join(URL(location, encoded=True))
        # yarl looks at the parts when they are asked for: a port that is none raises here, as does a host that is not
        # ASCII. A login in the URL would be another one than ours.
        usable = target.scheme in ("http", "https") and bool(target.origin().host) and target.port is not None
        has_login = target.raw_user is not None or target.raw_password is not None
    except ValueError:
        return None
    return target if usable and not has_login else None


def _environment_proxy(url: URL) -> str | None:
    """The proxy that the environment names for a URL, with its login from ``~/.netrc``; blocks, for that is a file."""
    proxy = urllib.request.getproxies().get(url.scheme)
    if proxy is None or urllib.request.proxy_bypass(url.host or ""):
        return None
    found = URL(proxy if "://" in proxy else f"http://{proxy}")
    if found.raw_user is None and found.host:
        try:
            entry = netrc.netrc(os.environ.get("NETRC")).authenticators(found.host)
        except (OSError, ValueError, netrc.NetrcParseError):
            entry = None
        if entry is not None:
            found = found.with_user(entry[0] or None).with_password(entry[2])
    return str(found)


def _kind(error: BaseException) -> str:
    """Name a fault without quoting it: a text of aiohttp may hold the URL."""
    if isinstance(error, TimeoutError):
        return "timed out"
    if type(error) is ValueError and "AUTHORIZATION" in str(error):
        return "aiohttp refuses our credentials: the session in HttpOptions takes a login from ~/.netrc"
    cause = getattr(error, "os_error", None)
    if isinstance(cause, OSError) and cause.strerror:
        return f"{type(error).__name__}: {cause.strerror}"
    return type(error).__name__


_clients: Final[weakref.WeakSet[HttpClient]] = weakref.WeakSet()
# Sessions of a parent process. They are kept, never closed: closing one would unregister the parent's sockets from
# the poll object that both share.
_inherited: Final[list[aiohttp.ClientSession]] = []


def _forget_parents() -> None:
    for client in list(_clients):
        client.forget_parent()


os.register_at_fork(after_in_child=_forget_parents)
