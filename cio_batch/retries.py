"""How long to wait before a call is repeated; the only module that knows ``backoff``.

``backoff`` 2.2.1 is archived upstream. It works and has no dependencies, so it stays, here alone: ``with_retry`` uses
its decorator, and the delivery draws its waits from the same generator.

Rules:

1. The wait before repeat *n* (from 0) is ``min(base_delay * 2**n, max_delay)``, and jitter on top of it.
2. A ``Retry-After`` is a floor: jitter comes on top of it, never off. It is capped at ``max_retry_after``.
3. No wait is shortened: one that would end after ``max_elapsed`` is not begun.
4. What is raised in the end is the last error, unchanged.
"""

from __future__ import annotations

import functools
import inspect
import logging
import random as random_module
import sys
import time
import types
import warnings
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeAlias, TypeVar, cast, overload

import attrs
import backoff

from cio_batch.errors import whereabouts
from cio_batch.settings import RetryOptions
from cio_batch.verdicts import parse_retry_after

_logger = logging.getLogger(__name__)

P = ParamSpec("P")
Q = ParamSpec("Q")
S = TypeVar("S")
T = TypeVar("T")


def delay(options: RetryOptions, attempt: int, retry_after: float | None, random: float) -> float:
    """Return the seconds to wait before a repeat.

    Args:
        options: The formula's constants.
        attempt: Which repeat it is, from 0.
        retry_after: Seconds that the service asked to wait, or ``None``.
        random: A number in [0, 1).
    """
    # 2.0**1024 overflows; long before that the cap rules.
    exponential = min(options.base_delay * 2.0 ** min(attempt, 60), options.max_delay)
    floor = min(retry_after or 0.0, options.max_retry_after)
    if options.jitter == "full":
        return floor + exponential * random if floor else exponential * random
    return max(exponential, floor) * (1 + options.jitter * random)


def waits(options: RetryOptions, random: Callable[[], float] = random_module.random) -> Generator[float, object, None]:
    """Generate the waits between attempts, in the form that ``backoff`` takes.

    Each ``send`` passes what went wrong: an object whose ``retry_after`` is honoured, if it has one; otherwise the
    ``Retry-After`` of its ``headers``, or of those of its ``response``. The first value, before anything is sent, is a
    placeholder.
    """
    problem = yield 0.0
    attempt = 0
    while True:
        problem = yield delay(options, attempt, _retry_after(problem), random())
        attempt += 1


def is_worth_retrying(error: BaseException) -> bool:
    """Everything, except an answer with a 4xx status other than 408 and 429.

    An error that says itself whether it is ``retryable`` is believed. The status is read where the usual HTTP
    libraries put it: ``status`` or ``status_code``, on the error or on its ``response``.
    """
    retryable = getattr(error, "retryable", None)
    if isinstance(retryable, bool):
        return retryable
    status = _status(error)
    return not (status is not None and 400 <= status < 500 and status not in (408, 429))


def _status(error: object) -> int | None:
    for owner in (error, getattr(error, "response", None)):
        for name in ("status", "status_code"):
            status = getattr(owner, name, None)
            if isinstance(status, int):
                return status
    return None


@attrs.frozen
class RetryAttempt:
    """A repeat that is about to be waited for; what ``on_retry`` gets.

    Attributes:
        attempt: Which repeat it will be, from 1.
        wait: Seconds until it begins.
        error: Why it is needed. Its text may hold content, unless it is an error of this library.
    """

    attempt: int
    wait: float
    error: Exception


RetryIf: TypeAlias = Callable[[Exception], bool]
OnRetry: TypeAlias = Callable[[RetryAttempt], object]


class Retried(Coroutine[Any, Any, T], Generic[P, T]):
    """A coroutine function that repeats itself; what ``with_retry`` makes of a function alone.

    Call it like the function, also as a method; or await it as it is, which calls the function without arguments.
    """

    def __init__(self, call: Callable[P, Awaitable[T]], attempts: Callable[P, Coroutine[Any, Any, T]]) -> None:
        self._attempts = attempts
        self._running: Coroutine[Any, Any, T] | None = None
        functools.update_wrapper(self, call)
        if sys.version_info >= (3, 12):  # before, a framework that asks for this has to look at __call__
            inspect.markcoroutinefunction(self)

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call the function until it succeeds or fails for good."""
        return await self._attempts(*args, **kwargs)

    @overload
    def __get__(self, instance: None, owner: type) -> Retried[P, T]: ...
    @overload
    def __get__(
        self: Retried[Concatenate[S, Q], T], instance: S, owner: type[S] | None = None
    ) -> Callable[Q, Coroutine[Any, Any, T]]: ...
    def __get__(self, instance: object, owner: type | None = None) -> Any:
        """Become a method."""
        return self if instance is None else types.MethodType(self, instance)

    def __await__(self) -> Generator[Any, Any, T]:
        """Call the function without arguments, and wait for it."""
        call: Any = self._attempts
        running: Coroutine[Any, Any, T] = call()
        return running.__await__()

    # The rest makes it what `await with_retry(call)` and `create_task(with_retry(call))` expect: a coroutine.

    def send(self, value: Any) -> Any:
        """Run up to the next wait; for event loops."""
        return self._run().send(value)

    def throw(self, *args: Any) -> Any:
        """Raise within; for event loops."""
        return self._run().throw(*args)

    def close(self) -> None:
        """End what runs; for event loops."""
        if self._running is not None:
            self._running.close()

    def _run(self) -> Coroutine[Any, Any, T]:
        if self._running is None:
            call: Any = self._attempts
            self._running = call()
        return cast("Coroutine[Any, Any, T]", self._running)


class Retrying(Protocol):
    """A decorator for coroutine functions."""

    def __call__(self, call: Callable[P, Awaitable[T]], /) -> Callable[P, Coroutine[Any, Any, T]]:
        """Return the function that repeats itself."""
        ...


@overload
def with_retry(call: Callable[P, Awaitable[T]]) -> Retried[P, T]: ...
@overload
def with_retry(
    call: Callable[[], Awaitable[T]],
    options: RetryOptions | None = None,
    *,
    retry_if: RetryIf = is_worth_retrying,
    on_retry: OnRetry | None = None,
) -> Coroutine[Any, Any, T]: ...
@overload
def with_retry(
    options: RetryOptions,
    /,
    *,
    retry_if: RetryIf = is_worth_retrying,
    on_retry: OnRetry | None = None,
) -> Retrying: ...
@overload
def with_retry(
    *,
    options: RetryOptions | None = None,
    retry_if: RetryIf = is_worth_retrying,
    on_retry: OnRetry | None = None,
) -> Retrying: ...
def with_retry(
    call: Callable[..., Awaitable[Any]] | RetryOptions | None = None,
    options: RetryOptions | None = None,
    *,
    retry_if: RetryIf = is_worth_retrying,
    on_retry: OnRetry | None = None,
) -> Any:
    """Call a coroutine function until it succeeds, fails for good, or has been repeated ``max_retries`` times.

    In three forms::

        await with_retry(lambda: client.region(), RetryOptions(max_retries=5))

        @with_retry(RetryOptions(max_elapsed=60.0), on_retry=log)
        async def fetch(page: int) -> bytes: ...

        @with_retry
        async def fetch(page: int) -> bytes: ...

    Args:
        call: A coroutine function; each attempt calls it anew. Awaited at once, it is called without arguments.
        options: Waits, number of repeats and the time after which none is begun (``max_elapsed``); three repeats by
            default. A ``Retry-After`` is honoured, also that of an error of aiohttp, httpx or requests.
        retry_if: Whether an error is worth another attempt; :func:`is_worth_retrying` by default.
        on_retry: Called with a :class:`RetryAttempt` before each wait. If it raises, that is logged, and nothing else.

    Returns:
        What ``call`` returned; as a decorator, a function that takes the same arguments.

    Raises:
        TypeError: An argument is of a wrong kind, such as a coroutine in place of the function that makes one.
        Exception: The last error that ``call`` raised.

    Cancellation: A cancel ends the wait or the attempt at once and is never retried.
    """
    if isinstance(call, RetryOptions):
        call, options = None, call
    _check_arguments(call, options, retry_if, on_retry)
    chosen = options if options is not None else RetryOptions()

    def decorate(call: Callable[..., Awaitable[Any]]) -> Callable[..., Coroutine[Any, Any, Any]]:
        return _repeating(call, chosen, retry_if, on_retry)

    if call is None:
        return decorate
    attempts = decorate(call)
    alone = options is None and retry_if is is_worth_retrying and on_retry is None
    return Retried(call, attempts) if alone else attempts()


def _check_arguments(call: object, options: object, retry_if: object, on_retry: object) -> None:
    """Raise for what would only come out as an attempt that fails, and would be repeated."""
    if call is not None and not callable(call):
        if inspect.iscoroutine(call):
            call.close()  # it will not be awaited, and need not say so
        msg = f"with_retry takes a coroutine function, such as `lambda: function(...)`, got {type(call).__name__}"
        raise TypeError(msg)
    if options is not None and not isinstance(options, RetryOptions):
        msg = f"options must be RetryOptions(...), got {type(options).__name__}"
        raise TypeError(msg)
    for name, function in (("retry_if", retry_if), ("on_retry", on_retry or is_worth_retrying)):
        if not callable(function):
            msg = f"{name} must be a function, got {type(function).__name__}"
            raise TypeError(msg)


def _repeating(
    call: Callable[P, Awaitable[T]], options: RetryOptions, retry_if: RetryIf, on_retry: OnRetry | None
) -> Callable[P, Coroutine[Any, Any, T]]:
    """The function that repeats ``call``; made once, used for any number of calls."""

    def give_up(error: Exception) -> bool:
        return not retry_if(error)

    def wait_gen(**_: Any) -> Generator[float, Any, None]:
        return _until_elapsed(waits(options), options.max_elapsed)

    def tell(details: Any) -> None:
        if on_retry is None:
            return
        try:
            on_retry(RetryAttempt(details["tries"], details["wait"], details["exception"]))
        except Exception as error:  # noqa: BLE001 - a hook must not decide what becomes of the call
            _logger.error("on_retry raised %s", whereabouts(error))

    decorate = backoff.on_exception(
        wait_gen,
        Exception,
        max_tries=options.max_retries + 1,
        max_time=None,  # it would cut the last wait off, a Retry-After too, and reads the wall clock
        jitter=None,  # it is inside the generator: backoff's own would shorten a Retry-After
        giveup=give_up,
        on_backoff=tell,
        logger=None,
    )
    if sys.version_info >= (3, 14):
        # backoff asks asyncio.iscoroutinefunction, which is deprecated there.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return decorate(_as_coroutine_function(call))
    else:
        return decorate(_as_coroutine_function(call))


def _until_elapsed(waits: Generator[float, object, None], max_elapsed: float | None) -> Generator[float, object, None]:
    """The same waits, and an end, at which ``backoff`` gives up, before one that would last too long."""
    began = time.monotonic()
    problem = yield next(waits)
    while True:
        seconds = waits.send(problem)
        if max_elapsed is not None and time.monotonic() - began + seconds > max_elapsed:
            return
        problem = yield seconds


def _as_coroutine_function(call: Callable[P, Awaitable[T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    # backoff asks whether it decorates a coroutine function; a lambda that returns a coroutine would pass for a
    # plain function and be "retried" without ever being awaited.
    async def attempt(*args: P.args, **kwargs: P.kwargs) -> T:
        return await call(*args, **kwargs)

    return functools.update_wrapper(attempt, call)


def _retry_after(problem: object) -> float | None:
    """The seconds that the service asked to wait: an attribute, or a header of the error or of its ``response``."""
    seconds = getattr(problem, "retry_after", None)
    if seconds is None:
        for owner in (problem, getattr(problem, "response", None)):
            headers = getattr(owner, "headers", None)
            if isinstance(headers, Mapping):
                text = cast("Mapping[str, object]", headers).get("Retry-After")
                seconds = parse_retry_after(text, time.time()) if isinstance(text, str) else None
                break
    return float(seconds) if isinstance(seconds, (int, float)) and seconds > 0 else None
