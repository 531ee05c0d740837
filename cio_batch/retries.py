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

import random as random_module
import sys
import time
import warnings
from collections.abc import Awaitable, Callable, Generator
from typing import Any, TypeVar

import backoff

from cio_batch.settings import RetryOptions

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

    Each ``send`` passes what went wrong: an object whose ``retry_after`` is honoured, if it has one. The first value,
    before anything is sent, is a placeholder.
    """
    problem = yield 0.0
    attempt = 0
    while True:
        problem = yield delay(options, attempt, _retry_after(problem), random())
        attempt += 1


def is_worth_retrying(error: BaseException) -> bool:
    """Everything, except an answer with a 4xx status other than 408 and 429.

    An error that says itself whether it is ``retryable`` is believed.
    """
    retryable = getattr(error, "retryable", None)
    if isinstance(retryable, bool):
        return retryable
    status = getattr(error, "status", None)
    if not isinstance(status, int):
        status = getattr(error, "status_code", None)
    return not (isinstance(status, int) and 400 <= status < 500 and status not in (408, 429))


async def with_retry(
    call: Callable[[], Awaitable[T]],
    options: RetryOptions | None = None,
    *,
    retry_if: Callable[[BaseException], bool] = is_worth_retrying,
) -> T:
    """Call ``call`` until it succeeds, fails for good, or has been repeated ``max_retries`` times.

    Args:
        call: A coroutine function without arguments; each attempt calls it anew.
        options: Waits and number of repeats; three repeats by default.
        retry_if: Whether an error is worth another attempt; :func:`is_worth_retrying` by default.

    Returns:
        What ``call`` returned.

    Raises:
        Exception: The last error that ``call`` raised.

    Cancellation: A cancel ends the wait or the attempt at once and is never retried.
    """
    chosen = options if options is not None else RetryOptions()

    def give_up(error: Exception) -> bool:
        return not retry_if(error)

    def wait_gen(**_: Any) -> Generator[float, Any, None]:
        return _until_elapsed(waits(chosen), chosen.max_elapsed)

    decorate = backoff.on_exception(
        wait_gen,
        Exception,
        max_tries=chosen.max_retries + 1,
        max_time=None,  # it would cut the last wait off, a Retry-After too, and reads the wall clock
        jitter=None,  # it is inside the generator: backoff's own would shorten a Retry-After
        giveup=give_up,
        logger=None,
    )
    attempt: Callable[[], Awaitable[T]]
    if sys.version_info >= (3, 14):
        # backoff asks asyncio.iscoroutinefunction, which is deprecated there.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            attempt = decorate(_as_coroutine_function(call))
    else:
        attempt = decorate(_as_coroutine_function(call))
    return await attempt()


def _until_elapsed(waits: Generator[float, object, None], max_elapsed: float | None) -> Generator[float, object, None]:
    """The same waits, and an end, at which ``backoff`` gives up, before one that would last too long."""
    began = time.monotonic()
    problem = yield next(waits)
    while True:
        seconds = waits.send(problem)
        if max_elapsed is not None and time.monotonic() - began + seconds > max_elapsed:
            return
        problem = yield seconds


def _as_coroutine_function(call: Callable[[], Awaitable[T]]) -> Callable[[], Awaitable[T]]:
    # backoff asks whether it decorates a coroutine function; a lambda that returns a coroutine would pass for a
    # plain function and be "retried" without ever being awaited.
    async def attempt() -> T:
        return await call()

    return attempt


def _retry_after(problem: object) -> float | None:
    seconds = getattr(problem, "retry_after", None)
    return float(seconds) if isinstance(seconds, (int, float)) and seconds > 0 else None
