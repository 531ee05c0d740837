"""What the direct clients share: one call, its retries, its errors, and the life of the connections.

Rules:

1. A call ends in its result or in one error of the tree; a foreign one never comes out.
2. An error's ``retryable`` alone decides whether a call is repeated. What the service may have taken and must not take
   twice is never ``retryable``.
3. Nothing that belongs to a loop is made in a constructor; each loop has its own.
4. Waiting for a turn (the rate, a free slot) is no part of a call's timeouts.
"""

from __future__ import annotations

import asyncio
import logging
import time
import warnings
from collections.abc import Callable, Coroutine, Mapping, Sequence
from types import NoneType, TracebackType
from typing import Any, Final, Generic, Self, TypeAlias, TypeVar, cast

import attrs
from aiolimiter import AsyncLimiter

from cio_batch.clients.calls import Request
from cio_batch.errors import ApiError, ConfigurationError, UnreachableError
from cio_batch.retries import RetryAttempt, with_retry
from cio_batch.settings import RetryOptions, Settings
from cio_batch.transports.http import HttpClient
from cio_batch.verdicts import Answer, Next, is_retryable, judge_call, parse_retry_after, read_details

_logger = logging.getLogger(__name__)

T = TypeVar("T")

CONCURRENCY: Final = 50
"""Calls that a direct client makes at a time, unless told otherwise; each takes a connection."""


class PerLoop(Generic[T]):
    """Something that belongs to a loop: made when it is first asked for in a loop, another one for each."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._made: dict[asyncio.AbstractEventLoop, T] = {}

    def get(self) -> T:
        """Return that of the running loop."""
        loop = asyncio.get_running_loop()
        found = self._made.get(loop)
        if found is None:
            for gone in [each for each in list(self._made) if each.is_closed()]:
                self._made.pop(gone, None)
            found = self._made[loop] = self._make()
        return found


def limiter(rate: float | None) -> AsyncLimiter | None:
    """A limiter for so many calls a second. It belongs to the running loop."""
    # max_rate 1 in 1/rate seconds is a strict interval: bursts are smoothed, not allowed once a second.
    return None if rate is None else AsyncLimiter(1, 1 / rate)


@attrs.frozen
class Lane:
    """What calls of one kind wait for: a free slot first, then the rate. It belongs to the running loop.

    The other way round, calls that wait for a slot would have their turn already, and all go out at once.
    """

    slots: asyncio.Semaphore
    gates: Sequence[AsyncLimiter | None] = ()


@attrs.define(eq=False)
class _Call(Generic[T]):
    """A call on its way through its attempts."""

    request: Request
    read: Callable[[Answer], T]
    lane: Lane
    attempts: int = 0


async def _attempt(http: HttpClient, call: _Call[T]) -> T:
    request = call.request
    async with call.lane.slots:
        for gate in call.lane.gates:
            if gate is not None:
                await gate.acquire()
        attempt, call.attempts = call.attempts, call.attempts + 1
        answer = await http.request(
            request.method, request.path, request.body, attempt=attempt, authorized=request.authorized
        )
    return call.read(answer)


_Attempts: TypeAlias = Callable[[HttpClient, "_Call[Any]"], Coroutine[Any, Any, Any]]


def _log_retry(attempt: RetryAttempt) -> None:
    _logger.info("a call will be repeated in %.1f s: %s", attempt.wait, attempt.error)


class DirectClient:
    """A client of one API, with the life that :class:`TypedCioClient` and :class:`CioAppClient` share.

    Make it anywhere, also at module level; it connects with its first call. End it with ``await aclose()``, or use
    ``async with``. It may be used in several loops and threads; each loop has connections of its own.

    Args:
        http: The way to the service; ``None`` where everything is checked and nothing sent.
        retry: Waits and number of repeats; ``None`` for none.
        concurrency: Calls at a time at most, in each loop; the others wait.
    """

    def __init__(self, http: HttpClient | None, retry: RetryOptions | None, concurrency: int) -> None:
        self._http = http
        self._left_open = False
        if http is None:
            _logger.warning("a %s is disabled: it checks everything, and sends nothing", type(self).__name__)
        self._lane = PerLoop(lambda: Lane(asyncio.Semaphore(concurrency)))
        self._attempts: _Attempts = _attempt if retry is None else with_retry(retry, on_retry=_log_retry)(_attempt)

    def __repr__(self) -> str:
        state = "disabled" if self._http is None else "open" if self.is_open else "not connected"
        return f"<{type(self).__name__} {state}>"

    def __del__(self) -> None:
        if getattr(self, "_http", None) is not None and self.is_open and not self._left_open:
            warnings.warn(_NOT_CLOSED.format(type(self).__name__), ResourceWarning, stacklevel=2, source=self)

    @property
    def is_open(self) -> bool:
        """Whether connections may be open, so that :meth:`aclose` is due."""
        return self._http is not None and self._http.is_open

    async def aclose(self) -> None:
        """Close the connections of this loop. Idempotent; a later call connects anew.

        Calls that are under way fail.
        """
        if self._http is not None:
            await self._http.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def warn_if_open(self) -> None:
        """Give the ``ResourceWarning`` of a client that is let go without :meth:`aclose`, once."""
        if self.is_open and not self._left_open:
            self._left_open = True
            warnings.warn(_NOT_CLOSED.format(type(self).__name__), ResourceWarning, stacklevel=3, source=self)

    async def _make(self, request: Request, read: Callable[[Answer], T], instead: T, lane: Lane | None = None) -> T:
        """Make a call, with its repeats.

        Args:
            request: The call.
            read: Turns the answer into the result, or raises.
            instead: The result where nothing is sent.
            lane: What each attempt waits for first; by default a slot of the client.
        """
        if self._http is None:
            return instead
        call = _Call(request, read, lane or self._lane.get())
        return cast("T", await self._attempts(self._http, call))


def check_arguments(
    settings: object, retry: object, concurrency: object, kinds: Mapping[str, tuple[object, type, str]]
) -> None:
    """Name every argument of a client that is out of range, in one error.

    Args:
        settings: One of all clients.
        retry: Likewise.
        concurrency: Likewise.
        kinds: The client's own, by name: the value, its class, and how one is written.

    Raises:
        ConfigurationError: There are such arguments.
    """
    faults: list[tuple[str, str]] = []
    shared: dict[str, tuple[object, type | tuple[type, ...], str]] = {
        "settings": (settings, (Settings, NoneType), "Settings(...)"),
        "retry": (retry, (RetryOptions, NoneType), "RetryOptions(...) or None"),
    }
    for name, (value, kind, written) in {**shared, **kinds}.items():
        if not isinstance(value, kind):
            faults.append((name, f"must be {written}, got {type(value).__name__}"))
    if type(concurrency) is not int or concurrency < 1:
        faults.append(("concurrency", "must be a whole number of at least 1"))
    if faults:
        text = "; ".join(f"{name} {fault}" for name, fault in faults)
        raise ConfigurationError(text, tuple(name for name, _ in faults))


def raise_for(answer: Answer) -> None:
    """Raise unless the service took the call.

    Raises:
        ApiError: It answered, and said no.
        UnreachableError: It did not answer, or nothing that can be read.
    """
    status, now = answer.status, time.time()
    judgement = judge_call(answer, now)
    if judgement.next is Next.NOTHING and not judgement.rejected:
        return
    if status == 0 or (200 <= status < 300 and not judgement.rejected):
        raise UnreachableError(judgement.reason, sent=answer.sent)
    raise api_error(answer, retryable=is_retryable(status))


def api_error(answer: Answer, *, retryable: bool) -> ApiError:
    """The error of an answer that says no."""
    hint = ""
    if answer.status in (401, 403):
        hint = f"Customer.io answered {answer.status}: it refuses the credentials; check them and CUSTOMERIO_REGION"
    return ApiError(
        hint,
        status=answer.status,
        retryable=retryable,
        retry_after=parse_retry_after(answer.retry_after, time.time()),
        details=read_details(answer),
    )


_NOT_CLOSED: Final = "a {} was not closed: use `async with`, or `await aclose()` in its loop"
