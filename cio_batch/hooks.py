"""What the user's hooks get, and how they are called so that they never hurt the tracker.

Rules:

1. A hook that raises is logged, by the type of its error alone: its text may hold content.
2. An asynchronous ``on_settled`` runs in a task of its own, held until it ends.
3. ``before_enqueue`` runs before encoding, in the caller; if it raises, the operation is dropped and counted, because
   a redaction that failed must not let the data out.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from typing import Any, TypeAlias, cast

import attrs
import orjson

from cio_batch.dead_letters import DeadLetter, OnDeadLetter
from cio_batch.operations import Draft, Operation
from cio_batch.verdicts import Rejection, Verdict

_logger = logging.getLogger(__name__)

_GRACE = 0.03  # seconds that a hook gets to end after its cancel


@attrs.frozen
class SettledOperation:
    """An operation that got its verdict.

    Attributes:
        verdict: What became of it.
        kind: ``"type.action"``, for example ``"person.event"``.
        body: Its final JSON bytes.
        reason: Why it was not delivered: the service's word, ``"status 503"``, ``"deadline"``, ``"overflow"``.
        field: The field that the service named, or ``""``.
        message: The service's explanation; it may quote content.
        status: The HTTP status behind the verdict, 0 for none.
        attempts: How many calls in a row it was part of at the end.
    """

    verdict: Verdict
    kind: str
    body: bytes = attrs.field(repr=False)
    reason: str = ""
    field: str = ""
    message: str = attrs.field(default="", repr=False)
    status: int = 0
    attempts: int = 0

    @property
    def payload(self) -> dict[str, Any]:
        """The operation as parsed JSON."""
        parsed: dict[str, Any] = orjson.loads(self.body)
        return parsed

    @property
    def id(self) -> str | None:
        """Its ULID, if its kind has one."""
        found = self.payload.get("id")
        return found if isinstance(found, str) else None


@attrs.frozen
class SettledChunk:
    """Operations of one call that got their verdicts together."""

    operations: tuple[SettledOperation, ...]


OnSettled: TypeAlias = Callable[[SettledChunk], Awaitable[None] | None]
BeforeEnqueue: TypeAlias = Callable[[Draft], Draft | None]


class _Tasks:
    """Tasks of hooks, held until they end."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def run(self, hook: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(hook)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def wait(self, timeout: float, besides: Collection[asyncio.Task[Any]]) -> None:
        loop = asyncio.get_running_loop()  # those of another one ended with it
        tasks = [task for task in self._tasks if task not in besides and task.get_loop() is loop]
        if not tasks:
            return
        _, running = await asyncio.wait(tasks, timeout=max(0.0, timeout))
        for task in running:
            task.cancel()
        if running:
            _logger.warning("%d %s hooks were cancelled at the deadline", len(running), self._name)
            await asyncio.wait(running, timeout=_GRACE)


class SettledHook:
    """Calls ``on_settled``."""

    def __init__(self, hook: OnSettled) -> None:
        self._hook = hook
        self._tasks = _Tasks("on_settled")

    def call(
        self,
        operations: Sequence[Operation],
        verdict: Verdict,
        rejections: Sequence[Rejection] | None,
        reason: str,
        status: int,
        attempts: int,
    ) -> None:
        """Tell the hook; must run in the loop of the tracker."""
        why = rejections or [Rejection(reason, status=status)] * len(operations)
        settled = tuple(
            SettledOperation(
                verdict,
                operation.kind,
                operation.body,
                rejection.reason,
                rejection.field,
                rejection.message,
                rejection.status,
                attempts,
            )
            for operation, rejection in zip(operations, why, strict=True)
        )
        try:
            result = self._hook(SettledChunk(settled))
        except Exception as error:  # noqa: BLE001 - Rule 1
            _logger.error("on_settled raised %s", type(error).__name__)
            return
        if inspect.isawaitable(result):
            self._tasks.run(_finish(result, "on_settled"))

    async def wait(self, timeout: float, besides: Collection[asyncio.Task[Any]] = ()) -> None:
        """Let running hooks finish for at most ``timeout`` seconds, then cancel them.

        Args:
            timeout: Seconds.
            besides: Hooks that wait for the caller, and so are not waited for.
        """
        await self._tasks.wait(timeout, besides)


class DeadLetterHook:
    """Calls ``on_dead_letter``, one letter after the other."""

    def __init__(self, hook: OnDeadLetter) -> None:
        self._hook = hook
        self._tasks = _Tasks("on_dead_letter")

    def call(self, letters: Sequence[DeadLetter]) -> None:
        """Tell the hook; must run in the loop of the tracker."""
        if inspect.iscoroutinefunction(self._hook):
            self._tasks.run(self._tell(letters))
            return
        for index, letter in enumerate(letters):
            result = self._call(letter)
            if inspect.isawaitable(result):  # a plain function that gives a coroutine: those behind wait for it
                self._tasks.run(self._tell(letters[index + 1 :], result))
                return

    def _call(self, letter: DeadLetter) -> Awaitable[None] | None:
        try:
            return self._hook(letter)
        except Exception as error:  # noqa: BLE001 - Rule 1
            _logger.error("on_dead_letter raised %s", type(error).__name__)
            return None

    async def _tell(self, letters: Sequence[DeadLetter], first: Awaitable[None] | None = None) -> None:
        if first is not None:
            await _finish(first, "on_dead_letter")
        for letter in letters:
            result = self._call(letter)
            if inspect.isawaitable(result):
                await _finish(result, "on_dead_letter")

    async def wait(self, timeout: float, besides: Collection[asyncio.Task[Any]] = ()) -> None:
        """Let running hooks finish; as :meth:`SettledHook.wait`."""
        await self._tasks.wait(timeout, besides)


async def _finish(result: Awaitable[None], name: str) -> None:
    try:
        await result
    except Exception as error:  # noqa: BLE001 - Rule 1
        _logger.error("%s raised %s", name, type(error).__name__)


def redact(hook: BeforeEnqueue, draft: Draft) -> Draft | None:
    """Let ``before_enqueue`` change a draft; return it, or ``None`` when it is to be dropped."""
    try:
        changed = cast("Any", hook(draft))  # a user's hook returns what it likes
    except Exception as error:  # noqa: BLE001 - Rule 1
        _logger.error("before_enqueue raised %s; the operation is dropped", type(error).__name__)
        return None
    if changed is None or isinstance(changed, Draft):
        return changed
    _logger.error("before_enqueue returned %s instead of a Draft; the operation is dropped", type(changed).__name__)
    return None
