"""The formula of the waits, and what is tried again."""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
import math
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import attrs
import pytest
import requests  # comes with the official client
from hypothesis import given, settings
from hypothesis import strategies as st

from cio_batch import (
    ApiError,
    CioBatchError,
    InvalidOperationError,
    QueueFullError,
    RetryAttempt,
    SendOutcomeUnknownError,
    UnreachableError,
    with_retry,
)
from cio_batch.retries import delay, is_worth_retrying, waits
from cio_batch.settings import QUEUE_RETRY, RetryOptions

from .scripted import Say, Scripted

QUICK = RetryOptions(max_retries=3, base_delay=0.001, max_delay=0.001, jitter=0.0)

options = st.builds(
    RetryOptions,
    base_delay=st.floats(1e-6, 1e6),
    max_delay=st.floats(1e-6, 1e6),
    jitter=st.floats(0, 1),
    max_retry_after=st.floats(1e-3, 1e6),
)
randoms = st.floats(0, 1, exclude_max=True)
asked = st.one_of(st.none(), st.floats(0, 1e12), st.just(math.inf))

# -------------------------------------------------------------------------------------------------- the formula


@settings(max_examples=300, deadline=None)
@given(options, st.one_of(st.integers(0, 80), st.just(10**9)), asked, randoms)
def test_a_wait_lies_between_its_floor_and_its_jitter(
    chosen: RetryOptions, attempt: int, retry_after: float | None, random: float
) -> None:
    """The exponential part is capped, a Retry-After is a capped floor, and jitter comes on top of both."""
    base = chosen.max_delay if attempt > 60 else min(chosen.base_delay * 2**attempt, chosen.max_delay)
    floor = max(base, min(retry_after or 0.0, chosen.max_retry_after))
    wait = delay(chosen, attempt, retry_after, random)
    assert floor <= wait <= floor * (1 + float(chosen.jitter)) * (1 + 1e-12)
    assert math.isfinite(wait)
    assert delay(chosen, attempt, retry_after, 0.0) == pytest.approx(floor)


@settings(max_examples=200, deadline=None)
@given(options, st.integers(0, 80), asked, randoms)
def test_full_jitter_never_goes_below_a_retry_after(
    chosen: RetryOptions, attempt: int, retry_after: float | None, random: float
) -> None:
    """Full jitter spreads between nothing and the exponential part, above the floor."""
    full = RetryOptions(
        base_delay=chosen.base_delay,
        max_delay=chosen.max_delay,
        jitter="full",
        max_retry_after=chosen.max_retry_after,
    )
    floor = min(retry_after or 0.0, full.max_retry_after)
    span = min(full.base_delay * 2**attempt, full.max_delay)
    assert delay(full, attempt, retry_after, random) == pytest.approx(floor + span * random)
    assert floor <= delay(full, attempt, retry_after, random) <= floor + span


@pytest.mark.parametrize(
    ("attempt", "retry_after", "random", "seconds"),
    [
        (0, None, 0.0, 1.0),
        (0, None, 0.5, 1.15),
        (1, None, 0.0, 2.0),
        (4, None, 0.0, 16.0),
        (5, None, 0.0, 30.0),
        (10**9, None, 0.0, 30.0),
        (0, 3.0, 0.0, 3.0),
        (0, 3.0, 0.5, 3.45),
        (2, 3.0, 0.0, 4.0),
        (0, 1e9, 0.0, 300.0),
        (0, 1e9, 0.5, 345.0),
        (0, 0.0, 0.0, 1.0),
    ],
)
def test_the_default_waits(attempt: int, retry_after: float | None, random: float, seconds: float) -> None:
    """The defaults give these waits."""
    assert delay(RetryOptions(), attempt, retry_after, random) == pytest.approx(seconds)


def test_the_queue_is_patient_for_about_three_minutes() -> None:
    """The waits of a tracker's default sum up to what its documentation says."""
    total = sum(delay(QUEUE_RETRY, attempt, None, 0.5) for attempt in range(QUEUE_RETRY.max_retries))
    assert 150 < total < 200


def test_the_generator_draws_each_wait_from_the_error_that_was_sent() -> None:
    """The generator of waits counts attempts by itself and honours the Retry-After of each error."""
    generator = waits(RetryOptions(jitter=0.0), random=lambda: 0.0)
    next(generator)
    problems = [ValueError(), api_error(503, retry_after=9.0), api_error(503), api_error(503, retry_after=math.nan)]
    assert [generator.send(problem) for problem in problems] == [1.0, 9.0, 4.0, 8.0]


# ------------------------------------------------------------------------------------------- what is tried again


class StatusError(Exception):
    def __init__(self, **attributes: object) -> None:
        super().__init__("status")
        self.__dict__.update(attributes)


def api_error(status: int, *, retry_after: float | None = None, retryable: bool = True) -> ApiError:
    return ApiError("no", status=status, retryable=retryable, retry_after=retry_after)


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (StatusError(status=400), False),
        (StatusError(status=404), False),
        (StatusError(status=499), False),
        (StatusError(status=408), True),
        (StatusError(status=429), True),
        (StatusError(status=500), True),
        (StatusError(status=503), True),
        (StatusError(status_code=404), False),
        (StatusError(status_code=503), True),
        (StatusError(status="404", status_code=404), False),
        (StatusError(response=StatusError(status_code=404)), False),
        (StatusError(response=StatusError(status=429)), True),
        (StatusError(response=None), True),
        (StatusError(retryable=False), False),
        (StatusError(retryable=False, status=503), False),
        (StatusError(retryable=True, status=404), True),
        (StatusError(retryable="maybe", status=404), False),
        (ValueError(), True),
        (TimeoutError(), True),
        (ConnectionError(), True),
        (UnreachableError("gone", sent=True), True),
        (api_error(404, retryable=False), False),
        (SendOutcomeUnknownError("timed out"), False),
        (InvalidOperationError("name", "must not be empty"), False),
        (QueueFullError("full", pending=1, pending_bytes=1), True),
    ],
)
async def test_what_is_tried_again(error: Exception, again: bool) -> None:
    """Everything is, but a 4xx other than 408 and 429; an error that says so itself is believed."""
    calls = 0

    async def fail() -> None:
        nonlocal calls
        calls += 1
        raise error

    assert is_worth_retrying(error) is again
    with pytest.raises(type(error)) as caught:
        await with_retry(fail, QUICK)
    assert caught.value is error
    assert calls == (4 if again else 1)


def failing(*errors: Exception, result: object = "done") -> tuple[Callable[[], Awaitable[object]], list[int]]:
    """A call that raises each error once and then returns."""
    left = list(errors)
    calls: list[int] = []

    async def call() -> object:
        calls.append(len(left))
        if left:
            raise left.pop(0)
        return result

    return call, calls


async def test_the_result_is_passed_through_once_it_succeeds() -> None:
    """What the call returned comes back, after as many attempts as it took."""
    result = object()
    call, calls = failing(ValueError("1"), ValueError("2"), result=result)
    assert await with_retry(call, QUICK) is result
    assert len(calls) == 3


async def test_the_last_error_is_raised() -> None:
    """After ``max_retries`` repeats the error of the last attempt comes out, unchanged."""
    errors = [ValueError(str(n)) for n in range(10)]
    call, calls = failing(*errors)
    with pytest.raises(ValueError, match="3") as caught:
        await with_retry(call, QUICK)
    assert caught.value is errors[3]
    assert len(calls) == 4


async def test_no_repeats_means_one_call() -> None:
    """``max_retries=0`` calls once."""
    call, calls = failing(ValueError("once"))
    with pytest.raises(ValueError, match="once"):
        await with_retry(call, RetryOptions(max_retries=0))
    assert len(calls) == 1


async def test_a_final_error_ends_it_in_the_middle() -> None:
    """A 4xx after a 503 is not tried again."""
    call, calls = failing(api_error(503), api_error(404, retryable=False))
    with pytest.raises(CioBatchError) as caught:
        await with_retry(call, QUICK)
    assert isinstance(caught.value, ApiError)
    assert caught.value.status == 404
    assert len(calls) == 2


async def test_the_caller_may_decide_what_is_worth_it() -> None:
    """``retry_if`` replaces the rule."""
    call, calls = failing(ValueError("a"), KeyError("b"))
    with pytest.raises(KeyError):
        await with_retry(call, QUICK, retry_if=lambda error: isinstance(error, ValueError))
    assert len(calls) == 2


async def test_a_lambda_that_returns_a_coroutine_is_tried_again() -> None:
    """A plain function that gives an awaitable is awaited on each attempt."""
    call, calls = failing(ValueError())
    assert await with_retry(lambda: call(), QUICK) == "done"
    assert len(calls) == 2


class Counter:
    """Something that is called, and awaited."""

    def __init__(self) -> None:
        self.calls = 0

    async def __call__(self, step: int = 1) -> int:
        self.calls += step
        if self.calls < 3:
            raise OSError
        return self.calls

    @classmethod
    @with_retry(QUICK)
    async def named(cls) -> str:
        return cls.__name__


async def test_whatever_makes_a_coroutine_is_tried_again() -> None:
    """An object that is called, a partial, a bound method and a method of a class."""
    assert await with_retry(Counter(), QUICK) == 3
    assert await with_retry(QUICK)(Counter())(step=2) == 4
    assert await with_retry(functools.partial(Counter(), 2), QUICK) == 4
    assert await with_retry(Counter().__call__, QUICK) == 3
    assert await Counter.named() == "Counter"


async def call_nothing() -> None:
    """Do nothing."""


@pytest.mark.parametrize(
    ("use", "said"),
    [
        (lambda: with_retry(call_nothing()), r"takes a coroutine function, such as `lambda: .*`, got coroutine"),  # type: ignore[call-overload]
        (lambda: with_retry(3), "takes a coroutine function, .*, got int"),  # type: ignore[call-overload]
        (lambda: with_retry(call_nothing, 3), r"options must be RetryOptions\(...\), got int"),  # type: ignore[call-overload]
        (lambda: with_retry(call_nothing, retry_if=True), "retry_if must be a function, got bool"),  # type: ignore[call-overload]
        (lambda: with_retry(on_retry="print"), "on_retry must be a function, got str"),  # type: ignore[call-overload]
    ],
)
def test_a_wrong_argument_is_no_attempt(use: Callable[[], object], said: str) -> None:
    """What can never succeed is told at once, and not repeated."""
    with pytest.raises(TypeError, match=said):
        use()


async def test_a_retry_after_is_waited_for() -> None:
    """The wait before the repeat is at least what the service asked for."""
    loop = asyncio.get_running_loop()
    call, calls = failing(api_error(429, retry_after=0.05))
    began = loop.time()
    assert await with_retry(call, QUICK) == "done"
    assert loop.time() - began >= 0.05
    assert len(calls) == 2


async def get_by_aiohttp(url: str) -> object:
    async with aiohttp.ClientSession(raise_for_status=True) as session, session.get(url) as response:
        return response.status


async def get_by_requests(url: str) -> object:
    """Raise what httpx raises, too: an error whose ``response`` has status and headers."""

    def get() -> int:
        response = requests.get(url, timeout=10)
        response.raise_for_status()
        return response.status_code

    return await asyncio.to_thread(get)


@pytest.mark.parametrize("get", [get_by_aiohttp, get_by_requests])
async def test_errors_of_http_libraries_are_read(get: Callable[[str], Awaitable[object]]) -> None:
    """Their Retry-After is waited for, and their 4xx are not tried again."""
    told: list[RetryAttempt] = []
    busy = Say(503, headers={"Retry-After": "0.02"})
    async with Scripted(busy, Say(429, headers={"retry-after": "0.03"}), Say(503), Say()) as server:
        assert await with_retry(lambda: get(server.url), QUICK, on_retry=told.append) == 200
        assert [attempt.wait for attempt in told] == [0.02, 0.03, 0.001]
    async with Scripted(Say(404)) as server:
        with pytest.raises((aiohttp.ClientResponseError, requests.HTTPError), match="404"):
            await with_retry(lambda: get(server.url), QUICK)
        assert len(server.heard) == 1


async def test_a_retry_after_beyond_the_time_is_not_shortened() -> None:
    """Where a wait would last beyond ``max_elapsed`` the last error comes at once, instead of a repeat too early."""
    loop = asyncio.get_running_loop()
    error = api_error(429, retry_after=30.0)
    call, calls = failing(error)
    began = loop.time()
    with pytest.raises(ApiError) as caught:
        await with_retry(call, RetryOptions(base_delay=0.001, jitter=0.0, max_elapsed=0.2))
    assert caught.value is error
    assert len(calls) == 1
    assert loop.time() - began < 5


async def test_no_repeat_is_begun_after_the_time_is_over() -> None:
    """``max_elapsed`` ends the repeats long before their number does."""
    loop = asyncio.get_running_loop()
    call, calls = failing(*[ValueError(str(n)) for n in range(10_000)])
    began = loop.time()
    with pytest.raises(ValueError, match=r"\d"):
        await with_retry(call, RetryOptions(max_retries=9_999, base_delay=0.004, max_delay=0.004, max_elapsed=0.05))
    assert 1 < len(calls) <= 14
    assert loop.time() - began < 5


async def test_a_cancel_ends_the_wait_at_once() -> None:
    """A cancel during the wait is neither retried nor delayed."""
    failed = asyncio.Event()
    calls = 0

    async def fail() -> None:
        nonlocal calls
        calls += 1
        failed.set()
        raise ValueError

    task = asyncio.create_task(with_retry(fail, RetryOptions(base_delay=60.0, max_delay=60.0)))
    await failed.wait()
    task.cancel()
    done, _ = await asyncio.wait([task], timeout=5)
    assert done
    assert task.cancelled()
    assert calls == 1


async def test_a_cancel_ends_an_attempt_at_once() -> None:
    """A cancel during an attempt reaches the call and is not taken for a failure of it."""
    began = asyncio.Event()
    calls = 0

    async def hang() -> None:
        nonlocal calls
        calls += 1
        began.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(with_retry(hang, QUICK))
    await began.wait()
    task.cancel()
    done, _ = await asyncio.wait([task], timeout=5)
    assert done
    assert task.cancelled()
    assert calls == 1


# ------------------------------------------------------------------------------------------------- as a decorator


class Flaky:
    """Fails as often as it is told to."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.calls: list[tuple[object, ...]] = []

    def note(self, *arguments: object) -> None:
        self.calls.append(arguments)
        if len(self.calls) <= self.failures:
            raise api_error(503)


async def test_a_function_repeats_itself() -> None:
    """``@with_retry(options)`` keeps name, documentation and arguments, and each call has attempts of its own."""
    flaky = Flaky(failures=2)

    @with_retry(QUICK)
    async def fetch(page: int, *, size: str = "s") -> str:
        """Fetch a page."""
        flaky.note(page, size)
        return f"{page}{size}"

    assert (fetch.__name__, fetch.__doc__) == ("fetch", "Fetch a page.")
    assert inspect.iscoroutinefunction(fetch)
    assert await fetch(1, size="x") == "1x"
    assert flaky.calls == [(1, "x")] * 3
    flaky.failures = 9
    with pytest.raises(ApiError):
        await fetch(2)
    assert flaky.calls[3:] == [(2, "s")] * 4


async def test_a_bare_decorator_repeats_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """``@with_retry`` alone has the default options; functions and methods become what they were."""
    monkeypatch.setattr("cio_batch.retries.delay", lambda *_: 0.0)
    flaky, patient = Flaky(failures=2), Flaky(failures=3)

    @with_retry
    async def fetch(page: int) -> int:
        """Fetch a page."""
        flaky.note(page)
        return page

    class Shop:
        factor = 2

        @with_retry
        async def price(self, item: int) -> int:
            patient.note(item)
            return item * self.factor

    assert fetch.__doc__ == "Fetch a page."
    assert [await fetch(1), await fetch(page=2)] == [1, 2]
    assert flaky.calls == [(1,), (1,), (1,), (2,)]
    assert await Shop().price(5) == 10
    assert patient.calls == [(5,)] * 4
    assert await asyncio.gather(*[Shop().price(n) for n in range(3)]) == [0, 2, 4]
    assert await Shop.price(Shop(), 1) == 2


@pytest.mark.parametrize("decorate", [with_retry(), with_retry(options=QUICK), with_retry(retry_if=lambda _: True)])
async def test_a_decorator_may_be_made_in_any_way(decorate: Any) -> None:
    """Options, a rule and nothing at all make a decorator."""

    @decorate
    async def fetch(page: int) -> int:
        return page

    assert await fetch(7) == 7


async def test_a_function_alone_can_be_awaited_run_and_made_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """``with_retry(call)`` without options is awaited like any coroutine."""
    monkeypatch.setattr("cio_batch.retries.delay", lambda *_: 0.0)
    for use in (lambda it: it, asyncio.create_task, asyncio.ensure_future, lambda it: asyncio.wait_for(it, 5)):
        call, calls = failing(ValueError(), ValueError())
        assert await use(with_retry(call)) == "done"
        assert len(calls) == 3
    call, _ = failing()
    assert await asyncio.to_thread(lambda: asyncio.run(with_retry(call))) == "done"  # type: ignore[arg-type]


async def test_a_task_of_a_function_alone_can_be_cancelled() -> None:
    """A cancel reaches the attempt, and leaves nothing that was never awaited."""
    began = asyncio.Event()

    async def hang() -> None:
        began.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(with_retry(hang))
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with_retry(hang)
    gc.collect()


# -------------------------------------------------------------------------------------------------- the hook


async def test_each_repeat_is_told_before_its_wait() -> None:
    """``on_retry`` gets number, wait and error of each repeat, and nothing for the first and the last failure."""
    told: list[RetryAttempt] = []
    errors = [ValueError("0"), api_error(503, retry_after=0.002), ValueError("2"), ValueError("3")]
    call, _ = failing(*errors)
    with pytest.raises(ValueError, match="3"):
        await with_retry(call, QUICK, on_retry=told.append)
    assert [each.attempt for each in told] == [1, 2, 3]
    assert [each.error for each in told] == errors[:3]
    assert [each.wait for each in told] == [0.001, 0.002, 0.001]
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        told[0].attempt = 7  # type: ignore[misc]


async def test_a_hook_that_raises_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Its error is logged by type, without its text."""

    def broken(_: RetryAttempt) -> None:
        msg = "s3cr3t"
        raise RuntimeError(msg)

    call, calls = failing(ValueError())
    assert await with_retry(call, QUICK, on_retry=broken) == "done"
    assert len(calls) == 2
    assert "on_retry raised RuntimeError" in caplog.text
    assert "s3cr3t" not in caplog.text


async def test_the_deadline_of_a_decorated_function_begins_with_each_call() -> None:
    """``max_elapsed`` is counted from the first attempt of a call, not from the decoration."""
    flaky = Flaky(failures=10_000)

    @with_retry(RetryOptions(max_retries=9_999, base_delay=0.004, max_delay=0.004, jitter=0.0, max_elapsed=0.05))
    async def fetch() -> None:
        flaky.note()

    for _ in range(2):
        before = len(flaky.calls)
        with pytest.raises(ApiError):
            await fetch()
        assert 1 < len(flaky.calls) - before <= 14
